from collections.abc import Mapping

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.layers.choices import ABSENT, FlattenChoices, GatherChoices
from keras_megatron.layers.common import refuse_unknown
from keras_megatron.tasks.answers import sample_logits, softmax
from keras_megatron.tasks.heads import dense_head
from keras_megatron.tasks.labels import check_class_labels
from keras_megatron.tasks.multiple_choice_preprocessor import (
    MegatronBertMultipleChoicePreprocessor,
    most_choices,
)
from keras_megatron.tasks.task import MegatronBertTask, check_tokenizer_fits


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertMultipleChoice(MegatronBertTask, keras_hub.models.Task):
    """Megatron BERT that chooses one of several texts for a context.

    Called on, or trained with, a dict of `token_ids`, `segment_ids` and `padding_mask`
    (batch, choices, sequence), it returns logits (batch, choices): a dense layer scores the pooled
    output of each choice. There may be any number of choices. A choice whose `padding_mask` is 0
    throughout is not there: its logit is -1e4, its probability 0. With a preprocessor `fit`,
    `evaluate` and `predict` take `(contexts, choices)`, and `choose` answers.

    Args:
        backbone: `MegatronBertBackbone`.
        preprocessor: `MegatronBertMultipleChoicePreprocessor`, or None for inputs that are ids
            already.
        dropout: float. Rate of the dropout on the pooled output; the backbone's if None.

    Raises:
        ValueError: the tokenizer has more pieces than the backbone has rows.

    Example:
    ```python
    from keras_megatron import MegatronBertMultipleChoice, MegatronBertMultipleChoicePreprocessor

    preprocessor = MegatronBertMultipleChoicePreprocessor.from_preset(
        "megatron_bert_tiny_uncased", sequence_length=16
    )
    model = MegatronBertMultipleChoice.from_preset(
        "megatron_bert_tiny_uncased", preprocessor=preprocessor
    )
    contexts = ["He went to sea.", "The bank was steep."]
    choices = [["a body of water", "to look"], ["sloping land", "a place for money", "a row"]]
    model.fit((contexts, choices), [0, 0], batch_size=2)
    answer = model.choose(contexts[1], choices[1])
    assert answer["text"] == choices[1][answer["choice"]]
    ```
    """

    backbone_cls = MegatronBertBackbone
    preprocessor_cls = MegatronBertMultipleChoicePreprocessor

    def __init__(
        self,
        backbone: MegatronBertBackbone,
        preprocessor: MegatronBertMultipleChoicePreprocessor | None = None,
        dropout: float | None = None,
        **kwargs,
    ):
        refuse_unknown(kwargs, {"name", "trainable", "compile"})
        check_tokenizer_fits(preprocessor, backbone)
        dropout = backbone.dropout if dropout is None else dropout

        # === Layers ===
        flatten_choices = FlattenChoices(dtype=backbone.dtype_policy, name="flatten_choices")
        classifier_dropout = keras.layers.Dropout(
            dropout, dtype=backbone.dtype_policy, name="classifier_dropout"
        )
        classifier = dense_head(backbone, 1, "classifier")
        gather_choices = GatherChoices(dtype=backbone.dtype_policy, name="gather_choices")

        # === Functional Model ===
        inputs = {
            name: keras.Input(shape=(None, None), dtype="int32", name=name)
            for name in backbone.input
        }
        rows = {name: flatten_choices(array) for name, array in inputs.items()}
        scores = classifier(classifier_dropout(backbone(rows)["pooled_output"]))
        outputs = gather_choices(scores, inputs["padding_mask"])
        self.backbone = backbone
        self.preprocessor = preprocessor
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Config ===
        self.classifier = classifier
        self.dropout = dropout

    def outputs_of(self, encoded, inputs, training=None):
        """Return scores (documents,), each of a choice for some context.

        Given `choice_documents`, int (batch, choices), which say which document a choice is, with
        -1 for one that is not there, they are (batch, choices).
        """
        pooled = self.get_layer("classifier_dropout")(encoded["pooled_output"], training=training)
        scores = self.classifier(pooled)[:, 0]
        documents = inputs.get("choice_documents")
        if documents is None:
            return scores
        chosen = ops.take(scores, ops.maximum(documents, 0), axis=0)
        return ops.where(documents >= 0, chosen, ops.cast(ABSENT, scores.dtype))

    def default_loss(self) -> keras.losses.Loss:
        """Return the cross entropy over the choices."""
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def default_metrics(self) -> dict:
        """Return the accuracy."""
        return {"metrics": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]}

    def has_classes(self) -> bool:
        """Return True: labels are choices."""
        return True

    def label_limits(self, inputs: Mapping) -> tuple:
        """Return the least and the greatest choice."""
        return 0, np.shape(inputs["token_ids"])[1] - 1

    def check_label_arrays(self, y: np.ndarray, inputs: Mapping) -> None:
        """Refuse labels that are none of their row's choices.

        Raises:
            ValueError: as said.
        """
        check_class_labels(y, np.shape(inputs["token_ids"])[1])
        padding_mask = inputs.get("padding_mask")
        if not isinstance(padding_mask, np.ndarray) or len(padding_mask) != len(y):
            return
        is_there = padding_mask.any(axis=2)
        labels = y.reshape(len(y)).astype("int32")
        missing = np.flatnonzero(is_there.any(axis=1) & ~is_there[np.arange(len(y)), labels])
        if len(missing):
            raise ValueError(
                f"label {missing[0]} is {labels[missing[0]]}, a choice that is not there: its "
                "padding_mask is 0 throughout"
            )

    def choose(self, contexts, choices, batch_size: int = 32) -> list[dict] | dict:
        """Choose a text for each context.

        Args:
            contexts: a text, or a list of texts.
            choices: for a text a list of at least two texts, for a list a list of such lists, whose
                lengths may differ.
            batch_size: contexts a step.

        Returns:
            For a text a dict, for a list a list of dicts: `choice`, the place of the best choice
            from 0; `text`, the choice itself; `scores`, a list of the choices' probabilities.

        Raises:
            ValueError: there is no preprocessor, something is not text, or a context has fewer than
                two choices.
        """
        if isinstance(contexts, str):
            return self.choose([contexts], [choices], batch_size)[0]
        columns = (contexts, choices)
        logits = sample_logits(self, columns, batch_size, num_choices=most_choices(columns))
        answers = []
        for row, texts in zip(softmax(logits), choices, strict=True):
            scores = row[: len(texts)].tolist()
            best = int(np.argmax(scores))
            answers.append({"choice": best, "text": texts[best], "scores": scores})
        return answers

    def get_config(self) -> dict:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "dropout": self.dropout}
