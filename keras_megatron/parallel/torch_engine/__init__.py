"""Model parallelism on PyTorch: one process a device, and DTensor."""

import contextlib
from collections.abc import Iterator

import keras
import keras.src.backend
import torch.distributed as dist
from keras.src.distribution import distribution_lib
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental import implicit_replication

from keras_megatron.parallel.engine_base import Engine
from keras_megatron.parallel.filling import filled_prompts
from keras_megatron.parallel.saving import files_written_once
from keras_megatron.parallel.torch_engine import devices
from keras_megatron.parallel.torch_engine.ops import sharded_operations
from keras_megatron.parallel.torch_engine.steps import sharded_batches
from keras_megatron.parallel.torch_engine.variables import sharded_variables
from keras_megatron.patching import patched


class TorchEngine(Engine):
    """Gives Keras what it has for JAX only; where it has its own for PyTorch, nothing."""

    more_devices = (
        "give other numbers, or start as many processes, `torchrun --nproc-per-node N script.py`"
    )

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Connect the processes, and give Keras devices, meshes and layouts."""
        if keras.src.backend.distribution_lib is devices:
            raise ValueError("leave the model_parallel(...) that is active before another one")
        if keras.src.backend.distribution_lib is not None:  # a later Keras
            yield
            return
        devices.initialize()
        devices.share_randomness()
        with (
            patched(keras.src.backend, distribution_lib=devices),
            patched(distribution_lib, distribution_lib=devices),
        ):
            yield

    @contextlib.contextmanager
    def active(self, distribution) -> Iterator[None]:
        """Have variables and batches laid out as a distribution says."""
        if keras.src.backend.distribution_lib is not devices:
            yield
            return
        _ = distribution.device_mesh.backend_mesh  # made here, by all processes at once
        with (
            implicit_replication(),
            sharded_variables(distribution),
            sharded_operations(),
            sharded_batches(distribution),
            filled_prompts(distribution),
            files_written_once(devices.process_id(), dist.barrier),
        ):
            yield

    def local_shape(self, variable: keras.Variable) -> tuple[int, ...]:
        """Return the shape of what this process holds of a variable, which may be all of it."""
        value = variable.value
        return tuple(value.to_local().shape if isinstance(value, DTensor) else value.shape)
