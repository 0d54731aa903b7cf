"""The way through the backbone: from its inputs to its outputs, by layers that are given."""

from collections.abc import Callable, Mapping

import keras
from keras import ops


def encode(
    get_layer: Callable[[str], keras.Layer],
    num_layers: int,
    inputs: Mapping,
    causal: bool = False,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    training: bool | None = None,
) -> dict:
    """Run embeddings, layers, final LayerNorm and pooler.

    Args:
        get_layer: returns a layer of the backbone by its name.
        num_layers: how many transformer layers there are.
        inputs: as of `MegatronBertBackbone.__call__`, as are the rest and what is returned.
        causal: see there.
        output_hidden_states: see there.
        output_attentions: see there.
        training: whether to drop out.
    """
    inputs = _with_documents(inputs, get_layer("embeddings"))
    hidden_states = _embed(get_layer("embeddings"), inputs, training)
    attention_mask = _attention_mask(inputs, hidden_states, causal)
    encoder_hidden_states = inputs.get("encoder_hidden_states")
    encoder_mask = key_mask(inputs.get("encoder_padding_mask"))
    all_hidden_states, attentions = [hidden_states], []
    for index in range(num_layers):
        hidden_states = get_layer(f"transformer_layer_{index}")(
            hidden_states,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_mask=encoder_mask,
            output_attentions=output_attentions,
            training=training,
        )
        if output_attentions:
            hidden_states, probabilities = hidden_states
            attentions.append(probabilities)
        all_hidden_states.append(hidden_states)
    sequence_output = get_layer("final_layer_norm")(hidden_states)
    first = sequence_output[:, 0, :]
    if inputs.get("cls_positions") is not None:
        first = take_tokens(sequence_output, inputs["cls_positions"])
    pooled_output = get_layer("pooled_dense")(first)
    outputs = {"sequence_output": sequence_output, "pooled_output": pooled_output}
    if output_hidden_states:
        outputs["hidden_states"] = (*all_hidden_states[:-1], sequence_output)
    if output_attentions:
        outputs["attentions"], *cross = zip(*attentions, strict=True)
        if cross:
            outputs["cross_attentions"] = cross[0]
    return outputs


def _with_documents(inputs: Mapping, embeddings: keras.Layer) -> Mapping:
    """Give each document of a row its own positions, and a mask that hides the others from it.

    Padding is a document too, so that no query is without a key.
    """
    if inputs.get("document_ids") is None:
        return inputs
    same, first = same_document(inputs["document_ids"])
    places = ops.expand_dims(ops.arange(ops.shape(first)[1], dtype="int32"), 0)
    positions = places - first
    positions = ops.minimum(positions, embeddings.max_sequence_length - 1)  # of much padding
    if inputs.get("attention_mask") is not None:
        same = ops.logical_and(same, ops.cast(inputs["attention_mask"], "bool"))
    given = {name: array for name, array in inputs.items() if name != "padding_mask"}
    return {"position_ids": positions, **given, "attention_mask": same}


def same_document(document_ids):
    """Return which tokens of a row share a document, and where each one's document begins.

    Args:
        document_ids: int (batch, sequence).

    Returns:
        bool (batch, sequence, sequence), and int32 (batch, sequence), positions in the row.
    """
    same = ops.equal(ops.expand_dims(document_ids, 2), ops.expand_dims(document_ids, 1))
    places = ops.arange(ops.shape(document_ids)[1], dtype="int32")
    # A place that is none of the document's counts for more than any that is.
    first = ops.min(ops.where(same, ops.expand_dims(places, axis=(0, 1)), 2**30), axis=-1)
    return same, first


def take_tokens(states, positions):
    """Return the states of some tokens of packed rows.

    Args:
        states: float (batch, sequence, hidden).
        positions: int (tokens,), in the rows laid one behind the other.

    Returns:
        float (tokens, hidden).
    """
    return ops.take(ops.reshape(states, (-1, ops.shape(states)[-1])), positions, axis=0)


def key_mask(padding_mask):
    """Hide padding as a key only, as the reference does: (batch, key) to (batch, 1, 1, key)."""
    if padding_mask is None:
        return None
    return ops.expand_dims(ops.cast(padding_mask, "bool"), axis=(1, 2))


def causal_mask(queries: int, keys: int, first_query=0):
    """Let a position attend to itself and what is before it: bool (1, 1, queries, keys).

    Args:
        queries: number of query positions.
        keys: number of key positions.
        first_query: position of the first query, a number or a scalar tensor.
    """
    query = ops.expand_dims(ops.arange(queries, dtype="int32"), -1) + first_query
    mask = query >= ops.expand_dims(ops.arange(keys, dtype="int32"), 0)
    return ops.expand_dims(mask, axis=(0, 1))


def _embed(embeddings: keras.Layer, inputs: Mapping, training: bool | None):
    token_embeddings = inputs.get("token_embeddings")
    if token_embeddings is None:
        return embeddings(
            inputs["token_ids"],
            inputs.get("segment_ids"),
            position_ids=inputs.get("position_ids"),
            training=training,
        )
    token_embeddings = ops.cast(token_embeddings, embeddings.compute_dtype)
    ids = inputs.get("segment_ids"), inputs.get("position_ids")
    return embeddings.add_to(token_embeddings, *ids, training=training)


def _attention_mask(inputs: Mapping, hidden_states, causal: bool):
    """Combine padding, the given mask and causality: bool, broadcast to (batch, 1, query, key)."""
    mask = key_mask(inputs.get("padding_mask"))
    if inputs.get("attention_mask") is not None:
        given = ops.expand_dims(ops.cast(inputs["attention_mask"], "bool"), 1)
        mask = given if mask is None else ops.logical_and(mask, given)
    if causal:
        length = ops.shape(hidden_states)[1]
        past = causal_mask(length, length)
        mask = past if mask is None else ops.logical_and(mask, past)
    return mask
