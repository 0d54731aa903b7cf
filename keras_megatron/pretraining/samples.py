"""Documents to fixed-length samples, and samples to masked batches."""

import re
from collections.abc import Iterator

import grain
import numpy as np

from keras_megatron.masking import MaskingScheme, mask_encoded

_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+")


def pack_documents(
    documents: list[list[str]],
    tokenizer,
    sequence_length: int,
    short_sample_rate: float = 0.1,
    seed: int = 0,
) -> np.ndarray:
    """Pack whole sentences of each document into samples `[CLS] ... [SEP]`.

    Args:
        documents: a list of paragraphs each.
        tokenizer: `MegatronBertTokenizer`.
        sequence_length: tokens a sample.
        short_sample_rate: share of the samples that end early, at a random length, so that the
            model also sees short texts (`short_seq_prob` in Megatron).
        seed: of the short samples' lengths.

    Returns:
        int32 (samples, sequence), padded. A sample never crosses a document; a sentence that is
        longer than a sample goes on in the next.

    Raises:
        ValueError: `sequence_length` leaves no room.
    """
    if sequence_length < 3:
        raise ValueError(f"sequence_length must be at least 3, not {sequence_length}")
    room = sequence_length - 2
    samples = list(gather_sentences(documents, tokenizer, room, short_sample_rate, seed))
    packed = np.full((len(samples), sequence_length), tokenizer.pad_token_id, "int32")
    for row, (ids, _) in zip(packed, samples, strict=True):
        row[: len(ids) + 2] = [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
    return packed


def gather_sentences(
    documents: list[list[str]], tokenizer, room: int, short_sample_rate: float = 0.1, seed: int = 0
) -> Iterator[tuple[list[int], list[int]]]:
    """Gather successive sentences of each document until a sample is full; see `pack_documents`.

    Args:
        documents: a list of paragraphs each.
        tokenizer: `MegatronBertTokenizer`.
        room: tokens a sample, special ones left out.
        short_sample_rate: as of `pack_documents`.
        seed: as of `pack_documents`.

    Yields:
        The ids of a sample, and the places in it where sentences start, without place 0.
    """
    rng = np.random.default_rng(seed)
    for document in documents:
        sentences = [s for paragraph in document for s in _SENTENCE_END.split(paragraph) if s]
        target, sample, starts = _target(room, short_sample_rate, rng), [], []
        for ids in tokenizer.tokenize(sentences) if sentences else []:
            ids = list(ids)
            if sample and len(sample) + len(ids) > target:
                yield sample, starts
                target, sample, starts = _target(room, short_sample_rate, rng), [], []
            if sample and ids:
                starts.append(len(sample))
            while len(ids) > target - len(sample):
                cut = target - len(sample)
                yield sample + ids[:cut], starts
                target, ids = _target(room, short_sample_rate, rng), ids[cut:]
                sample, starts = [], []
            sample = sample + ids
        if sample:
            yield sample, starts


def _target(room: int, short_sample_rate: float, rng: np.random.Generator) -> int:
    return int(rng.integers(min(8, room), room + 1)) if rng.random() < short_sample_rate else room


class MaskSamples(grain.transforms.RandomMap):
    """A Grain transform: int32 (batch, sequence) to `(x, y, sample_weight)` with tokens masked.

    Grain hands it a generator that depends on its seed and on the element's index alone, so that
    any worker makes the same batch.

    Args:
        tokenizer: `MegatronBertTokenizer`.
        scheme: `MaskingScheme`.
    """

    def __init__(self, tokenizer, scheme: MaskingScheme):
        self._tokenizer = tokenizer
        self._scheme = scheme

    def random_map(self, element: np.ndarray, rng: np.random.Generator):
        """Mask one batch."""
        masked = mask_encoded(element, self._tokenizer, self._scheme, rng)
        x = {
            "token_ids": masked.token_ids,
            "segment_ids": np.zeros_like(element),
            "padding_mask": (element != self._tokenizer.pad_token_id).astype("int32"),
            "mask_positions": masked.mask_positions,
        }
        return x, masked.mask_ids, masked.mask_weights


def masked_batches(
    samples: np.ndarray,
    tokenizer,
    scheme: MaskingScheme,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
) -> grain.MapDataset:
    """Return one epoch of masked batches; repeat it and each epoch is shuffled and masked anew.

    Args:
        samples: int32 (samples, sequence).
        tokenizer: `MegatronBertTokenizer`.
        scheme: `MaskingScheme`.
        batch_size: samples a batch; a last batch that is smaller is dropped when shuffling.
        seed: of order and masks.
        shuffle: whether to shuffle.

    Raises:
        ValueError: there are fewer samples than one batch needs.
    """
    if len(samples) < (batch_size if shuffle else 1):
        raise ValueError(f"{len(samples)} samples are too few for batches of {batch_size}")
    dataset = grain.MapDataset.source(samples).seed(seed)
    if shuffle:
        dataset = dataset.shuffle()
    dataset = dataset.batch(batch_size, drop_remainder=shuffle)
    return dataset.random_map(MaskSamples(tokenizer, scheme))
