"""Megatron-LM's and Hugging Face's checkpoints, to Keras and back."""

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.checkpoints.architectures import (
    class_names,
    default_class_names,
    task_arguments,
)
from keras_megatron.checkpoints.convert import convert_checkpoint
from keras_megatron.checkpoints.export import export_to_transformers
from keras_megatron.checkpoints.huggingface import check_folder, load_weights
from keras_megatron.checkpoints.huggingface_config import backbone_config
from keras_megatron.checkpoints.megatron_export import export_to_megatron
from keras_megatron.tasks.task import MegatronBertTask

__all__ = [
    "backbone_config",
    "check_folder",
    "class_names",
    "convert_checkpoint",
    "default_class_names",
    "export_to_megatron",
    "export_to_transformers",
    "load_weights",
    "task_arguments",
]

# Model code knows nothing of files, so its classes are given the method here.
MegatronBertBackbone.export_to_transformers = export_to_transformers
MegatronBertTask.export_to_transformers = export_to_transformers
MegatronBertTask.export_to_megatron = export_to_megatron
