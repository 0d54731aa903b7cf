"""Samples of BERT's pretraining as Megatron makes them: sentence order and hidden words.

Each sample is whole sentences of one document, in two parts that are swapped half of the time
(sentence order, as in ALBERT; arXiv 1909.08053, section 4.1), with n-grams of whole words hidden.
"""

import functools
import os
import threading
import time

import grain
import numpy as np
from absl import flags

from keras_megatron.masking import MaskingScheme, mask_encoded
from keras_megatron.pretraining.token_files import TokenFiles

MEGATRON_MASKING = MaskingScheme(max_ngram=3, whole_words=True)
_SPECIAL = 3  # [CLS] and two [SEP]
# Documents with a longer one are left out: LONG_SENTENCE_LEN in megatron-core's helpers.cpp.
_LONGEST_SENTENCE = 512


class SentencePairs(grain.sources.RandomAccessDataSource):
    """The pairs of token files, without hidden words: each by its index, the same in any worker.

    Args:
        files: `TokenFiles`.
        sequence_length: tokens a sample, special ones included.
        short_sample_rate: share of the samples that end early, at a random length (Megatron's
            `short_seq_prob`).
        seed: of the lengths of short samples.

    Raises:
        ValueError: there is no room for a pair, or no document has two sentences.
    """

    def __init__(
        self,
        files: TokenFiles,
        sequence_length: int = 512,
        short_sample_rate: float = 0.1,
        seed: int = 0,
    ):
        room = sequence_length - _SPECIAL
        if room < 2:
            raise ValueError(f"sequence_length must be at least 5, not {sequence_length}")
        if not 0 <= short_sample_rate <= 1:
            raise ValueError(f"short_sample_rate must be between 0 and 1, not {short_sample_rate}")
        self._files = files
        self._spans = _spans(files, room, short_sample_rate, np.random.default_rng(seed))
        if not len(self._spans):
            raise ValueError(
                "the token files have no document of two sentences or more, and of none with more "
                f"than {_LONGEST_SENTENCE} tokens, of which pairs are made"
            )

    def __len__(self) -> int:
        """Return the number of samples of an epoch."""
        return len(self._spans)

    def __getitem__(self, index: int) -> tuple[list[np.ndarray], int]:
        """Return the sentences of a sample, and how many tokens it may have."""
        first, last, room = self._spans[index]
        files = self._files
        places = zip(files.starts[first:last], files.lengths[first:last], strict=True)
        return [files.tokens[start : start + length] for start, length in places], int(room)


def _spans(files: TokenFiles, room: int, short_rate: float, rng) -> np.ndarray:
    """Return for each sample its first sentence, the one after its last, and its room: int64."""
    spans = []

    def target() -> int:
        return int(rng.integers(2, room + 1)) if rng.random() < short_rate else room

    for first, last in zip(
        files.documents[:-1].tolist(), files.documents[1:].tolist(), strict=True
    ):
        lengths = files.lengths[first:last].tolist()
        if len(lengths) < 2 or max(lengths) > _LONGEST_SENTENCE:
            continue
        begin, tokens, limit = first, 0, target()
        for sentence, length in enumerate(lengths, first):
            tokens += length
            left = last - sentence - 1
            # As Megatron: full, with two sentences or more, and more than one left; or at the end.
            if (tokens >= limit and left > 1 and sentence > begin) or not left:
                spans.append((begin, sentence + 1, limit))
                begin, tokens, limit = sentence + 1, 0, target()
    return np.array(spans, "int64").reshape(-1, 3)


class MaskPairs(grain.transforms.RandomMap):
    """Makes of a pair of `SentencePairs` what `MegatronBertPretrainer` learns from.

    Grain hands it a generator that depends on the dataset's seed and the sample's index alone.

    Args:
        tokenizer: `MegatronBertTokenizer` that the token files were made with.
        sequence_length: tokens a sample.
        scheme: how words are hidden.
        pair_rate: share of the samples in two parts; the others are one, and have no order.
    """

    def __init__(
        self,
        tokenizer,
        sequence_length: int,
        scheme: MaskingScheme = MEGATRON_MASKING,
        pair_rate: float = 1.0,
    ):
        self._tokenizer, self._length, self._scheme = tokenizer, sequence_length, scheme
        self._pair_rate = pair_rate

    def random_map(self, element: tuple[list[np.ndarray], int], rng: np.random.Generator):
        """Return `(x, y, sample_weight)` of one sample, dicts without a batch axis."""
        sentences, room = element
        first, second, swapped = _two_parts(sentences, room, rng)
        start, end = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        is_pair = self._pair_rate == 1 or rng.random() < self._pair_rate
        if not is_pair:
            parts = (second, first) if swapped else (first, second)  # in their order
            first, second, swapped = np.concatenate(parts), first[:0], False
        ids = np.concatenate([[start], first, [end], second, [end][: int(is_pair)]])
        token_ids = np.full((1, self._length), self._tokenizer.pad_token_id, "int32")
        token_ids[0, : len(ids)] = ids
        places = np.arange(self._length)
        masked = mask_encoded(token_ids, self._tokenizer, self._scheme, rng)
        x = {
            "token_ids": masked.token_ids[0],
            "segment_ids": ((places >= len(first) + 2) & (places < len(ids))).astype("int32"),
            "padding_mask": (places < len(ids)).astype("int32"),
            "mask_positions": masked.mask_positions[0],
        }
        y = {"mlm": masked.mask_ids[0], "nsp": np.int32(swapped)}
        return x, y, {"mlm": masked.mask_weights[0], "nsp": np.float32(is_pair)}


