"""Puts the shards of a checkpoint together: pipeline stages, virtual chunks, tensor ranks."""

import dataclasses
import re
from collections.abc import Sequence

from keras_megatron.checkpoints.mapped_files import LazyArray, joined, same_numbers
from keras_megatron.checkpoints.megatron_arguments import (
    PIPELINE_SIZES,
    TENSOR_SIZES,
    argument_values,
    number,
)
from keras_megatron.checkpoints.spellings import flatten, is_of_core, respell

LAYER = re.compile(r"transformer\.layers\.(\d{1,4})\.")
_CHUNK = re.compile(r"model(\d{1,3})")
WORDS = "embedding.word_embeddings.weight"
TIED_COPY = "word_embeddings_for_head.weight"
# What tensor parallelism splits, and along which axis of (outputs, inputs): Megatron-LM's
# ColumnParallelLinear and VocabParallelEmbedding, and the weight of its RowParallelLinear.
_SPLIT = (
    (re.compile(r"embedding\.word_embeddings\.weight"), 0),
    (re.compile(r"lm_head\.bias"), 0),
    (re.compile(rf"{LAYER.pattern}attention\.(query|key|value)\.(weight|bias)"), 0),
    (re.compile(rf"{LAYER.pattern}mlp\.dense_h_to_4h\.(weight|bias)"), 0),
    (re.compile(rf"{LAYER.pattern}(attention\.dense|mlp\.dense_4h_to_h)\.weight"), 1),
)
_NO_MODEL = "the file is not a whole Megatron-LM checkpoint: it holds no 'model'"
_MOST_RANKS = 1000  # what the names of folders have digits for


@dataclasses.dataclass(frozen=True)
class Shard:
    """What one process saved.

    Attributes:
        tensor_rank: Its place among those that split each layer.
        pipeline_rank: Its place among those that have some layers each.
        content: What it saved, as `load_torch_file` returns it.
        name: Of its folder.
    """

    tensor_rank: int
    pipeline_rank: int
    content: object
    name: str = "the file"


def rank_folder(tensor_rank: int, pipeline_rank: int, pipeline_size: int) -> str:
    """Return the name of the folder that a process saves to."""
    return f"mp_rank_{tensor_rank:02d}" + (f"_{pipeline_rank:03d}" if pipeline_size > 1 else "")


def check_grid(shards: Sequence[Shard]) -> None:
    """Check that all shards are there, and of one moment of one run.

    Raises:
        ValueError: a rank is missing, or two shards disagree.
    """
    if not all(isinstance(shard.content, dict) for shard in shards):
        raise ValueError(_NO_MODEL)
    there = {(shard.tensor_rank, shard.pipeline_rank) for shard in shards}
    first = shards[0]
    tensor_size = _size(shards, TENSOR_SIZES, max(tensor for tensor, _ in there) + 1)
    pipeline_size = _size(shards, PIPELINE_SIZES, max(pipeline for _, pipeline in there) + 1)
    for tensor in range(tensor_size):
        for pipeline in range(pipeline_size):
            if (tensor, pipeline) not in there:
                raise ValueError(
                    f"the checkpoint is split into {tensor_size * pipeline_size} shards "
                    f"({TENSOR_SIZES[0]}={tensor_size}, {PIPELINE_SIZES[0]}={pipeline_size}) and "
                    f"{rank_folder(tensor, pipeline, pipeline_size)} is missing: give the folder "
                    "with all of them"
                )
    for shard in shards:
        for key in ("iteration", "checkpoint_version"):
            values = [number(one.content, key) for one in (first, shard)]
            if values[0] != values[1]:
                raise ValueError(
                    f"{first.name} has {key} {values[0]} but {shard.name} has {values[1]}: they "
                    "are not of one checkpoint"
                )


def _size(shards: Sequence[Shard], names: Sequence[str], there: int) -> int:
    """Return the number of ranks, by the arguments of each shard and by those that are there."""
    for shard in shards:
        arguments = argument_values(shard.content)
        sizes = ((name, number(arguments, name)) for name in names)
        name, size = next((pair for pair in sizes if pair[1] is not None), ("", there))
        if not 1 <= size <= _MOST_RANKS or size != int(size) or size < there:
            raise ValueError(
                f"{shard.name} was saved with {name}={size:g}, but there are {there} such ranks"
            )
        there = int(size)
    return there


