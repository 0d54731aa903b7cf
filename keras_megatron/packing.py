"""Several texts in a row of ids, so that no work is done on padding."""

import dataclasses
from collections.abc import Iterator, Mapping

import keras
import numpy as np

# Lengths of rows, and numbers of rows and of documents, are rounded up, so that a compiled backend
# sees few shapes. PyTorch compiles none: there rows have the length that leaves the least room.
_COMPILES_SHAPES = keras.config.backend() != "torch"
_LENGTHS = (16, 32, 64, 96, 128, 192, 256, 384, 512) if _COMPILES_SHAPES else range(8, 513, 8)
_FEW_TOKENS = 2048
_USUAL_LENGTH = 128  # long enough to be filled well, and short beside what else a layer does


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Where documents lie in rows of ids; a document is a text, or a pair of texts, with its ends.

    Attributes:
        lengths: int (documents,), tokens of each; a document without any lies nowhere.
        row: int (documents,), the row that it lies in.
        start: int (documents,), its first position there.
        rows: number of rows.
        row_length: their length.
    """

    lengths: np.ndarray
    row: np.ndarray
    start: np.ndarray
    rows: int
    row_length: int

    @classmethod
    def plan(cls, lengths, row_length: int | None = None) -> "PackedRows":
        """Lay documents out: each, the longest first, where it leaves the least room.

        This is best-fit decreasing (Johnson, Near-optimal bin packing algorithms, 1973).

        Args:
            lengths: int (documents,), tokens of each.
            row_length: length of the rows; by default 128, or the longest document's, or for a few
                documents what leaves the least room.

        Raises:
            ValueError: a document is longer than a row.
        """
        lengths = np.asarray(lengths, "int64")
        longest = int(lengths.max(initial=1))
        if row_length is None:
            plans = [cls.plan(lengths, length) for length in _possible_lengths(longest, lengths)]
            return min(plans, key=lambda plan: plan.rows * plan.row_length)
        if longest > row_length:
            raise ValueError(
                f"a text of {longest} tokens is longer than a row: give row_length={longest}"
            )
        row, start = np.zeros(len(lengths), "int64"), np.zeros(len(lengths), "int64")
        room = _Room(row_length)
        for document in np.argsort(-lengths, kind="stable").tolist():
            if lengths[document]:
                row[document], start[document] = room.take(int(lengths[document]))
        return cls(lengths, row, start, room.rows, row_length)

    def inputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Lay a model's inputs, (documents, width) each, into rows.

        Args:
            inputs: `token_ids`, `segment_ids` and `padding_mask`, tokens before padding.

        Returns:
            These as (rows, row_length), with `document_ids` of the same shape, which number the
            documents from 1 and are 0 for padding; and `cls_positions` (documents,), where each one
            begins in the rows laid one behind the other.
        """
        names = ("token_ids", "segment_ids", "padding_mask")
        packed = {name: self.lay(inputs[name]) for name in names}
        numbers = np.broadcast_to(
            1 + np.arange(len(self.lengths))[:, None], inputs["token_ids"].shape
        )
        packed["document_ids"] = self.lay(numbers)
        return {**packed, "cls_positions": self._first.astype("int32")}

    def lay(self, values: np.ndarray, dtype="int32") -> np.ndarray:
        """Lay values of tokens, (documents, width) with the tokens first, into rows.

        Returns:
            (rows, row_length), 0 where there is no token.
        """
        rows = np.zeros((self.rows, self.row_length), dtype)
        document, token = self._tokens
        rows[self.row[document], self.start[document] + token] = values[document, token]
        return rows

    def positions(self, positions: np.ndarray) -> np.ndarray:
        """Return where positions in documents, (documents, any number), lie in the rows.

        The rows lie one behind the other.
        """
        return self._first[:, None] + positions

    def tokens_of(self, outputs, width: int) -> np.ndarray:
        """Return outputs of tokens, (rows, row_length, ...), as (documents, width, ...).

        They are 0 for padding.
        """
        outputs = keras.ops.convert_to_numpy(outputs)
        unpacked = np.zeros((len(self.lengths), width, *outputs.shape[2:]), outputs.dtype)
        document, token = self._tokens
        unpacked[document, token] = outputs[self.row[document], self.start[document] + token]
        return unpacked

    def steps(self, rows: int) -> Iterator[tuple["PackedRows", np.ndarray]]:
        """Split the rows into steps of so many, the last one of less.

        Returns:
            For each step its plan, and which of the documents lie in it. The last plan's rows are
            as many as shapes have.
        """
        there = np.flatnonzero(self.lengths)
        for first in range(0, self.rows, rows):
            of_step = there[(self.row[there] >= first) & (self.row[there] < first + rows)]
            count = min(rows, self.rows - first)
            yield (
                PackedRows(
                    self.lengths[of_step],
                    self.row[of_step] - first,
                    self.start[of_step],
                    min(rows_of_shape(count), rows),
                    self.row_length,
                ),
                of_step,
            )

    def rounded(self) -> "PackedRows":
        """Return the plan with as many rows as shapes have, some of them empty."""
        return dataclasses.replace(self, rows=rows_of_shape(self.rows))

    def rows_a_step(self, documents: int) -> int:
        """Return how many rows a step may have, so as to need no more room than padding does.

        Args:
            documents: that a step would have, each padded to the longest.

        Returns:
            A number that is one of few, by which the steps have about the same size.
        """
        most = round_up(documents * self.lengths.max() / self.row_length)
        return round_up(self.rows / -(-self.rows // most))

    @property
    def _first(self) -> np.ndarray:
        return self.row * self.row_length + self.start

    @property
    def _tokens(self) -> tuple[np.ndarray, np.ndarray]:
        document = np.repeat(np.arange(len(self.lengths)), self.lengths)
        first = np.cumsum(self.lengths) - self.lengths
        return document, np.arange(len(document)) - first[document]


class _Room:
    """What is left of rows, by how much it is."""

    def __init__(self, row_length: int):
        self.rows = 0
        self._row_length = row_length
        self._with = [[] for _ in range(row_length + 1)]  # rows that have so much room
        self._some = 0  # a bit for each room that some row has

    def take(self, length: int) -> tuple[int, int]:
        """Return a row and the place in it of a document that leaves the least room."""
        enough = self._some >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            row = self._with[room].pop()
            if not self._with[room]:
                self._some &= ~(1 << room)
        else:
            room, row = self._row_length, self.rows
            self.rows += 1
        self._with[room - length].append(row)
        self._some |= 1 << (room - length)
        return row, self._row_length - room


def _possible_lengths(longest: int, lengths: np.ndarray) -> list[int]:
    shortest = _round_up_length(longest)
    if lengths.sum() > _FEW_TOKENS:  # the rows are filled, whatever their length
        return [max(shortest, _USUAL_LENGTH)]
    return [shortest, *(known for known in _LENGTHS if shortest < known <= _USUAL_LENGTH)]


def length_for_all(longest: int) -> int | None:
    """Return the `row_length` of batches whose longest text is of so many tokens.

    None where each batch may have its own.
    """
    return max(_USUAL_LENGTH, _round_up_length(longest)) if _COMPILES_SHAPES else None


def _round_up_length(length: int) -> int:
    """Return a length of rows that is one of few."""
    fitting = [known for known in _LENGTHS if known >= length]
    return fitting[0] if fitting else -(-int(length) // _LENGTHS[-1]) * _LENGTHS[-1]


def rows_of_shape(rows: int) -> int:
    """Return how many rows hold so many."""
    return round_up(rows) if _COMPILES_SHAPES else rows


def round_up(number: float) -> int:
    """Return a number of rows that is one of few: 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on."""
    power = 1 << max(0, int(np.ceil(np.log2(max(number, 1)))))
    return power * 3 // 4 if power >= 4 and number <= power * 3 // 4 else power
