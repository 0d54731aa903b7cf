import keras
import keras_hub
import numpy as np

from keras_megatron.tasks.labels import label_array
from keras_megatron.tasks.masking_preprocessor import MaskingPreprocessor
from keras_megatron.tasks.text_preprocessor import check_texts
from keras_megatron.tokenizer import MegatronBertTokenizer


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertPretrainerPreprocessor(MaskingPreprocessor, keras_hub.models.Preprocessor):
    """Turns pairs of texts into samples of BERT's pretraining: hidden tokens and sentence order.

    It tokenizes, adds [CLS] and [SEP], truncates the longer text first, pads to `sequence_length`
    and hides tokens as `MegatronBertMaskedLMPreprocessor` does.

    Args:
        tokenizer: `MegatronBertTokenizer`.
        sequence_length: int. Tokens a sample.
        mask_selection_rate: float. Share of the tokens that is predicted; 0 hides none, to train on
            the order only.
        mask_selection_length: int. Predictions a sample has room for; `mask_selection_rate` of
            `sequence_length` if None.
        mask_token_rate: float. Share of the predicted tokens that become [MASK].
        random_token_rate: float. Share of them that become a random token. The rest stay.
        whole_word_masking: bool. Hide all pieces of a word or none.
        max_ngram: int. Longest run of tokens (or words) hidden together; Megatron uses 3.
        seed: int. Makes the masks repeat from run to run. In `fit`, `evaluate` and `predict` on
            texts they are a function of the seed, the epoch and the sample's place.

    Call arguments:
        x: a tuple `(first, second)` of two texts, or of two lists of texts.
        y: the order's label a pair, or None to train on hidden tokens only: 0 where `second`
            follows `first`, 1 where it does not (in Megatron: the two are swapped).
        sample_weight: a weight a pair, or None.

    Returns:
        `(x, y, sample_weight)`, dicts: x as `MegatronBertMaskedLMPreprocessor` gives it; y of `mlm`
        int32 (batch, masks), the tokens that were hidden, and `nsp` int32 (batch,), if there are
        labels; sample_weight float32, of the same shapes.

    Raises:
        ValueError: a rate or length is out of range, or x is not pairs of texts.

    Example:
    ```python
    from keras_megatron import MegatronBertPretrainerPreprocessor

    preprocessor = MegatronBertPretrainerPreprocessor.from_preset(
        "megatron_bert_tiny_uncased", sequence_length=16, seed=0
    )
    x, y, sample_weight = preprocessor((["Call me Ishmael."], ["Some years ago"]), y=[0])
    assert x["token_ids"].shape == (1, 16)
    assert y["nsp"].tolist() == [0]
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
        super().__init__(**kwargs)
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.mask_selection_rate = mask_selection_rate
        self.mask_selection_length = mask_selection_length
        self.mask_token_rate = mask_token_rate
        self.random_token_rate = random_token_rate
        self.init_masking(whole_word_masking, max_ngram, seed)

    def preprocess(self, columns: tuple, y=None, sample_weight=None, rng=None) -> tuple:
        """Return `(x, y, sample_weight)`, masked with `rng` if it is given; see the class."""
        _check_pairs(columns)
        x, mask_ids, mask_weights = self.masked(columns, rng)
        labels, weights = {"mlm": mask_ids}, {"mlm": mask_weights}
        if y is not None:
            labels["nsp"] = label_array(y).astype("int32")
            weights["nsp"] = np.ones(labels["nsp"].shape, "float32")
        if sample_weight is not None:
            given = np.asarray(sample_weight, "float32")
            weights = {
                name: weight * given.reshape(given.shape + (1,) * (weight.ndim - given.ndim))
                for name, weight in weights.items()
            }
        return x, labels, weights

    def check_samples(self, columns: tuple, y=None) -> None:
        """Refuse what is not pairs of texts.

        Raises:
            ValueError: as the class says.
        """
        _check_pairs(columns)
        for name, column in zip(("text", "second text"), columns, strict=True):
            check_texts(column, name)


def _check_pairs(columns: tuple) -> None:
    if len(columns) != 2:
        raise ValueError(
            f"pretraining takes pairs, a tuple of two lists of texts, but there are {len(columns)} "
            "columns (for single texts use MegatronBertMaskedLM)"
        )
