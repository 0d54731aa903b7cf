import typing
from collections.abc import Mapping

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.layers.common import refuse_unknown
from keras_megatron.tasks.class_weights import class_weights
from keras_megatron.tasks.heads import dense_head, masked_lm_head, token_cross_entropy
from keras_megatron.tasks.labels import check_class_labels, check_range, check_shape
from keras_megatron.tasks.pretrainer_preprocessor import MegatronBertPretrainerPreprocessor
from keras_megatron.tasks.task import MegatronBertTask, check_tokenizer_fits


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertPretrainer(MegatronBertTask, keras_hub.models.Task):
    """Megatron BERT with both heads of its pretraining: hidden tokens and sentence order.

    Called on, or trained with, a dict of `token_ids`, `segment_ids`, `padding_mask`
    (batch, sequence) and `mask_positions` (batch, masks), it returns a dict of logits: `mlm`
    (batch, masks, vocabulary) and `nsp` (batch, 2), of which class 1 says that the second text does
    not follow the first. Labels are a dict of `mlm` (batch, masks) and `nsp` (batch,), or of one of
    them, which is then what is trained.

    With a preprocessor `fit`, `evaluate` and `predict` take `(first, second)`, two lists of texts,
    in which tokens are masked at random; y is the order's labels, or None.

    Args:
        backbone: `MegatronBertBackbone`.
        preprocessor: `MegatronBertPretrainerPreprocessor`, or None for inputs that are ids already.
        head_activation: str. Activation of the masked-LM head's dense layer, see
            `MegatronBertMaskedLM`.

    Raises:
        ValueError: the tokenizer has more pieces than the backbone has rows.

    Example:
    ```python
    from keras_megatron import MegatronBertPretrainer

    pretrainer = MegatronBertPretrainer.from_preset("megatron_bert_tiny_uncased")
    pretrainer.preprocessor.sequence_length = 16
    first = ["Call me Ishmael.", "I thought I would sail about a little."]
    second = ["Some years ago, never mind how long.", "Having little or no money."]
    pretrainer.fit((first, second), [0, 1], batch_size=2)
    ```
    """

    backbone_cls = MegatronBertBackbone
    preprocessor_cls = MegatronBertPretrainerPreprocessor
    labels = "optional"
    outputs_for: typing.ClassVar = {"mlm": "masks", "nsp": "documents"}

    def __init__(
        self,
        backbone: MegatronBertBackbone,
        preprocessor: MegatronBertPretrainerPreprocessor | None = None,
        head_activation: str = "gelu",
        **kwargs,
    ):
        refuse_unknown(kwargs, {"name", "trainable", "compile"})
        check_tokenizer_fits(preprocessor, backbone)

        # === Layers ===
        mlm_head = masked_lm_head(backbone, head_activation)
        binary_head = dense_head(backbone, 2, "binary_head")

        # === Functional Model ===
        inputs = {
            **backbone.input,
            "mask_positions": keras.Input(shape=(None,), dtype="int32", name="mask_positions"),
        }
        encoded = backbone(backbone.input)
        outputs = {
            "mlm": mlm_head(encoded["sequence_output"], inputs["mask_positions"]),
            "nsp": binary_head(encoded["pooled_output"]),
        }
        self.backbone = backbone
        self.preprocessor = preprocessor
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Config ===
        self.mlm_head = mlm_head
        self.binary_head = binary_head
        self.head_activation = head_activation

    def outputs_of(self, encoded, inputs, training=None):
        """Return logits `mlm` (masks, vocabulary) and `nsp` (documents, 2)."""
        return {
            "mlm": self.mlm_head(encoded["sequence_output"], inputs["mask_positions"]),
            "nsp": self.binary_head(encoded["pooled_output"]),
        }

    def default_loss(self) -> dict[str, keras.losses.Loss]:
        """Return two mean cross entropies, whose sum is the loss.

        Each is `sum(loss * weight) / sum(weight)` over the batch, as in Megatron and Hugging Face.
        """
        return {name: token_cross_entropy() for name in ("mlm", "nsp")}

    def default_metrics(self) -> dict:
        """Return the accuracy of both."""
        accuracy = keras.metrics.SparseCategoricalAccuracy
        return {"weighted_metrics": {name: [accuracy(name="accuracy")] for name in ("mlm", "nsp")}}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Return the sum of the losses; one whose labels are missing is 0."""
        y, sample_weight = _both(y, y_pred, sample_weight)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Update the metrics; those whose labels are missing stay 0."""
        y, sample_weight = _both(y, y_pred, sample_weight)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    # KerasHub's own take no labels that are dicts.

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, **kwargs):
        """Train on one batch; see `keras.Model.train_on_batch`."""
        self.check_can_train()
        if class_weight is not None:
            class_weights(self, class_weight)  # says that there are none
        batch = self._batch(x, y, sample_weight)
        return keras.Model.train_on_batch(self, *batch, **kwargs)

    def test_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        """Measure loss and metrics of one batch; see `keras.Model.test_on_batch`."""
        batch = self._batch(x, y, sample_weight)
        return keras.Model.test_on_batch(self, *batch, **kwargs)

    def _batch(self, x, y, sample_weight) -> tuple:
        _, x, y, sample_weight = self.checked(x, y, sample_weight)
        batch = self.preprocess_samples(x, y, sample_weight)
        return keras.tree.map_structure(
            lambda array: None if array is None else ops.convert_to_tensor(array),
            keras.utils.unpack_x_y_sample_weight(batch),
        )

    def check_labels(self, y) -> None:
        """Refuse labels of the order that are neither 0 (follows) nor 1 (does not).

        Raises:
            ValueError: as said.
        """
        if isinstance(y, Mapping):
            raise ValueError(
                "labels (y) of texts are the order's, in a list, or None: not a dict. The masked "
                "tokens' labels are made from the texts"
            )
        check_class_labels(y, 2)

    def label_limits(self, inputs: Mapping) -> dict:
        """Return the least and the greatest token, and the two labels of the order."""
        return {"mlm": (0, self.backbone.vocabulary_size - 1), "nsp": (0, 1)}

    def check_label_arrays(self, y: np.ndarray | Mapping, inputs: Mapping) -> None:
        """Refuse labels that are no tokens, or neither 0 nor 1 for the order.

        Raises:
            ValueError: as said.
        """
        _check_names(y)
        if isinstance(y.get("mlm"), np.ndarray):
            check_shape(y["mlm"], np.shape(inputs["mask_positions"]))
            check_range(y["mlm"], self.backbone.vocabulary_size)
        if isinstance(y.get("nsp"), np.ndarray):
            check_class_labels(y["nsp"], 2)

    def get_config(self):
        """Return the arguments of the constructor."""
        return {**super().get_config(), "head_activation": self.head_activation}


