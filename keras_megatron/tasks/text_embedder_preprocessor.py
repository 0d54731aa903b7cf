import keras
import keras_hub

from keras_megatron.tasks.text_preprocessor import MegatronBertTextPreprocessor
from keras_megatron.tokenization.packing import check_sequence_length
from keras_megatron.tokenizer import MegatronBertTokenizer


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertTextEmbedderPreprocessor(
    MegatronBertTextPreprocessor, keras_hub.models.TextEmbedderPreprocessor
):
    """Turns texts into what a text embedder takes.

    It tokenizes, adds [CLS] and [SEP], truncates and pads to `sequence_length`. It works in
    `tf.data` too. Labels are numbers, or rows of numbers, for the loss that you choose.

    Args:
        tokenizer: `MegatronBertTokenizer`.
        sequence_length: int. Tokens a text.

    Call arguments:
        x: str, list of str, string array or tensor.
        y: numbers, or rows of numbers of the same length; or None.
        sample_weight: weights, or None.

    Returns:
        `x`, `(x, y)` or `(x, y, sample_weight)`: x a dict of int32 arrays `token_ids`,
        `segment_ids`, `padding_mask` (batch, sequence).

    Raises:
        ValueError: `sequence_length` is too small, or x is no texts.

    Example:
    ```python
    from keras_megatron import MegatronBertTextEmbedderPreprocessor

    preprocessor = MegatronBertTextEmbedderPreprocessor.from_preset(
        "megatron_bert_tiny_uncased", sequence_length=16
    )
    assert preprocessor(["Call me Ishmael."])["token_ids"].shape == (1, 16)
    ```
    """

    sizes = (1,)

    def __init__(self, tokenizer: MegatronBertTokenizer, sequence_length: int = 512, **kwargs):
        check_sequence_length(sequence_length, pair=False)
        if "truncate" in kwargs:
            raise ValueError("truncate cannot be chosen: a text is cut at its end")
        super().__init__(tokenizer, sequence_length=sequence_length, **kwargs)

    def get_config(self) -> dict:
        """Return the arguments of the constructor."""
        config = super().get_config()
        del config["truncate"]
        return config
