"""Several processes on JAX: how they find each other, and whether they do the same."""

import functools
import os
import random

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR
from keras.src.utils import rng_utils

from keras_megatron.parallel.same_data import checksum
from keras_megatron.parallel.waiting import waiting_time
from keras_megatron.patching import patched

# Keras's variable, beside KERAS_DISTRIBUTION_JOB_ADDRESSES and KERAS_DISTRIBUTION_PROCESS_ID.
NUM_PROCESSES = "KERAS_DISTRIBUTION_NUM_PROCESSES"


def initialize() -> None:
    """Connect this process with the others that Keras's environment variables name, once.

    As `keras.distribution.initialize()`, but a process that is lost ends the others within
    `KERAS_MEGATRON_TIMEOUT` seconds, instead of JAX's 100.

    Raises:
        ValueError: JAX was used before.
    """
    if jax.distributed.is_initialized() or NUM_PROCESSES not in os.environ:
        return
    seconds = max(1, int(waiting_time().total_seconds()))
    connect = functools.partial(
        jax.distributed.initialize,
        heartbeat_timeout_seconds=seconds,
        shutdown_timeout_seconds=seconds,
    )
    try:
        with patched(jax.distributed, initialize=connect):
            keras.distribution.initialize()
    except RuntimeError as error:
        if "before" not in str(error):
            raise
        raise ValueError(
            f"{NUM_PROCESSES}={os.environ[NUM_PROCESSES]} processes cannot be connected once JAX "
            "is in use: enter model_parallel(...), or call keras.distribution.initialize(), first"
        ) from error


def barrier() -> None:
    """Wait until every process is here."""
    multihost_utils.sync_global_devices("keras_megatron")


def share_randomness() -> None:
    """Have the processes draw the same random numbers, process 0's seed if they differ.

    Weights that start from other numbers, or batches that are drawn with others, would be those of
    another model on each process.
    """
    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    state = b"" if generator is None else np.asarray(generator.state.value).tobytes()
    seed = rng_utils.get_random_seed()  # which the generator will start from, if there is none yet
    states = [repr(random.getstate()), repr(np.random.get_state()), repr(seed)]
    if not have_same([np.frombuffer("".join(states).encode() + state, np.uint8)]):
        seed = multihost_utils.broadcast_one_to_all(np.uint32(random.randrange(2**31)))
        keras.utils.set_random_seed(int(seed))


def have_same(arrays: list) -> bool:
    """Say whether each process has the same arrays, or None; each must call this."""
    arrays = [np.ascontiguousarray(array) for array in arrays if array is not None]
    number = checksum(
        (f"{array.shape} {array.dtype}", array.reshape(-1).view(np.uint8)) for array in arrays
    )
    numbers = multihost_utils.process_allgather(np.uint32(number))
    return bool((numbers == number).all())
