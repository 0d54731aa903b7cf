import keras
import keras_hub

from keras_megatron.tasks.text_preprocessor import MegatronBertTextPreprocessor
from keras_megatron.tokenization.packing import check_sequence_length
from keras_megatron.tokenizer import MegatronBertTokenizer


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertNextSentencePredictorPreprocessor(
    MegatronBertTextPreprocessor, keras_hub.models.Preprocessor
):
    """Turns pairs of texts into what a next-sentence predictor takes.

    It tokenizes, adds [CLS] and [SEP], truncates the longer text of a pair first and pads to
    `sequence_length`. It works in `tf.data` too.

    Args:
        tokenizer: `MegatronBertTokenizer`.
        sequence_length: int. Tokens a pair.

    Call arguments:
        x: a tuple of two str, lists of str, string arrays or tensors.
        y: labels: 0 if the second text follows the first, 1 if not; or None.
        sample_weight: weights, or None.

    Returns:
        `x`, `(x, y)` or `(x, y, sample_weight)`: x a dict of int32 arrays `token_ids`,
        `segment_ids`, `padding_mask` (batch, sequence); y int32 (batch,).

    Raises:
        ValueError: `sequence_length` has no room for a pair, or x is no pairs of texts.

    Example:
    ```python
    from keras_megatron import MegatronBertNextSentencePredictorPreprocessor

    preprocessor = MegatronBertNextSentencePredictorPreprocessor.from_preset(
        "megatron_bert_tiny_uncased", sequence_length=16
    )
    x, y = preprocessor((["Call me Ishmael."], ["Some years ago"]), [0])
    assert x["segment_ids"].max() == 1
    ```
    """

    sizes = (2,)

    def __init__(self, tokenizer: MegatronBertTokenizer, sequence_length: int = 512, **kwargs):
        check_sequence_length(sequence_length, pair=True)
        super().__init__(**kwargs)
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length

    def get_config(self) -> dict:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "sequence_length": self.sequence_length}
