"""Megatron BERT for Keras 3, on JAX, PyTorch and TensorFlow."""

from keras_megatron import presets as presets
from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.tasks.causal_lm import MegatronBertCausalLM
from keras_megatron.tasks.causal_lm_preprocessor import MegatronBertCausalLMPreprocessor
from keras_megatron.tasks.masked_lm import MegatronBertMaskedLM
from keras_megatron.tasks.masked_lm_preprocessor import MegatronBertMaskedLMPreprocessor
from keras_megatron.tokenizer import MegatronBertTokenizer
from keras_megatron.version import __version__

__all__ = [
    "MegatronBertBackbone",
    "MegatronBertCausalLM",
    "MegatronBertCausalLMPreprocessor",
    "MegatronBertMaskedLM",
    "MegatronBertMaskedLMPreprocessor",
    "MegatronBertTokenizer",
    "__version__",
]
