from keras_megatron.layers.attention import MultiHeadAttention
from keras_megatron.layers.embeddings import MegatronBertEmbedding
from keras_megatron.layers.masked_lm_head import MaskedLMHead
from keras_megatron.layers.transformer_layer import MegatronBertLayer

__all__ = ["MaskedLMHead", "MegatronBertEmbedding", "MegatronBertLayer", "MultiHeadAttention"]
