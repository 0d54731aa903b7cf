"""Splits Megatron-LM checkpoints over ranks and writes them in their real format, with torch.

As `release_format`, an independent reference: nothing here imports keras_megatron. The layout is
that of Megatron-LM's `checkpointing.py`, `transformer.py` and `layers.py` (v1.0 to v3.0).
"""

import copy
import types

import release_format
import torch

EMBEDDING, HEAD_BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"
# By the ends of a layer's keys. What comes first, in attention and in the feed-forward block, is
# split over its outputs, what comes last over its inputs; the latter's bias is whole.
COLUMN_PARALLEL = tuple(
    f"{module}.{kind}"
    for module in ("self.query", "self.key", "self.value", "intermediate.dense")
    for kind in ("weight", "bias")
)
ROW_PARALLEL = "output.dense.weight"


def padded_weights(hf_model, tensor_size):
    """Weights with the vocabulary padded to a multiple of 128 for each tensor rank."""
    weights = {key: value.detach().clone() for key, value in hf_model.state_dict().items()}
    rows = weights[EMBEDDING].shape[0]
    multiple = 128 * tensor_size
    added = -rows % multiple
    generator = torch.Generator().manual_seed(3)
    for key in (EMBEDDING, HEAD_BIAS):
        if key in weights:
            shape = (added, *weights[key].shape[1:])
            weights[key] = torch.cat([weights[key], torch.randn(shape, generator=generator)])
    return weights


def split_axis(key):
    """The axis along which tensor ranks share a weight, or None if each has a copy."""
    if key in (EMBEDDING, HEAD_BIAS):
        return 0
    if ".layer." not in key:
        return None
    return 0 if key.endswith(COLUMN_PARALLEL) else 1 if key.endswith(ROW_PARALLEL) else None


def tensor_rank(hf_model, rank, tensor_size):
    """What one tensor rank has of a model, with the interface that `model_state` asks for."""
    weights = padded_weights(hf_model, tensor_size)
    for key, tensor in weights.items():
        axis = split_axis(key)
        if axis is not None:
            weights[key] = tensor.chunk(tensor_size, axis)[rank].clone()
    config = copy.deepcopy(hf_model.config)
    config.num_attention_heads //= tensor_size
    return types.SimpleNamespace(config=config, state_dict=lambda: weights)


def layers_of_chunks(num_layers, pipeline_size, virtual_size):
    """For each stage its chunks, each a range of layers: chunk c of stage s is the (c P + s)th."""
    size = num_layers // (pipeline_size * virtual_size)
    starts = [
        [(chunk * pipeline_size + stage) * size for chunk in range(virtual_size)]
        for stage in range(pipeline_size)
    ]
    return [[range(start, start + size) for start in chunks] for chunks in starts]


def stage_state(state, layers, num_layers, first, last):
    """What of a whole model's state a chunk of a pipeline has; layers are numbered from 0 again."""
    language_model = state["language_model"]
    encoder = next(key for key in language_model if key in ("transformer", "encoder"))
    kept = {}
    for key, tensor in language_model[encoder].items():
        if not key.startswith("layers."):
            if last:
                kept[key] = tensor
            continue
        _, number, rest = key.split(".", 2)
        if int(number) in layers:
            kept[f"layers.{int(number) - layers.start}.{rest}"] = tensor
    chunk = {"language_model": {encoder: kept}}
    if first:
        chunk["language_model"]["embedding"] = language_model["embedding"]
    if last:
        chunk["language_model"]["pooler"] = language_model["pooler"]
        chunk.update({key: value for key, value in state.items() if key != "language_model"})
        if not first:
            words = language_model["embedding"]["word_embeddings"]["weight"]
            chunk["word_embeddings_for_head"] = {"weight": words.clone()}
    return chunk


def shards(
    hf_model,
    version=3.0,
    tensor_size=1,
    pipeline_size=1,
    virtual_size=1,
    names=None,
    chunks=None,
    arguments=None,
    extra=None,
):
    """What each process saves, by tensor and pipeline rank.

    Args:
        hf_model: As of `release_format.model_state`.
        version: Checkpoint version.
        tensor_size: Tensor ranks.
        pipeline_size: Pipeline stages.
        virtual_size: Chunks of each stage.
        names: Of `release_format`.
        chunks: For each stage its chunks, ranges of layers; even by default.
        arguments: Entries added to the arguments; `None` removes.
        extra: Entries of the last stage's model, such as a head of fine-tuning.
    """
    num_layers = hf_model.config.num_hidden_layers
    chunks = chunks or layers_of_chunks(num_layers, pipeline_size, virtual_size)
    sizes = {
        "tensor_model_parallel_size": tensor_size,
        "pipeline_model_parallel_size": pipeline_size,
        "model_parallel_size": None,
        "num_attention_heads": hf_model.config.num_attention_heads,
        **(arguments or {}),
    }
    found = {}
    for rank in range(tensor_size):
        local = tensor_rank(hf_model, rank, tensor_size)
        state = release_format.model_state(local, version, names)
        state.update(extra or {})
        saved = release_format.checkpoint(local, version, arguments=sizes, names=names)
        del saved["optimizer"], saved["model"]
        for stage, ranges in enumerate(chunks):
            models = [
                stage_state(
                    state,
                    layers,
                    num_layers,
                    first=(stage, chunk) == (0, 0),
                    last=(stage, chunk) == (len(chunks) - 1, len(ranges) - 1),
                )
                for chunk, layers in enumerate(ranges)
            ]
            keys = ["model"] if len(models) == 1 else [f"model{i}" for i in range(len(models))]
            found[rank, stage] = {**saved, **dict(zip(keys, models, strict=True))}
    return found


def rank_folder(tensor, pipeline, pipeline_size):
    """The name of a process's folder."""
    return f"mp_rank_{tensor:02d}" + (f"_{pipeline:03d}" if pipeline_size > 1 else "")


def write_shards(folder, found, file="model_optim_rng.pt"):
    """Save what `shards` returns below a folder, each in its own folder."""
    pipeline_size = 1 + max(pipeline for _, pipeline in found)
    for (tensor, pipeline), content in found.items():
        path = folder / rank_folder(tensor, pipeline, pipeline_size) / file
        path.parent.mkdir(parents=True)
        torch.save(content, path)
    return folder
