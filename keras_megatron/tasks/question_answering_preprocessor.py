import grain
import keras
import keras_hub
import numpy as np

from keras_megatron.tasks.answer_spans import answer_spans
from keras_megatron.tasks.context_windows import SPECIAL_TOKENS, Windows, make_windows
from keras_megatron.tasks.preprocessor import MegatronBertPreprocessor
from keras_megatron.tasks.samples import as_columns, batches, by_position, check_lengths
from keras_megatron.tokenizer import MegatronBertTokenizer


@keras.saving.register_keras_serializable(package="keras_megatron")
class MegatronBertQuestionAnsweringPreprocessor(
    MegatronBertPreprocessor, keras_hub.models.Preprocessor
):
    """Turns questions, contexts and answers into windows and the positions of the answers in them.

    A row is `[CLS] question [SEP] context [SEP]`. A context that is too long gives several rows,
    which show overlapping windows of it. Rows that do not show the answer, or have none to show,
    are labelled with position 0, [CLS], as for SQuAD 2.0.

    Args:
        tokenizer: `MegatronBertTokenizer`.
        sequence_length: int. Tokens a row.
        doc_stride: int. Context tokens that two neighbouring windows share, as in Hugging Face's
            scripts and tokenizers; by default 128, or half of what is left for the context beside
            the longest question if that is less.
        max_question_length: int. Tokens of a question, the rest of which is cut; by default 64, or
            half of a row if that is less, but nothing is cut where a row has room for the whole
            question and context.
        max_answer_length: int. Tokens of the longest answer to be found.

    Call arguments:
        x: `(questions, contexts)`, two str or two lists of str.
        y: answers, or None: for each example a dict of `text` and `answer_start`, the character of
            the context that it begins at; or SQuAD's dict of a list of each, or list of such dicts,
            of which the first is taken. None, or nothing in it, if there is no answer.
        sample_weight: a weight an example, or None.

    Returns:
        `x`, `(x, y)` or `(x, y, sample_weight)`, with a row a window: x a dict of int32 arrays
        `token_ids`, `segment_ids`, `padding_mask` (windows, sequence); y int32 (windows, 2), the
        positions of the answer's first and last token; sample_weight float32 (windows,).

    Raises:
        ValueError: a length leaves no room for the others, something is not a str, a question is
            empty, or an answer is not in its context.

    Example:
    ```python
    from keras_megatron import MegatronBertQuestionAnsweringPreprocessor

    preprocessor = MegatronBertQuestionAnsweringPreprocessor.from_preset(
        "megatron_bert_tiny_uncased", sequence_length=24
    )
    context = "Call me Ishmael. Some years ago I thought I would sail about a little."
    x, y = preprocessor(
        (["What is his name?"], [context]), [{"text": "Ishmael", "answer_start": 8}]
    )
    assert x["token_ids"].shape == (2, 24)  # two windows
    assert y[1].tolist() == [0, 0]  # the second one does not have the name
    ```
    """

    def __init__(
        self,
        tokenizer: MegatronBertTokenizer,
        sequence_length: int = 384,
        doc_stride: int | None = None,
        max_question_length: int | None = None,
        max_answer_length: int = 30,
        **kwargs,
    ):
        for name, value, least in (
            ("sequence_length", sequence_length, SPECIAL_TOKENS + 2),
            ("doc_stride", doc_stride, 0),
            ("max_question_length", max_question_length, 1),
            ("max_answer_length", max_answer_length, 1),
        ):
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
        super().__init__(**kwargs)
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.doc_stride = doc_stride
        self.max_question_length = max_question_length
        self.max_answer_length = max_answer_length
        self.window_lengths()  # refuses those that do not go together

    def windows(self, questions: list[str], contexts: list[str]) -> Windows:
        """Cut contexts into windows, without making arrays of them."""
        overlap, question = self.window_lengths()
        return make_windows(
            self.tokenizer,
            questions,
            contexts,
            self.sequence_length,
            overlap,
            question,
            cut_if_all_fits=self.max_question_length is not None,
        )

    def window_lengths(self) -> tuple[int, int]:
        """Return the overlap of windows and the longest question; `sequence_length` may change."""
        room = self.sequence_length - SPECIAL_TOKENS
        question = self.max_question_length
        question = min(64, room // 2) if question is None else question
        if question >= room:
            raise ValueError(
                f"max_question_length={question} leaves no room for a context in "
                f"sequence_length={self.sequence_length}: it must be less than {room}"
            )
        room -= question
        overlap = min(128, room // 2) if self.doc_stride is None else self.doc_stride
        if overlap >= room:
            raise ValueError(
                f"doc_stride={overlap} must be less than the {room} tokens that are left for a "
                f"context, of sequence_length={self.sequence_length} with a question of {question}"
            )
        return overlap, question

    def preprocess(self, columns: tuple, y=None, sample_weight=None, rng=None):
        """Return the rows of all windows of one example, or of a batch of them."""
        if all(isinstance(column, str) for column in columns):
            columns = tuple([column] for column in columns)
            y = None if y is None else [y]
            sample_weight = None if sample_weight is None else [sample_weight]
        windows, labels, weights = self._rows(columns, y, sample_weight)
        x = windows.pack(range(len(windows)), self.tokenizer, self.sequence_length)
        return keras.utils.pack_x_y_sample_weight(x, labels, weights)

    def dataset(
        self, x, y=None, sample_weight=None, batch_size: int = 32, shuffle: bool = False
    ) -> grain.MapDataset:
        """Return one epoch of batches of windows; see the base class."""
        x, y, sample_weight = by_position((x, y, sample_weight))
        windows, labels, weights = self._rows(as_columns(x), y, sample_weight)

        def prepare(columns, y, sample_weight, rng):
            x = windows.pack(columns[0], self.tokenizer, self.sequence_length)
            return keras.utils.pack_x_y_sample_weight(
                x, None if y is None else np.stack(y), sample_weight
            )

        rows = (np.arange(len(windows)),)
        return batches(prepare, rows, labels, weights, batch_size, shuffle, self.seed)

    def _rows(self, columns: tuple, y, sample_weight) -> tuple:
        """Return windows of whole columns, and the labels and weights of the windows."""
        self.check_samples(columns, y)
        check_lengths(columns, y, sample_weight)
        windows = self.windows(*columns)
        labels = None if y is None else windows.labels(answer_spans(y, columns[1]))
        if sample_weight is not None:
            sample_weight = np.asarray(sample_weight, "float32")[windows.example]
        return windows, labels, sample_weight

    def check_samples(self, columns: tuple, y=None) -> None:
        """Refuse what are no questions and contexts, naming its place.

        Raises:
            ValueError: there are not two columns, something is not a str, or a question is empty.
        """
        if len(columns) != 2 or any(isinstance(column, str) for column in columns):
            raise ValueError(
                "give a tuple of questions and contexts, (questions, contexts): two lists, or two "
                "texts"
            )
        for name, column in zip(("question", "context"), columns, strict=True):
            for index, text in enumerate(column):
                if not isinstance(text, str):
                    kind = type(text).__name__
                    raise ValueError(f"{name} {index} must be a str, not {kind}: {text!r:.60}")
                if name == "question" and not text.strip():
                    raise ValueError(f"question {index} is empty")
        if len(columns[0]) != len(columns[1]):
            raise ValueError(
                f"there are {len(columns[0])} questions but {len(columns[1])} contexts: give one "
                "context a question"
            )

    def get_config(self):
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "sequence_length": self.sequence_length,
            "doc_stride": self.doc_stride,
            "max_question_length": self.max_question_length,
            "max_answer_length": self.max_answer_length,
        }
