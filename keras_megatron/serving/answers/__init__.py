"""What each task answers to strings, as TensorFlow ops: one function a task.

Each takes a model and the `ExportSettings`, and returns the signatures that take strings.
"""

from keras_megatron.serving.answers.endpoint import Endpoint
from keras_megatron.serving.answers.generation import generation
from keras_megatron.serving.answers.masks import masked_tokens, pretraining
from keras_megatron.serving.answers.questions import question_answering
from keras_megatron.serving.answers.spans import tagging
from keras_megatron.serving.answers.texts import choices, classification, embedding, next_sentence

_ANSWERS = {
    "MegatronBertCausalLM": generation,
    "MegatronBertMaskedLM": masked_tokens,
    "MegatronBertMultipleChoice": choices,
    "MegatronBertNextSentencePredictor": next_sentence,
    "MegatronBertPretrainer": pretraining,
    "MegatronBertQuestionAnswering": question_answering,
    "MegatronBertTextClassifier": classification,
    "MegatronBertTextEmbedder": embedding,
    "MegatronBertTokenClassifier": tagging,
}


def string_endpoints(model, options) -> dict[str, Endpoint]:
    """Return a model's signatures that take strings, by name.

    There are none without a preprocessor, nor where an encoder's hidden states are inputs too.
    """
    if getattr(model, "preprocessor", None) is None or model.backbone.cross_attention:
        return {}
    return _ANSWERS[type(model).__name__](model, options)
