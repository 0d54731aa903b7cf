"""What a Hugging Face model folder holds, local or at an address that KerasHub knows (`hf://`)."""

import os
import pathlib
from typing import Any

from keras_hub.src.utils.preset_utils import check_file_exists, get_file, load_json

from keras_megatron.checkpoints.huggingface import read_json
from keras_megatron.checkpoints.huggingface_config import short
from keras_megatron.tokenization.vocabulary import SPECIAL_TOKENS, read_vocabulary

VOCABULARY_FILE = "vocab.txt"  # one piece a line
TOKENIZER_FILE = "tokenizer.json"  # of the `tokenizers` library; transformers 5 writes only this
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
ADDED_TOKENS_FILE = "added_tokens.json"  # beside vocab.txt, of transformers before 5
# The settings of tokenizer.json's normalizer, by their names in tokenizer_config.json.
_NORMALIZER = {
    "lowercase": "do_lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "tokenize_chinese_chars",
}
# Files of tokenizers that this package has not, and what they are called.
_OTHER_TOKENIZERS = {
    "spiece.model": "a SentencePiece tokenizer",
    "sentencepiece.bpe.model": "a SentencePiece tokenizer",
    "tokenizer.model": "a SentencePiece tokenizer",
    "merges.txt": "a byte-pair tokenizer",
}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def local_folder(preset: str) -> pathlib.Path:
    """Return the folder of a preset with its config.json and weights, downloaded if need be.

    Raises:
        ValueError: it has no weights.
    """
    if os.path.isdir(preset):
        return pathlib.Path(preset)
    for name in WEIGHT_FILES:
        if check_file_exists(preset, name):
            break
        if check_file_exists(preset, f"{name}.index.json"):
            shards = load_json(preset, f"{name}.index.json")["weight_map"].values()
            for shard in sorted(set(shards)):
                get_file(preset, shard)
            break
    else:
        raise ValueError(f"{preset} has no weights: neither {' nor '.join(WEIGHT_FILES)}")
    return pathlib.Path(get_file(preset, "config.json")).parent


def has_tokenizer(preset: str) -> bool:
    """Say whether a preset (a folder, or an address that KerasHub knows) brings a vocabulary."""
    return any(check_file_exists(preset, file) for file in (VOCABULARY_FILE, TOKENIZER_FILE))


def why_no_tokenizer(preset: str) -> str:
    """Say what a preset without a vocabulary has instead."""
    for file, kind in _OTHER_TOKENIZERS.items():
        if check_file_exists(preset, file):
            return f"{kind} ({file}), and MegatronBertTokenizer is a WordPiece one"
    return "no vocabulary"


def tokenizer_arguments(preset: str) -> dict[str, Any]:
    """Read the arguments of `MegatronBertTokenizer` from a preset.

    Returns:
        `vocabulary`, and `lowercase`: None where the preset does not say.

    Raises:
        ValueError: there is no vocabulary, it is not a WordPiece one, a file is damaged, or the
            settings are of a tokenizer that this package does not have.
    """
    content = _read_if_there(preset, TOKENIZER_FILE)
    if check_file_exists(preset, VOCABULARY_FILE):
        vocabulary = _with_added(preset, get_file(preset, VOCABULARY_FILE), content)
    elif content:
        vocabulary = _pieces(preset, content)
    else:
        raise ValueError(
            f"{preset} has {why_no_tokenizer(preset)}: add {VOCABULARY_FILE} or {TOKENIZER_FILE}, "
            "or make a MegatronBertTokenizer from the vocabulary that the model was trained with"
        )
    settings = {**_normalizer(preset, content), **_read_if_there(preset, TOKENIZER_CONFIG_FILE)}
    return {"vocabulary": vocabulary, "lowercase": _lowercase(preset, settings)}


def _read_if_there(preset: str, name: str) -> dict:
    if not check_file_exists(preset, name):
        return {}
    return read_json(pathlib.Path(get_file(preset, name)))


def _normalizer(preset: str, content: dict) -> dict:
    """Return tokenizer.json's settings by the names that they have in tokenizer_config.json."""
    normalizer = content.get("normalizer") or {}
    if not isinstance(normalizer, dict):
        raise ValueError(f"the normalizer in {preset}/{TOKENIZER_FILE} is no JSON object")
    return {ours: normalizer[name] for name, ours in _NORMALIZER.items() if name in normalizer}


def _lowercase(preset: str, settings: dict) -> bool | None:
    """Return whether to lower-case; refuse settings that change the pieces otherwise."""
    for name in _NORMALIZER.values():
        if not isinstance(settings.get(name), bool | None):
            raise ValueError(f"the tokenizer's {name} in {preset} must be true, false or null")
    lowercase, strip = settings.get("do_lower_case"), settings.get("strip_accents")
    if strip is not None and strip != lowercase:
        raise ValueError(
            f"{preset} strips accents otherwise than it lower-cases (strip_accents={strip}, "
            f"do_lower_case={lowercase}), as MegatronBertTokenizer cannot: pass your own tokenizer"
        )
    if settings.get("tokenize_chinese_chars") is False:
        raise ValueError(
            f"{preset} does not split Chinese characters (tokenize_chinese_chars is false), which "
            "MegatronBertTokenizer does: pass your own tokenizer"
        )
    return lowercase


def _pieces(preset: str, content: dict) -> list[str]:
    model = content.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if kind != "WordPiece":
        raise ValueError(
            f"{preset}/{TOKENIZER_FILE} is of type {short(kind)}, and MegatronBertTokenizer is a "
            "WordPiece one: load the model with preprocessor=None, and give it ids"
        )
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict):
        raise ValueError(f"{preset}/{TOKENIZER_FILE} has no table of pieces and ids")
    return _in_order(preset, vocabulary, _added(preset, content))


def _with_added(preset: str, path: str, content: dict) -> str | list[str]:
    """Return the path of vocab.txt, or its pieces and those that were added, if there are any."""
    added = {**_added(preset, content), **_read_if_there(preset, ADDED_TOKENS_FILE)}
    ids = read_vocabulary(path).ids if added else {}
    added = {word: place for word, place in added.items() if word not in ids}
    return _in_order(preset, ids, added) if added else path


def _added(preset: str, content: dict) -> dict[str, int]:
    """Return what was added to the vocabulary of tokenizer.json."""
    try:
        return {str(token["content"]): token["id"] for token in content.get("added_tokens") or []}
    except (TypeError, KeyError) as error:
        raise ValueError(f"{preset}/{TOKENIZER_FILE} has added tokens without ids") from error


def _in_order(preset: str, vocabulary: dict[str, int], added: dict[str, int]) -> list[str]:
    """Return pieces in the order of their ids.

    Raises:
        ValueError: WordPiece splits an added one, or the ids have gaps.
    """
    ids = {**vocabulary, **added}
    split = sorted(word for word in set(added) - set(SPECIAL_TOKENS) if not word.isalnum())
    if split:
        raise ValueError(
            f"the tokenizer in {preset} has tokens added that WordPiece splits, {split[0]!r}: load "
            "the model with preprocessor=None, and give it ids"
        )
    try:
        pieces = sorted(ids, key=ids.get)
    except TypeError as error:
        raise ValueError(f"the tokenizer in {preset} has no table of pieces and ids") from error
    if [ids[piece] for piece in pieces] != list(range(len(pieces))):
        raise ValueError(f"the ids of the tokenizer in {preset} are not 0 to {len(pieces) - 1}")
    return pieces
