"""What a pretraining run depends on, and its file of settings."""

import dataclasses
import hashlib
import math
import os
import pathlib
import tomllib

import keras

from keras_megatron.finetuning.recipe import LinearWarmupDecay, linear_schedule
from keras_megatron.masking import MaskingScheme
from keras_megatron.tasks.training import check_keeps_updates

SHAPE = ("num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_sequence_length")
_OF_MODEL = (*SHAPE, "lowercase", "initializer_range", "apply_residual_connection_post_layernorm")
_DTYPES = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
    """What a pretraining run depends on, besides the backend.

    The numbers that have a default are those of Megatron-LM's `examples/bert` for 345M.

    Attributes:
        tokens: prefix of the token files to learn from, see `TokenFiles`.
        steps: of the optimizer.
        preset: preset to go on from; or None for random weights, which need a `vocabulary` and
            the model's shape.
        held_out: prefix of token files to measure on, or None.
        vocabulary: file of pieces, one a line.
        lowercase: whether the vocabulary is of lower-case text.
        num_layers: of the model.
        num_heads: of the model.
        hidden_dim: of the model.
        intermediate_dim: of the model; 4 times `hidden_dim` if None.
        max_sequence_length: positions of the model.
        initializer_range: of a new model, see `MegatronBertBackbone`; so is the next one.
        apply_residual_connection_post_layernorm: whether the order is BERT's.
        dropout: rate of the dropout everywhere; None leaves a preset's, and is 0.1 without one.
        sequence_length: tokens a sample.
        batch_size: samples a step of the optimizer.
        accumulation: parts that a batch is split into, each with a gradient of its own.
        learning_rate: the peak.
        final_learning_rate: the rate after the last step.
        warmup: share of the steps in which the rate rises.
        weight_decay: of all weights but biases and LayerNorms.
        clip: largest global norm of the gradients.
        selection_rate: share of the tokens that are hidden.
        max_ngram: most words that are hidden together.
        whole_words: whether words are hidden as a whole.
        pair_rate: share of the samples in two parts, whose order is learnt.
        dtype: a dtype policy; `"mixed_float16"` scales the loss dynamically.
        gradient_checkpointing: whether activations are computed again backward, not kept.
        packing: whether short samples share rows.
        seed: of weights, dropout and data.
    """

    tokens: str
    steps: int
    preset: str | None = None
    held_out: str | None = None
    vocabulary: str | None = None
    lowercase: bool = True
    num_layers: int = 24
    num_heads: int = 16
    hidden_dim: int = 1024
    intermediate_dim: int | None = None
    max_sequence_length: int = 512
    initializer_range: float = 0.02
    apply_residual_connection_post_layernorm: bool = False
    dropout: float | None = None
    sequence_length: int = 512
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float = 1e-4
    final_learning_rate: float = 1e-5
    warmup: float = 0.01
    weight_decay: float = 0.01
    clip: float = 1.0
    selection_rate: float = 0.15
    max_ngram: int = 3
    whole_words: bool = True
    pair_rate: float = 1.0
    dtype: str = "mixed_bfloat16"
    gradient_checkpointing: bool = False
    packing: bool = False
    seed: int = 0

    def __post_init__(self):
        _check_types(self)
        at_least_one = ("steps", "batch_size", "accumulation", "sequence_length", *SHAPE)
        for name in at_least_one:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        _check_ranges(self)
        self.schedule()  # refuses what is out of range, as the next one
        self.masking()
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be split into accumulation="
                f"{self.accumulation} equal parts"
            )
        if (self.preset is None) == (self.vocabulary is None):
            raise ValueError("give either a preset to go on from, or the vocabulary of a new model")
        check_keeps_updates(self.dtype)
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, not {self.dtype!r}")
        if self.preset is None and self.sequence_length > self.max_sequence_length:
            raise ValueError(
                f"sequence_length={self.sequence_length} is more than the model's "
                f"max_sequence_length={self.max_sequence_length}"
            )

    def schedule(self) -> LinearWarmupDecay:
        """Return the learning rates."""
        rates = self.learning_rate, self.steps, self.warmup, self.final_learning_rate
        return linear_schedule(*rates)

    def masking(self) -> MaskingScheme:
        """Return how tokens are hidden."""
        return MaskingScheme(
            self.selection_rate, max_ngram=self.max_ngram, whole_words=self.whole_words
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "PretrainSettings":
        """Read a TOML file with these names; paths in it are relative to its folder.

        Raises:
            ValueError: it cannot be read, a name is not one of these, a value is out of range, or
                there is one that a preset beside it has.
        """
        path = pathlib.Path(path)
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"cannot read the settings in {path}: {reason}") from error
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(
                f"{path} has unknown settings {', '.join(unknown)}: known are {', '.join(known)}"
            )
        if missing := [name for name in ("tokens", "steps") if name not in values]:
            raise ValueError(f"{path} lacks {', '.join(missing)}")
        for name in ("tokens", "held_out", "vocabulary"):
            if isinstance(values.get(name), str):
                values[name] = str(path.parent / values[name])
        preset = values.get("preset")
        if preset is not None and (given := [name for name in _OF_MODEL if name in values]):
            raise ValueError(
                f"{path} has {', '.join(given)} beside a preset, which has its own: leave them out"
            )
        if isinstance(preset, str) and (path.parent / preset).is_dir():
            values["preset"] = str(path.parent / values["preset"])
        return cls(**values)

    def facts(self) -> dict:
        """Return what has to be the same for a run to go on, however its paths are spelled.

        Of token files that is the index, and how many bytes of ids there are.
        """
        facts = dataclasses.asdict(self)
        for name in ("tokens", "held_out", "vocabulary"):
            if facts[name] is not None:
                facts[name] = os.path.realpath(facts[name])
                facts |= _content(name, facts[name])
        if self.preset is not None and os.path.isdir(self.preset):
            facts["preset"] = os.path.realpath(self.preset)
        return {**facts, "backend": keras.config.backend()}


