"""KerasHub's loader of Keras preset folders, which shares heads between this package's tasks."""

import contextlib
import inspect
import os
import threading
from collections.abc import Iterator

import keras
from keras_hub.src.utils import preset_utils
from keras_hub.src.utils.preset_utils import (
    MODEL_WEIGHTS_FILE,
    TASK_CONFIG_FILE,
    TASK_WEIGHTS_FILE,
    KerasPresetLoader,
    PresetLoader,
    check_config_class,
    check_file_exists,
    get_file,
    load_json,
)

from keras_megatron.checkpoints.architectures import ARCHITECTURES
from keras_megatron.checkpoints.padded_vocabulary import check_rows, padded_variables
from keras_megatron.layers.common import weights_follow
from keras_megatron.presets.mapped_weights import mapped_weights
from keras_megatron.tasks.labels import check_class_count
from keras_megatron.tasks.preprocessor import MegatronBertPreprocessor
from keras_megatron.tasks.task import MegatronBertTask
from keras_megatron.user_warnings import warn_user

# Heads that several tasks have, and that mean the same in each.
_SHARED = ("mlm_head/", "binary_head/")
# What is changed of Keras while a preset is loaded is changed for all threads.
_ONE_AT_A_TIME = threading.RLock()


def backbone_arguments(self, **kwargs) -> tuple[dict, dict]:
    """Return what a task gives to its backbone, and the rest; a method of preset loaders.

    Beside KerasHub's that is `vocabulary_size`, for a table with more rows than the preset's. What
    was frozen was so for the training before.
    """
    arguments, rest = PresetLoader.get_backbone_kwargs(self, **kwargs)
    arguments.setdefault("trainable", True)
    if "vocabulary_size" in rest:
        arguments["vocabulary_size"] = rest.pop("vocabulary_size")
    return arguments, rest