def _two_parts(sentences: list, room: int, rng) -> tuple[np.ndarray, np.ndarray, bool]:
    """Split sentences at a random one, swap the parts half of the time, and cut what is too long.

    Tokens are taken from the longer part, at its front or its end, as Megatron does.
    """
    pivot = int(rng.integers(1, len(sentences)))
    parts = [np.concatenate(sentences[:pivot]), np.concatenate(sentences[pivot:])]
    swapped = bool(rng.random() < 0.5)
    if swapped:
        parts.reverse()
    surplus = len(parts[0]) + len(parts[1]) - room
    if surplus > 0:
        parts = _cut(parts, surplus, rng)
    return *parts, swapped


def _cut(parts: list[np.ndarray], surplus: int, rng) -> list[np.ndarray]:
    """Take `surplus` tokens away, each from the part that is longer then, at a random end."""
    lengths = [len(part) for part in parts]
    taken = [0, 0]
    difference = lengths[0] - lengths[1]
    longer = 0 if difference > 0 else 1  # the second where both are as long
    taken[longer] = min(surplus, abs(difference))
    rest = surplus - taken[longer]
    taken[1] += -(-rest // 2)
    taken[0] += rest // 2
    cut = []
    for part, count in zip(parts, taken, strict=True):
        front = int(rng.binomial(count, 0.5))
        cut.append(part[front : len(part) - (count - front)])
    return cut


def pretraining_batches(
    files: TokenFiles,
    tokenizer,
    batch_size: int,
    sequence_length: int = 512,
    scheme: MaskingScheme = MEGATRON_MASKING,
    short_sample_rate: float = 0.1,
    seed: int = 0,
    pair_rate: float = 1.0,
) -> grain.MapDataset:
    """Return an epoch of batches for `MegatronBertPretrainer.fit`; the next ones differ.

    Batch i, which may lie in a later epoch, is a function of the arguments and of i alone: any
    worker makes the same one, and a training that was stopped goes on at the batch where it was.

    Args:
        files: `TokenFiles`.
        tokenizer: the one that they were made with.
        batch_size: samples a batch.
        sequence_length: tokens a sample.
        scheme: how words are hidden; by default as Megatron does.
        short_sample_rate: see `SentencePairs`.
        seed: of all that is random.
        pair_rate: see `MaskPairs`.

    Raises:
        ValueError: there are fewer samples than a batch has, see also `SentencePairs`.
    """
    source = SentencePairs(files, sequence_length, short_sample_rate, seed)
    if len(source) < batch_size:
        raise ValueError(
            f"{files.prefix} makes {len(source)} samples of {sequence_length} tokens, fewer than a "
            f"batch of {batch_size}: give more text, or a smaller batch_size"
        )
    dataset = grain.MapDataset.source(source).seed(seed).shuffle()
    dataset = dataset.random_map(MaskPairs(tokenizer, sequence_length, scheme, pair_rate))
    return dataset.batch(batch_size, drop_remainder=True)


def prefetched(batches: grain.MapDataset, workers: int = 0) -> grain.IterDataset:
    """Return batches in their order, made ahead of their use.

    Args:
        batches: of `pretraining_batches`, or a part of them.
        workers: processes that make them; 0 makes them in threads of this one.
    """
    if not workers:
        return batches.to_iter_dataset()
    if not flags.FLAGS.is_parsed():  # Grain asks for its own, whoever's program this is
        flags.FLAGS.mark_as_parsed()
    one_thread = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)  # each: Python is busy
    iterated = batches.to_iter_dataset(one_thread)
    return iterated.mp_prefetch(
        grain.multiprocessing.MultiprocessingOptions(workers),
        worker_init_fn=functools.partial(_end_with_trainer, os.getpid()),
    )


def _end_with_trainer(trainer: int, index: int, workers: int) -> None:
    """End a worker soon after its trainer, which may be killed; Grain's would wait for ever."""

    def watch():
        while os.getppid() == trainer:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