def _both(y, y_pred: dict, sample_weight) -> tuple[dict, dict]:
    """Give labels that are missing the weight 0: Keras wants labels for every loss.

    Returns:
        Labels and weights of `mlm` (batch, masks) and of `nsp` (batch,).

    Raises:
        ValueError: `y` is not a dict of at least one of the two.
    """
    _check_names(y)
    labels, weights = {}, {}
    for name, logits in y_pred.items():
        shape = ops.shape(logits)[:-1]
        given = sample_weight.get(name) if isinstance(sample_weight, dict) else sample_weight
        labels[name] = y[name] if name in y else ops.zeros(shape, "int32")
        weights[name] = _weights(given, shape) if name in y else ops.zeros(shape)
    return labels, weights


def _check_names(y) -> None:
    """Refuse labels that are no dict of `mlm` and `nsp`, or of one of them.

    Raises:
        ValueError: as said.
    """
    if not isinstance(y, Mapping) or not y or not set(y) <= {"mlm", "nsp"}:
        found = sorted(y) if isinstance(y, Mapping) else type(y).__name__
        raise ValueError(f"labels (y) must be a dict of 'mlm', 'nsp' or both, not {found}")
    for name, labels in y.items():
        if labels is None:
            raise ValueError(f"labels (y) have None for {name!r}: leave {name!r} out of the dict")


def _weights(given, shape: tuple):
    """Return weights of a shape, of which those that are given may lack the last axis."""
    weights = ops.ones(shape)
    if given is None:
        return weights
    return weights * (given if len(given.shape) == len(shape) else ops.expand_dims(given, -1))
