import keras
import keras_hub

from keras_megatron.tasks.masking_preprocessor import MaskingPreprocessor
from keras_megatron.tokenizer import MegatronBertTokenizer


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertMaskedLMPreprocessor(MaskingPreprocessor, keras_hub.models.MaskedLMPreprocessor):
    """Turns raw text into masked-language-model samples, masked anew each time.

    Called with one text, a list of texts, or a tuple of two of either (a pair of segments), it
    tokenizes, adds [CLS] and [SEP], truncates the longer segment first, pads to `sequence_length`
    and hides tokens as `keras_megatron.masking` describes.

    Args:
        tokenizer: `MegatronBertTokenizer`.
        sequence_length: int. Tokens a sample.
        mask_selection_rate: float. Share of the tokens that is predicted.
        mask_selection_length: int. Predictions a sample has room for; `mask_selection_rate` of
            `sequence_length` if None.
        mask_token_rate: float. Share of the predicted tokens that become [MASK].
        random_token_rate: float. Share of them that become a random token. The rest stay.
        whole_word_masking: bool. Hide all pieces of a word or none.
        max_ngram: int. Longest run of tokens (or words) hidden together; Megatron uses 3.
        seed: int. Makes the masks repeat from run to run. In `fit`, `evaluate` and `predict` on
            texts they are a function of the seed, the epoch and the sample's place, so that threads
            may prepare batches in any order; a direct call draws the next masks.

    Call arguments:
        x: str, list of str, string array or tensor, or a tuple of two of these.

    Returns:
        `(x, y, sample_weight)`: x a dict of int32 arrays `token_ids`, `segment_ids`, `padding_mask`
        (batch, sequence) and `mask_positions` (batch, masks); y int32 (batch, masks), the tokens
        that were hidden; sample_weight float32 (batch, masks), 0 where a sample has fewer masks.

    Raises:
        ValueError: a rate or length is out of range, or an input is not text.

    Example:
    ```python
    from keras_megatron import MegatronBertMaskedLMPreprocessor

    preprocessor = MegatronBertMaskedLMPreprocessor.from_preset(
        "megatron_bert_tiny_uncased", sequence_length=16, seed=0
    )
    x, y, sample_weight = preprocessor(["Call me Ishmael.", "Some years ago"])
    assert x["token_ids"].shape == (2, 16)
    ```
    """

    def __init__(
        self,
        tokenizer: MegatronBertTokenizer,
        sequence_length: int = 512,
        mask_selection_rate: float = 0.15,
        mask_selection_length: int | None = None,
        mask_token_rate: float = 0.8,
        random_token_rate: float = 0.1,
        whole_word_masking: bool = False,
        max_ngram: int = 1,
        seed: int | None = None,
        **kwargs,
    ):
        if "truncate" in kwargs:
            raise ValueError("truncate cannot be chosen: the longer text is always cut first")
        super().__init__(
            tokenizer,
            sequence_length=sequence_length,
            mask_selection_rate=mask_selection_rate,
            mask_selection_length=mask_selection_length,
            mask_token_rate=mask_token_rate,
            random_token_rate=random_token_rate,
            **kwargs,
        )
        self.init_masking(whole_word_masking, max_ngram, seed)

    def preprocess(self, columns: tuple, y=None, sample_weight=None, rng=None) -> tuple:
        """Return `(x, y, sample_weight)` for a text or texts, masked with `rng` if it is given.

        Raises:
            ValueError: there are labels, which are made here.
        """
        if y is not None or sample_weight is not None:
            raise ValueError("the labels are made from the texts: give no y and no sample_weight")
        return self.masked(columns, rng)

    def preprocess_in_graph(self, columns: tuple, y=None, sample_weight=None) -> tuple:
        """Do what `preprocess` does in the graph of tf.data."""
        return self.masked_in_graph(columns)
