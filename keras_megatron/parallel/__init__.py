"""Tensor and data parallelism from one `keras.distribution.LayoutMap`."""

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.padding import padded_vocabulary_size
from keras_megatron.parallel.context import model_parallel
from keras_megatron.parallel.distribution import MegatronParallel
from keras_megatron.parallel.report import ModelReport, describe
from keras_megatron.parallel.rules import layout_map

__all__ = [
    "MegatronParallel",
    "ModelReport",
    "describe",
    "layout_map",
    "model_parallel",
    "padded_vocabulary_size",
]

# Model code knows nothing of sharding: the method comes from here.
MegatronBertBackbone.get_layout_map = staticmethod(layout_map)
