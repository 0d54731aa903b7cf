"""Presets as the models that are to be exported."""

import keras

from keras_megatron.presets.stored_task import class_of, quantization_modes
from keras_megatron.serving.settings import ExportSettings


def load(preset: str, settings: ExportSettings, dtype: str):
    """Load a preset's task, or its backbone.

    Args:
        preset: name or folder.
        settings: what is asked for.
        dtype: to load it in, unless its weights are quantized.

    Raises:
        ValueError: its weights are quantized and another precision is asked for, or something is
            that means nothing to the task.
    """
    cls = class_of(preset)
    settings.check_task(cls.__name__)
    modes = quantization_modes(preset)
    if not modes:
        return cls.from_preset(preset, dtype=dtype)
    if settings.precision and modes != {settings.precision}:
        raise ValueError(
            f"{preset} has quantized weights: export it as it is, without "
            f"precision={settings.precision!r}"
        )
    return cls.from_preset(preset)


def check_class(cls: type) -> None:
    """Refuse a class that a preset cannot be loaded as.

    Raises:
        ValueError: it is none of this package's, but derived from one perhaps.
    """
    if keras.saving.get_registered_object(f"keras_megatron>{cls.__name__}") is not cls:
        raise ValueError(
            f"a SavedModel is made of a task or a backbone of keras_megatron, not of "
            f"{cls.__name__}: give its weights to one of these"
        )
