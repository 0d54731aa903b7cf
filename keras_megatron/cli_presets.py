"""What the commands make of the option `--preset`."""

import difflib
import os
import pathlib

DEFAULT_PRESET = "megatron_bert_tiny_uncased"
_FILL_MASKS = ("MegatronBertMaskedLM", "MegatronBertPretrainer", "MegatronBertCausalLM")  # by head


def check_preset(preset: str) -> None:
    """Refuse what is neither a known name, nor a folder with a preset, nor the address of one.

    Raises:
        ValueError: as said; it names presets that are written much the same.
    """
    from keras_megatron.presets.registry import known

    names = [known_preset.name for known_preset in known()]
    if preset in names or "://" in preset:
        return
    if os.path.isdir(preset):
        _check_folder(pathlib.Path(preset))
        return
    close = " or ".join(difflib.get_close_matches(preset, names))
    hint = f"did you mean {close}? " if close else ""
    raise ValueError(
        f"{preset!r} is neither a folder nor the name of a preset: {hint}`keras-megatron presets` "
        "lists the names"
    )


def check_fills_masks(preset: str) -> None:
    """Refuse a preset without the head that scores words: its answers would be random.

    Raises:
        ValueError: as said.
    """
    from keras_megatron.presets.stored_task import stored_task

    stored = stored_task(preset)
    if stored is None or stored.name not in _FILL_MASKS:
        kind = stored.name if stored else "a backbone alone"
        raise ValueError(
            f"{preset} holds {kind}, which has no head that fills masks: give the preset of a "
            "MegatronBertMaskedLM or MegatronBertPretrainer"
        )


def _check_folder(folder: pathlib.Path) -> None:
    from keras_megatron.checkpoints.huggingface import read_json

    config = folder / "config.json"
    if not config.exists():
        inner = folder / "preset"
        hint = f": did you mean {inner}?" if (inner / config.name).exists() else ""
        raise ValueError(f"{folder} is no preset, as it has no {config.name}{hint}")
    read_json(config)
