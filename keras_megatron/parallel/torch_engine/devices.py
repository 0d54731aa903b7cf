"""Processes, meshes and layouts on PyTorch: the module that Keras's distribution API asks.

Keras has one such module a backend, `keras.src.backend.distribution_lib`, and none for PyTorch as
of 3.15. The names of the functions without a docstring's "Args" are Keras's.
"""

import os
import random
from typing import NamedTuple

import keras
import numpy as np
import torch
import torch.distributed as dist
from keras.src.backend.common import global_state
from keras.src.backend.torch import core
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.tensor import DeviceMesh, DTensor, Placement, Replicate, Shard

from keras_megatron.parallel.waiting import waiting_time


class Layout(NamedTuple):
    """What DTensor calls a layout: of each axis of a mesh, which axis of a tensor it splits."""

    mesh: DeviceMesh
    placements: tuple[Placement, ...]


def device_type() -> str:
    """Return what PyTorch calls the kind of device that Keras uses."""
    return torch.device(core.get_device()).type


def initialize(job_addresses=None, num_processes=None, process_id=None) -> None:
    """Connect this process with the others that `torchrun` started, once.

    Args:
        job_addresses: host:port of process 0, before any comma; the environment's if None.
        num_processes: how many there are; the environment's if None.
        process_id: which one this is; the environment's if None.
    """
    if dist.is_initialized():
        return
    if job_addresses:
        host, _, port = job_addresses.split(",")[0].partition(":")
        os.environ["MASTER_ADDR"] = host
        os.environ["MASTER_PORT"] = port or os.environ.get("MASTER_PORT", "29500")
    if num_processes is not None:
        os.environ["WORLD_SIZE"] = str(num_processes)
    if process_id is not None:
        os.environ["RANK"] = str(process_id)
    # What is no matter of the devices, such as comparing batches, goes over the network.
    backend = "cpu:gloo,cuda:nccl" if device_type() == "cuda" else "gloo"
    if device_type() == "cuda":
        _use_own_gpu()
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=waiting_time())
    else:  # started without torchrun: the only process
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def _use_own_gpu() -> None:
    """Have this process use the GPU of its number among the processes of this machine.

    Raises:
        ValueError: there are fewer GPUs than processes.
    """
    process, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if process >= gpus:
        raise ValueError(
            f"process {process} of this machine has no GPU, because there are {gpus}: start fewer "
            "processes, or set KERAS_TORCH_DEVICE=cpu"
        )
    torch.cuda.set_device(process)


def share_randomness() -> None:
    """Have every process go on with process 0's random numbers.

    Weights that start from other numbers, or batches that are drawn with others, would train
    replicas apart in silence.
    """
    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    state = None if generator is None else generator.state.numpy()
    states = [random.getstate(), np.random.get_state(), torch.get_rng_state(), state]
    dist.broadcast_object_list(states, src=0)
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    if states[3] is None:
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, None)
    else:
        keras.src.random.seed_generator.global_seed_generator().state.assign(states[3])


def num_processes() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def process_id() -> int:
    """Return which process this is."""
    return dist.get_rank() if dist.is_initialized() else 0


def list_devices(device_type: str | None = None) -> list[str]:
    """Return the devices of all processes, one each."""
    kind = device_type or ("gpu" if globals()["device_type"]() == "cuda" else "cpu")
    return [f"{kind.lower()}:{index}" for index in range(num_processes())]


def get_device_count(device_type: str | None = None) -> int:
    """Return the number of devices."""
    return num_processes()


def _split_axes(device_mesh: keras.distribution.DeviceMesh) -> list[tuple[str, int]]:
    """Return names and sizes of the axes that split anything; at least one axis.

    How DTensor plans an operation costs a power of their number.
    """
    axes = list(zip(device_mesh.axis_names, device_mesh.shape, strict=True))
    return [(name, size) for name, size in axes if size > 1] or axes[-1:]


def _to_backend_mesh(device_mesh: keras.distribution.DeviceMesh) -> DeviceMesh:
    names, sizes = zip(*_split_axes(device_mesh), strict=True)
    devices = [str(name).lower().replace("cuda", "gpu") for name in device_mesh.devices.flatten()]
    if sorted(devices) != sorted(list_devices()):
        raise ValueError(
            f"the devices {devices} are not those of the processes, {list_devices()}: name each of "
            "them once, or leave devices out"
        )
    ranks = [int(name.split(":")[-1]) for name in devices]
    mesh = DeviceMesh(device_type(), torch.tensor(ranks).reshape(sizes), mesh_dim_names=names)
    for group in mesh.get_all_groups():
        _set_pg_timeout(waiting_time(), group)
    return mesh


def _to_backend_layout(layout: keras.distribution.TensorLayout) -> Layout:
    mesh = layout.device_mesh
    where = {name: axis for axis, name in enumerate(layout.axes) if name is not None}
    placements = tuple(
        Shard(where[name]) if name in where and size > 1 else Replicate()
        for name, size in _split_axes(mesh)
    )
    return Layout(mesh.backend_mesh, placements)


def backend_layout(layout) -> Layout:
    """Return a `keras.distribution.TensorLayout` as PyTorch's."""
    return layout if isinstance(layout, Layout) else layout.backend_layout


def own_share(tensor: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Return this process's part of a tensor that it has all of; a view."""
    for axis, placement in enumerate(layout.placements):
        if placement.is_shard():
            size = tensor.shape[placement.dim] // layout.mesh.size(axis)
            start = layout.mesh.get_local_rank(axis) * size
            tensor = tensor.narrow(placement.dim, start, size)
    return tensor


def from_share(share: torch.Tensor, layout: Layout, like: DTensor | None = None) -> DTensor:
    """Return the tensor that this process has a part of: parts are equal, or as those of `like`."""
    shape = {} if like is None else {"shape": like.shape, "stride": like.stride()}
    return DTensor.from_local(share, layout.mesh, layout.placements, run_check=False, **shape)


def distribute_tensor(tensor, layout):
    """Bring a layer's output to a layout, and with it the gradient to what it was before."""
    if not isinstance(tensor, torch.Tensor) or tensor.is_meta:  # shapes are being inferred
        return tensor
    layout = backend_layout(layout)
    whole = (Replicate(),) * layout.mesh.ndim
    if not isinstance(tensor, DTensor):
        tensor = from_share(tensor, Layout(layout.mesh, whole))
    elif any(type(placement).__name__ == "_MaskPartial" for placement in tensor.placements):
        # A lookup in a split table must be summed before it is sliced (an IndexError in 2.13).
        placements = [Replicate() if p.is_partial() else p for p in tensor.placements]
        tensor = tensor.redistribute(layout.mesh, placements)
    # Not skipped where nothing changes: it is what fixes the gradient's layout.
    return tensor.redistribute(layout.mesh, layout.placements)


def distribute_data_input(tensor, layout, batch_dim_name=None):
    """Return the batch that this process, like each other one, has all of, split."""
    if isinstance(tensor, DTensor):
        return tensor
    layout = backend_layout(layout)
    return from_share(own_share(tensor, layout), layout)
