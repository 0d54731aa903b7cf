"""What the papers say that a training step keeps and sends."""

import math

MASKED_SHARE = 0.15  # of the tokens, BERT's


def masks(sequence: int) -> int:
    """Return how many tokens of a sequence are predicted."""
    return math.ceil(MASKED_SHARE * sequence)


def activation_bytes(
    config: dict, model: int, batch: int, sequence: int, size: int, sequence_parallel: bool = False
) -> int:
    """Return what the forward pass keeps for the backward pass, on each device.

    A layer's is that of arXiv 2205.05198, equations 1 (one device), 2 (tensor parallelism) and 4
    (sequence parallelism too), for elements of any size: in 16 bits sbh (10 + 24 / t + 5 as / ht).
    Beside the layers are the embeddings' dropout, the last LayerNorm, and a head for the masked
    tokens only. Of numbers that are cheap to compute again nothing is kept, as in Megatron-LM.

    Args:
        config: arguments of `MegatronBertBackbone`.
        model: devices of tensor parallelism, t.
        batch: sequences on these devices, b.
        sequence: tokens a sequence, s.
        size: bytes of an element.
        sequence_parallel: whether LayerNorms and dropout are split over the sequence.
    """
    hidden, heads = config["hidden_dim"], config["num_heads"]
    width = heads * (config.get("head_dim") or hidden // heads)
    tokens = batch * sequence
    # Inputs of both LayerNorms and of both first matrices; both dropout masks, a byte each.
    whole = tokens * hidden * (4 * size + 2)
    # Query, key, value and what attention returns; before and after the activation.
    split = tokens * size * (4 * width + 2 * config["intermediate_dim"])
    # Softmax, and its dropout's mask and result.
    split += heads * tokens * sequence * (2 * size + 1)
    between = model if sequence_parallel else 1
    layers = config["num_layers"] * (whole / between + split / model)
    around = tokens * hidden * (1 + size) / between
    predicted = batch * masks(sequence)
    # Inputs of the head's dense layer, activation, LayerNorm and product; logits, in 32 bits.
    head = predicted * (4 * size * hidden + 4 * config["vocabulary_size"] / model)
    return round(layers + around + head)


def all_reduces(config: dict, batch: int, sequence: int, size: int) -> tuple[int, int]:
    """Return all-reduces a step of the layers, and their bytes, with tensor parallelism.

    Two forward and two backward, each of batch x sequence x hidden (arXiv 1909.08053, section 3,
    Figure 4).

    Args:
        config: arguments of `MegatronBertBackbone`.
        batch: sequences on the devices of one copy of the model.
        sequence: tokens a sequence.
        size: bytes of an element.
    """
    calls = 4 * config["num_layers"]
    return calls, calls * batch * sequence * config["hidden_dim"] * size
