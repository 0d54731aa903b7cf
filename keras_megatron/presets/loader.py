"""KerasHub's `from_preset` for this package's names and for Hugging Face's Megatron BERT folders.

Where a preset's config.json has a `model_type`, KerasHub asks its `TransformersPresetLoader`, whose
list of types is fixed. `install_loader` puts a class in its place that takes the type
"megatron-bert" and gives all others to the original.
"""

import os

import keras_hub
from keras_hub.src.utils import preset_utils
from keras_hub.src.utils.preset_utils import KerasPresetLoader, PresetLoader, load_json
from keras_hub.src.utils.transformers import preset_loader

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.checkpoints import (
    backbone_config,
    check_folder,
    class_names,
    default_class_names,
    load_weights,
    task_arguments,
)
from keras_megatron.checkpoints.padded_vocabulary import check_rows
from keras_megatron.layers.common import start_at_random, weights_follow
from keras_megatron.presets.cache import converted_weights
from keras_megatron.presets.hugging_face import local_folder
from keras_megatron.presets.hugging_face_tokenizer import (
    has_tokenizer,
    tokenizer_arguments,
    why_no_tokenizer,
)
from keras_megatron.presets.keras_folders import MegatronBertKerasLoader, backbone_arguments
from keras_megatron.presets.registry import find
from keras_megatron.user_warnings import warn_user

MODEL_TYPE = "megatron-bert"
KERAS_HUB_LOADER = preset_loader.TransformersPresetLoader

# Weights that a model often leaves behind, as it has another head than the folder's.
_OTHER_HEADS = (
    *("bert.pooler.", "cls.predictions.", "cls.seq_relationship."),
    *("classifier.", "qa_outputs."),
)
_MOST_NAMES, _LONGEST_NAME = 5, 100


class MegatronBertPresetLoader(PresetLoader):
    """Loads a preset whose config.json is of Hugging Face's Megatron BERT.

    That is either one of this package's names, whose weights come from the cache, or a Hugging Face
    folder, local or `hf://`. KerasHub calls the methods.
    """

    def __init__(self, preset: str, config: dict):
        super().__init__(preset, config)
        self.named = find(preset)
        self._for_task = False  # whether load_task asks for the backbone
        self._has_pooler = None  # whether the weights do, if weights are loaded
        if self.named and os.path.isdir(preset):
            warn_user(
                f"{preset!r} is taken for the preset of this name: use './{preset}' for the folder",
            )

    def check_backbone_class(self) -> type:
        """Return the class of the backbone."""
        return MegatronBertBackbone

    def load_backbone(self, cls: type, load_weights: bool, **kwargs) -> MegatronBertBackbone:
        """Build the backbone; `kwargs` go before what the preset says."""
        if load_weights and self.named:
            return self._converted().load_backbone(cls, load_weights, **kwargs)
        if load_weights:
            self._check()
        if "vocabulary_size" in kwargs:
            check_rows(kwargs["vocabulary_size"], backbone_config(self.config)["vocabulary_size"])
        if self.config.get("is_decoder") and not self._for_task:
            warn_user(
                f"{self.preset} holds a decoder (is_decoder is true), but the backbone looks both "
                "ways: call it with causal=True, or load MegatronBertCausalLM",
            )
        with weights_follow(self._has_pooler is not None):
            backbone = cls(**{**backbone_config(self.config), **kwargs})
        if self._has_pooler is False:
            start_at_random(backbone.get_layer("pooled_dense"))
        if load_weights:
            self._fill(backbone)
        return backbone

    def load_task(
        self, cls: type, load_weights: bool, load_task_weights: bool, **kwargs
    ) -> keras_hub.models.Task:
        """Build a task; its head is loaded too if the preset has one of this kind."""
        if load_weights and self.named:
            return self._converted().load_task(cls, load_weights, load_task_weights, **kwargs)
        self._check_is_decoder(cls)
        self._for_task = True
        if "num_classes" not in kwargs:  # else the head is a new one
            kwargs = {**task_arguments(cls, self.config), **kwargs}
        if "preprocessor" not in kwargs and not self.named and not has_tokenizer(self.preset):
            warn_user(
                f"{self.preset} has {why_no_tokenizer(self.preset)}: the model has no preprocessor "
                "and takes ids",
            )
            kwargs["preprocessor"] = None
        if "preprocessor" not in kwargs:
            kwargs["preprocessor"] = self.load_preprocessor(
                cls.preprocessor_cls, **self._class_names(cls, kwargs)
            )
        with_head = load_weights and load_task_weights
        if with_head:
            self._check()
        task = super().load_task(cls, load_weights and not with_head, load_task_weights, **kwargs)
        if with_head:
            self._fill(task)
        return task

    get_backbone_kwargs = backbone_arguments

    def load_preprocessor(self, cls: type, config_file: str | None = None, **kwargs):
        """Build a preprocessor for as many tokens as the model has positions."""
        kwargs.setdefault("sequence_length", backbone_config(self.config)["max_sequence_length"])
        return cls(**cls._add_missing_kwargs(self, kwargs))

    def load_tokenizer(self, cls: type, config_file: str | None = None, **kwargs):
        """Build the tokenizer; for a name from the bundled vocabulary, without a download."""
        if self.named:
            return cls(vocabulary=self.named.vocabulary_file, **kwargs)
        return cls(**{**tokenizer_arguments(self.preset), **kwargs})

    def _class_names(self, cls: type, kwargs: dict) -> dict:
        """Return the argument for a classifier's preprocessor, if the folder names its classes."""
        names = class_names(self.config) if "num_classes" in kwargs else []
        if len(names) != kwargs.get("num_classes") or names == default_class_names(len(names)):
            return {}
        return {"class_names": names}

    def _check_is_decoder(self, cls: type) -> None:
        if self.config.get("is_decoder") and not issubclass(cls, keras_hub.models.CausalLM):
            raise ValueError(
                f"{self.preset} holds a decoder (is_decoder is true): load it with "
                "MegatronBertCausalLM"
            )

    def _converted(self) -> KerasPresetLoader:
        folder = str(converted_weights(self.named))
        return MegatronBertKerasLoader(folder, load_json(folder))

    def _check(self) -> None:
        """Check the weights before a model takes memory for what config.json claims."""
        self._has_pooler = check_folder(local_folder(self.preset), backbone_config(self.config))

    def _fill(self, model) -> None:
        unused = load_weights(model, local_folder(self.preset))
        strange = [name for name in unused if not name.startswith(_OTHER_HEADS)]
        if strange:
            names = ", ".join(repr(name[:_LONGEST_NAME]) for name in strange[:_MOST_NAMES])
            warn_user(
                f"{self.preset} has {len(strange)} weights that the model has no place for: {names}"
                f"{', ...' if len(strange) > _MOST_NAMES else ''}",
            )


class _ChoosingLoader(KERAS_HUB_LOADER):
    """Makes the loader that fits a configuration, instead of an instance of itself."""

    def __new__(cls, preset: str, config: dict) -> PresetLoader:
        if config["model_type"] == MODEL_TYPE:
            return MegatronBertPresetLoader(preset, config)
        return KERAS_HUB_LOADER(preset, config)


def install_loader() -> None:
    """Have KerasHub use these loaders; `get_preset_loader` looks the classes up at each call."""
    preset_loader.TransformersPresetLoader = _ChoosingLoader
    preset_utils.KerasPresetLoader = MegatronBertKerasLoader
