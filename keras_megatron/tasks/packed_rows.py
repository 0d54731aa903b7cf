"""Running a task on many samples: packed rows in, a result for each sample out."""

import contextlib
from collections.abc import Mapping

import keras
import numpy as np

from keras_megatron.layers.choices import ABSENT
from keras_megatron.layers.kernels import frozen_weights
from keras_megatron.layers.token_inputs import INPUTS
from keras_megatron.packing import PackedRows, round_up, rows_of_shape
from keras_megatron.tasks.kept_weights import one_at_a_time

WORTHWHILE = 0.9  # of the places of a batch may be in packed rows, or packing is left out
_PLACES = 2**26  # that are held at once
_MANY_TOKENS = 4096  # for which weights are worth another copy


def run(task, inputs: Mapping[str, np.ndarray], batch_size: int):
    """Return what a task makes of ids, in its rows' order, as float32 arrays.

    Args:
        task: a `MegatronBertTask`.
        inputs: its inputs by name, each (rows, ...).
        batch_size: rows a step.
    """
    steps = _make_steps(task, {n: np.asarray(array) for n, array in inputs.items()}, batch_size)

    def predict(index: int):
        batch = steps[index][0]
        with one_at_a_time():
            outputs = keras.Model.predict_on_batch(task, batch)
        return keras.tree.map_structure(lambda x: np.asarray(x).astype("float32"), outputs)

    with _frozen_if_it_pays(inputs):
        return steps.results([predict(index) for index in range(len(steps))])


def predict(task, x, batch_size: int, **kwargs):
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
        held.clear()
        steps = _make_steps(task, inputs, batch_size)
        with _frozen_if_it_pays(inputs):
            outputs = keras.Model.predict(task, steps, **kwargs)
        results.append(steps.results(steps.split(outputs)))

    for batch in task.preprocessor.dataset(x, batch_size=batch_size):
        held.append(batch[0] if isinstance(batch, tuple) else batch)
        if sum(part["token_ids"].size for part in held) > _PLACES:
            finish()
    if held:
        finish()
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *results)


def _frozen_if_it_pays(inputs: Mapping[str, np.ndarray]) -> contextlib.AbstractContextManager:
    if np.count_nonzero(inputs["padding_mask"]) < _MANY_TOKENS:
        return contextlib.nullcontext()
    return frozen_weights()


def can_be_packed(inputs: Mapping[str, np.ndarray]) -> bool:
    """Say whether all inputs have a place in packed rows."""
    return not set(inputs) - {*INPUTS, "mask_positions"}


def _make_steps(task, inputs: dict[str, np.ndarray], batch_size: int) -> "_RowSteps":
    """Pack inputs, (rows, sequence) or (rows, choices, sequence), if that gains something.

    They are left as they are if a mask has holes, a prediction is asked for padding, there is an
    input that has no place in packed rows, or a distribution decides where rows go.
    """
    mask = inputs["padding_mask"].reshape(-1, inputs["padding_mask"].shape[-1]) != 0
    has_holes = (mask[:, 1:] & ~mask[:, :-1]).any()
    is_placed = keras.distribution.distribution()
    if has_holes or is_placed or not mask.any() or not can_be_packed(inputs):
        return _RowSteps(inputs, batch_size)
    lengths = mask.sum(axis=1)
    if "mask_positions" in inputs and (inputs["mask_positions"] >= lengths[:, None]).any():
        return _RowSteps(inputs, batch_size)
    plan = PackedRows.plan(lengths)
    if plan.rows * plan.row_length > WORTHWHILE * mask.size:
        return _RowSteps(inputs, batch_size)
    return _PackedSteps(task, inputs, plan, batch_size)


