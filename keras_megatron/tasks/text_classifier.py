from collections.abc import Mapping

import keras
import keras_hub
import numpy as np

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.layers.common import refuse_unknown
from keras_megatron.tasks.answers import as_batch, is_single, sample_logits, sigmoid, softmax
from keras_megatron.tasks.class_loss import ClassAccuracy, ClassCrossEntropy
from keras_megatron.tasks.heads import dense_head
from keras_megatron.tasks.labels import (
    check_class_count,
    check_class_labels,
    check_rows,
    label_array,
)
from keras_megatron.tasks.task import MegatronBertTask, check_tokenizer_fits
from keras_megatron.tasks.text_classifier_preprocessor import (
    MegatronBertTextClassifierPreprocessor,
)


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertTextClassifier(MegatronBertTask, keras_hub.models.TextClassifier):
    """Megatron BERT that classifies a text, or a pair of texts.

    Called on, or trained with, a dict of `token_ids`, `segment_ids` and `padding_mask`
    (batch, sequence), it returns logits (batch, classes): a dense layer on the pooled output. With
    a preprocessor `fit`, `evaluate` and `predict` take raw texts or pairs, and `classify` answers.

    Labels are integers, class names (if the preprocessor has `class_names`), or rows with a
    probability a class; the loss is the cross entropy. With `num_classes=1` they are numbers, and
    the loss is the mean squared error. With `multi_label` they are rows of zeros and ones, and the
    loss is the mean binary cross entropy. These are the losses of Hugging Face's `problem_type`,
    which `from_preset` takes from a folder's config.json.

    Args:
        backbone: `MegatronBertBackbone`.
        num_classes: int. Outputs of the head; 1 for regression.
        preprocessor: `MegatronBertTextClassifierPreprocessor`, or None for inputs that are ids
            already.
        activation: str. Of the output: None for logits, `"softmax"` for probabilities (`"sigmoid"`
            with `multi_label`); any of Keras's for regression.
        dropout: float. Rate of the dropout on the pooled output; the backbone's if None.
        multi_label: bool. Whether a text may have several classes, or none.

    Raises:
        ValueError: the preprocessor has another number of class names, its tokenizer has more
            pieces than the backbone has rows, or an argument is out of range.

    Example:
    ```python
    from keras_megatron import MegatronBertTextClassifier, MegatronBertTextClassifierPreprocessor

    preprocessor = MegatronBertTextClassifierPreprocessor.from_preset(
        "megatron_bert_tiny_uncased", sequence_length=16, class_names=["bad", "good"]
    )
    classifier = MegatronBertTextClassifier.from_preset(
        "megatron_bert_tiny_uncased", num_classes=2, preprocessor=preprocessor
    )
    classifier.fit(["A fine film.", "What a bore."], ["good", "bad"], batch_size=2)
    answer = classifier.classify("A fine bore.")
    assert answer["label"] in ("bad", "good")
    assert set(answer["scores"]) == {"bad", "good"}
    ```
    """

    backbone_cls = MegatronBertBackbone
    preprocessor_cls = MegatronBertTextClassifierPreprocessor

    def __init__(
        self,
        backbone: MegatronBertBackbone,
        num_classes: int,
        preprocessor: MegatronBertTextClassifierPreprocessor | None = None,
        activation: str | None = None,
        dropout: float | None = None,
        multi_label: bool = False,
        **kwargs,
    ):
        refuse_unknown(kwargs, {"name", "trainable", "compile"})
        check_tokenizer_fits(preprocessor, backbone)
        check_class_count(preprocessor, num_classes)
        _check_activation(activation, num_classes, multi_label)
        dropout = backbone.dropout if dropout is None else dropout

        # === Layers ===
        classifier_dropout = keras.layers.Dropout(
            dropout, dtype=backbone.dtype_policy, name="classifier_dropout"
        )
        classifier = dense_head(backbone, num_classes, "classifier", activation)

        # === Functional Model ===
        inputs = backbone.input
        outputs = classifier(classifier_dropout(backbone(inputs)["pooled_output"]))
        self.backbone = backbone
        self.preprocessor = preprocessor
        # What `default_loss` asks for: the constructor of the base compiles.
        self.num_classes = num_classes
        self.activation = activation
        self.multi_label = multi_label
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Config ===
        self.classifier = classifier
        self.dropout = dropout

    def outputs_of(self, encoded, inputs, training=None):
        """Return logits (documents, classes)."""
        pooled = self.get_layer("classifier_dropout")(encoded["pooled_output"], training=training)
        return self.classifier(pooled)

    def default_loss(self) -> keras.losses.Loss:
        """Return the loss that the class describes."""
        from_logits = self.activation is None
        if self.num_classes == 1:
            return keras.losses.MeanSquaredError()
        if self.multi_label:
            return keras.losses.BinaryCrossentropy(from_logits=from_logits)
        return ClassCrossEntropy(from_logits=from_logits)

    def default_metrics(self) -> dict:
        """Return the accuracy; of several labels the area under the ROC curve.

        In regression it is the mean absolute error.
        """
        if self.num_classes == 1:
            return {"metrics": [keras.metrics.MeanAbsoluteError()]}
        if self.multi_label:
            from_logits = self.activation is None
            labels = {"multi_label": True, "num_labels": self.num_classes}
            return {"metrics": [keras.metrics.AUC(from_logits=from_logits, **labels)]}
        return {"metrics": [ClassAccuracy()]}

    def check_labels(self, y) -> None:
        """Refuse labels that the head has no output for.

        Raises:
            ValueError: a label is out of range, none of the class names, or of another shape.
        """
        check_class_count(self.preprocessor, self.num_classes)
        self.check_label_arrays(label_array(y, getattr(self.preprocessor, "class_names", None)))

    def has_classes(self) -> bool:
        """Say whether labels are one class a sample."""
        return self.num_classes > 1 and not self.multi_label

    def label_limits(self, inputs: Mapping) -> tuple:
        """Return the least and the greatest label."""
        if self.num_classes == 1:
            return -np.inf, np.inf
        return 0, 1 if self.multi_label else self.num_classes - 1

    def check_label_arrays(self, y: np.ndarray, inputs=None) -> None:
        """Do what `check_labels` does with numbers."""
        if self.num_classes == 1:
            if y.size != len(y) or not np.isfinite(y).all():
                raise ValueError(
                    "labels of a regression (num_classes=1) must be a finite number a sample"
                )
        elif self.multi_label or y.shape[1:] not in ((), (1,)):
            check_rows(y, self.num_classes)
        else:
            check_class_labels(y, self.num_classes)

    def classify(self, texts, batch_size: int = 32) -> list[dict] | dict:
        """Say which class texts belong to.

        Args:
            texts: a text or a list of texts, or for pairs a tuple of two of these.
            batch_size: texts a step.

        Returns:
            A dict for a single text, a list of dicts for a list. `label` is the most probable
            class, its name or, without `class_names`, its number; `score` its probability; `scores`
            a dict of all classes' probabilities. With `multi_label` there is `labels`, a list of
            the classes more probable than not, instead of `label` and `score`. In regression there
            is only `score`, the predicted number.

        Raises:
            ValueError: there is no preprocessor, or something is not text.
        """
        if is_single(texts):
            return self.classify(as_batch(texts), batch_size)[0]
        if isinstance(texts, list) and not texts:
            return []
        outputs = sample_logits(self, texts, batch_size)
        if self.num_classes == 1:
            return [{"score": float(row[0])} for row in outputs]
        if self.activation is None:
            outputs = sigmoid(outputs) if self.multi_label else softmax(outputs)
        names = self.preprocessor.class_names or range(self.num_classes)
        return [self._answer(names, row.tolist()) for row in outputs]

    def _answer(self, names, probabilities: list[float]) -> dict:
        scores = dict(zip(names, probabilities, strict=True))
        if self.multi_label:
            return {"labels": [name for name in names if scores[name] > 0.5], "scores": scores}
        label = max(scores, key=scores.get)
        return {"label": label, "score": scores[label], "scores": scores}

    def get_config(self) -> dict:
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "activation": self.activation,
            "dropout": self.dropout,
            "multi_label": self.multi_label,
        }


def _check_activation(activation: str | None, num_classes: int, multi_label: bool) -> None:
    """Refuse an output that the loss has no meaning for.

    Raises:
        ValueError: as said.
    """
    if num_classes == 1:
        if multi_label:
            raise ValueError("multi_label needs at least two classes: num_classes=1 is regression")
        return
    probabilities = "sigmoid" if multi_label else "softmax"
    if activation not in (None, probabilities):
        raise ValueError(
            f"activation must be None (logits) or {probabilities!r}, not {activation!r}"
        )
