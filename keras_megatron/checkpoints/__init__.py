"""Megatron-LM's and Hugging Face's checkpoints, to Keras and back."""

from keras_megatron.checkpoints.convert import convert_checkpoint
from keras_megatron.checkpoints.export import export_to_transformers
from keras_megatron.checkpoints.huggingface import backbone_config, load_weights, masked_lm_config

__all__ = [
    "backbone_config",
    "convert_checkpoint",
    "export_to_transformers",
    "load_weights",
    "masked_lm_config",
]
