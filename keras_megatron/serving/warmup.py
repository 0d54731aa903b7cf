"""Requests that TensorFlow Serving replays when it loads a model, so that the first is not slow."""

import pathlib

import tensorflow as tf

_FILE = pathlib.Path("assets.extra", "tf_serving_warmup_requests")
_BATCHES = (1, 8)


def write_warmup(folder: pathlib.Path, endpoints: dict) -> None:
    """Write a request of one and of eight samples for each signature.

    Args:
        folder: of the SavedModel.
        endpoints: an `Endpoint` by signature.

    Raises:
        ValueError: tensorflow-serving-api, which has the format, is not installed.
    """
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ImportError as error:
        raise ValueError(
            "the warm-up requests need tensorflow-serving-api: pip install "
            "'keras-megatron[serving]', or export with warmup=False (--no-warmup)"
        ) from error
    (folder / _FILE).parent.mkdir()
    with tf.io.TFRecordWriter(str(folder / _FILE)) as file:
        for name, endpoint in endpoints.items():
            for batch in _BATCHES:
                request = predict_pb2.PredictRequest()
                request.model_spec.signature_name = name
                for key, spec in endpoint.inputs.items():
                    values = tf.constant(endpoint.example[key], spec.dtype)
                    values = tf.repeat(values, batch, axis=0)
                    request.inputs[key].CopyFrom(tf.make_tensor_proto(values))
                log = prediction_log_pb2.PredictLog(request=request)
                record = prediction_log_pb2.PredictionLog(predict_log=log)
                file.write(record.SerializeToString())
