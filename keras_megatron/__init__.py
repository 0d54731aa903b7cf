"""Megatron BERT for Keras 3, on JAX, PyTorch and TensorFlow."""

# What is imported here is known to `keras.saving.load_model`: the recipe's optimizer too.
from keras_megatron import finetuning as finetuning
from keras_megatron import parallel as parallel
from keras_megatron import presets as presets
from keras_megatron import serving as serving
from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.tasks.causal_lm import MegatronBertCausalLM
from keras_megatron.tasks.causal_lm_preprocessor import MegatronBertCausalLMPreprocessor
from keras_megatron.tasks.masked_lm import MegatronBertMaskedLM
from keras_megatron.tasks.masked_lm_preprocessor import MegatronBertMaskedLMPreprocessor
from keras_megatron.tasks.multiple_choice import MegatronBertMultipleChoice
from keras_megatron.tasks.multiple_choice_preprocessor import MegatronBertMultipleChoicePreprocessor
from keras_megatron.tasks.next_sentence_predictor import MegatronBertNextSentencePredictor
from keras_megatron.tasks.next_sentence_predictor_preprocessor import (
    MegatronBertNextSentencePredictorPreprocessor,
)
from keras_megatron.tasks.pretrainer import MegatronBertPretrainer
from keras_megatron.tasks.pretrainer_preprocessor import MegatronBertPretrainerPreprocessor
from keras_megatron.tasks.question_answering import MegatronBertQuestionAnswering
from keras_megatron.tasks.question_answering_preprocessor import (
    MegatronBertQuestionAnsweringPreprocessor,
)
from keras_megatron.tasks.text_classifier import MegatronBertTextClassifier
from keras_megatron.tasks.text_classifier_preprocessor import MegatronBertTextClassifierPreprocessor
from keras_megatron.tasks.text_embedder import MegatronBertTextEmbedder
from keras_megatron.tasks.text_embedder_preprocessor import MegatronBertTextEmbedderPreprocessor
from keras_megatron.tasks.token_classifier import MegatronBertTokenClassifier
from keras_megatron.tasks.token_classifier_preprocessor import (
    MegatronBertTokenClassifierPreprocessor,
)
from keras_megatron.tokenizer import MegatronBertTokenizer
from keras_megatron.version import __version__

__all__ = [
    "MegatronBertBackbone",
    "MegatronBertCausalLM",
    "MegatronBertCausalLMPreprocessor",
    "MegatronBertMaskedLM",
    "MegatronBertMaskedLMPreprocessor",
    "MegatronBertMultipleChoice",
    "MegatronBertMultipleChoicePreprocessor",
    "MegatronBertNextSentencePredictor",
    "MegatronBertNextSentencePredictorPreprocessor",
    "MegatronBertPretrainer",
    "MegatronBertPretrainerPreprocessor",
    "MegatronBertQuestionAnswering",
    "MegatronBertQuestionAnsweringPreprocessor",
    "MegatronBertTextClassifier",
    "MegatronBertTextClassifierPreprocessor",
    "MegatronBertTextEmbedder",
    "MegatronBertTextEmbedderPreprocessor",
    "MegatronBertTokenClassifier",
    "MegatronBertTokenClassifierPreprocessor",
    "MegatronBertTokenizer",
    "__version__",
]
