"""Which columns of a file a model was trained on: a file of its preset."""

import os
import pathlib
from collections.abc import Sequence

from keras_hub.src.utils.preset_utils import check_file_exists

from keras_megatron.finetuning.atomic import replace_json
from keras_megatron.presets.stored_task import preset_json

COLUMNS_FILE = "columns.json"


def save_columns(folder: str | os.PathLike, names: Sequence[str]) -> None:
    """Write the names of the text columns, in the order in which the model takes them."""
    replace_json(pathlib.Path(folder) / COLUMNS_FILE, list(names))


def stored_columns(preset: str) -> list[str] | None:
    """Return the names of the text columns that a preset was trained on; None if it does not say.

    Raises:
        ValueError: the file is damaged.
    """
    if not check_file_exists(preset, COLUMNS_FILE):
        return None
    names = preset_json(preset, COLUMNS_FILE)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{preset}/{COLUMNS_FILE} does not hold a list of names")
    return names
