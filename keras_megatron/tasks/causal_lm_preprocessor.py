import keras
import keras_hub
import numpy as np

from keras_megatron.tasks.preprocessor import MegatronBertPreprocessor
from keras_megatron.tokenizer import MegatronBertTokenizer


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertCausalLMPreprocessor(
    MegatronBertPreprocessor, keras_hub.models.CausalLMPreprocessor
):
    """Turns raw text into samples whose label, at each position, is the next token.

    A text becomes `[CLS] text [SEP]`, cut to `sequence_length + 1` tokens: the first
    `sequence_length` are the input, the last as many the labels.

    Args:
        tokenizer: `MegatronBertTokenizer`.
        sequence_length: int. Tokens a sample; also of what `generate` makes, prompt included.
        add_start_token: bool. Whether texts begin with [CLS].
        add_end_token: bool. Whether texts end with [SEP], in training.

    Call arguments:
        x: str, or list of str.

    Returns:
        `(x, y, sample_weight)`: x a dict of int32 arrays `token_ids`, `segment_ids` and
        `padding_mask` (batch, sequence); y int32 (batch, sequence), the tokens that follow;
        sample_weight float32 (batch, sequence), 0 where no token follows.

    Raises:
        ValueError: an input is not text, or a prompt leaves no room for a token.

    Example:
    ```python
    from keras_megatron import MegatronBertCausalLMPreprocessor

    preprocessor = MegatronBertCausalLMPreprocessor.from_preset(
        "megatron_bert_tiny_uncased", sequence_length=8
    )
    x, y, sample_weight = preprocessor(["Call me Ishmael."])
    assert (x["token_ids"][0, 1:4] == y[0, :3]).all()
    ```
    """

    def __init__(
        self,
        tokenizer: MegatronBertTokenizer,
        sequence_length: int = 512,
        add_start_token: bool = True,
        add_end_token: bool = True,
        **kwargs,
    ):
        super().__init__(
            tokenizer,
            sequence_length=sequence_length,
            add_start_token=add_start_token,
            add_end_token=add_end_token,
            **kwargs,
        )

    def preprocess(self, columns: tuple, y=None, sample_weight=None, rng=None) -> tuple:
        """Return `(x, y, sample_weight)` for a text or texts.

        Raises:
            ValueError: there are labels, which are made here, or two columns.
        """
        if y is not None or sample_weight is not None or len(columns) != 1:
            raise ValueError("give texts only: the labels are made from them")
        single = isinstance(columns[0], str)
        texts = [columns[0]] if single else columns[0]
        end = [self.tokenizer.end_token_id] * self.add_end_token
        rows = [[*self._start(), *ids, *end] for ids in self.tokenizer.tokenize(texts)]
        token_ids, is_token = self._pad(rows, self.sequence_length + 1)
        x = {
            "token_ids": token_ids[:, :-1],
            "segment_ids": np.zeros_like(token_ids[:, :-1]),
            # A token that has no next one is no input either, but for what stands at the cut.
            "padding_mask": is_token[:, :-1],
        }
        sample = x, token_ids[:, 1:], is_token[:, 1:].astype("float32")
        return keras.tree.map_structure(lambda a: a[0], sample) if single else sample

    def generate_preprocess(self, x, sequence_length: int | None = None) -> dict:
        """Return prompts as `[CLS] text`, padded to the length that is to be generated.

        Args:
            x: a text, a list of texts, or a dict of ids, which is returned as it is.
            sequence_length: tokens to make, prompt included; the preprocessor's if None.

        Raises:
            ValueError: a prompt is empty, or leaves no room for a token.
        """
        if isinstance(x, dict):
            return x
        single = isinstance(x, str)
        if not single and not isinstance(x, list | tuple | np.ndarray):
            raise ValueError(f"give a text or a list of texts, not {type(x).__name__}")
        length = sequence_length or self.sequence_length
        rows = [[*self._start(), *ids] for ids in self.tokenizer.tokenize([x] if single else x)]
        if not all(rows):
            raise ValueError(
                "a prompt is empty, and nothing can follow nothing: give text, or set "
                "add_start_token=True"
            )
        longest = max(map(len, rows))
        if longest >= length:
            raise ValueError(
                f"a prompt of {longest} tokens leaves no room in {length}: shorten it, or raise "
                "max_length"
            )
        token_ids, padding_mask = self._pad(rows, length)
        inputs = {
            "token_ids": token_ids,
            "segment_ids": np.zeros_like(token_ids),
            "padding_mask": padding_mask,
        }
        return {name: array[0] for name, array in inputs.items()} if single else inputs

    def generate_postprocess(self, x: dict) -> str | list[str]:
        """Return the text of what was generated, without special tokens."""
        return self._generate_postprocess_python(x)

    def _start(self) -> list[int]:
        return [self.tokenizer.start_token_id] * self.add_start_token

    def _pad(self, rows: list[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and whether each is of the row, int32 (rows, length); cut what is longer."""
        token_ids = np.full((len(rows), length), self.tokenizer.pad_token_id, "int32")
        is_token = np.zeros((len(rows), length), "int32")
        for index, row in enumerate(rows):
            count = min(len(row), length)
            token_ids[index, :count] = row[:count]
            is_token[index, :count] = 1
        return token_ids, is_token
