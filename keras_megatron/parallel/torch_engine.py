"""Model parallelism on PyTorch: one process a device, and DTensor."""

import contextlib
from collections.abc import Iterator

import keras.src.backend
from keras.src.distribution import distribution_lib
from torch.distributed.tensor.experimental import implicit_replication

from keras_megatron.parallel import torch_devices
from keras_megatron.parallel.engines import Engine
from keras_megatron.parallel.patching import patched
from keras_megatron.parallel.torch_ops import sharded_operations
from keras_megatron.parallel.torch_saving import files_written_once
from keras_megatron.parallel.torch_steps import sharded_batches
from keras_megatron.parallel.torch_variables import sharded_variables


class TorchEngine(Engine):
    """Gives Keras what it has for JAX only; where it has its own for PyTorch, nothing."""

    more_devices = (
        "give other numbers, or start as many processes, `torchrun --nproc-per-node N script.py`"
    )

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Connect the processes, and give Keras devices, meshes and layouts."""
        if keras.src.backend.distribution_lib is torch_devices:
            raise ValueError("leave the model_parallel(...) that is active before another one")
        if keras.src.backend.distribution_lib is not None:  # a later Keras
            yield
            return
        torch_devices.initialize()
        torch_devices.share_randomness()
        with (
            patched(keras.src.backend, distribution_lib=torch_devices),
            patched(distribution_lib, distribution_lib=torch_devices),
        ):
            yield

    @contextlib.contextmanager
    def active(self, distribution) -> Iterator[None]:
        """Have variables and batches laid out as a distribution says."""
        if keras.src.backend.distribution_lib is not torch_devices:
            yield
            return
        _ = distribution.device_mesh.backend_mesh  # made here, by all processes at once
        with (
            implicit_replication(),
            sharded_variables(distribution),
            sharded_operations(),
            sharded_batches(distribution),
            files_written_once(),
        ):
            yield
