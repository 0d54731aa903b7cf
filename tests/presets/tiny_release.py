"""A preset like the released ones but tiny, and the zip that stands for its release."""

import functools
import json
import pathlib

from keras_megatron.presets.registry import Preset, Release, register

NAME = "megatron_bert_test_uncased"
FILE = "megatron_bert_test_v0.1_uncased.zip"
SIZES = {
    "vocab_size": 30592,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-5,
}


def register_tiny(directory: pathlib.Path) -> Preset:
    """Register the preset, with its config.json in `directory`."""
    config = {"model_type": "megatron-bert", "hidden_act": "gelu", **SIZES}
    (directory / "config.json").write_text(json.dumps(config))
    release = Release("nvidia/megatron_bert_test", "v0.1_uncased")
    preset = Preset(NAME, "For tests.", directory, "uncased", release)
    register(preset)
    return preset


@functools.cache
def hf_model(**changes):
    """A `transformers` model of these sizes with weights large enough to tell them apart."""
    import torch
    from transformers import MegatronBertConfig, MegatronBertForPreTraining

    torch.manual_seed(0)
    config = MegatronBertConfig(**{**SIZES, **changes}, initializer_range=0.3)
    return MegatronBertForPreTraining(config).eval()


def names(folder: pathlib.Path) -> list[str]:
    """What is in a preset's cache folder, but for the lock."""
    return sorted(entry.name for entry in folder.iterdir() if entry.name != "lock")
