from collections.abc import Mapping

import keras
import keras_hub
import numpy as np

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.layers.common import refuse_unknown
from keras_megatron.tasks.heads import dense_head, token_cross_entropy
from keras_megatron.tasks.labels import check_class_count, check_range, check_shape
from keras_megatron.tasks.tagging import tag
from keras_megatron.tasks.task import MegatronBertTask, check_tokenizer_fits
from keras_megatron.tasks.token_classifier_preprocessor import (
    MegatronBertTokenClassifierPreprocessor,
    check_tag,
)


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertTokenClassifier(MegatronBertTask, keras_hub.models.Task):
    """Megatron BERT that gives each word a tag: named entities, parts of speech.

    Called on, or trained with, a dict of `token_ids`, `segment_ids` and `padding_mask`
    (batch, sequence), it returns logits (batch, sequence, classes). With a preprocessor `fit` and
    `evaluate` take lists of words and lists of tags, and `tag` gives tags back.

    Args:
        backbone: `MegatronBertBackbone`.
        num_classes: int. Kinds of tag.
        preprocessor: `MegatronBertTokenClassifierPreprocessor`, or None for inputs that are ids
            already.
        dropout: float. Dropout rate before the classifier; that of the backbone if None.

    Raises:
        ValueError: `num_classes` is not positive or not the number of the preprocessor's
            `class_names`, or the tokenizer has more pieces than the backbone has rows.

    Example:
    ```python
    from keras_megatron import MegatronBertTokenClassifier, MegatronBertTokenClassifierPreprocessor

    preprocessor = MegatronBertTokenClassifierPreprocessor.from_preset(
        "megatron_bert_tiny_uncased", sequence_length=16, class_names=["O", "B-PER", "I-PER"]
    )
    classifier = MegatronBertTokenClassifier.from_preset(
        "megatron_bert_tiny_uncased", num_classes=3, preprocessor=preprocessor
    )
    classifier.fit([["Captain", "Ahab", "spoke"]], [["O", "B-PER", "O"]])
    classifier.tag([["Queequeg", "slept"]])  # a tag a word
    classifier.tag("Queequeg slept.")  # spans: {"label": "PER", "text": "Queequeg", ...}
    ```
    """

    backbone_cls = MegatronBertBackbone
    preprocessor_cls = MegatronBertTokenClassifierPreprocessor
    outputs_for = "tokens"

    def __init__(
        self,
        backbone: MegatronBertBackbone,
        num_classes: int,
        preprocessor: MegatronBertTokenClassifierPreprocessor | None = None,
        dropout: float | None = None,
        **kwargs,
    ):
        refuse_unknown(kwargs, {"name", "trainable", "compile"})
        check_tokenizer_fits(preprocessor, backbone)
        check_class_count(preprocessor, num_classes)
        dropout = backbone.dropout if dropout is None else dropout

        # === Layers ===
        classifier_dropout = keras.layers.Dropout(
            dropout, dtype=backbone.dtype_policy, name="classifier_dropout"
        )
        classifier = dense_head(backbone, num_classes, "classifier")

        # === Functional Model ===
        inputs = backbone.input
        outputs = classifier(classifier_dropout(backbone(inputs)["sequence_output"]))
        self.backbone = backbone
        self.preprocessor = preprocessor
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Config ===
        self.classifier = classifier
        self.num_classes = num_classes
        self.dropout = dropout

    def outputs_of(self, encoded, inputs, training=None):
        """Return logits (batch, sequence, classes)."""
        states = self.get_layer("classifier_dropout")(encoded["sequence_output"], training=training)
        return self.classifier(states)

    def default_loss(self) -> keras.losses.Loss:
        """Return the mean cross entropy of the pieces that have a label.

        It is `sum(loss * weight) / sum(weight)` over the batch, as Hugging Face's with labels of
        -100, which have the weight 0 here.
        """
        return token_cross_entropy()

    def default_metrics(self) -> dict:
        """Return the accuracy of the pieces that have a label."""
        return {"weighted_metrics": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]}

    def check_labels(self, y) -> None:
        """Refuse tags that are no class of this model.

        Raises:
            ValueError: a tag is out of range, or there are other class names than classes.
        """
        check_class_count(self.preprocessor, self.num_classes)
        if self.preprocessor.class_names is not None:
            return  # then the preprocessor knows the range
        for index, labels in enumerate(self.preprocessor.prepare_labels(y)):
            for label in labels:
                check_tag(label, self.num_classes, index)

    def label_limits(self, inputs: Mapping) -> tuple:
        """Return the least and the greatest class."""
        return 0, self.num_classes - 1

    def check_label_arrays(self, y: np.ndarray, inputs: Mapping) -> None:
        """Refuse labels of pieces that are no class of this model.

        Raises:
            ValueError: a label is out of range, or they are not one a piece.
        """
        check_shape(y, np.shape(inputs["token_ids"]))
        check_range(y, self.num_classes)

    def tag(self, inputs: str | list, batch_size: int = 32) -> list:
        """Tag words, or find spans in texts.

        What is longer than the model reads is processed in windows that overlap by half, and a
        word's tag comes from the window in whose middle it is.

        Args:
            inputs: a list of lists of words, a list of texts, or a text.
            batch_size: samples, and windows, a step.

        Returns:
            For words: a list a sample of a tag a word, by name if the preprocessor has
            `class_names`. A word that the tokenizer makes nothing of, such as a zero-width space,
            has "O", or None where there is no such class.

            For texts: a list a text (for one text, that list) of spans in their order, dicts of
            `label`, `text`, `start`, `end` (characters of the original string) and `score` (mean
            probability of the words' tags). Where `class_names` are BIO or IOBES tags ("O",
            "B-...", "I-...", "E-...", "S-..."), a span is what they join, and its label has no
            prefix; an "I-" that continues nothing begins a span. Where they are not, each word is
            a span.

        Raises:
            ValueError: there is no preprocessor, the inputs are not words or texts, or `batch_size`
                is not positive.
        """
        if isinstance(inputs, str):
            return tag(self, [inputs], batch_size)[0]
        return tag(self, inputs, batch_size)

    def get_config(self):
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "dropout": self.dropout,
        }
