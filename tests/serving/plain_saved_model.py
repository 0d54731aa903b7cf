"""A SavedModel of plain TensorFlow whose answers can be told from the requests."""

import pathlib

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
TOKENS = tf.TensorSpec([None, None], tf.int32)


class _Model(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def texts(self, text):
        length = tf.cast(tf.strings.length(text), tf.float32)  # of "": all that is not finite
        scores = tf.stack([1 / length, 0 / length], axis=1)
        return {"label": tf.strings.upper(text), "score": tf.math.log(length), "scores": scores}

    @tf.function(input_signature=[TOKENS, TOKENS, TOKENS])
    def tensors(self, token_ids, segment_ids, padding_mask):
        sums = [tf.reduce_sum(x * padding_mask, axis=1) for x in (token_ids, segment_ids)]
        return {"logits": tf.cast(tf.stack(sums, axis=1), tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "raw")])
    def raw(self, raw):
        return {"copy_bytes": raw}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def half(self, x):
        return {"y": tf.cast(x, tf.float16)}


def save_plain_model(version_folder: pathlib.Path) -> None:
    """Save the model with the signatures serving_default, tensors, raw and half."""
    model = _Model()
    signatures = {"serving_default": model.texts, "tensors": model.tensors}
    signatures |= {"raw": model.raw, "half": model.half}
    tf.saved_model.save(model, str(version_folder), signatures=signatures)


def write_warmup(version_folder: pathlib.Path, requests: list) -> None:
    """Record predict requests where TensorFlow Serving looks for them."""
    path = version_folder / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.CopyFrom(request)
            writer.write(log.SerializeToString())
