"""Answers that are generated texts."""

import tensorflow as tf

from keras_megatron.serving.answers.endpoint import TEXTS, Endpoint, most_tokens

_EXAMPLE = {"prompt": ["Call me"]}


def generation(model, options) -> dict[str, Endpoint]:
    """Continue prompts, up to `options.max_length` tokens; see `MegatronBertCausalLM.generate`.

    Of a prompt that leaves no room for a token the end is cut. One without tokens becomes [CLS],
    even if the preprocessor adds none: nothing can follow nothing.

    Raises:
        ValueError: the model has fewer positions than `options.max_length`.
    """
    tokenizer = model.preprocessor.tokenizer
    length = options.max_length or most_tokens(model)
    limit = model.backbone.max_sequence_length
    if length > limit:
        raise ValueError(f"max_length must be at most {limit}, the model's positions, not {length}")
    add_start = model.preprocessor.add_start_token

    def answer(prompt):
        ids = tokenizer.tokenize(prompt)[:, : length - 1 - add_start]
        count = tf.cast((ids.row_lengths() == 0) | add_start, tf.int64)
        begin = tf.fill([tf.reduce_sum(count)], tf.cast(tokenizer.start_token_id, ids.dtype))
        rows = tf.concat([tf.RaggedTensor.from_row_lengths(begin, count), ids], axis=1)
        token_ids = rows.to_tensor(tokenizer.pad_token_id, shape=[None, length])
        inputs = {
            "token_ids": token_ids,
            "segment_ids": tf.zeros_like(token_ids),
            "padding_mask": tf.ones_like(rows).to_tensor(shape=[None, length]),
        }
        made = model.generate_step(inputs, stop_token_ids=[tokenizer.end_token_id])
        special = tf.constant(tokenizer.special_token_ids, made["token_ids"].dtype)
        is_special = tf.reduce_any(made["token_ids"][..., tf.newaxis] == special, axis=-1)
        kept = tf.ragged.boolean_mask(made["token_ids"], made["padding_mask"] & ~is_special)
        return {"text": tokenizer.detokenize(kept)}

    return {"serving_default": Endpoint({"prompt": TEXTS}, answer, _EXAMPLE)}
