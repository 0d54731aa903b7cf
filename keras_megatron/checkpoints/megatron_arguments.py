"""What a Megatron-LM checkpoint's arguments say about the model, and what holds without them."""

from collections.abc import Mapping

import numpy as np

from keras_megatron.checkpoints.pickled_values import Arguments

POST_LAYERNORM = "apply_residual_connection_post_layernorm"
ACTIVATIONS = ("gelu", "gelu_approximate")
_HEAD_DIM = 64  # of the released models, and of all in arXiv 1909.08053, table 7
_EPSILON = 1e-5
_DROPOUT = 0.1
_LARGEST = 2**53

# Arguments that make the model another one than this package's.
_UNSUPPORTED = {
    "apply_layernorm_1p": True,
    "swiglu": True,
    "squared_relu": True,
    "add_bias_linear": False,
    "normalization": "RMSNorm",
    "group_query_attention": True,
    "position_embedding_type": "rope",
}
# What versions called the numbers of ranks.
TENSOR_SIZES = ("tensor_model_parallel_size", "model_parallel_size")
PIPELINE_SIZES = ("pipeline_model_parallel_size",)


def argument_values(state: Mapping) -> dict:
    """Return the arguments of the training run, none if they were not saved."""
    arguments = state.get("args")
    if isinstance(arguments, Arguments):
        arguments = arguments.values
    return arguments if isinstance(arguments, dict) else {}


def read_arguments(state: Mapping) -> dict:
    """Return the arguments of the training run, none if they were not saved.

    Raises:
        ValueError: they describe a model of another architecture.
    """
    arguments = argument_values(state)
    for name, value in _UNSUPPORTED.items():
        if isinstance(arguments.get(name), bool | str) and arguments[name] == value:
            raise ValueError(f"the checkpoint was trained with {name}={value}: not supported")
    return arguments


def checkpoint_version(state: Mapping) -> float:
    """Return the version, which came into the format after the released files; 0 for those.

    Raises:
        ValueError: no version of Megatron-LM wrote this number.
    """
    version = number(state, "checkpoint_version")
    if version not in (None, 0, 1) and not version >= 2:
        raise ValueError(f"checkpoint_version {version:g} is unknown: it is 0, 1.0, 2.0 or later")
    return version or 0


def number(values: Mapping, name: str) -> int | float | None:
    """Return a number, or None if it is not there or None itself.

    Raises:
        ValueError: it is something else.
    """
    value = values.get(name)
    if isinstance(value, np.number):
        value = value.item()
    if value is None or (type(value) in (int, float) and abs(value) < _LARGEST):
        return value
    raise ValueError(f"the checkpoint's {name} is no number that makes sense")


def choose_settings(
    arguments: Mapping,
    hidden_dim: int,
    attention_dim: int,
    num_heads: int | None = None,
    layer_norm_epsilon: float | None = None,
    mlp_activation: str | None = None,
    of_core: bool = False,
) -> tuple[dict, str, list[str]]:
    """Decide what the tensors do not tell.

    Args:
        arguments: Of the training run.
        hidden_dim: Width of the hidden states.
        attention_dim: Width of all heads together.
        num_heads: Overrides the arguments, as the next two.
        layer_norm_epsilon: Epsilon of every LayerNorm.
        mlp_activation: Activation of the feed-forward blocks.
        of_core: Whether the model is Megatron-core's, whose head has erf whatever the arguments.

    Returns:
        Arguments of `MegatronBertBackbone`, the activation of the masked language model's head, and
        lines that say how they were decided.

    Raises:
        ValueError: a setting is out of range.
    """
    heads, head_dim, heads_note = _heads(arguments, hidden_dim, attention_dim, num_heads)
    epsilon, epsilon_rule = _first(
        (layer_norm_epsilon, "as asked for"),
        (number(arguments, "layernorm_epsilon"), "by the checkpoint's arguments"),
        (number(arguments, "norm_epsilon"), "by the checkpoint's arguments"),
        (_EPSILON, "Megatron-LM's default"),
    )
    if not 0 < epsilon < 1:
        raise ValueError(f"LayerNorm's epsilon must be between 0 and 1, not {epsilon:g}")
    activation, activation_rule = _activation(arguments, mlp_activation, of_core)
    # The fused GELU is the feed-forward blocks' alone; OpenAI's is the head's too.
    openai_gelu = arguments.get("openai_gelu") is True
    head_activation = "gelu_approximate" if openai_gelu and not of_core else "gelu"
    chosen = {
        "num_heads": heads,
        "layer_norm_epsilon": float(epsilon),
        "activation": activation,
        "dropout": _rate(arguments, "hidden_dropout"),
        "attention_dropout": _rate(arguments, "attention_dropout"),
        # Megatron-core takes this argument and does not use it.
        POST_LAYERNORM: arguments.get(POST_LAYERNORM) is True and not of_core,
    }
    if heads * head_dim != hidden_dim or hidden_dim % heads:
        chosen["head_dim"] = head_dim
    notes = [
        heads_note,
        f"LayerNorm epsilon {epsilon:g} ({epsilon_rule})",
        f"activation {activation} ({activation_rule}), of the head {head_activation}",
    ]
    if chosen[POST_LAYERNORM]:
        notes.append("residual connections after LayerNorm (by the checkpoint's arguments)")
    return chosen, head_activation, notes


