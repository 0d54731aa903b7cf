"""Fine-tuning on data files: readers, the paper's recipe, metrics, and runs that can be resumed."""

from keras_megatron.finetuning.predict import predict
from keras_megatron.finetuning.recipe import RECIPES, LinearWarmupDecay, Recipe, adamw
from keras_megatron.finetuning.run import finetune
from keras_megatron.finetuning.settings import FinetuneSettings

__all__ = [
    "RECIPES",
    "FinetuneSettings",
    "LinearWarmupDecay",
    "Recipe",
    "adamw",
    "finetune",
    "predict",
]