def _check_types(settings: PretrainSettings) -> None:
    kinds = {"str": str, "int": int, "float": (int, float), "bool": bool}
    for field in dataclasses.fields(settings):
        kind = str(field.type).replace("<class '", "").replace("'>", "")
        name, _, optional = kind.partition(" | ")
        value = getattr(settings, field.name)
        is_bool = isinstance(value, bool) and name != "bool"
        if (value is None and optional) or (isinstance(value, kinds[name]) and not is_bool):
            continue
        raise ValueError(f"{field.name} must be of type {name}, not {value!r}")


def _check_ranges(settings: PretrainSettings) -> None:
    for name in ("learning_rate", "clip", "initializer_range"):
        value = getattr(settings, name)
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a number above 0, not {value}")
    if settings.final_learning_rate > settings.learning_rate:
        raise ValueError(
            f"learning_rate={settings.learning_rate:g} is less than final_learning_rate="
            f"{settings.final_learning_rate:g}: give both"
        )
    most = {"weight_decay": math.inf, "final_learning_rate": math.inf, "pair_rate": 1, "dropout": 1}
    for name, limit in most.items():
        value = getattr(settings, name)
        if value is not None and not (0 <= value <= limit and math.isfinite(value)):
            raise ValueError(f"{name} must be from 0 to {limit:g}, not {value}")
    if settings.dropout == 1:
        raise ValueError("dropout must be less than 1: nothing would be left")
    if settings.selection_rate == 0:
        raise ValueError("selection_rate must be above 0: nothing would be learnt")
    if not 0 <= settings.seed < 2**32:
        raise ValueError(f"seed must be from 0 to {2**32 - 1}, not {settings.seed}")


def _content(name: str, path: str) -> dict:
    """Return what tells a file, or token files, from others that take their place later."""
    source, tokens = (path, None) if name == "vocabulary" else (f"{path}.idx", f"{path}.bin")
    try:
        with open(source, "rb") as file:
            found = {f"{name}_sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        return found | ({} if tokens is None else {f"{name}_bytes": os.path.getsize(tokens)})
    except OSError:  # it is refused where it is read
        return {}
