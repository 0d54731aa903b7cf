"""Puts weights into the variables of a Keras model, and takes them out."""

import contextlib
import ctypes
from collections.abc import Iterable, Mapping

import keras
import numpy as np

from keras_megatron.checkpoints.assignable import assignable
from keras_megatron.checkpoints.mapped_files import BFLOAT16, LazyArray
from keras_megatron.checkpoints.weight_names import Weight, model_sizes, weights

_FLOATS = (np.dtype("f4"), np.dtype("f2"), BFLOAT16, np.dtype("f8"))
_TRIM_EVERY = 1 << 26
# Of each head, how its names begin in a Hugging Face checkpoint.
HEAD_PREFIXES = {
    "mlm_head": "cls.predictions.",
    "binary_head": "cls.seq_relationship.",
    "classifier": "classifier.",
    "qa_outputs": "qa_outputs.",
}


def check_weights(
    source: Mapping[str, LazyArray], expected: Iterable[Weight], sizes: Mapping[str, int], side: str
) -> None:
    """Check that each expected weight is there, with its shape, before any of them is read.

    Args:
        source: Weights in torch orientation.
        expected: Rows of the table of weight names.
        sizes: What each letter of a shape is.
        side: Which of a row's names `source` uses, `"megatron"` or `"hugging_face"`.

    Raises:
        ValueError: a weight is missing, has another shape, or is no floating-point array.
    """
    for weight in expected:
        name, shape = getattr(weight, side), weight.shape(sizes)
        if name not in source:
            raise ValueError(f"the checkpoint lacks {name!r} of shape {shape}")
        found = source[name]
        if found.shape != shape:
            raise ValueError(f"{name!r} has shape {found.shape} but the model needs {shape}")
        if found.dtype not in _FLOATS:
            raise ValueError(f"{name!r} holds {found.dtype} numbers, not floating-point weights")


def assign_weights(
    model: keras.Model, source: Mapping[str, LazyArray], optional_parts: Iterable[str] = ()
) -> tuple[list[str], set[str]]:
    """Fill a model's variables, reading one weight at a time.

    Everything is checked first: if this raises, no variable has changed.

    Args:
        model: `MegatronBertBackbone`, or a task with one.
        source: Weights in torch orientation by their Hugging Face names (`bert.` included).
        optional_parts: Parts of the table of weight names that may be missing as a whole; their
            variables then keep their values.

    Returns:
        Names in `source` that the model has no place for, all of them of heads; and the parts that
        were missing.

    Raises:
        ValueError: a weight is missing or has another shape, or the encoder or the model's own head
            has one too many.
    """
    rows = _model_weights(model)
    present = {weight.part for weight, _ in rows if weight.hugging_face in source}
    missing = {weight.part for weight, _ in rows} - present
    rows = [row for row in rows if row[0].part not in missing.intersection(optional_parts)]
    check_weights(source, [weight for weight, _ in rows], _sizes(model), "hugging_face")
    unused = sorted(source.keys() - {weight.hugging_face for weight, _ in rows})
    own = ("bert.", *(prefix for part, prefix in HEAD_PREFIXES.items() if part in present))
    for name in unused:
        if name.startswith(own) and not name.startswith("bert.pooler."):
            raise ValueError(f"the checkpoint has {name!r}, for which the model has no place")
    assigned = 0
    for weight, variable in rows:
        array = weight.to_keras(source[weight.hugging_face].read(), variable.shape)
        variable.assign(assignable(np.asarray(array, np.float32, order="C")))
        assigned += array.nbytes
        if assigned > _TRIM_EVERY:
            _return_freed_memory()
            assigned = 0
    return unused, missing


def _return_freed_memory() -> None:
    """Give the initial values' memory back: glibc keeps it, and JAX would hold the model twice."""
    with contextlib.suppress(OSError, TypeError, AttributeError):  # other systems' C libraries
        ctypes.CDLL(None).malloc_trim(0)


def model_weights(model: keras.Model) -> dict[str, LazyArray]:
    """Return the weights of a model, in torch orientation by their Hugging Face names.

    Args:
        model: `MegatronBertBackbone`, or a task with one.

    Raises:
        ValueError: the model has weights without a name there, such as LoRA's.
    """
    sizes = _sizes(model)

    def lazy(weight: Weight, variable: keras.Variable) -> LazyArray:
        shape = weight.shape(sizes)
        dtype = BFLOAT16 if variable.dtype == "bfloat16" else np.dtype(variable.dtype)

        def read() -> np.ndarray:
            array = weight.to_torch(keras.ops.convert_to_numpy(variable), shape)
            return array.astype(dtype, copy=False)

        return LazyArray(shape, dtype, read)

    return {row[0].hugging_face: lazy(*row) for row in _model_weights(model)}


def _model_weights(model: keras.Model) -> list[tuple[Weight, keras.Variable]]:
    """Pair each variable of a model with its row in the table, in the table's order."""
    variables = {variable.path: variable for variable in model.weights}
    backbone = getattr(model, "backbone", model)
    rows = [
        (weight, variables.pop(weight.keras))
        for weight in weights(backbone.num_layers, backbone.cross_attention)
        if weight.keras in variables
    ]
    if variables:
        raise ValueError(
            f"the model's {min(variables)!r} has no counterpart in Megatron's or Hugging Face's "
            "checkpoints (LoRA and quantized weights have none)"
        )
    return rows


def _sizes(model: keras.Model) -> dict[str, int]:
    heads = [v for v in model.weights if v.path in ("classifier/bias", "qa_outputs/bias")]
    labels = heads[0].shape[0] if heads else 2
    return model_sizes(getattr(model, "backbone", model).get_config(), labels)
