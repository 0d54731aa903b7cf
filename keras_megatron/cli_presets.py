"""What the commands make of the option `--preset`."""

import difflib
import os

DEFAULT_PRESET = "megatron_bert_tiny_uncased"


def check_preset(preset: str) -> None:
    """Refuse what is neither a known name, nor a folder, nor the address of one.

    Raises:
        ValueError: as said; it names presets that are written much the same.
    """
    from keras_megatron.presets.registry import known

    names = [known_preset.name for known_preset in known()]
    if preset in names or "://" in preset or os.path.isdir(preset):
        return
    close = " or ".join(difflib.get_close_matches(preset, names))
    hint = f"did you mean {close}? " if close else ""
    raise ValueError(
        f"{preset!r} is neither a folder nor the name of a preset: {hint}`keras-megatron presets` "
        "lists the names"
    )
