"""Writes Megatron-LM checkpoints in their real formats from a Hugging Face model, with torch.

An independent reference for the converter: nothing here imports keras_megatron. The layout follows
Megatron-LM v1.0 (released files, checkpoint version 0) and its later key spellings; see
https://github.com/NVIDIA/Megatron-LM and the NGC release `nvidia/megatron_bert_345m` v0.1.
"""

import argparse
import os
import random
import sys
import tempfile
import types
import zipfile

import numpy as np
import torch

MEMBER = "release/mp_rank_00/model_optim_rng.pt"

OLD_NAMES = {
    "encoder": "transformer",
    "attention": "attention",
    "input_norm": "input_layernorm",
    "post_norm": "post_attention_layernorm",
    "final_norm": "final_layernorm",
    "head_norm": "layernorm",
}
LATER_NAMES = {**OLD_NAMES, "encoder": "encoder", "attention": "self_attention"}
NEWEST_NAMES = {
    "encoder": "encoder",
    "attention": "self_attention",
    "input_norm": "input_norm",
    "post_norm": "post_attention_norm",
    "final_norm": "final_norm",
    "head_norm": "norm",
}


def fuse_query_key_value(query, key, value, heads, version):
    """Stacks three (hidden, ...) tensors as `query_key_value` of a checkpoint version has them."""
    stacked = torch.stack([query, key, value])  # (3, heads * head_dim, ...)
    stacked = stacked.reshape(3, heads, -1, *query.shape[1:])
    order = {0: (0, 1, 2), 1: (1, 2, 0), 2: (1, 0, 2), 3: (1, 0, 2)}[int(version or 0)]
    rest = range(3, stacked.dim())
    return stacked.permute(*order, *rest).reshape(3 * query.shape[0], *query.shape[1:]).contiguous()


def model_state(hf_model, version=0, names=None, half=False, binary_head=True, token_types=True):
    """The nested `model` entry of a Megatron checkpoint holding the weights of `hf_model`.

    Args:
        hf_model: A `MegatronBertForPreTraining` or `MegatronBertForMaskedLM`; what the latter
            lacks (pooler, binary head) is filled with random numbers.
        version: Checkpoint version 0, 1.0, 2.0 or 3.0: the row order of `query_key_value`.
        names: `OLD_NAMES`, `LATER_NAMES` or `NEWEST_NAMES`.
        half: Store float16.
        binary_head: Whether the checkpoint has a binary head.
        token_types: Whether the checkpoint has token-type embeddings.
    """
    names = names or OLD_NAMES
    config = hf_model.config
    weights = {key: value.detach() for key, value in hf_model.state_dict().items()}
    generator = torch.Generator().manual_seed(7)

    def get(key, shape=None):
        value = weights.get(key)
        if value is None:
            value = torch.randn(shape, generator=generator) * 0.02
        return value.half() if half else value

    def pair(key, weight_shape=None, bias_shape=None):
        return {
            "weight": get(f"{key}.weight", weight_shape),
            "bias": get(f"{key}.bias", bias_shape),
        }

    layers = {}

    def put(name, tensors):
        layers.update({f"{name}.{kind}": tensor for kind, tensor in tensors.items()})

    for i in range(config.num_hidden_layers):
        source, target = f"bert.encoder.layer.{i}", f"layers.{i}"
        attention = f"{target}.{names['attention']}"
        put(f"{target}.{names['input_norm']}", pair(f"{source}.attention.ln"))
        parts = [pair(f"{source}.attention.self.{name}") for name in ("query", "key", "value")]
        for kind in ("weight", "bias"):
            layers[f"{attention}.query_key_value.{kind}"] = fuse_query_key_value(
                *[part[kind] for part in parts], config.num_attention_heads, version
            )
        put(f"{attention}.dense", pair(f"{source}.attention.output.dense"))
        put(f"{target}.{names['post_norm']}", pair(f"{source}.ln"))
        put(f"{target}.mlp.dense_h_to_4h", pair(f"{source}.intermediate.dense"))
        put(f"{target}.mlp.dense_4h_to_h", pair(f"{source}.output.dense"))
    put(names["final_norm"], pair("bert.encoder.ln"))

    hidden = config.hidden_size
    embedding = {
        "word_embeddings": {"weight": get("bert.embeddings.word_embeddings.weight")},
        "position_embeddings": {"weight": get("bert.embeddings.position_embeddings.weight")},
    }
    if token_types:
        segments = get("bert.embeddings.token_type_embeddings.weight")
        embedding["tokentype_embeddings"] = {"weight": segments}
    pooler = pair("bert.pooler.dense", (hidden, hidden), (hidden,))
    head = {"bias": get("cls.predictions.bias")}
    for target, source in (("dense", "dense"), (names["head_norm"], "LayerNorm")):
        tensors = pair(f"cls.predictions.transform.{source}")
        head.update({f"{target}.{kind}": tensor for kind, tensor in tensors.items()})
    state = {
        "language_model": {
            "embedding": embedding,
            names["encoder"]: layers,
            "pooler": {f"dense.{kind}": tensor for kind, tensor in pooler.items()},
        },
        "lm_head": head,
    }
    if binary_head:
        state["binary_head"] = pair("cls.seq_relationship", (2, hidden), (2,))
    return state


