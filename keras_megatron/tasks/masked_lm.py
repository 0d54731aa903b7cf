import keras
import keras_hub
import numpy as np

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.layers.common import refuse_unknown
from keras_megatron.layers.masked_lm_head import MaskedLMHead
from keras_megatron.tasks.fill_mask import fill_mask
from keras_megatron.tasks.masked_lm_preprocessor import MegatronBertMaskedLMPreprocessor
from keras_megatron.tasks.masked_texts import is_texts, split_texts
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
        mlm_head = MaskedLMHead(
            token_embedding=backbone.token_embedding,
            activation=head_activation,
            layer_norm_epsilon=backbone.layer_norm_epsilon,
            initializer_range=backbone.initializer_range,
            dtype=backbone.dtype_policy,
            name="mlm_head",
        )

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

    def compile(self, optimizer="auto", loss="auto", *, weighted_metrics="auto", **kwargs):
        """Configure training; by default with the mean cross entropy of the masked positions.

        The loss is `sum(loss * weight) / sum(weight)`, as in Megatron, so that samples with fewer
        masks do not count as correct ones. See `keras.Model.compile` for the arguments.
        """
        if loss == "auto":
            loss = keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, reduction="mean_with_sample_weight"
            )
        super().compile(optimizer=optimizer, loss=loss, weighted_metrics=weighted_metrics, **kwargs)

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        sample_weight=None,
        validation_data=None,
        validation_split=None,
        **kwargs,
    ):
        """Train; see `keras.Model.fit`. Texts are shuffled and masked anew in each epoch."""
        if validation_split and validation_data is None and self._prepares(x):
            x, validation_data = split_texts(x, validation_split)
            validation_split = None
        if self._prepares(validation_data):
            validation_data = self.preprocessor.dataset(validation_data, batch_size or 32)
        if self._prepares(x, y, sample_weight):
            x = self.preprocessor.dataset(x, batch_size or 32, kwargs.pop("shuffle", True))
            batch_size, kwargs["shuffle"] = None, False  # both are done
        return super().fit(
            x,
            y,
            batch_size=batch_size,
            sample_weight=sample_weight,
            validation_data=validation_data,
            validation_split=validation_split,
            **kwargs,
        )

    def evaluate(self, x=None, y=None, batch_size=None, sample_weight=None, **kwargs):
        """Measure loss and accuracy of masked tokens; see `keras.Model.evaluate`."""
        if self._prepares(x, y, sample_weight):
            x, batch_size = self.preprocessor.dataset(x, batch_size or 32), None
        return super().evaluate(x, y, batch_size=batch_size, sample_weight=sample_weight, **kwargs)

    def predict(self, x=None, batch_size=None, **kwargs):
        """Return logits at tokens masked at random; see `keras.Model.predict` and `fill_mask`.

        The last axis has all rows of the table, padding rows included, as Hugging Face's has.
        """
        if self._prepares(x):
            x, batch_size = self.preprocessor.dataset(x, batch_size or 32), None
        return super().predict(x, batch_size=batch_size, **kwargs)

    def _prepares(self, x, y=None, sample_weight=None) -> bool:
        """Say whether `x` is texts that the preprocessor makes batches of.

        Raises:
            ValueError: it is a single text, has labels, or would be too long for the model.
        """
        if not isinstance(self.preprocessor, MegatronBertMaskedLMPreprocessor):
            return False
        if isinstance(x, str) or (isinstance(x, tuple) and any(isinstance(t, str) for t in x)):
            raise ValueError(
                "give a list of texts (or a tuple of two lists, for pairs), not a text"
            )
        if not is_texts(x):
            return False
        if y is not None or sample_weight is not None:
            raise ValueError("a masked language model makes its labels from the texts: give no y")
        length, limit = self.preprocessor.sequence_length, self.backbone.max_sequence_length
        if length > limit:
            raise ValueError(
                f"the preprocessor makes {length} tokens but the model has {limit} positions: set "
                f"preprocessor.sequence_length = {limit}"
            )
        return True

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

    def predict_logits(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Return logits (batch, masks, vocabulary) of one batch of ids, without preprocessing."""
        return np.asarray(keras.Model.predict_on_batch(self, inputs))

    def get_config(self):
        """Return the arguments of the constructor."""
        return {**super().get_config(), "head_activation": self.head_activation}
