"""Answers that are one vector or a few numbers for each text, or pair of texts."""

import tensorflow as tf

from keras_megatron.serving.answers.endpoint import (
    TEXTS,
    Endpoint,
    encode,
    logits_of,
    names_of,
)

# Melville, Moby-Dick (1851), public domain.
FIRST, SECOND = "Call me Ishmael.", "Some years ago, never mind how long precisely."
PAIRS = {"first": TEXTS, "second": TEXTS}
PAIR = {"first": [FIRST], "second": [SECOND]}


def classification(model, options) -> dict[str, Endpoint]:
    """Classify texts, or pairs of them; see `MegatronBertTextClassifier.classify`."""

    def of_texts(text):
        return _classes(model, logits_of(model, encode(model, text)))

    def of_pairs(first, second):
        return _classes(model, logits_of(model, encode(model, first, second)))

    texts = Endpoint({"text": TEXTS}, of_texts, {"text": [FIRST]})
    pairs = Endpoint(PAIRS, of_pairs, PAIR)
    if options.pairs:
        return {"serving_default": pairs, "texts": texts}
    return {"serving_default": texts, "pairs": pairs}


def _classes(model, outputs: tf.Tensor) -> dict[str, tf.Tensor]:
    if model.num_classes == 1:
        return {"score": outputs[:, 0]}
    if model.activation is None:
        outputs = tf.sigmoid(outputs) if model.multi_label else tf.nn.softmax(outputs)
    names = tf.constant(names_of(model))
    answer = {"labels": tf.tile(names[tf.newaxis], [tf.shape(outputs)[0], 1]), "scores": outputs}
    if model.multi_label:
        return {**answer, "chosen": outputs > 0.5}
    best = tf.argmax(outputs, axis=-1)
    return {**answer, "label": tf.gather(names, best), "score": tf.reduce_max(outputs, axis=-1)}


def next_sentence(model, options) -> dict[str, Endpoint]:
    """Say how probably texts follow others; see `MegatronBertNextSentencePredictor.follows`."""

    def answer(first, second):
        logits = logits_of(model, encode(model, first, second))
        return {"follows": tf.nn.softmax(logits)[:, 0]}

    return {"serving_default": Endpoint(PAIRS, answer, PAIR)}


def embedding(model, options) -> dict[str, Endpoint]:
    """Make vectors of texts; see `MegatronBertTextEmbedder.encode_text`."""

    def answer(text):
        return {"embedding": logits_of(model, encode(model, text))}

    return {"serving_default": Endpoint({"text": TEXTS}, answer, {"text": [FIRST]})}


def choices(model, options) -> dict[str, Endpoint]:
    """Choose a text for each context; see `MegatronBertMultipleChoice.choose`.

    Where contexts have different numbers of choices, "" stands for those that are missing.
    """
    tokenizer = model.preprocessor.tokenizer

    def answer(context, choices):
        is_there = choices != ""
        context = tf.repeat(context, tf.shape(choices)[1])
        flat = tf.reshape(choices, [-1])
        rows = encode(model, context, flat)
        there = tf.reshape(is_there, [-1, 1])
        absent = {name: tokenizer.pad_token_id if name == "token_ids" else 0 for name in rows}
        shape = tf.concat([tf.shape(choices), tf.shape(rows["token_ids"])[1:]], axis=0)
        inputs = {
            name: tf.reshape(tf.where(there, array, tf.cast(absent[name], array.dtype)), shape)
            for name, array in rows.items()
        }
        # Where a context has no choice at all, all are as probable.
        scores = tf.where(is_there, tf.nn.softmax(logits_of(model, inputs)), 0.0)
        best = tf.argmax(scores, axis=-1)
        return {"choice": best, "text": tf.gather(choices, best, batch_dims=1), "scores": scores}

    inputs = {"context": TEXTS, "choices": tf.TensorSpec([None, None], tf.string)}
    example = {"context": [FIRST], "choices": [[FIRST, SECOND]]}
    return {"serving_default": Endpoint(inputs, answer, example)}
