"""Writes the real files that the fuzz changes, with torch, as small as they can be."""

import argparse
import json
import warnings

import numpy as np
import release_format
import safetensors.torch
import sharded_format
import torch
import torch.distributed.checkpoint as dcp
from checkpoint_helpers import make_reference

from fuzzing.kinds import Vocabulary
from keras_megatron.pretraining.token_files import write_token_files

SIZES = {
    "vocab_size": 8,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 4,
    "max_position_embeddings": 4,
}
STACK = "encoder.layers.mlp.linear_fc1.weight"


class _Tokenizer(Vocabulary):
    @classmethod
    def vocabulary_size(cls):
        return len(cls.get_vocabulary())


def write_seeds(folder):
    """Write all of them."""
    _write_torch_files(folder)
    model = make_reference(**SIZES)
    _write_models(folder, model)
    _write_torch_dist(folder / "torch_dist")
    _write_hugging_face(folder / "hugging_face", model)
    weights = {"a": torch.randn(3, 2), "b": torch.randn(4).half(), "c": torch.arange(3)}
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    documents = [[[0, 1, 1], [1]], [[1, 0]], [[0], [1, 1, 1, 0, 1]]]
    write_token_files(folder / "tokens", documents, _Tokenizer, "uint16")


def _write_torch_files(folder):
    values = {
        "a": torch.randn(3, 2).t(),
        "b": torch.nn.Parameter(torch.randn(4).half()),
        "c": torch.ones(1, 3),
        "args": argparse.Namespace(x=np.float64(1), y=[1, (2.5, -3)], z=np.ones(2)),
    }
    torch.save(values, folder / "small_archive.pt")
    torch.save(values, folder / "small_stream.pt", _use_new_zipfile_serialization=False)


def _write_models(folder, model):
    state = release_format.checkpoint(model, 3.0, arguments={"num_attention_heads": 2})
    kept = {key: state[key] for key in ("model", "args", "checkpoint_version", "iteration")}
    torch.save(kept, folder / "model_archive.pt")
    torch.save(kept, folder / "model_stream.pt", _use_new_zipfile_serialization=False)
    for kind, compressed in (("stored", False), ("deflated", True)):
        release_format.write_release_zip(
            folder / f"release_{kind}.zip", model, compressed=compressed
        )
    shards = sharded_format.shards(model, tensor_size=2)
    for shard in shards.values():
        for key in set(shard) - {"model", "args", "checkpoint_version", "iteration"}:
            del shard[key]
    sharded_format.write_shards(folder / "sharded", shards)


def _write_torch_dist(folder):
    tensors = {
        "embedding.word_embeddings.weight": torch.randn(8, 4),
        STACK: torch.randn(2, 3, 4),
        "encoder.final_layernorm.bias": torch.randn(4).bfloat16(),
        "rng_state": torch.zeros(3),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is only one process
        dcp.save({**tensors, "step": 7}, checkpoint_id=folder)
    torch.save({"iteration": 7, "args": {"num_layers": 2}}, folder / "common.pt")


def _write_hugging_face(folder, model):
    """The weights in two shards."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    weights = {key: value for key, value in weights.items() if ".decoder." not in key}
    half = len(weights) // 2
    names = list(weights)
    shards = {"first.safetensors": names[:half], "second.safetensors": names[half:]}
    for file, keys in shards.items():
        safetensors.torch.save_file({key: weights[key] for key in keys}, folder / file)
    index = {"weight_map": {key: file for file, keys in shards.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
