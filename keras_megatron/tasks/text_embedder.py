import keras
import keras_hub
import numpy as np

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.layers.common import refuse_unknown
from keras_megatron.layers.pooling import TextPooling
from keras_megatron.tasks.answers import sample_logits
from keras_megatron.tasks.task import MegatronBertTask, check_tokenizer_fits
from keras_megatron.tasks.text_embedder_preprocessor import MegatronBertTextEmbedderPreprocessor


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertTextEmbedder(MegatronBertTask, keras_hub.models.TextEmbedder):
    """Megatron BERT that makes a vector of a text.

    Called on a dict of `token_ids`, `segment_ids` and `padding_mask` (batch, sequence), it returns
    embeddings (batch, hidden). It has no weights beside the backbone's. With a preprocessor
    `predict` takes raw texts, and so does `encode_text`. To train it, give `compile` a loss: there
    is none that fits every purpose.

    Args:
        backbone: `MegatronBertBackbone`.
        preprocessor: `MegatronBertTextEmbedderPreprocessor`, or None for inputs that are ids
            already.
        pooling: str. `"mean"` or `"max"` of the tokens' hidden states, padding left out, or
            `"cls"`, that of the first token.
        normalize: bool. Make vectors of length 1, whose dot product is their cosine.

    Raises:
        ValueError: there is no such pooling, or the tokenizer has more pieces than the backbone has
            rows.

    Example:
    ```python
    from keras_megatron import MegatronBertTextEmbedder

    embedder = MegatronBertTextEmbedder.from_preset("megatron_bert_tiny_uncased")
    vectors = embedder.encode_text(["Call me Ishmael.", "Some years ago"])
    cosines = vectors @ vectors.T
    assert cosines.shape == (2, 2)
    ```
    """

    backbone_cls = MegatronBertBackbone
    preprocessor_cls = MegatronBertTextEmbedderPreprocessor
    labels = "optional"

    def __init__(
        self,
        backbone: MegatronBertBackbone,
        preprocessor: MegatronBertTextEmbedderPreprocessor | None = None,
        pooling: str = "mean",
        normalize: bool = True,
        **kwargs,
    ):
        refuse_unknown(kwargs, {"name", "trainable", "compile"})
        check_tokenizer_fits(preprocessor, backbone)

        # === Layers ===
        text_pooling = TextPooling(
            pooling, normalize, dtype=backbone.dtype_policy, name="text_pooling"
        )

        # === Functional Model ===
        inputs = backbone.input
        outputs = text_pooling(backbone(inputs)["sequence_output"], inputs["padding_mask"])
        self.backbone = backbone
        self.preprocessor = preprocessor
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Config ===
        self.text_pooling = text_pooling
        self.pooling = pooling
        self.normalize = normalize

    def outputs_of(self, encoded, inputs, training=None):
        """Return embeddings (documents, hidden)."""
        documents = inputs["document_ids"], inputs["cls_positions"]
        return self.text_pooling(encoded["sequence_output"], None, *documents)

    def encode_text(self, text: str | list[str], batch_size: int = 32) -> np.ndarray:
        """Make vectors of texts.

        Args:
            text: a text or a list of texts.
            batch_size: texts a step.

        Returns:
            float32 (texts, hidden); (hidden,) for a single text.

        Raises:
            ValueError: there is no preprocessor, or something is not text.
        """
        if isinstance(text, str):
            return self.encode_text([text], batch_size)[0]
        if isinstance(text, list) and not text:
            return np.zeros((0, self.backbone.hidden_dim), "float32")
        return sample_logits(self, text, batch_size)

    def get_config(self) -> dict:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "pooling": self.pooling, "normalize": self.normalize}
