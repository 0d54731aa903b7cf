"""What a Hugging Face model folder holds, local or at an address that KerasHub knows (`hf://`)."""

import os
import pathlib
from typing import Any

from keras_hub.src.utils.preset_utils import check_file_exists, get_file, load_json

VOCABULARY_FILE = "vocab.txt"  # one piece a line
TOKENIZER_FILE = "tokenizer.json"  # of the `tokenizers` library; transformers 5 writes only this
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
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


def tokenizer_arguments(preset: str) -> dict[str, Any]:
    """Read the arguments of `MegatronBertTokenizer` from a preset.

    Returns:
        `vocabulary`, and `lowercase`: None where the preset does not say.

    Raises:
        ValueError: there is no vocabulary, or it is not a WordPiece one.
    """
    lowercase = None
    if check_file_exists(preset, VOCABULARY_FILE):
        vocabulary = get_file(preset, VOCABULARY_FILE)
    elif check_file_exists(preset, TOKENIZER_FILE):
        config = load_json(preset, TOKENIZER_FILE)
        vocabulary = _pieces(preset, config)
        lowercase = (config.get("normalizer") or {}).get("lowercase")
    else:
        raise ValueError(
            f"{preset} has neither {VOCABULARY_FILE} nor {TOKENIZER_FILE}: add one, or make a "
            "MegatronBertTokenizer from the vocabulary that the model was trained with"
        )
    if check_file_exists(preset, TOKENIZER_CONFIG_FILE):
        lowercase = load_json(preset, TOKENIZER_CONFIG_FILE).get("do_lower_case", lowercase)
    return {"vocabulary": vocabulary, "lowercase": lowercase}


def _pieces(preset: str, config: dict) -> list[str]:
    model = config.get("model", {})
    if model.get("type") != "WordPiece":
        raise ValueError(
            f"{preset}/{TOKENIZER_FILE} is of type {model.get('type')!r}, and Megatron BERT's is "
            "'WordPiece'"
        )
    added = {token["content"]: token["id"] for token in config.get("added_tokens") or []}
    ids = {**model["vocab"], **added}
    pieces = sorted(ids, key=ids.get)
    if [ids[piece] for piece in pieces] != list(range(len(pieces))):
        raise ValueError(f"the ids in {preset}/{TOKENIZER_FILE} are not 0 to {len(pieces) - 1}")
    return pieces
