"""Answers that are generated texts."""

import tensorflow as tf

from keras_megatron.serving.answers.endpoint import TEXTS, Endpoint, most_tokens

_EXAMPLE = {"prompt": ["Call me"]}


def generation(model, options) -> dict[str, Endpoint]:
    """Continue prompts, up to `options.max_length` tokens; see `MegatronBertCausalLM.generate`.

    Of a prompt that leaves no room for a token the end is cut.
    """
    tokenizer = model.preprocessor.tokenizer
    length = options.max_length or most_tokens(model)
    start = [tokenizer.start_token_id] * model.preprocessor.add_start_token

    def answer(prompt):
        ids = tokenizer.tokenize(prompt)[:, : length - 1 - len(start)]
        begin = tf.fill([ids.nrows(), len(start)], tokenizer.start_token_id)
        rows = tf.concat([tf.cast(begin, ids.dtype), ids], axis=1)
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
