"""What Keras lacks on JAX where several processes share a mesh; one process needs nothing."""

import contextlib
from collections.abc import Iterator

import jax

from keras_megatron.parallel.engines import Engine
from keras_megatron.parallel.jax_engine import processes
from keras_megatron.parallel.jax_engine.arrays import global_arrays
from keras_megatron.parallel.jax_engine.steps import same_batches
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
        if jax.process_count() == 1:
            yield
            return
        with (
            global_arrays(),
            same_batches(),
            files_written_once(jax.process_index(), processes.barrier),
        ):
            yield
