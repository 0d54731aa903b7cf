"""Translates the configuration of Hugging Face's Megatron BERT, checking every value of it."""

from collections.abc import Mapping

# Hugging Face's activations by name; those of the same name in both are not all the same function.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_approximate",
    "gelu_fast": "gelu_approximate",
    "gelu_pytorch_tanh": "gelu_approximate",
    "relu": "relu",
    "relu6": "relu6",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}
_SIZES = {  # with the defaults of transformers' MegatronBertConfig, as in the next two
    "vocab_size": 29056,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
_RATES = {
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
}
_DEFAULTS = {**_SIZES, **_RATES, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
# Settings that make the model another one than this package's, with the values that do not.
_SUPPORTED = {
    "position_embedding_type": ("absolute", None),
}


def backbone_config(config: Mapping) -> dict:
    """Translate a Hugging Face configuration.

    Args:
        config: The content of config.json.

    Returns:
        Arguments of `MegatronBertBackbone`.

    Raises:
        ValueError: a value makes no sense, or the configuration is of a model that this package
            does not have.
    """
    given = {**_DEFAULTS, **{key: config[key] for key in _DEFAULTS if config.get(key) is not None}}
    _check(given)
    for name, allowed in _SUPPORTED.items():
        if config.get(name) not in allowed:
            raise ValueError(f"config.json has {name}={short(config[name])}: not supported")
    for name in ("is_decoder", "add_cross_attention"):
        if not isinstance(config.get(name), bool | None):
            raise ValueError(f"config.json has {name}={short(config[name])}: not true or false")
    cross_attention = bool(config.get("add_cross_attention"))
    if cross_attention and not config.get("is_decoder"):
        raise ValueError("config.json has add_cross_attention without is_decoder: not supported")
    return {
        "vocabulary_size": given["vocab_size"],
        "num_layers": given["num_hidden_layers"],
        "num_heads": given["num_attention_heads"],
        "hidden_dim": given["hidden_size"],
        "intermediate_dim": given["intermediate_size"],
        "dropout": given["hidden_dropout_prob"],
        "attention_dropout": given["attention_probs_dropout_prob"],
        "max_sequence_length": given["max_position_embeddings"],
        "num_segments": given["type_vocab_size"],
        "layer_norm_epsilon": given["layer_norm_eps"],
        "activation": ACTIVATIONS[given["hidden_act"]],
        "initializer_range": given["initializer_range"],
        "cross_attention": cross_attention,
    }


def _check(given: Mapping) -> None:
    """Check types and ranges. JSON has true and false, which Python takes for numbers."""
    for name in _SIZES:
        if type(given[name]) is not int or given[name] < 1:
            raise ValueError(_message(given, name, "an integer above 0"))
    for name in _RATES:
        if type(given[name]) not in (int, float) or not 0 <= given[name] <= 1:
            raise ValueError(_message(given, name, "a number from 0 to 1"))
    epsilon, activation = given["layer_norm_eps"], given["hidden_act"]
    if type(epsilon) is not float or not 0 < epsilon < 1:
        raise ValueError(_message(given, "layer_norm_eps", "a number above 0 and below 1"))
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise ValueError(_message(given, "hidden_act", f"one of {known}"))
    if given["hidden_size"] % given["num_attention_heads"]:
        raise ValueError(_message(given, "hidden_size", "a multiple of num_attention_heads"))


def _message(given: Mapping, name: str, wanted: str) -> str:
    return f"config.json has {name}={short(given[name])}, which must be {wanted}"


def short(value) -> str:
    """Return a value of a file as it may stand in an error."""
    return repr(value)[:60]
