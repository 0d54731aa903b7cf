"""Batches of a training step: the same on each process, of which each one takes its share."""

import contextlib
import functools
from collections.abc import Iterator

import keras
import torch
import torch.distributed as dist
from keras.src.backend.torch import core
from keras.src.backend.torch.trainer import TorchTrainer

from keras_megatron.parallel.batches import cut, filled_up
from keras_megatron.parallel.same_data import checksum, other_batch
from keras_megatron.parallel.torch_engine.devices import distribute_data_input
from keras_megatron.parallel.torch_engine.variables import whole
from keras_megatron.patching import patched


@contextlib.contextmanager
def sharded_batches(distribution) -> Iterator[None]:
    """Have the steps of training, evaluation and prediction split their batch."""

    def splits(step):
        @functools.wraps(step)
        def step_here(self, data):
            # What is returned is whole: Keras looks at predictions in a thread of its own, where
            # putting them together would fall between this thread's exchanges of data.
            data = _split(_tensors(data), distribution)
            return keras.tree.map_structure(whole, step(self, data))

        return step_here

    def predicts(step):
        step_of_equal_parts = splits(step)

        @functools.wraps(step)
        def step_here(self, data):
            devices = distribution.axis_size(distribution.batch_dim_name)
            data, samples = filled_up(_tensors(data), devices)
            return cut(step_of_equal_parts(self, data), samples)

        return step_here

    with patched(
        TorchTrainer,
        train_step=splits(TorchTrainer.train_step),
        test_step=splits(TorchTrainer.test_step),
        predict_step=predicts(TorchTrainer.predict_step),
    ):
        yield


def _tensors(data):
    return keras.tree.map_structure(
        lambda leaf: None if leaf is None else core.convert_to_tensor(leaf), data
    )


def _split(tensors, distribution):
    layouts = keras.tree.map_structure(
        lambda leaf: None if leaf is None else distribution.get_data_layout(leaf.shape), tensors
    )
    _check_same(keras.tree.flatten(tensors))
    return keras.tree.map_structure(
        lambda leaf, layout: None if leaf is None else distribute_data_input(leaf, layout),
        tensors,
        layouts,
    )


def _check_same(tensors: list) -> None:
    """Refuse batches that differ: their gradients would be summed as if they were of one batch.

    Raises:
        ValueError: as said.
    """
    if dist.get_world_size() == 1:
        return
    number = checksum(
        (
            f"{tuple(tensor.shape)} {tensor.dtype}",
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(),
        )
        for tensor in tensors
        if tensor is not None
    )
    extremes = torch.tensor([number, -number], device=_collective_device())
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    highest, lowest = extremes.tolist()
    if highest != -lowest:
        raise other_batch(dist.get_rank())


def _collective_device() -> str:
    """Return a device whose tensors the processes can exchange; the CPU if possible."""
    on_cpu = torch.device("cpu") in dist.group.WORLD._device_types
    return "cpu" if on_cpu else core.get_device()
