"""Files that are there whole or not at all, whenever the process is killed."""

import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

PARTIAL = ".partial"  # the ending of what was being written


def replace_file(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Have a function write a file beside `path`, and move it there once it is on the disk."""
    partial = path.with_name(path.name + PARTIAL)
    write(partial)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def remove_partial(folder: pathlib.Path) -> None:
    """Remove what a process that was killed was writing into a folder.

    The library that writes safetensors has a name of its own for a file that is not whole, and so
    has `keras_megatron.parallel` for what several processes write.
    """
    for pattern in (f"*{PARTIAL}", ".tmp??????", ".saving-*"):
        for partial in folder.glob(pattern):
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink(missing_ok=True)


def replace_text(path: pathlib.Path, text: str) -> None:
    """Write a text file."""
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def replace_json(path: pathlib.Path, values: Any) -> None:
    """Write a JSON file."""
    replace_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
