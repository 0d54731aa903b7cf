from collections.abc import Mapping

import keras
import keras_hub
import numpy as np

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.layers.common import refuse_unknown
from keras_megatron.tasks.fill_mask import fill_mask
from keras_megatron.tasks.heads import masked_lm_head, token_cross_entropy
from keras_megatron.tasks.labels import check_range, check_shape
from keras_megatron.tasks.masked_lm_preprocessor import MegatronBertMaskedLMPreprocessor
from keras_megatron.tasks.task import MegatronBertTask, check_tokenizer_fits


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertMaskedLM(MegatronBertTask, keras_hub.models.MaskedLM):
    """Megatron BERT that predicts masked tokens.

    Called on, or trained with, a dict of `token_ids`, `segment_ids`, `padding_mask`
    (batch, sequence) and `mask_positions` (batch, masks), it returns logits
    (batch, masks, vocabulary). With a preprocessor `fit`, `evaluate` and `predict` take raw text,
    in which tokens are masked at random; `fill_mask` fills the [MASK]s that you wrote.

    Args:
        backbone: `MegatronBertBackbone`.
        preprocessor: `MegatronBertMaskedLMPreprocessor`, or None for inputs that are ids already.
        head_activation: str. Activation of the head's dense layer; Megatron uses the exact GELU
            here even where the feed-forward blocks use the tanh approximation.

    Raises:
        ValueError: the tokenizer has more pieces than the backbone has rows.

    Example:
    ```python
    from keras_megatron import MegatronBertMaskedLM

    masked_lm = MegatronBertMaskedLM.from_preset("megatron_bert_tiny_uncased")
    masked_lm.fill_mask("The capital of France is [MASK].", top_k=3)
    masked_lm.fit(["Call me Ishmael.", "Some years ago, never mind how long."], batch_size=2)
    ```
    """

    backbone_cls = MegatronBertBackbone
    preprocessor_cls = MegatronBertMaskedLMPreprocessor
    labels = "made"
    outputs_for = "masks"

    def __init__(
        self,
        backbone: MegatronBertBackbone,
        preprocessor: MegatronBertMaskedLMPreprocessor | None = None,
        head_activation: str = "gelu",
        **kwargs,
    ):
        refuse_unknown(kwargs, {"name", "trainable", "compile"})
        check_tokenizer_fits(preprocessor, backbone)

        # === Layers ===
        mlm_head = masked_lm_head(backbone, head_activation)

        # === Functional Model ===
        inputs = {
            **backbone.input,
            "mask_positions": keras.Input(shape=(None,), dtype="int32", name="mask_positions"),
        }
        sequence_output = backbone(backbone.input)["sequence_output"]
        outputs = mlm_head(sequence_output, inputs["mask_positions"])
        self.backbone = backbone
        self.preprocessor = preprocessor
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Config ===
        self.mlm_head = mlm_head
        self.head_activation = head_activation

    def outputs_of(self, encoded, inputs, training=None):
        """Return logits (masks, vocabulary)."""
        return self.mlm_head(encoded["sequence_output"], inputs["mask_positions"])

    def default_loss(self) -> keras.losses.Loss:
        """Return the mean cross entropy of the masked positions.

        It is `sum(loss * weight) / sum(weight)`, as in Megatron, so that samples with fewer masks
        do not count as correct ones.
        """
        return token_cross_entropy()

    def default_metrics(self) -> dict:
        """Return the accuracy of the masked positions."""
        return {"weighted_metrics": [keras.metrics.SparseCategoricalAccuracy()]}

    def label_limits(self, inputs: Mapping) -> tuple:
        """Return the least and the greatest token."""
        return 0, self.backbone.vocabulary_size - 1

    def check_label_arrays(self, y: np.ndarray, inputs: Mapping) -> None:
        """Refuse labels that are not a token of the vocabulary for each masked position.

        Raises:
            ValueError: as said.
        """
        check_shape(y, np.shape(inputs["mask_positions"]))
        check_range(y, self.backbone.vocabulary_size)

    def fill_mask(self, texts: str | list[str], top_k: int = 5, batch_size: int = 32) -> list:
        """Predict the tokens that belong where the texts say `[MASK]`.

        Args:
            texts: a text or a list of texts, each with one or more `[MASK]`.
            top_k: how many tokens to give for each mask.
            batch_size: texts a step.

        Returns:
            For a list: a list over its texts of what a single text gives. For a single text: a list
            over its masks, left to right, of a list of `top_k` dicts, most probable first, with
            Hugging Face's keys: `score` (probability), `token` (id), `token_str` and `sequence`
            (the text with this token in this mask's place, other masks left as they are).

        Raises:
            ValueError: there is no preprocessor, an input is not text, a text has no `[MASK]` or
                has one beyond the model's last position, or `top_k` is out of range.
        """
        if isinstance(texts, str):
            return fill_mask(self, [texts], top_k, batch_size)[0]
        return fill_mask(self, texts, top_k, batch_size)

    def get_config(self):
        """Return the arguments of the constructor."""
        return {**super().get_config(), "head_activation": self.head_activation}
