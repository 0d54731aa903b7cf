"""Which task a preset was saved from, without loading it."""

import dataclasses
import json
import re

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
        multi_label: whether a text may have several of them.
    """

    name: str
    num_classes: int | None = None
    class_names: list[str] | None = None
    multi_label: bool = False


def stored_task(preset: str) -> StoredTask | None:
    """Return the task of a Keras preset or of a Hugging Face folder; None if it is a mere backbone.

    Raises:
        ValueError: a file of it is damaged.
    """
    if check_file_exists(preset, _TASK_FILE):
        name, task = _serialized(preset, _TASK_FILE)
        names = None
        if check_file_exists(preset, _PREPROCESSOR_FILE):
            names = _serialized(preset, _PREPROCESSOR_FILE)[1].get("class_names")
        return StoredTask(name, task.get("num_classes"), names, bool(task.get("multi_label")))
    if not check_file_exists(preset, _CONFIG_FILE):
        return None
    config = _object(preset, _CONFIG_FILE)
    named = named_architectures(config) if "model_type" in config else set()
    for name, architecture in ARCHITECTURES.items():
        if architecture.name in named and architecture.name != "MegatronBertModel":
            if "classifier" not in architecture.parts:
                return StoredTask(name)
            names = class_names(config)
            own = None if names == default_class_names(len(names)) else names
            several = config.get("problem_type") == "multi_label_classification"
            return StoredTask(name, len(names), own, several)
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
    return bool(quantization_modes(preset))


def quantization_modes(preset: str) -> set[str]:
    """Return what a Keras preset's weights are stored in beside floats: int8, int4, or nothing."""
    # Of a policy, or of some in a map; int4's is "int4/128", with the size of its blocks.
    return set(re.findall(r'"mode": "([^"/]*)', json.dumps(_stored_policy(preset))))


def stored_dtype(preset: str) -> str:
    """Return the dtype of a preset's weights: `"float32"` unless Keras stored them in 16 bits."""
    policy = _stored_policy(preset)
    settings = policy.get("config") if isinstance(policy, dict) else None
    name = settings.get("name") if isinstance(settings, dict) else policy
    return name if name in ("float16", "bfloat16") else "float32"


def _stored_policy(preset: str):
    """Return the dtype policy in a Keras preset's configuration, or None."""
    if not check_file_exists(preset, _CONFIG_FILE):
        return None
    if "class_name" not in _object(preset, _CONFIG_FILE):  # Hugging Face's
        return None
    return _serialized(preset, _CONFIG_FILE)[1].get("dtype")


def preset_json(preset: str, file: str):
    """Read a file of a preset.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return load_json(preset, file)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{preset}/{file} is not JSON: {error}") from error


def _object(preset: str, file: str) -> dict:
    content = preset_json(preset, file)
    if not isinstance(content, dict):
        raise ValueError(f"{preset}/{file} does not hold a JSON object: the preset is damaged")
    return content


def _serialized(preset: str, file: str) -> tuple[str, dict]:
    """Return the class and the configuration of an object that Keras serialized.

    Raises:
        ValueError: the file holds something else.
    """
    content = _object(preset, file)
    name, config = content.get("class_name"), content.get("config")
    if not isinstance(name, str) or not isinstance(config, dict):
        raise ValueError(f"{preset}/{file} lacks a class_name or a config: the preset is damaged")
    return name, config
