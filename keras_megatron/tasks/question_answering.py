import math
from collections.abc import Mapping

import keras
import keras_hub
import numpy as np

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.layers.common import refuse_unknown
from keras_megatron.tasks.answer_questions import answer_questions
from keras_megatron.tasks.heads import dense_head
from keras_megatron.tasks.labels import check_range, check_shape
from keras_megatron.tasks.question_answering_preprocessor import (
    MegatronBertQuestionAnsweringPreprocessor,
)
from keras_megatron.tasks.samples import by_position
from keras_megatron.tasks.span_loss import SpanLoss, span_accuracy
from keras_megatron.tasks.task import MegatronBertTask, check_tokenizer_fits


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertQuestionAnswering(MegatronBertTask, keras_hub.models.Task):
    """Megatron BERT that finds the answer to a question in a text.

    Called on, or trained with, a dict of `token_ids`, `segment_ids` and `padding_mask`
    (batch, sequence), it returns logits (batch, sequence, 2): how likely an answer begins at a
    token, and how likely it ends with it. Labels are int (batch, 2), the positions of the first and
    the last token; 0, [CLS], where there is no answer. With a preprocessor `fit` and `evaluate`
    take `(questions, contexts)` and answers as SQuAD has them, and work on windows of long
    contexts; so does `predict`, which returns the logits of each window. `answer` gives the answers
    themselves.

    Args:
        backbone: `MegatronBertBackbone`.
        preprocessor: `MegatronBertQuestionAnsweringPreprocessor`, or None for inputs that are ids
            already.
        null_threshold: float. What `answer` takes by default; `float("inf")`, or None in a saved
            configuration, for data like SQuAD 1.1, where each question has an answer.

    Raises:
        ValueError: the tokenizer has more pieces than the backbone has rows.

    Example:
    ```python
    from keras_megatron import (
        MegatronBertQuestionAnswering,
        MegatronBertQuestionAnsweringPreprocessor,
    )

    preprocessor = MegatronBertQuestionAnsweringPreprocessor.from_preset(
        "megatron_bert_tiny_uncased", sequence_length=32
    )
    model = MegatronBertQuestionAnswering.from_preset(
        "megatron_bert_tiny_uncased", preprocessor=preprocessor
    )
    questions = ["What is his name?", "Where did he go?"]
    contexts = ["Call me Ishmael. Some years ago I went to sea."] * 2
    answers = [{"text": "Ishmael", "answer_start": 8}, {"text": "to sea", "answer_start": 39}]
    model.fit((questions, contexts), answers, batch_size=2)
    found = model.answer("What is his name?", contexts[0])  # a dict of answer, start, end, score
    assert contexts[0][found["start"] : found["end"]] == found["answer"]
    ```
    """

    backbone_cls = MegatronBertBackbone
    preprocessor_cls = MegatronBertQuestionAnsweringPreprocessor
    outputs_for = "tokens"
    packs_training = False  # the loss looks at padding too, as that of transformers

    def __init__(
        self,
        backbone: MegatronBertBackbone,
        preprocessor: MegatronBertQuestionAnsweringPreprocessor | None = None,
        null_threshold: float | None = 0.0,
        **kwargs,
    ):
        refuse_unknown(kwargs, {"name", "trainable", "compile"})
        check_tokenizer_fits(preprocessor, backbone)

        # === Layers ===
        qa_outputs = dense_head(backbone, 2, "qa_outputs")

        # === Functional Model ===
        inputs = backbone.input
        outputs = qa_outputs(backbone(inputs)["sequence_output"])
        self.backbone = backbone
        self.preprocessor = preprocessor
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Config ===
        self.qa_outputs = qa_outputs
        self.null_threshold = math.inf if null_threshold is None else null_threshold

    def outputs_of(self, encoded, inputs, training=None):
        """Return logits (batch, sequence, 2)."""
        return self.qa_outputs(encoded["sequence_output"])

    def default_loss(self) -> keras.losses.Loss:
        """Return the mean cross entropy of an answer's two ends."""
        return SpanLoss()

    def default_metrics(self) -> dict:
        """Return the share of rows with both ends right."""
        return {"metrics": [span_accuracy]}

    def check_label_arrays(self, y: np.ndarray, inputs: Mapping) -> None:
        """Refuse labels that are not two positions a row; beyond the row they count for nothing.

        Raises:
            ValueError: as said.
        """
        check_shape(y, (len(inputs["token_ids"]), 2))
        check_range(y, None)

    def answer(
        self,
        questions: str | list[str],
        contexts: str | list[str],
        top_k: int = 1,
        null_threshold: float | None = None,
        batch_size: int = 32,
    ) -> dict | list:
        """Find answers to questions, each in its context.

        Args:
            questions: a question, or a list of them.
            contexts: a text of any length, or a list of as many as there are questions; one text
                with several questions is the context of all.
            top_k: how many answers to give to a question.
            null_threshold: a question has no answer if the score of that, a sum of two logits, is
                above the best answer's by more than this; the model's `null_threshold` if None.
                `float("inf")`: there always is an answer.
            batch_size: windows a step.

        Returns:
            For a question a dict of `answer` (a part of the context, or "" for no answer), `start`
            and `end` (its characters, [start, end); both 0 for no answer) and `score` (its
            probability). With `top_k` above 1 a list of up to so many, the best one first. For a
            list of questions a list of these.

        Raises:
            ValueError: there is no preprocessor, something is not a str, a question is empty, there
                are other contexts than questions, or a number is out of range.
        """
        questions, contexts = by_position((questions, contexts))
        single = isinstance(questions, str) and isinstance(contexts, str)
        if null_threshold is None:
            null_threshold = self.null_threshold
        if single:
            questions = [questions]
        if isinstance(contexts, str) and isinstance(questions, list | tuple):
            contexts = [contexts] * len(questions)
        answers = answer_questions(self, questions, contexts, top_k, null_threshold, batch_size)
        if top_k == 1:
            answers = [ranked[0] for ranked in answers]
        return answers[0] if single else answers

    def get_config(self) -> dict:
        """Return the arguments of the constructor; JSON has no infinity, so None stands for it."""
        threshold = None if self.null_threshold == math.inf else self.null_threshold
        return {**super().get_config(), "null_threshold": threshold}
