"""Presets as the models that are to be exported."""

import keras

from keras_megatron.presets.stored_task import is_quantized, stored_task
from keras_megatron.serving.settings import ExportSettings


def load(preset: str, settings: ExportSettings, dtype: str):
    """Load a preset's task, or its backbone.

    Args:
        preset: name or folder.
        settings: what is asked for.
        dtype: to load it in, unless its weights are quantized.

    Raises:
        ValueError: its weights are quantized and another precision is asked for.
    """
    stored = stored_task(preset)
    cls = class_named(stored.name if stored else "MegatronBertBackbone")
    if not is_quantized(preset):
        return cls.from_preset(preset, dtype=dtype)
    if settings.precision not in (None, "int8"):
        raise ValueError(
            f"{preset} has quantized weights: export it as it is, without "
            f"precision={settings.precision!r}"
        )
    return cls.from_preset(preset)


def class_named(name: str, expected: type | None = None) -> type:
    """Return the class of this package with a name.

    Args:
        name: of a task or of the backbone.
        expected: what it should be, if that is known.

    Raises:
        ValueError: there is none, or it is another one.
    """
    cls = keras.saving.get_registered_object(f"keras_megatron>{name}")
    if cls is None or cls is not (expected or cls):
        raise ValueError(
            f"a SavedModel is made of a task or a backbone of keras_megatron, not of {name}: give "
            "its weights to one of these"
        )
    return cls
