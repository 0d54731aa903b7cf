"""Reads the model out of a Megatron-LM checkpoint, whatever its version and spelling."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from keras_megatron.checkpoints.assign import check_weights
from keras_megatron.checkpoints.mapped_files import LazyArray, same_numbers
from keras_megatron.checkpoints.megatron_arguments import (
    checkpoint_version,
    choose_settings,
    number,
    read_arguments,
)
from keras_megatron.checkpoints.weight_names import model_sizes, weights

# What later versions of Megatron-LM renamed, back to the names of 2020.
_SPELLINGS = (
    (re.compile(r"^language_model\."), ""),
    (re.compile(r"^encoder\."), "transformer."),
    (re.compile(r"\.self_attention\."), ".attention."),
    (re.compile(r"\.(input|post_attention|final)_norm\."), r".\1_layernorm."),
    (re.compile(r"^lm_head\.norm\."), "lm_head.layernorm."),
)
_LAYER = re.compile(r"transformer\.layers\.(\d{1,4})\.")
_PARTS = ("backbone", "pooler", "mlm_head", "binary_head")
_OTHER_HEADS = ("classification_head.", "multichoice_head.")
_WORDS = "embedding.word_embeddings.weight"
_SEGMENTS = "embedding.tokentype_embeddings.weight"
_TIED_COPY = "word_embeddings_for_head.weight"
_MOST_ENTRIES = 100_000
_DEEPEST = 8


@dataclasses.dataclass(frozen=True)
class MegatronCheckpoint:
    """A checkpoint's model.

    Attributes:
        config: Arguments of `MegatronBertBackbone`.
        head_activation: Activation of the masked language model's head.
        weights: In torch orientation, by their Hugging Face names.
        unused: Keys of fine-tuned heads, which are not converted.
        notes: How each setting was decided, one line each.
    """

    config: dict[str, int | float | str]
    head_activation: str
    weights: dict[str, LazyArray]
    unused: list[str]
    notes: list[str]


def read_megatron(
    state,
    num_heads: int | None = None,
    layer_norm_epsilon: float | None = None,
    mlp_activation: str | None = None,
) -> MegatronCheckpoint:
    """Find configuration and weights in what Megatron-LM saved.

    Args:
        state: The content of `model_optim_rng.pt`, as `load_torch_file` returns it.
        num_heads: Attention heads; from the checkpoint's arguments, else hidden / 64, if None.
        layer_norm_epsilon: From the checkpoint's arguments, else 1e-5, if None.
        mlp_activation: `"gelu"` or `"gelu_approximate"`; by the checkpoint's arguments if None.

    Raises:
        ValueError: it is no checkpoint of one whole BERT, or a key is missing, unknown or of the
            wrong shape.
    """
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        shards = isinstance(state, dict) and "model0" in state
        found = "a virtual pipeline's chunks" if shards else "no 'model'"
        raise ValueError(f"the file is not a whole Megatron-LM checkpoint: it holds {found}")
    arguments, version = read_arguments(state), checkpoint_version(state)
    tensors = _respell(_flatten(state["model"]))
    _, hidden = _shape(tensors, _WORDS, 2)
    chosen, head_activation, notes = choose_settings(
        arguments, hidden, num_heads, layer_norm_epsilon, mlp_activation
    )
    notes.insert(0, f"checkpoint version {version:g}")
    if _SEGMENTS not in tensors:
        shape = (2, hidden)
        tensors[_SEGMENTS] = LazyArray(shape, np.dtype("f4"), lambda: np.zeros(shape, "f4"))
        notes.append("no token-type embeddings in the checkpoint: zeros")
    config = {**_sizes(tensors, number(arguments, "num_layers")), **chosen}
    _split_query_key_value(tensors, config, version)
    _drop_tied_copy(tensors)

    table = [row for row in weights(config["num_layers"]) if row.part in _PARTS]
    absent = {"pooler", "binary_head"} - {row.part for row in table if row.megatron in tensors}
    table = [row for row in table if row.part not in absent]
    if "pooler" in absent:
        notes.append("no pooler in the checkpoint: random, for fine-tuning to train")
    check_weights(tensors, table, model_sizes(config), "megatron")
    canonical = {row.hugging_face: tensors.pop(row.megatron) for row in table}
    for name in tensors:
        if not name.startswith(_OTHER_HEADS):
            raise ValueError(f"the checkpoint has a key that no BERT of Megatron has, {name!r}")
    return MegatronCheckpoint(config, head_activation, canonical, sorted(tensors), notes)


def _flatten(model: Mapping) -> dict[str, LazyArray]:
    """Join the keys of nested dictionaries with dots."""
    flat: dict[str, LazyArray] = {}
    pending = [("", model, 0)]
    for prefix, branch, depth in pending:
        if len(pending) + len(flat) + len(branch) > _MOST_ENTRIES or depth > _DEEPEST:
            raise ValueError("the checkpoint's 'model' is nested too deep, or has too many entries")
        for key, value in branch.items():
            name = f"{prefix}{key}"
            if name.endswith("_extra_state"):
                continue
            if isinstance(value, dict):
                pending.append((f"{name}.", value, depth + 1))
            elif isinstance(value, LazyArray):
                flat[name] = value
            else:
                raise ValueError(f"the checkpoint's {name!r} is no tensor")
    return flat


def _respell(tensors: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """Give the keys the names of 2020."""
    respelled = {}
    for original, tensor in tensors.items():
        name = original
        for pattern, replacement in _SPELLINGS:
            name = pattern.sub(replacement, name)
        if name in respelled:
            raise ValueError(f"the checkpoint has {original!r} under two spellings")
        respelled[name] = tensor
    return respelled


def _shape(tensors: Mapping[str, LazyArray], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"the checkpoint lacks {name!r}")
    shape = tensors[name].shape
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(f"{name!r} has shape {shape}, not {dimensions} dimensions")
    return shape


def _sizes(tensors: Mapping[str, LazyArray], claimed_layers: int | float | None) -> dict[str, int]:
    """Return the backbone's arguments that tensors tell."""
    layers = {int(match[1]) for name in tensors if (match := _LAYER.match(name))}
    if not layers or layers != set(range(len(layers))):
        raise ValueError(f"the checkpoint's layers are not numbered from 0: {sorted(layers)[:8]}")
    if claimed_layers not in (None, len(layers)):
        raise ValueError(
            f"the checkpoint holds {len(layers)} layers but its arguments say {claimed_layers:g}: "
            "it is a part of a pipeline, or cut"
        )
    vocabulary, hidden = _shape(tensors, _WORDS, 2)
    return {
        "vocabulary_size": vocabulary,
        "num_layers": len(layers),
        "hidden_dim": hidden,
        "intermediate_dim": _shape(tensors, "transformer.layers.0.mlp.dense_h_to_4h.bias", 1)[0],
        "max_sequence_length": _shape(tensors, "embedding.position_embeddings.weight", 2)[0],
        "num_segments": _shape(tensors, _SEGMENTS, 2)[0],
    }


