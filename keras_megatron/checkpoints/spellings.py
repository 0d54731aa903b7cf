"""What Megatron-LM's and Megatron-core's versions call a weight, back to the names of 2020."""

import re
from collections.abc import Iterable, Mapping

from keras_megatron.checkpoints.mapped_files import LazyArray
from keras_megatron.checkpoints.one_line import LONGEST_NAME

_MOST_ENTRIES = 100_000
_DEEPEST = 8

_LATER = (
    (r"^language_model\.", ""),
    (r"^encoder\.", "transformer."),
    (r"\.self_attention\.", ".attention."),
    (r"\.(input|post_attention|final)_norm\.", r".\1_layernorm."),
    (r"^lm_head\.norm\.", "lm_head.layernorm."),
)
# Megatron-core's, after the above. Its layers have LayerNorm as a part of the product that follows
# it (Transformer Engine) or apart ("local"); torch_dist stores the former spelling for both.
_CORE = (
    (r"\.attention\.linear_qkv\.layer_norm_", ".input_layernorm."),
    (r"\.mlp\.linear_fc1\.layer_norm_", ".post_attention_layernorm."),
    (r"\.pre_mlp_layernorm\.", ".post_attention_layernorm."),
    (r"\.attention\.linear_qkv\.", ".attention.query_key_value."),
    (r"\.attention\.linear_proj\.", ".attention.dense."),
    (r"\.mlp\.linear_fc1\.", ".mlp.dense_h_to_4h."),
    (r"\.mlp\.linear_fc2\.", ".mlp.dense_4h_to_h."),
    (r"^lm_head\.layer_norm\.", "lm_head.layernorm."),
    (r"^output_layer\.bias$", "lm_head.bias"),
    (r"^output_layer\.weight$", "word_embeddings_for_head.weight"),
)
_SPELLINGS = tuple((re.compile(pattern), new) for pattern, new in (*_LATER, *_CORE))
# Back again, for layers of either kind.
_TO_CORE = (
    (r"^transformer\.", "encoder."),
    (r"\.attention\.", ".self_attention."),
    (r"\.query_key_value\.", ".linear_qkv."),
    (r"\.self_attention\.dense\.", ".self_attention.linear_proj."),
    (r"\.mlp\.dense_h_to_4h\.", ".mlp.linear_fc1."),
    (r"\.mlp\.dense_4h_to_h\.", ".mlp.linear_fc2."),
    (r"^lm_head\.layernorm\.", "lm_head.layer_norm."),
    (r"^lm_head\.bias$", "output_layer.bias"),
    (r"^word_embeddings_for_head\.", "output_layer."),
)
_TO_LOCAL = ((r"\.post_attention_layernorm\.", ".pre_mlp_layernorm."),)
_TO_TRANSFORMER_ENGINE = (
    (r"\.input_layernorm\.", ".self_attention.linear_qkv.layer_norm_"),
    (r"\.post_attention_layernorm\.", ".mlp.linear_fc1.layer_norm_"),
)
# Names of Megatron-LM since 2021, which its versions after that read too.
_TO_LATER = ((r"^transformer\.", "encoder."), (r"\.attention\.", ".self_attention."))
_LANGUAGE_MODEL = ("embedding", "transformer", "encoder", "pooler")
_OF_CORE = re.compile(r"encoder\.layers\.(\d+\.)?self_attention\.linear_qkv\.|output_layer\.bias$")


def is_of_core(names: Iterable[str]) -> bool:
    """Say whether these are Megatron-core's names, of a BERT or of some of its layers."""
    return any(_OF_CORE.match(name) for name in names)


def flatten(model: Mapping) -> dict[str, LazyArray]:
    """Join the keys of nested dictionaries with dots.

    Raises:
        ValueError: a value is neither a tensor nor a dictionary, there are too many, or a key is
            longer than any weight's.
    """
    flat: dict[str, LazyArray] = {}
    pending = [("", model, 0)]
    for prefix, branch, depth in pending:
        if len(pending) + len(flat) + len(branch) > _MOST_ENTRIES or depth > _DEEPEST:
            raise ValueError("the checkpoint's 'model' is nested too deep, or has too many entries")
        for key, value in branch.items():
            name = f"{prefix}{key}"
            if len(name) > LONGEST_NAME:
                raise ValueError(f"the checkpoint's 'model' has a key of {len(name)} characters")
            if name.endswith("_extra_state"):
                continue
            if isinstance(value, dict):
                pending.append((f"{name}.", value, depth + 1))
            elif isinstance(value, LazyArray):
                flat[name] = value
            else:
                raise ValueError(f"the checkpoint's {name!r} is no tensor")
    return flat


def respell(tensors: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """Give the keys the names of 2020.

    Raises:
        ValueError: one weight has two names.
    """
    respelled = {}
    for original, tensor in tensors.items():
        name = original
        for pattern, replacement in _SPELLINGS:
            name = pattern.sub(replacement, name)
        if name in respelled:
            raise ValueError(f"the checkpoint has {original!r} under two spellings")
        respelled[name] = tensor
    return respelled


def spell_as_core(
    tensors: Mapping[str, LazyArray], transformer_engine: bool
) -> dict[str, LazyArray]:
    """Turn names of 2020 into Megatron-core's.

    Args:
        tensors: By the names of 2020.
        transformer_engine: Whether LayerNorms belong to the products that follow them.
    """
    layer_norms = _TO_TRANSFORMER_ENGINE if transformer_engine else _TO_LOCAL
    return {_renamed(name, (*_TO_CORE, *layer_norms)): value for name, value in tensors.items()}


def spell_as_legacy(tensors: Mapping[str, LazyArray], later: bool) -> dict[str, dict]:
    """Nest names of 2020 as Megatron-LM does.

    Args:
        tensors: By the names of 2020.
        later: Whether to use the names since 2021.
    """
    nested: dict[str, dict] = {}
    for name, tensor in tensors.items():
        module, *rest = _renamed(name, _TO_LATER if later else ()).split(".")
        branch = nested
        if module in _LANGUAGE_MODEL:
            branch = nested.setdefault("language_model", {})
        branch = branch.setdefault(module, {})
        if module == "embedding":
            branch = branch.setdefault(rest.pop(0), {})
        branch[".".join(rest)] = tensor
    return nested


def _renamed(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
