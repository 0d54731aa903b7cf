"""Which task a preset was saved from, without loading it."""

import dataclasses
import json

import keras
from keras_hub.src.utils.preset_utils import check_file_exists, load_json

from keras_megatron.checkpoints.architectures import (
    ARCHITECTURES,
    class_names,
    default_class_names,
    named_architectures,
)

_CONFIG_FILE, _TASK_FILE, _PREPROCESSOR_FILE = "config.json", "task.json", "preprocessor.json"


@dataclasses.dataclass(frozen=True)
class StoredTask:
    """The task of a preset.

    Attributes:
        name: of its class.
        num_classes: how many outputs its classifier has, or None.
        class_names: what they are called, or None.
    """

    name: str
    num_classes: int | None = None
    class_names: list[str] | None = None


def stored_task(preset: str) -> StoredTask | None:
    """Return the task of a Keras preset or of a Hugging Face folder; None if it is a mere backbone.

    Raises:
        ValueError: its configuration makes no sense.
    """
    if check_file_exists(preset, _TASK_FILE):
        task = load_json(preset, _TASK_FILE)
        names = None
        if check_file_exists(preset, _PREPROCESSOR_FILE):
            names = load_json(preset, _PREPROCESSOR_FILE)["config"].get("class_names")
        return StoredTask(task["class_name"], task["config"].get("num_classes"), names)
    if not check_file_exists(preset, _CONFIG_FILE):
        return None
    config = load_json(preset)
    named = named_architectures(config) if "model_type" in config else set()
    for name, architecture in ARCHITECTURES.items():
        if architecture.name in named and architecture.name != "MegatronBertModel":
            if "classifier" not in architecture.parts:
                return StoredTask(name)
            names = class_names(config)
            own = None if names == default_class_names(len(names)) else names
            return StoredTask(name, len(names), own)
    return None


def class_of(preset: str) -> type:
    """Return the class that a preset was saved from: a task, or the backbone.

    Raises:
        ValueError: it is none of this package.
    """
    stored = stored_task(preset)
    name = stored.name if stored else "MegatronBertBackbone"
    cls = keras.saving.get_registered_object(f"keras_megatron>{name}")
    if cls is None:
        raise ValueError(f"{preset} holds a {name}, which is no task or backbone of keras_megatron")
    return cls


def is_quantized(preset: str) -> bool:
    """Say whether a Keras preset's weights are stored in int8 or int4."""
    if not check_file_exists(preset, _CONFIG_FILE):
        return False
    config = load_json(preset).get("config", {})
    return "Quantized" in json.dumps(config.get("dtype"))