def _split_query_key_value(tensors: dict[str, LazyArray], config: Mapping, version: float) -> None:
    """Replace each `query_key_value` by three tensors, as `checkpoint_version` orders its rows.

    Rows are [3, heads, head_dim] in version 0, [heads, head_dim, 3] in 1.0 and [heads, 3, head_dim]
    since 2.0 (Megatron-LM, `fix_query_key_value_ordering`).
    """
    hidden, heads = config["hidden_dim"], config["num_heads"]
    rows, axis = {0: ((3, heads, -1), 0), 1: ((heads, -1, 3), 2)}.get(version, ((heads, 3, -1), 1))
    for i in range(config["num_layers"]):
        module = f"transformer.layers.{i}.attention"
        for kind, shape in (("weight", (hidden, hidden)), ("bias", (hidden,))):
            name = f"{module}.query_key_value.{kind}"
            fused_shape = (3 * hidden, *shape[1:])
            if _shape(tensors, name, len(shape)) != fused_shape:
                raise ValueError(
                    f"{name!r} has shape {tensors[name].shape} but the model needs {fused_shape}"
                )
            fused = tensors.pop(name)
            for index, part in enumerate(("query", "key", "value")):

                def read(fused=fused, index=index, shape=shape) -> np.ndarray:
                    split = fused.read().reshape(*rows, *shape[1:])
                    return split.take(index, axis).reshape(shape)

                tensors[f"{module}.{part}.{kind}"] = LazyArray(shape, fused.dtype, read)


def _drop_tied_copy(tensors: dict[str, LazyArray]) -> None:
    """Drop the last pipeline stage's copy of the word embeddings, which must be one."""
    copy = tensors.pop(_TIED_COPY, None)
    if copy and not same_numbers(copy, tensors[_WORDS]):
        raise ValueError(f"{_TIED_COPY!r} is not equal to {_WORDS!r}, to which it is tied")
