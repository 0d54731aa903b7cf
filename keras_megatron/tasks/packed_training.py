"""Batches of samples in packed rows, to train on and to evaluate."""

from collections.abc import Mapping

import grain
import keras
import numpy as np

from keras_megatron.layers.token_inputs import INPUTS
from keras_megatron.packing import PackedRows, length_for_all
from keras_megatron.tasks.packed_rows import WORTHWHILE, can_be_packed

_MASKS = 32  # numbers of masks are multiples of it, so that a compiled backend sees few shapes


def pack_batches(task, batches: grain.MapDataset) -> grain.MapDataset:
    """Lay the samples of each batch into rows, if that gains something.

    A batch keeps its samples, and its loss is the mean over the same labels. It is left as it is if
    the loss looks at padding, if a distribution decides where rows go, or if outputs are for tokens
    or masks and loss or metrics are not the task's own: they may look at shapes, or at samples.

    Args:
        task: a `MegatronBertTask`.
        batches: of `(x, y)` or `(x, y, sample_weight)`, as its preprocessor makes them.
    """
    if not task.packs_training or not len(batches) or keras.distribution.distribution():
        return batches
    kinds = task.outputs_for
    if kinds != "documents" and not (task.has_default_loss() and task.has_measures_of_elements()):
        return batches
    first, *_ = keras.utils.unpack_x_y_sample_weight(batches[0])
    if not can_be_packed(first):
        return batches
    pack = _Pack(kinds, length_for_all(first["token_ids"].shape[-1]), task.jit_compile)
    packed, *_ = keras.utils.unpack_x_y_sample_weight(pack.map(batches[0]))
    if packed["token_ids"].size > WORTHWHILE * first["token_ids"].size:
        return batches
    return batches.map(pack)


class _Pack(grain.transforms.Map):
    """Packs a batch."""

    def __init__(self, kinds: str | Mapping[str, str], row_length: int | None, is_compiled: bool):
        self._kinds, self._row_length = kinds, row_length
        self._is_compiled = is_compiled  # for each shape

    def map(self, element: tuple) -> tuple:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(element)
        x = {name: np.asarray(array) for name, array in x.items()}
        lengths = (x["padding_mask"] != 0).sum(axis=-1)
        plan = PackedRows.plan(lengths.ravel(), self._row_length)
        if self._is_compiled:
            plan = plan.rounded()
        inputs = plan.inputs({name: x[name].reshape(lengths.size, -1) for name in INPUTS})
        if lengths.ndim == 2:  # of choices
            documents = np.arange(lengths.size, dtype="int32").reshape(lengths.shape)
            inputs["choice_documents"] = np.where(lengths > 0, documents, -1)
        if not isinstance(self._kinds, Mapping):
            y, sample_weight = self._labels(self._kinds, plan, inputs, x, y, sample_weight)
            return keras.utils.pack_x_y_sample_weight(inputs, y, sample_weight)
        labels, weights = {}, {}
        for name, kind in self._kinds.items():
            if name in y:
                of_output = y[name], sample_weight[name]
                labels[name], weights[name] = self._labels(kind, plan, inputs, x, *of_output)
        return inputs, labels, weights

    @staticmethod
    def _labels(kind: str, plan: PackedRows, inputs: dict, x: dict, y, weight) -> tuple:
        """Return labels and weights as the outputs for packed rows are; masks go into `inputs`."""
        if kind == "documents":
            return y, weight
        if kind == "tokens":
            return plan.lay(np.asarray(y), y.dtype), plan.lay(np.asarray(weight), "float32")
        there = np.asarray(weight) > 0
        parts = plan.positions(x["mask_positions"])[there], np.asarray(y)[there], weight[there]
        padding = -(-max(1, there.sum()) // _MASKS) * _MASKS - there.sum()
        positions, y, weight = (np.pad(part, (0, padding)) for part in parts)
        inputs["mask_positions"] = positions.astype("int32")
        return y, weight