def _loss_scaler():
    """An object of Megatron-LM's own class: float16 runs of 2019 and 2020 save it whole."""
    name = "megatron.fp16.loss_scaler"
    if name not in sys.modules:
        scaler = type("DynamicLossScaler", (), {"__module__": name})
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].DynamicLossScaler = scaler
    found = sys.modules[name].DynamicLossScaler()
    found.__dict__ = {"cur_scale": 65536.0, "cur_iter": 7, "last_overflow_iter": -1}
    return found


def checkpoint(hf_model, version=0, arguments=None, optimizer=True, **options):
    """The whole object that Megatron-LM saves: model, arguments, optimizer, rng states.

    Args:
        hf_model: As in `model_state`.
        version: Checkpoint version; 0 leaves the key `checkpoint_version` out, as the release.
        arguments: Entries added to the pickled `argparse.Namespace`; a value of `None` removes.
        optimizer: Whether its state is there, which Python can read only where Megatron-LM is.
        **options: Of `model_state`.
    """
    config = hf_model.config
    known = {
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        "model_parallel_size": 1,
        "apply_residual_connection_post_layernorm": False,
        "params_dtype": torch.half,
        "rank": 0,
        "lr": np.float64(1e-4),
    }
    known.update(arguments or {})
    state = {
        "iteration": 2_000_000,
        "args": argparse.Namespace(**{k: v for k, v in known.items() if v is not None}),
        "tokens": np.int64(123),
        "model": model_state(hf_model, version, **options),
        "optimizer": {
            "loss_scaler": _loss_scaler(),
            "fp32_from_fp16": [[torch.nn.Parameter(torch.randn(4, 3)), torch.randn(5).t()]],
            "optimizer_state_dict": {
                "state": {0: {"step": 7, "exp_avg": torch.randn(4, 3)}},
                "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0, 1]}],
            },
        },
        "lr_scheduler": {"max_lr": 1e-4, "num_steps": 7, "decay_style": "linear"},
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": torch.get_rng_state(),
        "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
    }
    if not optimizer:
        del state["optimizer"]
    if version:
        state["checkpoint_version"] = version
    return state


def write_checkpoint(path, hf_model, version=0, legacy_stream=False, **options):
    """Saves one `.pt` file; `legacy_stream` picks torch's serialization from before 1.6."""
    state = checkpoint(hf_model, version, **options)
    torch.save(state, path, _use_new_zipfile_serialization=not legacy_stream)


def write_release_zip(
    path, hf_model, version=0, legacy_stream=True, compressed=False, folder="", **options
):
    """Writes a zip in the format of NVIDIA's release.

    Args:
        path: The zip file to write.
        hf_model: A `MegatronBertForPreTraining` or `MegatronBertForMaskedLM` with any weights.
        version: Checkpoint version 0 (as released), 1.0, 2.0 or 3.0.
        legacy_stream: Save the member in torch's stream format (before 1.6), else as a zip.
        compressed: Deflate the members instead of storing them.
        folder: Folder inside the zip that holds `release/`, for example `"top/"`.
        **options: Of `checkpoint` and `model_state`: `arguments`, `names`, `half`, `binary_head`,
            `token_types`.
    """
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(path))) as scratch:
        file = os.path.join(scratch, "model_optim_rng.pt")
        write_checkpoint(file, hf_model, version, legacy_stream, **options)
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr(folder + "latest_checkpointed_iteration.txt", "release")
            archive.write(file, folder + MEMBER)
