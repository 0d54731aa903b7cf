from collections.abc import Mapping

import keras
import keras_hub
import numpy as np

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.layers.common import refuse_unknown
from keras_megatron.tasks.answers import as_batch, is_single, sample_logits, softmax
from keras_megatron.tasks.heads import dense_head
from keras_megatron.tasks.labels import check_class_labels
from keras_megatron.tasks.next_sentence_predictor_preprocessor import (
    MegatronBertNextSentencePredictorPreprocessor,
)
from keras_megatron.tasks.task import MegatronBertTask, check_tokenizer_fits


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertNextSentencePredictor(MegatronBertTask, keras_hub.models.Task):
    """Megatron BERT that says whether a text follows another.

    Called on, or trained with, a dict of `token_ids`, `segment_ids` and `padding_mask`
    (batch, sequence), it returns logits (batch, 2) of a dense layer on the pooled output. Class 0
    is "the second follows the first", class 1 that it does not; Megatron-LM's models learned to
    tell texts in order from texts that were swapped. With a preprocessor `fit`, `evaluate` and
    `predict` take pairs of raw texts, and `follows` answers.

    Args:
        backbone: `MegatronBertBackbone`.
        preprocessor: `MegatronBertNextSentencePredictorPreprocessor`, or None for inputs that are
            ids already.

    Raises:
        ValueError: the tokenizer has more pieces than the backbone has rows.

    Example:
    ```python
    from keras_megatron import MegatronBertNextSentencePredictor

    predictor = MegatronBertNextSentencePredictor.from_preset("megatron_bert_tiny_uncased")
    probability = predictor.follows("Call me Ishmael.", "Some years ago I went to sea.")
    assert 0 < probability < 1
    ```
    """

    backbone_cls = MegatronBertBackbone
    preprocessor_cls = MegatronBertNextSentencePredictorPreprocessor

    def __init__(
        self,
        backbone: MegatronBertBackbone,
        preprocessor: MegatronBertNextSentencePredictorPreprocessor | None = None,
        **kwargs,
    ):
        refuse_unknown(kwargs, {"name", "trainable", "compile"})
        check_tokenizer_fits(preprocessor, backbone)

        # === Layers ===
        binary_head = dense_head(backbone, 2, "binary_head")

        # === Functional Model ===
        inputs = backbone.input
        outputs = binary_head(backbone(inputs)["pooled_output"])
        self.backbone = backbone
        self.preprocessor = preprocessor
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Config ===
        self.binary_head = binary_head

    def outputs_of(self, encoded, inputs, training=None):
        """Return logits (documents, 2)."""
        return self.binary_head(encoded["pooled_output"])

    def default_loss(self) -> keras.losses.Loss:
        """Return the cross entropy."""
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def default_metrics(self) -> dict:
        """Return the accuracy."""
        return {"metrics": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]}

    def check_labels(self, y) -> None:
        """Refuse labels that are neither 0 (follows) nor 1 (does not).

        Raises:
            ValueError: as said.
        """
        check_class_labels(y, 2)

    def has_classes(self) -> bool:
        """Return True: labels say whether the second text follows."""
        return True

    def label_limits(self, inputs: Mapping) -> tuple:
        """Return the two labels."""
        return 0, 1

    def check_label_arrays(self, y: np.ndarray, inputs=None) -> None:
        """Do what `check_labels` does."""
        check_class_labels(y, 2)

    def follows(self, first, second, batch_size: int = 32) -> np.ndarray | float:
        """Say how probable it is that texts follow others.

        Args:
            first: a text or a list of texts.
            second: as many.
            batch_size: pairs a step.

        Returns:
            For two texts a float, for lists a float32 array (pairs,): the probability that the
            second follows the first.

        Raises:
            ValueError: there is no preprocessor, the lists differ in length, or something is not
                text.
        """
        if is_single((first, second)):
            return float(self.follows(*as_batch((first, second)), batch_size)[0])
        return softmax(sample_logits(self, (first, second), batch_size))[:, 0]
