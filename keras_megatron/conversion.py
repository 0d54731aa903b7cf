"""Converts between Keras, Hugging Face's transformers, Megatron-LM and Megatron-core."""

import os
import pathlib
from collections.abc import Callable

import keras
from keras_hub.src.utils.preset_utils import CONFIG_FILE, METADATA_FILE, check_file_exists

from keras_megatron.checkpoints.convert import read_model
from keras_megatron.checkpoints.export import write_tokenizer, write_transformers
from keras_megatron.checkpoints.huggingface import keys_left_out, open_weights
from keras_megatron.checkpoints.megatron_export import write_megatron
from keras_megatron.checkpoints.megatron_layout import MegatronLayout
from keras_megatron.checkpoints.staging import staged_folder
from keras_megatron.presets.hugging_face import local_folder
from keras_megatron.presets.hugging_face_tokenizer import has_tokenizer
from keras_megatron.presets.registry import find
from keras_megatron.presets.stored_task import class_of, is_quantized, stored_dtype
from keras_megatron.tokenizer import MegatronBertTokenizer

KERAS, TRANSFORMERS, MEGATRON, MEGATRON_CORE = "keras", "transformers", "megatron", "megatron-core"
FORMATS = (KERAS, TRANSFORMERS, MEGATRON, MEGATRON_CORE)


def source_format(source: str | os.PathLike) -> str:
    """Say which format a source has: `"keras"`, `"transformers"`, or `"megatron"` for all others.

    Args:
        source: Name of a preset, address that KerasHub knows, or path.
    """
    source = os.fspath(source)
    if find(source):
        return KERAS
    if "://" not in source and not os.path.isdir(source):
        return MEGATRON
    if not check_file_exists(source, CONFIG_FILE):
        return MEGATRON
    # KerasHub writes it beside config.json, transformers does not, Megatron-core without that.
    return KERAS if check_file_exists(source, METADATA_FILE) else TRANSFORMERS


def convert(
    source: str | os.PathLike,
    output: str | os.PathLike,
    to: str = KERAS,
    *,
    vocabulary: str | os.PathLike | None = None,
    num_heads: int | None = None,
    layer_norm_epsilon: float | None = None,
    mlp_activation: str | None = None,
    progress: bool = True,
    **layout,
) -> list[str]:
    """Convert a model from one format to another.

    Args:
        source: Name or folder of a Keras preset, folder of Hugging Face's transformers, or anything
            that `convert_checkpoint` reads of Megatron's. Which it is is found out.
        output: Folder to make: whole, or not at all. It must not exist, or be empty.
        to: `"keras"`, `"transformers"`, `"megatron"` or `"megatron-core"`.
        vocabulary: Of a Megatron checkpoint, as of `convert_checkpoint`; so are the next three.
        num_heads: Attention heads.
        layer_norm_epsilon: Epsilon of every LayerNorm.
        mlp_activation: Activation of the feed-forward blocks.
        progress: Print a line for each step.
        **layout: Of Megatron's formats, see `MegatronLayout`: `tensor_parallel`,
            `pipeline_parallel`, `virtual_pipeline`, `version` and `transformer_engine`.

    Returns:
        Names in the source that the model has no place for.

    Raises:
        ValueError: in one line: the source cannot be read, the format cannot hold the model, an
            option does not go with the formats, or the output cannot be written.

    Example:
    ```python
    from keras_megatron.conversion import convert

    convert("megatron_bert_tiny_uncased", "for_megatron", "megatron", tensor_parallel=2)
    ```
    """
    write = _writer(to, layout)
    overrides = {
        "vocabulary": vocabulary,
        "num_heads": num_heads,
        "layer_norm_epsilon": layer_norm_epsilon,
        "mlp_activation": mlp_activation,
    }
    found = source_format(source)
    _check_options(source, found, to, overrides)
    report = print if progress else lambda *_, **__: None
    with staged_folder(output) as folder:
        if found == MEGATRON:
            preset = folder if to == KERAS else None
            model, unused = read_model(source, folder.parent, report, **overrides, preset=preset)
        else:
            report(f"Reading {source}", flush=True)
            model, unused = _load(os.fspath(source), found)
        report(f"Writing {output}", flush=True)
        write(model, folder)
        if not hasattr(model, "preprocessor") and has_tokenizer(os.fspath(source)):
            _write_tokenizer(os.fspath(source), folder, to, model.max_sequence_length)
    for name in [*unused, *_not_kept(model, to)]:
        report(f"  not converted: {name}", flush=True)
    return unused


def _writer(to: str, layout: dict) -> Callable[[keras.Model, pathlib.Path], None]:
    """Return what writes a format, after its options were checked."""
    if to not in FORMATS:
        raise ValueError(f"the format to write must be one of {', '.join(FORMATS)}, not {to!r}")
    if to in (MEGATRON, MEGATRON_CORE):
        chosen = MegatronLayout(core=to == MEGATRON_CORE, **layout)
        return lambda model, folder: write_megatron(model, folder, chosen)
    if layout:
        raise ValueError(f"{min(layout)} is for {MEGATRON} and {MEGATRON_CORE}, not for {to}")
    if to == TRANSFORMERS:
        return write_transformers
    return lambda model, folder: model.save_to_preset(str(folder))


def _check_options(source, found: str, to: str, options: dict) -> None:
    given = [name for name, value in options.items() if value is not None]
    if found != MEGATRON and given:
        raise ValueError(f"{given[0]} is for checkpoints of Megatron-LM, and {source} is none")
    if found == to == KERAS:
        raise ValueError(f"{source} is a Keras preset already: copy it, or choose another format")


def _write_tokenizer(preset: str, folder: pathlib.Path, to: str, longest: int) -> None:
    """Write the tokenizer beside a mere backbone, which does not know of it."""
    tokenizer = MegatronBertTokenizer.from_preset(preset)
    if to == TRANSFORMERS:
        write_tokenizer(folder, tokenizer, longest)
    else:
        tokenizer.save_to_preset(str(folder))


def _load(preset: str, found: str) -> tuple[keras.Model, list[str]]:
    """Load a preset in its own dtype; also return its keys for which the model has no place."""
    if is_quantized(preset):
        raise ValueError(f"{preset} has quantized weights, which other formats have no place for")
    cls = class_of(preset)
    model = cls.from_preset(preset, dtype=stored_dtype(preset))
    if found == KERAS:
        return model, []
    settings = getattr(model, "backbone", model).get_config()
    return model, keys_left_out(open_weights(local_folder(preset)), settings, cls.__name__)


def _not_kept(model: keras.Model, to: str) -> list[str]:
    """Return what of a task Megatron's checkpoints do not say."""
    if to not in (MEGATRON, MEGATRON_CORE):
        return []
    lost = []
    if getattr(model, "multi_label", False):
        lost.append("multi_label=True: read again, its classes exclude each other")
    if names := getattr(getattr(model, "preprocessor", None), "class_names", None):
        lost.append(f"class_names: {', '.join(names)}")
    return lost
