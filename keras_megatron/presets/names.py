"""What `from_preset` takes for a preset, and the refusal of what is none."""

import difflib
import os
import pathlib
from collections.abc import Iterable

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.checkpoints.huggingface import read_json
from keras_megatron.presets.registry import known
from keras_megatron.tasks.preprocessor import MegatronBertPreprocessor
from keras_megatron.tasks.task import MegatronBertTask
from keras_megatron.tokenizer import MegatronBertTokenizer


def check_preset(preset: str, registered: Iterable[str] = ()) -> None:
    """Refuse what is neither a known name, nor a folder with a preset, nor the address of one.

    Args:
        preset: what was given.
        registered: names that KerasHub knows besides.

    Raises:
        ValueError: as said; it names presets that are written much the same.
    """
    names = [known_preset.name for known_preset in known()]
    names += [name for name in registered if name not in names]
    if preset in names or "://" in preset:
        return
    if os.path.isdir(preset):
        _check_folder(pathlib.Path(preset))
        return
    close = " or ".join(difflib.get_close_matches(preset, names))
    hint = f"did you mean {close}? " if close else ""
    if preset.count("/") == 1 and preset[0] not in "./":
        hint = f"for a model of Hugging Face's hub give 'hf://{preset}'; "
    raise ValueError(
        f"{preset!r} is neither a folder nor the name of a preset: {hint}`keras-megatron presets` "
        "lists the names"
    )


def _check_folder(folder: pathlib.Path) -> None:
    config = folder / "config.json"
    if not config.exists():
        inner = folder / "preset"
        hint = f": did you mean {inner}?" if (inner / config.name).exists() else ""
        raise ValueError(f"{folder} is no preset, as it has no {config.name}{hint}")
    read_json(config)


def install_checks() -> None:
    """Have this package's classes check the preset first: KerasHub names presets of its own."""
    for cls in (
        *(MegatronBertBackbone, MegatronBertTokenizer),
        *(MegatronBertPreprocessor, MegatronBertTask),
    ):
        cls.from_preset = _checking(cls)


def _checking(owner: type) -> classmethod:
    def from_preset(cls, preset: str | os.PathLike, *args, **kwargs):
        """Make an instance from a preset; see `from_preset` of KerasHub's class for the others.

        Args:
            cls: the class to make an instance of.
            preset: a name that `keras-megatron presets` lists, a folder that `save_to_preset` or
                transformers wrote, or an address of one, such as `hf://`.
            *args: of KerasHub's method.
            **kwargs: of KerasHub's method.

        Raises:
            ValueError: there is no such preset, or it cannot be loaded.
        """
        if isinstance(preset, os.PathLike):
            preset = os.fspath(preset)
        if isinstance(preset, str):  # KerasHub refuses the rest
            check_preset(preset, cls.presets)
        return super(owner, cls).from_preset(preset, *args, **kwargs)

    return classmethod(from_preset)