def merge_stages(shards: Sequence[Shard]) -> tuple[list[dict[str, LazyArray]], bool]:
    """Put pipeline stages and virtual chunks together.

    Layers are numbered from 0 in each chunk. Chunk c of stage s comes after the chunks of all
    stages before c, and after chunk c of the stages before s (arXiv 2104.04473, section 2.2).

    Returns:
        For each tensor rank its tensors, by the names of 2020 and the layers' numbers in the model;
        and whether the names were Megatron-core's.

    Raises:
        ValueError: a shard does not hold a model's chunks, or two hold the same weight.
    """
    ranks: dict[int, dict[str, LazyArray]] = {}
    stages: dict[int, list[list[dict[str, LazyArray]]]] = {}
    of_core = False
    for shard in sorted(shards, key=lambda shard: (shard.tensor_rank, shard.pipeline_rank)):
        chunks = [flatten(model) for model in chunks_of(shard)]
        of_core |= any(is_of_core(chunk) for chunk in chunks)
        stages.setdefault(shard.tensor_rank, []).append([respell(chunk) for chunk in chunks])
    for tensor_rank, of_stage in stages.items():
        if len({len(chunks) for chunks in of_stage}) > 1:
            raise ValueError("the pipeline's stages do not have the same number of chunks each")
        whole = ranks.setdefault(tensor_rank, {})
        layers = 0
        for chunks in zip(*of_stage, strict=True):
            for chunk in chunks:
                layers += _add(whole, chunk, layers)
    return list(ranks.values()), of_core


def chunks_of(shard: Shard) -> list[dict]:
    """Return the chunks of the model that a shard has: several in a virtual pipeline."""
    content = shard.content
    if not isinstance(content, dict):
        raise ValueError(_NO_MODEL)
    if isinstance(content.get("model"), dict):
        return [content["model"]]
    chunks = {int(m[1]): content[m[0]] for key in content if (m := _CHUNK.fullmatch(str(key)))}
    if chunks:
        if sorted(chunks) != list(range(len(chunks))):
            raise ValueError(f"{shard.name} has chunks {sorted(chunks)[:9]}, not all from model0")
        if all(isinstance(chunk, dict) for chunk in chunks.values()):
            return [chunks[index] for index in range(len(chunks))]
    tensors = {key: value for key, value in content.items() if isinstance(value, LazyArray)}
    if not chunks and is_of_core(map(str, tensors)):
        return [tensors]
    raise ValueError(_NO_MODEL)


def _add(whole: dict[str, LazyArray], chunk: dict[str, LazyArray], before: int) -> int:
    """Add a chunk, which comes after so many layers, and return how many it has itself."""
    layers = {int(match[1]) for name in chunk if (match := LAYER.match(name))}
    if layers != set(range(len(layers))):
        raise ValueError(f"the checkpoint's layers are not numbered from 0: {sorted(layers)[:8]}")
    for name, tensor in chunk.items():
        if match := LAYER.match(name):
            name = f"transformer.layers.{int(match[1]) + before}.{name[match.end() :]}"
        if name in whole:
            raise ValueError(f"the checkpoint has {name!r} in two stages of its pipeline")
        whole[name] = tensor
    return len(layers)


def split_axis(name: str) -> int | None:
    """Return the axis along which tensor parallelism splits a weight, or None if it is copied.

    Args:
        name: As in 2020, with query, key and value apart.
    """
    return next((axis for pattern, axis in _SPLIT if pattern.fullmatch(name)), None)


def merge_ranks(ranks: Sequence[dict[str, LazyArray]]) -> dict[str, LazyArray]:
    """Join what tensor parallelism split, and check that what it copied is equal.

    Args:
        ranks: Of each tensor rank its tensors, with query, key and value apart.

    Raises:
        ValueError: ranks do not have the same weights, or copies differ.
    """
    merged = {}
    for name in sorted(set().union(*ranks)):
        parts = [rank.get(name) for rank in ranks]
        if None in parts:
            raise ValueError(f"tensor rank {parts.index(None)} lacks {name!r}")
        if len({(part.shape, part.dtype) for part in parts}) > 1:
            raise ValueError(f"{name!r} does not have the same shape on all tensor ranks")
        axis = split_axis(name)
        if axis is not None and axis < len(parts[0].shape):
            merged[name] = joined(parts, axis)
            continue
        for rank, part in enumerate(parts):
            if rank and not same_numbers(parts[0], part):
                raise ValueError(
                    f"{name!r} must be the same on all tensor ranks, but rank {rank} has other "
                    "numbers than rank 0: the shards are not of one checkpoint"
                )
        merged[name] = parts[0]
    return merged


def drop_tied_copy(tensors: dict[str, LazyArray]) -> None:
    """Drop the output layer's copy of the word embeddings, which must be one.

    Raises:
        ValueError: it is not.
    """
    copy = tensors.pop(TIED_COPY, None)
    if copy and not (WORDS in tensors and same_numbers(copy, tensors[WORDS])):
        raise ValueError(f"{TIED_COPY!r} is not equal to {WORDS!r}, to which it is tied")
