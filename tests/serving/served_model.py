"""The SavedModel that `serving_stand_in.py` serves. A stand-in for tests, not for production."""

import contextlib
import pathlib

import grpc
import tensorflow as tf
import tensorflow_text  # noqa: F401  (its operations; TensorFlow Serving has them built in)
from google.protobuf.message import DecodeError
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

DEFAULT_SIGNATURE = "serving_default"
WARMUP_FILE = pathlib.Path("assets.extra", "tf_serving_warmup_requests")
MOST_WARMUP_REQUESTS = 1000
CODES = {code.value[0]: code for code in grpc.StatusCode}

# Where TensorFlow Serving puts the values of an answer; clients read these fields.
FIELDS = {
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int32: "int_val",
    tf.int16: "int_val",
    tf.int8: "int_val",
    tf.uint8: "int_val",
    tf.int64: "int64_val",
    tf.uint32: "uint32_val",
    tf.uint64: "uint64_val",
    tf.bool: "bool_val",
    tf.string: "string_val",
}


class ServingError(Exception):
    """A request that is answered with an error."""

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code = code
        self.message = message[:1000]  # gRPC sends it in a header, which has a limit


def invalid(message: str) -> ServingError:
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


@contextlib.contextmanager
def _serving_errors():
    """Turn errors of TensorFlow's operations into `ServingError`."""
    try:
        yield
    except tf.errors.OpError as error:
        code = CODES.get(error.error_code, grpc.StatusCode.UNKNOWN)
        raise ServingError(code, error.message) from error


class ServedModel:
    """The highest version of a model.

    Attributes:
        name: The model's name.
        version: The number of the version folder.
        signature_defs: The signatures by name, as they are in `saved_model.pb`.
    """

    def __init__(self, base_folder: pathlib.Path, name: str):
        folders = [f for f in base_folder.iterdir() if f.is_dir() and f.name.isdecimal()]
        if not folders:
            message = f"No versions of servable {name} found under base path {base_folder}"
            raise ServingError(grpc.StatusCode.NOT_FOUND, message)
        self._folder = max(folders, key=lambda folder: int(folder.name))
        self.name, self.version = name, int(self._folder.name)
        self.signature_defs = _signature_defs(self._folder / "saved_model.pb")
        self._loaded = tf.saved_model.load(str(self._folder))

    def check_name(self, name: str, version: int | None) -> None:
        """Raise NOT_FOUND for another model or version than this."""
        if name != self.name or version not in (None, self.version):
            wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise ServingError(
                grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {wanted}"
            )

    def check_spec(self, spec: model_pb2.ModelSpec) -> None:
        """Raise NOT_FOUND as `check_name`, INVALID_ARGUMENT for a version label."""
        if spec.HasField("version_label"):
            raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        self.check_name(spec.name, spec.version.value if spec.HasField("version") else None)

    def predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        """Answer a request of the gRPC API, whose model is not checked."""
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        if name not in self._loaded.signatures:
            raise ServingError(
                grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
            )
        definition = self.signature_defs[name]
        _check_inputs(request.inputs.keys(), definition.inputs.keys())
        wanted = _wanted_outputs(request.output_filter, definition.outputs.keys())
        with _serving_errors():  # also of a tensor of another type
            inputs = {
                key: tf.io.parse_tensor(
                    tensor.SerializeToString(), tf.as_dtype(definition.inputs[key].dtype)
                )
                for key, tensor in request.inputs.items()
            }
        outputs = self.run(name, inputs)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = self.name
        response.model_spec.version.value = self.version
        response.model_spec.signature_name = name
        for key in wanted:
            response.outputs[key].CopyFrom(_as_proto(outputs[key]))
        return response

    def run(self, signature_name: str, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Call a signature with all its inputs, in their types."""
        with _serving_errors():
            return self._loaded.signatures[signature_name](**inputs)

    def warm_up(self) -> int:
        """Replay the recorded requests of the version folder and return how many there are.

        Raises:
            ServingError: If the file cannot be read, or one of the requests fails.
        """
        path = self._folder / WARMUP_FILE
        if not path.exists():
            return 0
        count = 0
        with _serving_errors():
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                count += 1
                if count > MOST_WARMUP_REQUESTS:
                    raise invalid(f"more than {MOST_WARMUP_REQUESTS} warm-up requests in {path}")
                self._replay(record)
        return count

    def _replay(self, record: bytes) -> None:
        try:
            log = prediction_log_pb2.PredictionLog.FromString(record)
        except DecodeError as error:
            raise invalid("a warm-up record is no PredictionLog") from error
        if not log.HasField("predict_log"):
            raise invalid("a warm-up record is no predict_log; this stand-in replays no other")
        self.predict(log.predict_log.request)


def _signature_defs(path: pathlib.Path) -> dict:
    try:
        model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise invalid(f"{path} holds no SavedModel: {error}") from error
    for graph in model.meta_graphs:
        if "serve" in graph.meta_info_def.tags:
            return dict(graph.signature_def)
    raise invalid(f"{path} has no graph with the tag serve")


def _check_inputs(given, expected) -> None:
    given, expected = set(given), set(expected)
    if len(given) != len(expected):
        raise invalid(
            f"input size does not match signature: {len(given)}!={len(expected)}. "
            f"Sent extra: {sorted(given - expected)}. "
            f"Missing but required: {sorted(expected - given)}."
        )
    if given != expected:
        raise invalid(
            f"input tensor alias not found in signature: {sorted(given - expected)}. "
            f"Inputs expected to be in the set {sorted(expected)}."
        )


def _wanted_outputs(asked, outputs) -> list[str]:
    asked = list(asked)
    if unknown := set(asked) - set(outputs):
        raise invalid(
            f"output tensor alias not found in signature: {sorted(unknown)}. "
            f"Outputs expected to be in the set {sorted(outputs)}."
        )
    if len(set(asked)) != len(asked):
        raise invalid(f"duplicate output tensor alias in {asked}")
    return asked or list(outputs)


def _as_proto(tensor: tf.Tensor) -> tensor_pb2.TensorProto:
    if tensor.dtype not in FIELDS:
        return tf.make_tensor_proto(tensor.numpy())
    proto = tensor_pb2.TensorProto(
        dtype=tensor.dtype.as_datatype_enum, tensor_shape=tensor.shape.as_proto()
    )
    getattr(proto, FIELDS[tensor.dtype]).extend(tensor.numpy().reshape(-1).tolist())
    return proto
