"""The JSON of a predict request of TensorFlow Serving's REST API, to tensors.

Part of `serving_stand_in.py`: a stand-in for tests, not for production.
"""

import base64
import binascii
import json
import math

import grpc
import tensorflow as tf
from served_model import DEFAULT_SIGNATURE, ServedModel, ServingError, invalid

INTEGERS = (tf.int32, tf.int16, tf.int8, tf.uint8, tf.int64, tf.uint32, tf.uint64)
EXACT_BITS = {tf.float32: 24, tf.float64: 53}  # of an integer that the type holds
JSON_TYPES = {dict: "Object", list: "Array", str: "String", bool: "Bool", type(None): "Null"}
MOST_DIMENSIONS = 254  # of a TensorFlow tensor
MULTIPLE = "as multiple input tensors required as per tensorinfo_map"


def read_request(model: ServedModel, body: bytes) -> tuple[str, dict[str, tf.Tensor], bool]:
    """Read the body of a predict request.

    Returns:
        The signature's name, its inputs, and whether they are rows ("instances").

    Raises:
        ServingError: If the request is malformed.
    """
    document = _parse(body)
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid("'signature_name' key must be a string value.")
    name = name or DEFAULT_SIGNATURE
    if name not in model.signature_defs:
        raise invalid(f'Serving signature name: "{name}" not found in signature def')
    infos = model.signature_defs[name].inputs
    if not infos:
        raise invalid(f"Failed to get input map for signature: {name}")
    dtypes = {key: tf.as_dtype(info.dtype) for key, info in infos.items()}
    if {"instances", "inputs"} <= document.keys():
        raise invalid("expecting only one of 'inputs' or 'instances' keys to exist")
    if "instances" in document:
        return name, _row_inputs(document["instances"], dtypes), True
    if "inputs" in document:
        return name, _columnar_inputs(document["inputs"], dtypes), False
    raise invalid("Missing 'inputs' or 'instances' key")


def _parse(body: bytes) -> dict:
    # The real server takes bytes in strings as they are, UTF-8 or not, but no half of a surrogate
    # pair as an escape. Python has one notation for both, so with escapes neither is taken.
    try:
        document = json.loads(body.decode("utf-8", "surrogateescape"), parse_float=_float)
        if b"\\ud" in body.lower():
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:  # that of Unicode is a ValueError
        raise invalid(f"JSON Parse error: {error}") from error
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {_shown(document)} Is not object")
    return document


def _float(text: str) -> float:
    if math.isinf(value := float(text)):  # not the word Infinity, which is fine
        raise ValueError("Number too big to be stored in double.")
    return value


def _row_inputs(instances, dtypes: dict[str, tf.DType]) -> dict[str, tf.Tensor]:
    if not isinstance(instances, list):
        raise invalid("Expecting 'instances' to be a list/array")
    if not instances:
        raise invalid("No values in 'instances' array")
    objects = _is_object(instances[0])
    if not objects and len(dtypes) > 1:
        raise invalid(f"instances is a plain list, but expecting list of objects {MULTIPLE}")
    values: dict[str, list] = {key: [] for key in dtypes}
    shapes: dict[str, list[int]] = {}
    for place, element in enumerate(instances):
        if _is_object(element) != objects:
            wanted, got = ("object", "list") if objects else ("value/list", "object")
            raise invalid(f"Expecting {wanted} but got {got} at item {place} of input list")
        row = element if objects else {next(iter(dtypes)): element}
        try:
            _add_row(row, dtypes, values, shapes)
        except ServingError as error:
            message = f"Failed to process element: {place} of 'instances' list. Error: "
            raise ServingError(error.code, message + error.message) from error
    return {
        key: tf.constant(values[key], dtypes[key], shape=[len(instances), *shapes[key]])
        for key in dtypes
    }


def _add_row(row: dict, dtypes: dict, values: dict, shapes: dict) -> None:
    for key, value in row.items():
        if key not in dtypes:
            raise invalid(f"JSON object: does not have named input: {key}")
        shape = _shape(value)
        if shapes.setdefault(key, shape) != shape:
            raise invalid(f"Expecting shape {shapes[key]} but got: {shape} for key: {key}")
        _flatten(value, shape, dtypes[key], values[key])
    if row.keys() != dtypes.keys():
        raise invalid(f"JSON object keys must be equal to: {','.join(sorted(dtypes))}")


def _columnar_inputs(inputs, dtypes: dict[str, tf.DType]) -> dict[str, tf.Tensor]:
    if not _is_object(inputs):
        if len(dtypes) > 1:
            raise invalid(f"inputs is a plain value/list, but expecting an object {MULTIPLE}")
        inputs = {next(iter(dtypes)): inputs}
    tensors = {}
    for key, dtype in dtypes.items():  # the real server passes over what else is there
        if key not in inputs:
            raise invalid(f"Missing named input: {key} in 'inputs' object.")
        shape, values = _shape(inputs[key]), []
        _flatten(inputs[key], shape, dtype, values)
        tensors[key] = tf.constant(values, dtype, shape=shape)
    return tensors


def _is_object(value) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _shape(value) -> list[int]:
    """Return the shape that the first elements tell; `_flatten` checks the others."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    if len(shape) > MOST_DIMENSIONS:
        raise invalid(f"a tensor has at most {MOST_DIMENSIONS} dimensions, not {len(shape)}")
    return shape


def _flatten(value, shape: list[int], dtype: tf.DType, values: list) -> None:
    if not isinstance(value, list):
        if shape:
            raise invalid(f"JSON Value: {_shown(value)} found at incorrect level in the JSON DOM")
        values.append(_scalar(value, dtype))
        return
    if not shape:
        raise invalid("Encountered list at unexpected level in the JSON DOM")
    if len(value) != shape[0]:
        raise invalid(f"Encountered list at unexpected size: {len(value)} expected: {shape[0]}")
    for item in value:
        _flatten(item, shape[1:], dtype, values)


def _scalar(value, dtype: tf.DType):
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype == tf.string:
        fits = isinstance(value, str | dict)
    elif dtype == tf.bool:
        fits = isinstance(value, bool)
    elif dtype in INTEGERS:
        fits = number and isinstance(value, int) and dtype.min <= value <= dtype.max
    elif dtype in EXACT_BITS:
        fits = number
    else:
        message = f"Conversion of JSON Value: {_shown(value)} to type: {dtype.name}"
        raise ServingError(grpc.StatusCode.UNIMPLEMENTED, message)
    if not fits:
        kind = JSON_TYPES.get(type(value), "Number")
        expected = f"is not of expected type: {dtype.name}"
        raise invalid(f"JSON Value: {_shown(value)} Type: {kind} {expected}")
    if dtype == tf.string:
        return _bytes(value)
    if dtype in EXACT_BITS and not _lossless(value, dtype):
        loss = f"to {dtype.name} without loss of precision."
        raise invalid(f"Cannot convert JSON value: {_shown(value)} {loss}")
    return value


def _lossless(value: float, dtype: tf.DType) -> bool:
    if isinstance(value, int):
        return abs(value) < 2 ** EXACT_BITS[dtype]
    return not math.isfinite(value) or abs(value) <= float(dtype.max)


def _bytes(value: str | dict) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if not _is_base64(value):
        raise invalid(f"JSON Value: {_shown(value)} not formatted correctly for base64 data")
    text = value["b64"].rstrip("=")  # the real server does not insist on padding
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


def _shown(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:100] + "..."
