"""Samples of one or two segments for pretraining: hidden tokens and sentence order."""

from typing import NamedTuple

import numpy as np

from keras_megatron.masking import MaskingScheme, mask_encoded
from keras_megatron.pretraining.samples import gather_sentences

SHORT_SAMPLES = 0.1  # `short_seq_prob` of Megatron
PAIRS = 0.6  # of the samples with several sentences; half of them are swapped
NO_ORDER = -100  # the label of a sample of one segment, which PyTorch's cross entropy ignores


class Sample(NamedTuple):
    """Token ids of successive sentences, and where sentences start, 0 left out."""

    ids: np.ndarray
    starts: np.ndarray


class Batch(NamedTuple):
    """A batch for `torch_pretraining.Trainer`.

    Attributes:
        token_ids: int64 (batch, sequence), with tokens hidden.
        segment_ids: int64 (batch, sequence).
        positions: int64 (masks,), of the hidden tokens in the batch laid out flat.
        labels: int64 (masks,), the hidden tokens.
        weights: float32 (masks,), 0 beyond the last, so that a shape has one number of masks.
        order: int64 (batch,), 1 if the segments are swapped, 0 if not, `NO_ORDER`.
    """

    token_ids: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    order: np.ndarray


def make_samples(
    documents: list[list[str]], tokenizer, sequence_length: int, seed: int = 0
) -> list[Sample]:
    """Gather sentences of each document until a sample is full, with room for two segments."""
    gathered = gather_sentences(documents, tokenizer, sequence_length - 3, SHORT_SAMPLES, seed)
    return [Sample(np.array(ids, "int32"), np.array(starts, "int32")) for ids, starts in gathered]


class Batches:
    """Masked batches that depend on (seed, epoch, place) alone; short samples share batches.

    Args:
        samples: of `make_samples`.
        tokenizer: `MegatronBertTokenizer`.
        scheme: how tokens are hidden.
        tokens: slots a batch, rows times sequence.
        sequence_length: slots a sample; samples that fill half of it share batches of half of it.
        seed: of order, segments and masks.

    Raises:
        ValueError: there are too few samples for a batch.
    """

    def __init__(self, samples, tokenizer, scheme: MaskingScheme, tokens, sequence_length, seed=1):
        self._samples, self._tokenizer, self._scheme = samples, tokenizer, scheme
        self._tokens, self._length, self._seed = tokens, sequence_length, seed
        if not self.order(0):
            raise ValueError(f"{len(samples)} samples are too few for batches of {tokens} tokens")

    def order(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """Return an epoch's batches: their sequence length and the samples' indices."""
        rng = np.random.default_rng([self._seed, epoch])
        sizes = np.array([len(sample.ids) for sample in self._samples]) + 3
        half, batches = self._length // 2, []
        for low, high in ((0, half), (half, self._length)):
            indices = rng.permutation(np.flatnonzero((sizes > low) & (sizes <= high)))
            rows = max(1, self._tokens // high)
            starts = range(0, len(indices) - rows + 1, rows)
            batches += [(high, indices[start : start + rows]) for start in starts]
        return [batches[i] for i in rng.permutation(len(batches))]

    def make(self, epoch: int, place: int, length: int, indices: np.ndarray) -> Batch:
        """Make the batch at a place of an epoch."""
        rng = np.random.default_rng([self._seed, epoch, place])
        token_ids = np.full((len(indices), length), self._tokenizer.pad_token_id, "int32")
        segment_ids = np.zeros((len(indices), length), "int64")
        order = np.full(len(indices), NO_ORDER, "int64")
        for row, index in enumerate(indices):
            first, second, order[row] = self._segments(self._samples[index], rng)
            ids, segments = self._layout(first, second)
            token_ids[row, : len(ids)], segment_ids[row, : len(ids)] = ids, segments
        masked = mask_encoded(token_ids, self._tokenizer, self._scheme, rng)
        there = masked.mask_weights > 0
        positions = (np.arange(len(indices))[:, None] * length + masked.mask_positions)[there]
        padding = (0, int(token_ids.size * self._scheme.selection_rate) + 1 - len(positions))
        return Batch(
            masked.token_ids.astype("int64"),
            segment_ids,
            np.pad(positions, padding).astype("int64"),
            np.pad(masked.mask_ids[there], padding).astype("int64"),
            np.pad(np.ones(len(positions), "float32"), padding),
            order,
        )

    def _segments(self, sample: Sample, rng) -> tuple[np.ndarray, np.ndarray, int]:
        if not len(sample.starts) or rng.random() >= PAIRS:
            return sample.ids, sample.ids[:0], NO_ORDER
        cut = int(rng.choice(sample.starts))
        first, second = sample.ids[:cut], sample.ids[cut:]
        swapped = rng.random() < 0.5
        return (second, first, 1) if swapped else (first, second, 0)

    def _layout(self, first: np.ndarray, second: np.ndarray) -> tuple[list, list]:
        start, end = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        ids, segments = [start, *first, end], [0] * (len(first) + 2)
        if len(second):
            ids, segments = [*ids, *second, end], segments + [1] * (len(second) + 1)
        return ids, segments
