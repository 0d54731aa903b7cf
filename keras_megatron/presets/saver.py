"""KerasHub's saver of presets, which keeps the preset that was there until the new one is whole."""

import os
from collections.abc import Callable, Iterable

import keras
from keras_hub.src.utils import preset_utils
from keras_hub.src.utils.preset_utils import TASK_WEIGHTS_FILE, KerasPresetSaver
from keras_hub.src.utils.tensor_utils import get_tensor_size_in_bits

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.checkpoints.staging import hdf5_size, reserve_space, updated_folder
from keras_megatron.processes import is_first
from keras_megatron.tasks.task import MegatronBertTask

# In one file, or in several of which another one tells.
_BACKBONE_WEIGHTS = ("model.weights.json", "model*.weights.h5")


class MegatronBertPresetSaver(KerasPresetSaver):
    """Saves presets as KerasHub does; those of this package beside the one that is there.

    A save that fails or is killed leaves the preset as it was, and one that succeeds leaves no
    weights of the model before, which a loader might prefer.
    """

    def __init__(self, preset_dir: str | os.PathLike):
        self.preset_dir = preset_dir  # made when there is something to put there

    def _save_serialized_object(self, layer, config_file):
        os.makedirs(self.preset_dir, exist_ok=True)
        super()._save_serialized_object(layer, config_file)

    def save_backbone(self, backbone, max_shard_size=10):
        """Save a backbone."""
        if not isinstance(backbone, MegatronBertBackbone):
            KerasPresetSaver(self.preset_dir).save_backbone(backbone, max_shard_size)
            return
        self._save(KerasPresetSaver.save_backbone, backbone, max_shard_size, _BACKBONE_WEIGHTS)

    def save_task(self, task, max_shard_size=10):
        """Save a task with its preprocessor and backbone."""
        if not isinstance(task, MegatronBertTask):
            KerasPresetSaver(self.preset_dir).save_task(task, max_shard_size)
            return
        outdated = (*_BACKBONE_WEIGHTS, TASK_WEIGHTS_FILE)
        self._save(KerasPresetSaver.save_task, task, max_shard_size, outdated)

    def _save(self, save: Callable, model: keras.Model, max_shard_size, outdated: Iterable[str]):
        with updated_folder(self.preset_dir, outdated) as folder:
            if is_first():
                weights = {id(weight): weight for weight in model.weights}.values()
                sizes = [get_tensor_size_in_bits(w.shape, w.dtype) // 8 for w in weights]
                reserve_space(folder, hdf5_size(sizes))
            save(KerasPresetSaver(str(folder)), model, max_shard_size)


def install_saver() -> None:
    """Have KerasHub use this saver; `get_preset_saver` looks the class up at each call."""
    preset_utils.KerasPresetSaver = MegatronBertPresetSaver
