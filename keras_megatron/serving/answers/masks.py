"""Answers that are tokens for the [MASK]s of texts."""

import tensorflow as tf

from keras_megatron.serving.answers.endpoint import TEXTS, Endpoint, dense, encode, logits_of
from keras_megatron.serving.settings import TOP_K

_MASKED = "Call me [MASK]."
_PAIR = {"first": [_MASKED], "second": ["Some years ago I went to sea."]}


def masked_tokens(model, options) -> dict[str, Endpoint]:
    """Fill the [MASK]s of texts; see `MegatronBertMaskedLM.fill_mask`."""

    def answer(text):
        inputs, is_mask = _with_masks(model, text)
        return _best_tokens(model, logits_of(model, inputs), is_mask, options.top_k or TOP_K)

    return {"serving_default": Endpoint({"text": TEXTS}, answer, {"text": [_MASKED]})}


def pretraining(model, options) -> dict[str, Endpoint]:
    """Fill the [MASK]s of pairs, and say how probably the second text follows the first."""

    def answer(first, second):
        inputs, is_mask = _with_masks(model, first, second)
        logits = logits_of(model, inputs)
        tokens = _best_tokens(model, logits["mlm"], is_mask, options.top_k or TOP_K)
        return {**tokens, "follows": tf.nn.softmax(logits["nsp"])[:, 0]}

    return {"serving_default": Endpoint({"first": TEXTS, "second": TEXTS}, answer, _PAIR)}


def _with_masks(model, *texts: tf.Tensor) -> tuple[dict, tf.Tensor]:
    """Return inputs with `mask_positions`, as many as the row with the most has, and which are one.

    Texts are cut where the model's positions end, as `fill_mask` does: the preprocessor's
    `sequence_length` is that of training.
    """
    inputs = encode(model, *texts, most=model.backbone.max_sequence_length)
    is_mask = inputs["token_ids"] == model.preprocessor.tokenizer.mask_token_id
    columns = tf.zeros_like(inputs["token_ids"], tf.int32) + tf.range(tf.shape(is_mask)[1])
    positions = tf.ragged.boolean_mask(columns, is_mask)
    there = dense(tf.ones_like(positions), 0) > 0
    return {**inputs, "mask_positions": dense(positions, 0)}, there


def _best_tokens(model, logits: tf.Tensor, is_mask: tf.Tensor, top_k: int) -> dict:
    """Rank the vocabulary for each mask; rows behind the tokenizer's pieces never answer."""
    pieces = model.preprocessor.tokenizer.vocabulary
    logits = logits[..., : len(pieces)]
    best, ids = tf.math.top_k(logits, k=min(top_k, len(pieces)))
    scores = tf.exp(best - tf.reduce_logsumexp(logits, axis=-1, keepdims=True))
    there = is_mask[..., tf.newaxis]
    return {
        "tokens": tf.where(there, tf.gather(tf.constant(pieces), ids), ""),
        "token_ids": tf.where(there, ids, 0),
        "scores": tf.where(there, scores, 0.0),
        "masks": tf.reduce_sum(tf.cast(is_mask, tf.int32), axis=-1),
    }
