"""What a Hugging Face model folder says of its tokenizer, and the refusal of other kinds."""

import pathlib
from typing import Any

from keras_hub.src.utils.preset_utils import check_file_exists, get_file

from keras_megatron.checkpoints.huggingface import read_json
from keras_megatron.checkpoints.huggingface_config import short
from keras_megatron.presets.added_tokens import added_tokens, in_order, with_added
from keras_megatron.tokenization.vocabulary import read_vocabulary
from keras_megatron.tokenization.wordpiece import MAX_CHARACTERS_PER_WORD

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
# What MegatronBertTokenizer does, by the names in tokenizer.json's model.
_MODEL = {
    "unk_token": "[UNK]",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": MAX_CHARACTERS_PER_WORD,
}
# Classes of transformers that do the same: their names, or how these end.
_CLASSES = ("BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")


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
    has_file = check_file_exists(preset, VOCABULARY_FILE)
    if not has_file and not content:
        raise ValueError(
            f"{preset} has {why_no_tokenizer(preset)}: add {VOCABULARY_FILE} or {TOKENIZER_FILE}, "
            "or make a MegatronBertTokenizer from the vocabulary that the model was trained with"
        )
    config = _read_if_there(preset, TOKENIZER_CONFIG_FILE)
    _check_kind(preset, content, config)
    lowercase = _lowercase(preset, {**_normalizer(preset, content), **config})
    added = added_tokens(preset, content, config, _read_if_there(preset, ADDED_TOKENS_FILE))
    vocabulary = get_file(preset, VOCABULARY_FILE) if has_file else _vocabulary(preset, content)
    if added:
        ids = read_vocabulary(vocabulary).ids if has_file else vocabulary
        vocabulary, lowercase = with_added(preset, ids, added, lowercase)
    elif not has_file:
        vocabulary = in_order(preset, vocabulary)
    return {"vocabulary": vocabulary, "lowercase": lowercase}


def _read_if_there(preset: str, name: str) -> dict:
    if not check_file_exists(preset, name):
        return {}
    return read_json(pathlib.Path(get_file(preset, name)))


def _check_kind(preset: str, content: dict, config: dict) -> None:
    """Refuse a tokenizer that makes other pieces than BERT's of one vocabulary.

    Raises:
        ValueError: as said; it names the setting.
    """
    name = config.get("tokenizer_class")
    if name is not None and not str(name).endswith(_CLASSES):
        _refuse(preset, f"of the class {short(name)}")
    if config.get("do_basic_tokenize") is False or config.get("never_split"):
        _refuse(preset, "with do_basic_tokenize=False or never_split")
    model = content.get("model", {"type": "WordPiece"})  # of vocab.txt, where there is none
    kind = model.get("type") if isinstance(model, dict) else None
    if kind != "WordPiece":
        _refuse(preset, f"of type {short(kind)}")
    for name, usual in _MODEL.items():
        if model.get(name, usual) != usual:
            _refuse(preset, f"with {name}={short(model[name])}")
    for part, usual in (("normalizer", "BertNormalizer"), ("pre_tokenizer", "BertPreTokenizer")):
        settings = content.get(part, {})
        kind = settings.get("type", usual) if isinstance(settings, dict) else settings
        if kind != usual:
            _refuse(preset, f"whose {part} is {short(kind)}, not {usual}")
        if settings.get("clean_text") is False:
            _refuse(preset, "with clean_text=False")


def _refuse(preset: str, what: str):
    raise ValueError(
        f"{preset} has a tokenizer {what}, and MegatronBertTokenizer is BERT's WordPiece: load the "
        "model with preprocessor=None, and give it ids"
    )


def _vocabulary(preset: str, content: dict) -> dict[str, int]:
    vocabulary = content.get("model", {}).get("vocab")
    if not isinstance(vocabulary, dict):
        raise ValueError(f"the tokenizer in {preset} has no table of pieces and ids")
    return vocabulary


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
