"""What a Hugging Face model folder holds, local or at an address that KerasHub knows (`hf://`)."""

import os
import pathlib

from keras_hub.src.utils.preset_utils import check_file_exists, get_file, load_json

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
