"""Why a variable is split as it is, or whole on every device: a sentence for each rule."""

import math
import re

NO_REASON = "by your layout map"  # this package's own has a reason for each

_LAYER = r"(.*/)?transformer_layer_\d+"
_ATTENTION = rf"{_LAYER}/(self|cross)_attention"

# Both tables: the first pattern that fits a whole path counts, as in `rules.py`.
_SPLIT = {
    r"(.*/)?token_embedding/.*": "by rows: a share of the vocabulary to look up and to score",
    r"(.*/)?mlm_head/bias": "with the vocabulary, whose logits it is added to",
    rf"{_ATTENTION}/(query|key|value)/.*": "by heads, each of which attends alone",
    rf"{_ATTENTION}/attention_output/.*": "by heads, whose products the all-reduce adds up",
    rf"{_LAYER}/feedforward_intermediate_dense/.*": "by columns, each activated alone",
    rf"{_LAYER}/feedforward_output_dense/.*": "by rows, whose products the all-reduce adds up",
}
_WHOLE = {
    r"(.*/)?(\w+_)?layer_norm/(gamma|beta)": "LayerNorm of what every device has",
    rf"{_ATTENTION}/attention_output/bias": "bias that is added once, after the all-reduce",
    rf"{_LAYER}/feedforward_output_dense/bias": "bias that is added once, after the all-reduce",
    r"(.*/)?position_embedding/.*": "small table, of positions",
    r"(.*/)?segment_embedding/.*": "small table, of segments",
    r"(.*/)?\w*lora_\w+": "the part of a low-rank adapter that has no split axis",
    r"(.*/)?(\w+_(scale|zero)|g_idx)": "scales, of what has no split axis",
    r"(.*/)?pooled_dense/.*": "pooler, of a sample's first position alone",
    r"(.*/)?mlm_head/dense/.*": "the head's dense layer, of masked positions alone",
    r"(.*/)?(classifier|qa_outputs|binary_head)/.*": "small head",
    r"(.*/)?seed_generator(_\w+)?/.*": "random state, the same on every device",
}


def reason(
    path: str, shape: tuple[int, ...], dtype: str, axes: tuple[str | None, ...], is_split: bool
) -> str:
    """Return why a variable of a model is split, or is not.

    Args:
        path: the variable's.
        shape: all of the variable's.
        dtype: what it is stored as.
        axes: of the mesh, one or None for each axis of the shape.
        is_split: whether each device has a part.
    """
    by_rule = _first(_SPLIT, path)
    if is_split:
        return by_rule or NO_REASON
    if any(axes):
        return "the mesh has one device for it"
    if found := _first(_WHOLE, path):
        return found
    if by_rule and "int" in dtype:
        return "packed to int4, in an order that has no axis to split"
    if math.prod(shape) == 1:
        return "one number"
    return NO_REASON


def _first(table: dict[str, str], path: str) -> str | None:
    return next((text for pattern, text in table.items() if re.fullmatch(pattern, path)), None)
