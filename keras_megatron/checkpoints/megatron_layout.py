"""How a Megatron checkpoint that is written is split, ordered and spelled."""

import dataclasses
import re
from collections.abc import Iterator, Mapping

from keras_megatron.checkpoints.mapped_files import LazyArray
from keras_megatron.checkpoints.query_key_value import FUSED, PARTS, fuse_query_key_value
from keras_megatron.checkpoints.shards import LAYER, TIED_COPY, WORDS, split_axis

VERSIONS = (0.0, 1.0, 2.0, 3.0)
_FIRST_CHUNK = ("embedding.",)
_ATTENTION_PART = re.compile(
    rf"(?P<attention>{LAYER.pattern}attention\.)(?P<part>{'|'.join(PARTS)})\.(?P<kind>weight|bias)"
)


@dataclasses.dataclass(frozen=True)
class MegatronLayout:
    """How a checkpoint is split, ordered and spelled.

    Attributes:
        tensor_parallel: Ranks that share each layer.
        pipeline_parallel: Stages that have some layers each.
        virtual_pipeline: Chunks of layers of each stage.
        version: `checkpoint_version`: 0 as in the released files, 1.0, 2.0 or 3.0. They differ in
            the rows of `query_key_value`; 3.0 has the names that Megatron-LM uses since 2021.
        core: Whether the names are Megatron-core's.
        transformer_engine: Whether its LayerNorms are a part of the product that follows, as in
            layers of Transformer Engine, or apart, as in its "local" ones.
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    virtual_pipeline: int = 1
    version: float = 3.0
    core: bool = False
    transformer_engine: bool = False

    def __post_init__(self):
        for name in ("tensor_parallel", "pipeline_parallel", "virtual_pipeline"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}={value!r} must be an integer of at least 1")
        if self.virtual_pipeline > 1 and self.pipeline_parallel == 1:
            raise ValueError(
                f"virtual_pipeline={self.virtual_pipeline} needs pipeline_parallel of at least 2"
            )
        if self.version not in VERSIONS:
            raise ValueError(f"version={self.version!r} must be one of {VERSIONS}")
        if self.core and self.version < VERSIONS[-1]:
            raise ValueError(f"version={self.version!r} is older than Megatron-core: leave it out")
        if self.transformer_engine and not self.core:
            raise ValueError("transformer_engine=True needs Megatron-core's names")

    def check(self, config: Mapping) -> None:
        """Check that a model can be split so.

        Args:
            config: Of its backbone.

        Raises:
            ValueError: its layers, heads or feed-forward units are not split evenly.
        """
        chunks = self.pipeline_parallel * self.virtual_pipeline
        for value, what, parts, over in (
            (config["num_layers"], "layers", chunks, "chunks of the pipeline"),
            (config["num_heads"], "attention heads", self.tensor_parallel, "tensor ranks"),
            (config["intermediate_dim"], "units", self.tensor_parallel, "tensor ranks"),
        ):
            if value % parts:
                raise ValueError(
                    f"{value} {what} are not split evenly over {parts} {over}: choose another "
                    "number of ranks"
                )

    def place(self, name: str, num_layers: int) -> tuple[int, int, str]:
        """Return where a weight of the model goes: its stage, its chunk, and its name there.

        Layers are numbered from 0 in each chunk. Chunk c of stage s comes after the chunks of all
        stages before c, and after chunk c of the stages before s (arXiv 2104.04473, section 2.2).
        """
        if match := LAYER.match(name):
            size = num_layers // (self.pipeline_parallel * self.virtual_pipeline)
            block, layer = divmod(int(match[1]), size)
            chunk, stage = divmod(block, self.pipeline_parallel)
            return stage, chunk, f"transformer.layers.{layer}.{name[match.end() :]}"
        if name.startswith(_FIRST_CHUNK):
            return 0, 0, name
        return self.pipeline_parallel - 1, self.virtual_pipeline - 1, name


def shares(
    weights: Mapping[str, LazyArray], num_layers: int, num_heads: int, layout: MegatronLayout
) -> Iterator[tuple[int, int, list[dict[str, LazyArray]]]]:
    """Split a model over ranks.

    Args:
        weights: In torch orientation by the names of 2020, with query, key and value apart; the
            table of words has as many rows for each tensor rank.
        num_layers: Of the model.
        num_heads: Of the model.
        layout: How to split it.

    Yields:
        For each tensor rank and stage: the two, and for each chunk its weights.
    """
    stages, virtual = layout.pipeline_parallel, layout.virtual_pipeline
    for rank in range(layout.tensor_parallel):
        local = {name: _share(name, array, rank, layout) for name, array in weights.items()}
        local = _fused(local, num_heads // layout.tensor_parallel, layout.version)
        of_stages: list[list[dict]] = [[{} for _ in range(virtual)] for _ in range(stages)]
        for name, array in local.items():
            stage, chunk, renamed = layout.place(name, num_layers)
            of_stages[stage][chunk][renamed] = array
        if stages > 1:
            of_stages[-1][-1][TIED_COPY] = local[WORDS]  # for the head's product
        for stage, chunks in enumerate(of_stages):
            yield rank, stage, chunks


def _share(name: str, whole: LazyArray, rank: int, layout: MegatronLayout) -> LazyArray:
    """Return a tensor rank's part of a weight."""
    axis = split_axis(name)
    if axis is None or layout.tensor_parallel == 1:
        return whole
    size = whole.shape[axis] // layout.tensor_parallel
    shape = (*whole.shape[:axis], size, *whole.shape[axis + 1 :])
    part = (slice(None),) * axis + (slice(rank * size, (rank + 1) * size),)
    return LazyArray(shape, whole.dtype, lambda: whole.read()[part])


def _fused(
    weights: Mapping[str, LazyArray], num_heads: int, version: float
) -> dict[str, LazyArray]:
    """Return weights with query, key and value as one, in the order in which Megatron-LM has them.

    Others stop at the first key that is no layer's: transformers' script for one.
    """
    fused = {}
    for name, array in weights.items():
        match = _ATTENTION_PART.fullmatch(name)
        if match is None:
            fused[name] = array
        elif match["part"] == PARTS[0]:
            parts = [weights[f"{match['attention']}{part}.{match['kind']}"] for part in PARTS]
            joined = fuse_query_key_value(parts, num_heads, version)
            fused[f"{match['attention']}{FUSED}.{match['kind']}"] = joined
    return fused
