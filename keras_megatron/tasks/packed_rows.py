"""Running a task on many samples: packed rows in, a result for each sample out."""

from collections.abc import Mapping

import keras
import numpy as np

from keras_megatron.layers.choices import ABSENT
from keras_megatron.layers.token_inputs import INPUTS
from keras_megatron.packing import PackedRows, RowBatches, round_up_rows

_WORTHWHILE = 0.9  # of the places of a batch may be tokens' and padding, or packing is left out
_PLACES = 2**26  # that are held at once


def run(task, inputs: Mapping[str, np.ndarray], batch_size: int):
    """Return what a task makes of ids, in its rows' order, as float32 arrays.

    Args:
        task: a `MegatronBertTask`.
        inputs: its inputs by name, each (rows, ...).
        batch_size: rows a step.
    """
    inputs = {name: np.asarray(array) for name, array in inputs.items()}
    packed = _Packed.make(task, inputs)
    if packed is None:
        return _run_rows(task, inputs, batch_size)
    batches = packed.batches(batch_size)
    return packed.unpack([_predict(task, batch) for (batch,) in batches])


def predict_packed(task, x, batch_size: int, **kwargs):
    """Do what `keras.Model.predict` does with raw samples.

    Args:
        task: a `MegatronBertTask` with a preprocessor.
        x: raw samples.
        batch_size: samples a step.
        **kwargs: of `keras.Model.predict`.
    """
    results, held = [], []

    def finish():
        inputs = {name: np.concatenate([part[name] for part in held]) for name in held[0]}
        packed = _Packed.make(task, inputs)
        held.clear()
        if packed is None:
            batches = _Rows(inputs, batch_size)
            results.append(keras.Model.predict(task, batches, **kwargs))
        else:
            batches = packed.batches(batch_size)
            results.append(packed.unpack([keras.Model.predict(task, batches, **kwargs)]))

    for batch in task.preprocessor.dataset(x, batch_size=batch_size):
        held.append(batch[0] if isinstance(batch, tuple) else batch)
        if sum(part["token_ids"].size for part in held) > _PLACES:
            finish()
    if held:
        finish()
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *results)


class _Packed:
    """A task's inputs in packed rows."""

    def __init__(self, task, inputs: Mapping[str, np.ndarray], plan: PackedRows):
        self._task, self._inputs, self._plan = task, inputs, plan

    @classmethod
    def make(cls, task, inputs: Mapping[str, np.ndarray]) -> "_Packed | None":
        """Pack rows, (rows, sequence) or (rows, choices, sequence); None if that gains nothing.

        Also None if a mask has holes, there is an input that has no place in packed rows, or a
        distribution decides where rows go.
        """
        if set(inputs) - {*INPUTS, "mask_positions"} or keras.distribution.distribution():
            return None
        mask = inputs["padding_mask"].reshape(-1, inputs["padding_mask"].shape[-1]) != 0
        lengths = mask.sum(axis=1)
        if mask.size == 0 or not lengths.any():
            return None
        if (mask[:, 1:] & ~mask[:, :-1]).any():
            return None
        plan = PackedRows.plan(lengths)
        if plan.rows * plan.row_length > _WORTHWHILE * mask.size:
            return None
        return cls(task, inputs, plan)

    def batches(self, batch_size: int) -> RowBatches:
        """Return batches of rows, as many as `batch_size` samples fill."""
        flat = {name: self._inputs[name].reshape(len(self._plan.lengths), -1) for name in INPUTS}
        packed = self._plan.inputs(flat)
        if "mask_positions" in self._inputs:
            laid, self._masks = self._plan.lay_positions(self._inputs["mask_positions"])
            packed["mask_positions"] = laid
        a_sample = len(self._plan.lengths) // len(self._inputs["token_ids"])  # choices
        return RowBatches(packed, self._plan.rows_a_step(batch_size * a_sample))

    def unpack(self, parts: list):
        """Return the outputs of each sample, from those of batches of rows."""
        outputs = keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)
        if isinstance(outputs, dict):
            kinds = self._task.outputs_for
            return {name: self._unpack(array, kinds[name]) for name, array in outputs.items()}
        return self._unpack(outputs, self._task.outputs_for)

    def _unpack(self, output: np.ndarray, kind: str) -> np.ndarray:
        if kind == "tokens":
            return self._plan.tokens_of(output, self._inputs["token_ids"].shape[-1])
        if kind == "masks":
            return output[self._plan.row[:, None], self._masks]
        of_documents = self._plan.vectors_of(output)
        choices = self._inputs["token_ids"].shape[1:-1]
        if not choices:
            return of_documents
        there = self._plan.lengths > 0
        of_documents = np.where(there, of_documents, np.asarray(ABSENT, output.dtype))
        return of_documents.reshape(-1, *choices)


class _Rows(RowBatches):
    """Batches of inputs as they are."""

    def __getitem__(self, index: int) -> tuple:
        """Return a batch; the last one may be smaller."""
        rows = slice(index * self._batch_size, (index + 1) * self._batch_size)
        return ({name: array[rows] for name, array in self._inputs.items()},)


def _run_rows(task, inputs: Mapping[str, np.ndarray], batch_size: int):
    """Run rows as they are; a smaller last batch is filled up, so that few shapes are compiled."""
    parts = []
    for start in range(0, len(inputs["token_ids"]), batch_size):
        count = min(batch_size, len(inputs["token_ids"]) - start)
        padded = min(round_up_rows(count), batch_size)
        index = start + np.minimum(np.arange(padded), count - 1)
        outputs = _predict(task, {name: array[index] for name, array in inputs.items()})
        parts.append(keras.tree.map_structure(lambda array, n=count: array[:n], outputs))
    return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)


def _predict(task, batch: dict):
    outputs = keras.Model.predict_on_batch(task, batch)
    return keras.tree.map_structure(lambda array: np.asarray(array).astype("float32"), outputs)