def _first(*choices: tuple) -> tuple:
    """Return the first pair whose value is not None."""
    return next(choice for choice in choices if choice[0] is not None)


def _heads(
    arguments: Mapping, hidden_dim: int, attention_dim: int, asked_for: int | None
) -> tuple[int, int, str]:
    """Return the number of heads, the width of each, and a line about them."""
    heads, rule = _first(
        (asked_for, "as asked for"),
        (number(arguments, "num_attention_heads"), "by the checkpoint's arguments"),
        (attention_dim // _HEAD_DIM, f"{_HEAD_DIM} wide each, as in all released models"),
    )
    if heads < 1 or heads != int(heads) or attention_dim % heads:
        what = "hidden size" if attention_dim == hidden_dim else "attention's size"
        raise ValueError(
            f"{heads:g} attention heads do not divide the {what} {attention_dim}: give the right "
            "number with --num-heads (num_heads=)"
        )
    heads, head_dim = int(heads), attention_dim // int(heads)
    width = number(arguments, "kv_channels")
    if asked_for is None and width not in (None, head_dim):
        raise ValueError(
            f"the checkpoint's arguments say kv_channels={width:g}, but each of {heads} attention "
            f"heads is {head_dim} wide: give the right number with --num-heads (num_heads=)"
        )
    if head_dim * heads != hidden_dim:
        rule += f", {head_dim} wide each"
    return heads, head_dim, f"{heads} attention heads ({rule})"


def _activation(arguments: Mapping, asked_for: str | None, of_core: bool) -> tuple[str, str]:
    """Choose the GELU: Megatron-LM's fused one, since September 2020, is the approximation."""
    if asked_for is not None:
        if asked_for not in ACTIVATIONS:
            raise ValueError(
                f"the MLP's activation must be one of {ACTIVATIONS}, not {asked_for!r}"
            )
        return asked_for, "as asked for"
    if arguments.get("bias_gelu_fusion") is True:
        return "gelu_approximate", "trained with bias_gelu_fusion"
    if arguments.get("openai_gelu") is True:
        return "gelu_approximate", "trained with openai_gelu"
    if "bias_gelu_fusion" in arguments:
        return "gelu", "trained without bias_gelu_fusion"
    if of_core or not arguments:
        return "gelu", "the checkpoint's arguments do not say that it was fused"
    return "gelu", "the checkpoint's arguments are from before Megatron-LM fused it"


def _rate(arguments: Mapping, name: str) -> float:
    rate, _ = _first((number(arguments, name), ""), (_DROPOUT, ""))
    if not 0 <= rate < 1:
        raise ValueError(f"the checkpoint's {name} must be at least 0 and below 1, not {rate:g}")
    return float(rate)
