"""Several texts in a row of ids, so that no work is done on padding."""

import dataclasses
from collections.abc import Iterator, Mapping

import keras
import numpy as np

# Lengths of rows, and numbers of rows and of documents, are rounded up, so that a compiled backend
# sees few shapes.
_LENGTHS = (16, 32, 64, 96, 128, 192, 256, 384, 512)
_FEW_TOKENS = 2048
_USUAL_LENGTH = 128  # long enough to be filled well, and short beside what else a layer does


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Where documents lie in rows of ids; a document is a text, or a pair of texts, with its ends.

    Attributes:
        lengths: int (documents,), tokens of each; a document without any lies nowhere.
        row: int (documents,), the row that it lies in.
        start: int (documents,), its first position there.
        number: int (documents,), how many lie before it in the row.
        rows: rows that are filled.
        row_length: their length.
        most: documents that a row may have.
    """

    lengths: np.ndarray
    row: np.ndarray
    start: np.ndarray
    number: np.ndarray
    rows: int
    row_length: int
    most: int

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
        row, start, number = (np.zeros(len(lengths), "int64") for _ in range(3))
        used, counts = [], []  # tokens and documents of each row
        with_room = [[] for _ in range(row_length + 1)]  # rows, by the room that they have left
        rooms = 0  # a bit for each room that some row has
        for document in np.argsort(-lengths, kind="stable").tolist():
            length = int(lengths[document])
            if not length:
                break
            enough = rooms >> length
            if enough:
                room = length + (enough & -enough).bit_length() - 1
                place = with_room[room].pop()
                if not with_room[room]:
                    rooms &= ~(1 << room)
            else:
                room, place = row_length, len(used)
                used.append(0)
                counts.append(0)
            row[document], start[document], number[document] = place, used[place], counts[place]
            used[place] += length
            counts[place] += 1
            with_room[room - length].append(place)
            rooms |= 1 << (room - length)
        most = 1 << (max(counts, default=1) - 1).bit_length()
        return cls(lengths, row, start, number, len(used), row_length, most)

    def lay(self, values: np.ndarray, dtype="int32") -> np.ndarray:
        """Lay values of tokens, (documents, width) with the tokens first, into rows.

        Returns:
            (rows, row_length), 0 where there is no token.
        """
        rows = np.zeros((self.rows, self.row_length, *values.shape[2:]), dtype)
        document, token = self._tokens
        rows[self.row[document], self.start[document] + token] = values[document, token]
        return rows

    def inputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Lay a model's inputs, (documents, width) each, into rows.

        Args:
            inputs: `token_ids`, `segment_ids` and `padding_mask`, tokens before padding.

        Returns:
            These as (rows, row_length), with `document_ids` of the same shape, 1 and on in each row
            and 0 for padding; and `document_starts` (rows, documents).
        """
        names = ("token_ids", "segment_ids", "padding_mask")
        packed = {name: self.lay(inputs[name]) for name in names}
        width = inputs["token_ids"].shape[1]
        packed["document_ids"] = self.lay(np.repeat(self.number[:, None] + 1, width, axis=1))
        starts = np.zeros((self.rows, self.most), "int32")
        there = self.lengths > 0
        starts[self.row[there], self.number[there]] = self.start[there]
        return {**packed, "document_starts": starts}

    def tokens_of(self, outputs, width: int) -> np.ndarray:
        """Return outputs of tokens, (rows, row_length, ...), as (documents, width, ...).

        They are 0 for padding.
        """
        outputs = keras.ops.convert_to_numpy(outputs)
        unpacked = np.zeros((len(self.lengths), width, *outputs.shape[2:]), outputs.dtype)
        document, token = self._tokens
        unpacked[document, token] = outputs[self.row[document], self.start[document] + token]
        return unpacked

    def vectors_of(self, outputs) -> np.ndarray:
        """Return outputs of documents, (rows, documents of a row, ...), as (documents, ...)."""
        return keras.ops.convert_to_numpy(outputs)[self.row, self.number]

    def lay_positions(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lay positions of tokens in their documents, (documents, any number), into rows.

        A position behind a document's tokens, which no row has, is taken for the first one.

        Returns:
            Positions in the rows, int32 (rows, number), each that is asked for once; and where each
            of the given ones stands in them, int (documents, any number).
        """
        document = np.arange(len(positions))[:, None]
        positions = np.where(positions < self.lengths[:, None], positions, 0)
        width = 1 + int(positions.max(initial=0))
        asked, where = np.unique(document * width + positions, return_inverse=True)
        document, position = asked // width, asked % width
        row = self.row[document]
        order = np.argsort(row, kind="stable")
        first = np.searchsorted(row[order], row[order])
        rank = np.empty(len(asked), "int64")
        rank[order] = np.arange(len(asked)) - first
        most = -(-(1 + int(rank.max(initial=0))) // 8) * 8
        rows = np.zeros((self.rows, most), "int32")
        rows[row, rank] = self.start[document] + position
        return rows, rank[where].reshape(positions.shape)

    @property
    def _tokens(self) -> tuple[np.ndarray, np.ndarray]:
        document = np.repeat(np.arange(len(self.lengths)), self.lengths)
        first = np.cumsum(self.lengths) - self.lengths
        return document, np.arange(len(document)) - first[document]

    def rows_a_step(self, documents: int) -> int:
        """Return how many rows have about so many documents, rounded as shapes are."""
        tokens = documents * self.lengths.mean()
        return min(round_up_rows(tokens / self.row_length), round_up_rows(self.rows))


class RowBatches(keras.utils.PyDataset):
    """Batches of packed rows, the last one filled up with empty rows.

    Args:
        inputs: arrays (rows, ...) by name.
        batch_size: rows a batch.
    """

    def __init__(self, inputs: Mapping[str, np.ndarray], batch_size: int):
        super().__init__()
        self._inputs, self._batch_size = inputs, batch_size
        self._rows = len(inputs["token_ids"])

    def __len__(self) -> int:
        return -(-self._rows // self._batch_size)

    def __getitem__(self, index: int) -> tuple:
        first = index * self._batch_size
        count = min(self._batch_size, self._rows - first)
        padded = min(self._batch_size, round_up_rows(count))
        return (
            {
                name: np.pad(
                    array[first : first + count],
                    [(0, padded - count), *[(0, 0)] * (array.ndim - 1)],
                )
                for name, array in self._inputs.items()
            },
        )

    def __iter__(self) -> Iterator[tuple]:
        return (self[index] for index in range(len(self)))


def _possible_lengths(longest: int, lengths: np.ndarray) -> list[int]:
    shortest = round_up_length(longest)
    if lengths.sum() > _FEW_TOKENS:  # the rows are filled, whatever their length
        return [max(shortest, _USUAL_LENGTH)]
    return [shortest, *(known for known in _LENGTHS if shortest < known <= _USUAL_LENGTH)]


def round_up_length(length: int) -> int:
    """Return a length of rows that is one of few."""
    fitting = [known for known in _LENGTHS if known >= length]
    return fitting[0] if fitting else -(-int(length) // _LENGTHS[-1]) * _LENGTHS[-1]


def round_up_rows(rows: float) -> int:
    """Return a number of rows that is one of few: 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on."""
    power = 1 << max(0, int(np.ceil(np.log2(max(rows, 1)))))
    return power * 3 // 4 if power >= 4 and rows <= power * 3 // 4 else power
