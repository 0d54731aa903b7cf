"""Choosing the tokens that masked-language-model training hides, in numpy.

BERT's scheme (arXiv 1810.04805, section 3.1): 15 % of the tokens are selected; of these 80 % become
[MASK], 10 % a random token, 10 % stay. Megatron selects whole words and n-grams of them, of 1, 2 or
3 words with probabilities 6/11, 3/11, 2/11 (p proportional to 1/n; arXiv 1909.08053, section 4.1).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class MaskedTokens(NamedTuple):
    """A batch with tokens hidden. M is the largest number of masks a row can have.

    Attributes:
        token_ids: int32 (batch, sequence), the input with the selected tokens replaced.
        mask_positions: int32 (batch, M), where they stood, ascending, 0 beyond the last.
        mask_ids: int32 (batch, M), the tokens that stood there, 0 beyond the last.
        mask_weights: float32 (batch, M), 1 for a mask and 0 beyond the last.
    """

    token_ids: np.ndarray
    mask_positions: np.ndarray
    mask_ids: np.ndarray
    mask_weights: np.ndarray


@dataclass(frozen=True)
class MaskingScheme:
    """How tokens are selected and replaced.

    Attributes:
        selection_rate: share of a row's maskable tokens that is selected; at least one token, but
            with whole words only words that fit.
        mask_rate: share of the selected tokens that become [MASK].
        random_rate: share that become a random token; the rest stay.
        max_ngram: longest run of units selected together; n has probability proportional to 1/n.
        whole_words: select all pieces of a word or none.

    Raises:
        ValueError: a rate is outside 0 to 1, or `max_ngram` is not positive.
    """

    selection_rate: float = 0.15
    mask_rate: float = 0.8
    random_rate: float = 0.1
    max_ngram: int = 1
    whole_words: bool = False

    def __post_init__(self):
        for name in ("selection_rate", "mask_rate", "random_rate"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        if self.mask_rate + self.random_rate > 1.0 + 1e-9:
            total = self.mask_rate + self.random_rate
            raise ValueError(f"mask_rate + random_rate must be at most 1, not {total}")
        if not isinstance(self.max_ngram, int) or self.max_ngram < 1:
            raise ValueError(f"max_ngram must be an integer of at least 1, not {self.max_ngram}")

    def length(self, sequence_length: int) -> int:
        """Return M, the most masks a row of `sequence_length` tokens can have."""
        return max(1, round(self.selection_rate * sequence_length))


def mask_tokens(
    token_ids: np.ndarray,
    maskable: np.ndarray,
    scheme: MaskingScheme,
    rng: np.random.Generator,
    *,
    mask_token_id: int,
    vocabulary_size: int,
    continuation: np.ndarray | None = None,
    length: int | None = None,
) -> MaskedTokens:
    """Hide tokens of a batch.

    Args:
        token_ids: int (batch, sequence).
        maskable: bool (batch, sequence), False for special tokens and padding.
        scheme: how to select and replace.
        rng: the source of all randomness.
        mask_token_id: the id of [MASK].
        vocabulary_size: random replacements are drawn below it; the tokenizer's size, not the
            padded one, so that no padding row is ever used.
        continuation: bool (vocabulary,), True for pieces that continue a word. Needed for
            `scheme.whole_words`.
        length: M; `scheme.length(sequence)` if None.

    Returns:
        MaskedTokens.

    Raises:
        ValueError: `scheme.whole_words` without `continuation`.
    """
    if scheme.whole_words and continuation is None:
        raise ValueError("whole_words needs to know which pieces continue a word: continuation")
    batch, sequence = token_ids.shape
    length = scheme.length(sequence) if length is None else length
    positions = np.zeros((batch, length), "int32")
    weights = np.zeros((batch, length), "float32")
    for row in range(batch):
        starts = maskable[row]
        if scheme.whole_words:
            starts = starts & ~_continues_word(token_ids[row], maskable[row], continuation)
        chosen = _select(np.flatnonzero(maskable[row]), starts, scheme, length, rng)
        positions[row, : len(chosen)] = chosen
        weights[row, : len(chosen)] = 1.0

    selected = weights > 0
    labels = np.take_along_axis(token_ids, positions, axis=1).astype("int32") * selected
    draw = rng.random((batch, length))
    random_ids = rng.integers(vocabulary_size, size=(batch, length), dtype="int32")
    replacement = np.where(draw < scheme.mask_rate, mask_token_id, labels)
    is_random = (draw >= scheme.mask_rate) & (draw < scheme.mask_rate + scheme.random_rate)
    replacement = np.where(is_random, random_ids, replacement)

    masked = token_ids.astype("int32")  # a copy
    rows = np.broadcast_to(np.arange(batch)[:, None], positions.shape)
    masked[rows[selected], positions[selected]] = replacement[selected]
    return MaskedTokens(masked, positions, labels, weights)


def mask_encoded(
    token_ids: np.ndarray,
    tokenizer,
    scheme: MaskingScheme,
    rng: np.random.Generator,
    length: int | None = None,
) -> MaskedTokens:
    """Hide tokens of a batch that `tokenizer` encoded; its special tokens are never hidden.

    Args:
        token_ids: int (batch, sequence).
        tokenizer: `MegatronBertTokenizer`.
        scheme: how to select and replace.
        rng: the source of all randomness.
        length: M; `scheme.length(sequence)` if None.

    Returns:
        MaskedTokens.
    """
    return mask_tokens(
        token_ids,
        ~np.isin(token_ids, tokenizer.special_token_ids),
        scheme,
        rng,
        mask_token_id=tokenizer.mask_token_id,
        vocabulary_size=tokenizer.vocabulary_size(),
        continuation=tokenizer.continuation_mask,
        length=length,
    )


def _continues_word(ids: np.ndarray, maskable: np.ndarray, continuation: np.ndarray) -> np.ndarray:
    """Say which tokens of a row continue the word of the token before them."""
    after_maskable = np.concatenate([[False], maskable[:-1]])
    return continuation[ids] & after_maskable


def _select(
    candidates: np.ndarray,
    starts: np.ndarray,
    scheme: MaskingScheme,
    length: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Select positions of one row: units in random order, each with its n - 1 followers.

    Args:
        candidates: the maskable positions, ascending.
        starts: bool (sequence,), True where a unit (a token or a word) starts.
        scheme: how to select.
        length: the most positions to select.
        rng: the source of randomness.

    Returns:
        The positions, ascending.
    """
    budget = min(length, max(1, round(scheme.selection_rate * len(candidates))))
    if len(candidates) == 0 or scheme.selection_rate == 0:
        return candidates[:0]
    unit_of = np.cumsum(starts[candidates]) - 1
    first = np.searchsorted(unit_of, np.arange(unit_of[-1] + 2))  # units' bounds in candidates
    units = len(first) - 1
    order = rng.permutation(units)
    if scheme.max_ngram == 1 and units == len(candidates):  # every unit is one token
        return np.sort(candidates[order[:budget]])

    odds = 1.0 / np.arange(1, scheme.max_ngram + 1)
    ngrams = rng.choice(scheme.max_ngram, size=units, p=odds / odds.sum()) + 1
    free = np.ones(len(candidates), bool)
    left = budget
    for unit, n in zip(order, ngrams, strict=True):
        # As in the reference, an n-gram that does not fit gives way to a shorter one.
        for end in range(min(unit + n, units), unit, -1):
            span = slice(first[unit], first[end])
            if span.stop - span.start <= left and free[span].all():
                free[span] = False
                left -= span.stop - span.start
                break
        if left == 0:
            break
    return candidates[~free]
