"""What Keras lacks on JAX: several processes that share a mesh, and sequence parallelism."""

import contextlib
from collections.abc import Iterator

import jax
import keras

from keras_megatron.parallel.engine_base import Engine
from keras_megatron.parallel.filling import filled_batches, filled_prompts
from keras_megatron.parallel.jax_engine import processes
from keras_megatron.parallel.jax_engine.arrays import global_arrays
from keras_megatron.parallel.jax_engine.sequence import summed_before_split
from keras_megatron.parallel.jax_engine.steps import any_batches, same_batches
from keras_megatron.parallel.saving import files_written_once


class JaxEngine(Engine):
    """Connects processes, and has each do with the same data its part of what one would do."""

    more_devices = (
        "give other numbers; on a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=N makes N; "
        "KERAS_DISTRIBUTION_NUM_PROCESSES and the like connect processes"
    )

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Connect the processes that the environment names."""
        processes.initialize()
        if jax.process_count() > 1:
            processes.share_randomness()
        yield

    @contextlib.contextmanager
    def active(self, distribution) -> Iterator[None]:
        """Have data given, and files written, as on one process; each process calls the same."""
        with contextlib.ExitStack() as stack:
            if jax.process_count() > 1:
                stack.enter_context(global_arrays())
                stack.enter_context(same_batches())
                write = files_written_once(jax.process_index(), processes.barrier)
                stack.enter_context(write)
            stack.enter_context(summed_before_split(distribution))
            stack.enter_context(any_batches(distribution))
            stack.enter_context(filled_batches(distribution))
            stack.enter_context(filled_prompts(distribution))
            yield

    def local_shape(self, variable: keras.Variable) -> tuple[int, ...]:
        """Return the shape of what a device holds of a variable, which may be all of it."""
        return tuple(variable.value.addressable_shards[0].data.shape)
