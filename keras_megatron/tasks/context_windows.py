"""Long contexts as overlapping windows, each beside its question, in token ids."""

import dataclasses
from collections.abc import Sequence

import numpy as np

SPECIAL_TOKENS = 3  # [CLS] question [SEP] context [SEP]


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of the contexts of some examples; one or more an example.

    Attributes:
        questions: ids of each example's question.
        contexts: ids of each example's whole context.
        offsets: int arrays (context tokens, 2), an example each: the token's characters, [start,
            end) in the original context.
        example: int (windows,), the example that a window belongs to, ascending.
        first: int (windows,), the first of its context's tokens that a window shows.
        count: int (windows,), how many it shows.
    """

    questions: list[list[int]]
    contexts: list[list[int]]
    offsets: list[np.ndarray]
    example: np.ndarray
    first: np.ndarray
    count: np.ndarray

    def __len__(self) -> int:
        return len(self.example)

    @property
    def context_position(self) -> np.ndarray:
        """Position in its row of each window's first context token, int (windows,)."""
        lengths = np.array([len(question) for question in self.questions], "int64")
        return lengths[self.example] + 2  # behind [CLS] and the first [SEP]

    @property
    def longest(self) -> int:
        """Tokens of the longest row, special ones included."""
        return int((self.context_position + self.count).max()) + 1

    def pack(self, rows: Sequence[int], tokenizer, sequence_length: int) -> dict[str, np.ndarray]:
        """Make a model's inputs: `[CLS] question [SEP] context [SEP]`, then padding.

        Args:
            rows: the windows to take.
            tokenizer: `MegatronBertTokenizer`.
            sequence_length: columns of the arrays.

        Returns:
            `token_ids`, `segment_ids` (1 from the context on) and `padding_mask`, each an int32
            array (rows, sequence_length).
        """
        examples = [self.example[window] for window in rows]
        begins, counts = self.first[rows], self.count[rows]
        contexts = [
            self.contexts[example][begin : begin + count]
            for example, begin, count in zip(examples, begins, counts, strict=True)
        ]
        questions = [self.questions[example] for example in examples]
        return tokenizer.pack(questions, contexts, sequence_length)

    def labels(self, spans: Sequence[tuple[int, int] | None]) -> np.ndarray:
        """Find the answers in the windows.

        Args:
            spans: an example's answer, the characters [start, end) of its context, or None.

        Returns:
            int32 (windows, 2): the positions of the answer's first and last token in the row; 0,
            [CLS], where a window does not show the whole answer, as in SQuAD 2.0.

        Raises:
            ValueError: an answer has no tokens.
        """
        tokens = np.array([self._tokens(index, span) for index, span in enumerate(spans)])
        begin, last = tokens[self.example].T
        shown = (begin >= self.first) & (last < self.first + self.count)
        positions = (self.context_position - self.first)[:, None] + tokens[self.example]
        return np.where(shown[:, None], positions, 0).astype("int32")

    def _tokens(self, example: int, span: tuple[int, int] | None) -> tuple[int, int]:
        """Return the first and last token that have a character of the answer; -1 for no answer."""
        if span is None:
            return -1, -1
        starts, ends = self.offsets[example].T
        first = int(np.searchsorted(ends, span[0], side="right"))
        last = int(np.searchsorted(starts, span[1], side="left")) - 1
        if first > last:
            raise ValueError(
                f"the answer at characters {span[0]} to {span[1]} of context {example} has no "
                "tokens, only spaces or characters that the tokenizer drops: mark some text"
            )
        return first, last


def make_windows(
    tokenizer,
    questions: Sequence[str],
    contexts: Sequence[str],
    sequence_length: int,
    overlap: int,
    max_question_length: int,
    cut_if_all_fits: bool = True,
) -> Windows:
    """Tokenize, and cut contexts into windows that overlap.

    The windows are those of the `tokenizers` library's truncation `only_second`: each but the last
    is full, and begins `overlap` tokens before the end of the one before it.

    Args:
        tokenizer: `MegatronBertTokenizer`.
        questions: one an example. What is beyond `max_question_length` tokens is cut.
        contexts: one an example; the same one is tokenized once.
        sequence_length: most tokens a row, special ones included.
        overlap: context tokens that two neighbouring windows share.
        max_question_length: most tokens of a question.
        cut_if_all_fits: whether a longer question is cut where there is room for it and for all of
            its context too.
    """
    different = list(dict.fromkeys(contexts))
    ids, offsets = tokenizer.tokenize_with_offsets(different)
    place = {context: index for index, context in enumerate(different)}
    offsets = [np.array(pairs, "int64").reshape(-1, 2) for pairs in offsets]
    question_ids = tokenizer.tokenize(list(questions))
    for index, context in enumerate(contexts):
        tokens = SPECIAL_TOKENS + len(question_ids[index]) + len(ids[place[context]])
        if cut_if_all_fits or tokens > sequence_length:
            question_ids[index] = question_ids[index][:max_question_length]

    example, first, count = [], [], []
    for index, context in enumerate(contexts):
        tokens = len(ids[place[context]])
        room = sequence_length - SPECIAL_TOKENS - len(question_ids[index])
        # Beside a long question that was not cut, `room` may be less than `overlap`.
        begins = [0] if tokens <= room else range(0, tokens - overlap, room - overlap)
        example += [index] * len(begins)
        first += begins
        count += [min(room, tokens - begin) for begin in begins]
    return Windows(
        questions=question_ids,
        contexts=[ids[place[context]] for context in contexts],
        offsets=[offsets[place[context]] for context in contexts],
        example=np.array(example, "int64"),
        first=np.array(first, "int64"),
        count=np.array(count, "int64"),
    )