class _RowSteps(keras.utils.PyDataset):
    """Batches of inputs as they are; the last one is filled up, so that few shapes are compiled."""

    def __init__(self, inputs: dict[str, np.ndarray], batch_size: int):
        super().__init__()
        self._inputs, self._batch_size = inputs, batch_size
        self._count = len(inputs["token_ids"])

    def __len__(self) -> int:
        return -(-self._count // self._batch_size)

    def __getitem__(self, index: int) -> tuple:
        first = index * self._batch_size
        last = min(first + self._batch_size, self._count) - 1
        padded = min(rows_of_shape(1 + last - first), self._batch_size)
        rows = np.minimum(first + np.arange(padded), last)
        return ({name: array[rows] for name, array in self._inputs.items()},)

    def split(self, outputs) -> list:
        """Return the outputs of each batch, from those of all, which lie one behind the other."""
        return [outputs]

    def results(self, parts: list):
        """Return the outputs of each sample, from those of batches."""
        return keras.tree.map_structure(
            lambda *arrays: np.concatenate(arrays)[: self._count], *parts
        )


class _PackedSteps(keras.utils.PyDataset):
    """Batches of packed rows, each of no more places than `batch_size` padded samples."""

    def __init__(self, task, inputs: dict[str, np.ndarray], plan: PackedRows, batch_size: int):
        super().__init__()
        documents = len(plan.lengths)
        self._kinds = task.outputs_for
        self._samples = inputs["token_ids"].shape[:-1]  # (rows,) or (rows, choices)
        self._width = inputs["token_ids"].shape[-1]
        self._inputs = {name: array.reshape(documents, -1) for name, array in inputs.items()}
        a_sample = documents // self._samples[0]
        self._lengths = plan.lengths
        self._steps = list(plan.steps(plan.rows_a_step(batch_size * a_sample)))

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> tuple:
        plan, documents = self._steps[index]
        inputs = {name: array[documents] for name, array in self._inputs.items()}
        packed = plan.inputs(inputs)
        packed["cls_positions"] = _pad(packed["cls_positions"])
        if "mask_positions" in inputs:
            asked, _ = self._masks(plan, documents)
            packed["mask_positions"] = _pad(asked.astype("int32"))
        return (packed,)

    def _masks(self, plan: PackedRows, documents) -> tuple[np.ndarray, np.ndarray]:
        """Return the places that are asked for, each once, and where each mask is among them."""
        positions = plan.positions(self._inputs["mask_positions"][documents])
        asked = np.unique(positions)
        return asked, np.searchsorted(asked, positions)

    def split(self, outputs) -> list:
        """Return the outputs of each batch, from those of all, which lie one behind the other."""
        if not isinstance(outputs, dict):
            return np.split(outputs, self._ends(self._kinds))
        parts = {name: np.split(x, self._ends(self._kinds[name])) for name, x in outputs.items()}
        return [{name: parts[name][step] for name in parts} for step in range(len(self))]

    def _ends(self, kind: str) -> np.ndarray:
        count = {
            "documents": lambda plan, documents: round_up(len(documents)),
            "tokens": lambda plan, documents: plan.rows,
            "masks": lambda plan, documents: round_up(len(self._masks(plan, documents)[0])),
        }[kind]
        return np.cumsum([count(*step) for step in self._steps])[:-1]

    def results(self, parts: list):
        """Return the outputs of each sample, from those of batches."""
        if isinstance(self._kinds, dict):
            return {
                name: self._results([part[name] for part in parts], kind)
                for name, kind in self._kinds.items()
            }
        return self._results(parts, self._kinds)

    def _results(self, parts: list[np.ndarray], kind: str) -> np.ndarray:
        of_samples = [
            self._of_step(part, kind, *step) for part, step in zip(parts, self._steps, strict=True)
        ]
        shape = (len(self._lengths), *of_samples[0].shape[1:])
        choices = len(self._samples) > 1
        results = np.full(shape, ABSENT if choices else 0, of_samples[0].dtype)
        for (_, documents), values in zip(self._steps, of_samples, strict=True):
            results[documents] = values
        return results.reshape(*self._samples, *shape[1:])

    def _of_step(self, output: np.ndarray, kind: str, plan: PackedRows, documents) -> np.ndarray:
        if kind == "documents":
            return output[: len(documents)]
        if kind == "tokens":
            return plan.tokens_of(output, self._width)
        return output[self._masks(plan, documents)[1]]


def _pad(positions: np.ndarray) -> np.ndarray:
    return np.pad(positions, (0, round_up(len(positions)) - len(positions)))
