"""Tokens that were added to a Hugging Face tokenizer after its vocabulary was made."""

from collections.abc import Mapping

from keras_megatron.tokenization.vocabulary import SPECIAL_TOKENS, Vocabulary
from keras_megatron.tokenization.wordpiece import RustWordPiece
from keras_megatron.user_warnings import warn_user


def added_tokens(preset: str, content: Mapping, config: Mapping, file: Mapping) -> dict:
    """Return the ids of added tokens, None where none is said; without BERT's own special tokens.

    Args:
        preset: for the error.
        content: of tokenizer.json.
        config: of tokenizer_config.json.
        file: of added_tokens.json, ids by token.

    Raises:
        ValueError: a file is damaged.
    """
    try:
        decoder = (config.get("added_tokens_decoder") or {}).items()
        named = [*(config.get("additional_special_tokens") or [])]
        extra = config.get("extra_special_tokens") or []
        named += list(extra.values() if isinstance(extra, Mapping) else extra)
        found = {_word(token): None for token in named}
        found |= {_word(token): int(place) for place, token in decoder}
        found |= {_word(token): int(place) for token, place in file.items()}
        found |= {_word(t): int(t["id"]) for t in content.get("added_tokens") or []}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{preset} has added tokens that are damaged: {error!r}") from error
    return {word: place for word, place in found.items() if word not in SPECIAL_TOKENS}


def _word(token) -> str:
    return token if isinstance(token, str) else str(token["content"])


def with_added(preset: str, vocabulary: dict[str, int], added: dict, lowercase: bool | None):
    """Return all pieces, and whether to lower-case texts as the vocabulary itself says.

    Args:
        preset: for the errors.
        vocabulary: ids by piece.
        added: as of `added_tokens`; at least one.
        lowercase: what the preset says, or None.

    Raises:
        ValueError: WordPiece splits an added token, or the ids have gaps.

    Warns:
        UserWarning: transformers finds the tokens within words too.
    """
    ids = {**vocabulary, **{word: place for word, place in added.items() if place is not None}}
    pieces = in_order(preset, ids)
    if lowercase is None:
        lowercase = not Vocabulary(in_order(preset, vocabulary)).capitalized
    found = RustWordPiece(Vocabulary(pieces), lowercase).tokenize(list(added))
    for word, given in zip(added, found, strict=True):
        if given != [ids.get(word)]:
            raise ValueError(
                f"the tokenizer in {preset} has tokens added that WordPiece splits, {word!r}: load "
                "the model with preprocessor=None, and give it ids"
            )
    warn_user(
        f"{preset} has tokens added, such as {next(iter(added))!r}: here they are words of their "
        "own, and transformers finds them within words too"
    )
    return pieces, lowercase


def in_order(preset: str, ids: Mapping[str, int]) -> list[str]:
    """Return pieces in the order of their ids.

    Raises:
        ValueError: these are not 0, 1, 2 and so on.
    """
    try:
        pieces = sorted(ids, key=ids.get)
    except TypeError as error:
        raise ValueError(f"the tokenizer in {preset} has no table of pieces and ids") from error
    if [ids[piece] for piece in pieces] != list(range(len(pieces))):
        raise ValueError(f"the ids of the tokenizer in {preset} are not 0 to {len(pieces) - 1}")
    return pieces