class MegatronBertKerasLoader(KerasPresetLoader):
    """Loads Keras presets as KerasHub does, with three differences for this package's classes.

    A task takes from another task's preset the heads that both have: a masked language model and a
    next-sentence predictor from a pretrainer's, for instance. A preprocessor made for another
    task than the preset's makes as many tokens as the model has positions. `vocabulary_size` may
    be larger than the preset's: rows beyond are never predicted.
    """

    get_backbone_kwargs = backbone_arguments
    _all_follow = False  # whether all weights of what is built next are loaded

    def load_backbone(self, cls: type, load_weights: bool, **kwargs):
        """Build the backbone; `kwargs` go before what the preset says."""
        self._all_follow = load_weights
        kwargs["dtype"] = self._resolve_dtype(self.config, kwargs)  # quantized ones are kept
        kwargs.setdefault("trainable", True)  # see `backbone_arguments`
        with _ONE_AT_A_TIME, self._vocabulary(kwargs), self._reading(load_weights):
            return super().load_backbone(cls, load_weights, **kwargs)

    def load_task(self, cls: type, load_weights: bool, load_task_weights: bool, **kwargs):
        """Build a task; its head is loaded too where the preset has it."""
        parameters = inspect.signature(cls).parameters
        if "num_classes" in parameters and not self._has(cls, TASK_CONFIG_FILE):
            check_class_count(None, kwargs.get("num_classes"))  # before weights are read
        stored = self._other_task(cls)
        with _ONE_AT_A_TIME, self._vocabulary(kwargs), self._reading(load_weights):
            if stored is None:
                heads = load_task_weights and check_file_exists(self.preset, TASK_WEIGHTS_FILE)
                is_same = self._has(cls, TASK_CONFIG_FILE)
                self._all_follow = load_weights and heads and is_same
                task = super().load_task(cls, load_weights, load_task_weights, **kwargs)
                random = {} if is_same else _shared_weights(task)
            else:
                task, random = self._load_other(
                    cls, stored, load_weights, load_task_weights, **kwargs
                )
        if random and load_weights and load_task_weights:
            warn_user(self._of_random(random))
        return task

    def _load_other(self, cls, stored, load_weights, load_task_weights, **kwargs):
        """Build a task of class `cls` from the preset of a task of class `stored`.

        Returns:
            The task, and the weights of shared heads, by path, that the preset does not have.
        """
        parameters = inspect.signature(cls).parameters
        config = load_json(self.preset, TASK_CONFIG_FILE)["config"]
        if "head_activation" in parameters:
            kwargs.setdefault("head_activation", config.get("head_activation", "gelu"))
        is_shared = load_weights and load_task_weights
        is_shared = is_shared and check_file_exists(self.preset, TASK_WEIGHTS_FILE)
        with weights_follow(is_shared and _has_heads_of(stored, cls)):
            task = super().load_task(cls, load_weights, load_task_weights, **kwargs)
        heads = _shared_weights(task)
        if heads and is_shared:
            self._share_heads(task, heads, stored, config)
        return task, heads

    @contextlib.contextmanager
    def _reading(self, load_weights: bool) -> Iterator[None]:
        """Name the preset where a file of it is damaged."""
        try:
            path = os.path.join(self.preset, MODEL_WEIGHTS_FILE) if load_weights else None
            with mapped_weights(path):
                yield
        except OSError as error:
            raise ValueError(f"cannot read the preset {self.preset}: {error}") from error

    def _of_random(self, weights: dict) -> str:
        heads = " and ".join(sorted({path.split("/")[0] for path in weights}))
        return f"{self.preset} has no {heads}: what that says is random until it is trained"

    def _load_serialized_object(self, config: dict, **kwargs):
        """Build an object; a model without random numbers, if its weights are all loaded next."""
        with weights_follow(self._all_follow):
            return super()._load_serialized_object(config, **kwargs)

    def _vocabulary(self, kwargs: dict) -> contextlib.AbstractContextManager:
        """Let weights be loaded into a larger vocabulary, if `kwargs` ask for one."""
        if "vocabulary_size" not in kwargs:
            return contextlib.nullcontext()
        check_rows(kwargs["vocabulary_size"], self.config["config"]["vocabulary_size"])
        return padded_variables()

    def load_preprocessor(self, cls: type, config_file=None, **kwargs):
        """Build a preprocessor, by default for as many tokens as the model has positions."""
        arguments = {} if config_file is None else {"config_file": config_file}
        file = config_file or preset_utils.PREPROCESSOR_CONFIG_FILE
        if issubclass(cls, MegatronBertPreprocessor) and not self._has(cls, file):
            positions = self.config["config"]["max_sequence_length"]
            kwargs.setdefault("sequence_length", positions)
        return super().load_preprocessor(cls, **arguments, **kwargs)

    def _resolve_dtype(self, config: dict, kwargs: dict):
        """Load what was saved in mixed precision as what was saved in float: by Keras's policy.

        KerasHub 0.32 takes the policy's name for that of a dtype, and fails.
        """
        saved = config.get("config", {}).get("dtype") or {}
        name = (saved.get("config") or {}).get("name") or ""
        if kwargs.get("dtype") is None and name.startswith("mixed_"):
            return keras.config.dtype_policy()
        return super()._resolve_dtype(config, kwargs)

    def _has(self, cls: type, config_file: str) -> bool:
        """Say whether the preset holds the configuration of an object of a class."""
        return check_file_exists(self.preset, config_file) and issubclass(
            check_config_class(load_json(self.preset, config_file)), cls
        )

    def _other_task(self, cls: type) -> type | None:
        """Return the class of the preset's task if it and `cls` are two of this package's."""
        if not issubclass(cls, MegatronBertTask) or self._has(cls, TASK_CONFIG_FILE):
            return None
        if not check_file_exists(self.preset, TASK_CONFIG_FILE):
            return None
        stored = check_config_class(load_json(self.preset, TASK_CONFIG_FILE))
        return stored if issubclass(stored, MegatronBertTask) else None

    def _share_heads(self, task: MegatronBertTask, heads: dict, cls: type, config: dict) -> None:
        """Fill heads of `task` from the preset's task, of class `cls`, and take them out of it."""
        own = {"backbone": task.backbone, "preprocessor": None, "compile": False}
        accepted = inspect.signature(cls).parameters
        rest = {name: value for name, value in config.items() if name in accepted}
        with weights_follow(True):
            stored = cls(**{**rest, **own})
        stored.load_task_weights(get_file(self.preset, TASK_WEIGHTS_FILE))
        for variable in stored.weights:
            if variable.path in heads:
                heads.pop(variable.path).assign(keras.ops.convert_to_tensor(variable))


def _has_heads_of(stored: type, cls: type) -> bool:
    """Say whether the heads of a class are among those of another, and mean the same in each."""
    found = [ARCHITECTURES.get(task.__name__) for task in (stored, cls)]
    if None in found:  # a class of the user's may have weights of its own
        return False
    has, needs = (architecture.parts for architecture in found)
    return needs - {"pooler"} <= has & {part.rstrip("/") for part in _SHARED}


def _shared_weights(task: MegatronBertTask) -> dict:
    return {v.path: v for v in task.weights if v.path.startswith(_SHARED)}
