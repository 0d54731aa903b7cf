"""Tensors to the JSON with which TensorFlow Serving's REST API answers predict requests.

Part of `serving_stand_in.py`: a stand-in for tests, not for production.
"""

import base64
import json
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from served_model import invalid

INTEGERS = (tf.int32, tf.int16, tf.int8, tf.uint8, tf.int64, tf.uint32, tf.uint64)
DIGITS = {tf.float32: 9, tf.float64: 17}  # that tell any two values apart


def row_text(outputs: dict[str, tf.Tensor]) -> str:
    """Return the answer to a request with "instances".

    Raises:
        ServingError: If an output has no batch dimension, another batch size than the others, or a
            type that the REST API does not write, such as float16.
    """
    sizes = set()
    for key, tensor in outputs.items():
        if not tensor.shape.rank:
            raise invalid(f"Tensor name: {key} has no shape information")
        sizes.add(int(tensor.shape[0]))
    if len(sizes) > 1:
        raise invalid(f"Tensors have inconsistent batch sizes: {sorted(sizes)}")
    columns = {}
    for key, tensor in outputs.items():
        write = _writer(key, tensor.dtype)
        columns[key] = [_text(value, write) for value in tensor.numpy().tolist()]
    rows = zip(*columns.values(), strict=True)
    texts = [_one_or_object(dict(zip(columns, row, strict=True))) for row in rows]
    return f'{{"predictions": [{", ".join(texts)}]}}'


def columnar_text(outputs: dict[str, tf.Tensor]) -> str:
    """Return the answer to a request with "inputs".

    Raises:
        ServingError: If an output has a type that the REST API does not write, such as float16.
    """
    texts = {}
    for key, tensor in outputs.items():
        value = tensor.numpy()
        write = _writer(key, tensor.dtype)
        texts[key] = _text(value.tolist() if tensor.shape.rank else value, write)
    return f'{{"outputs": {_one_or_object(texts)}}}'


def _one_or_object(texts: dict[str, str]) -> str:
    if len(texts) == 1:
        return next(iter(texts.values()))
    return "{" + ", ".join(f"{json.dumps(key)}: {text}" for key, text in texts.items()) + "}"


def _text(value, write: Callable) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_text(item, write) for item in value) + "]"
    return write(value)


def _writer(key: str, dtype: tf.DType) -> Callable:
    """Return what writes one value of an output."""
    if dtype == tf.string:
        return _base64 if key.endswith("_bytes") else _string
    if dtype == tf.bool:
        return lambda value: "true" if value else "false"
    if dtype in INTEGERS:
        return str
    if dtype in DIGITS:
        return lambda value: _decimal(value, dtype)
    raise invalid(f"Failed to write JSON value for tensor type: {dtype.name}")


def _base64(value: bytes) -> str:
    return json.dumps({"b64": base64.b64encode(value).decode()})


def _string(value: bytes) -> str:
    # What is not UTF-8 goes out as it is, as the real server sends it.
    return json.dumps(value.decode("utf-8", "surrogateescape"), ensure_ascii=False)


def _decimal(value: float, dtype: tf.DType) -> str:
    """Write six digits if these give the value back, else as many as make it sure; 1 is 1.0."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    text = f"{value:.6g}"
    if np.asarray(float(text), dtype.as_numpy_dtype) != value:
        text = f"{value:.{DIGITS[dtype]}g}"
    return text if "." in text or "e" in text else text + ".0"
