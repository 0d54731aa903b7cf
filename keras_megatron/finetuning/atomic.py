"""Files that are there whole or not at all, whenever the process is killed."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

PARTIAL = ".partial"  # the ending of what was being written


def replace_file(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Have a function write a file beside `path`, and move it there once it is on the disk.

    Raises:
        ValueError: it cannot be written; whatever is raised, nothing of it is left.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        write(partial)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def check_can_write(path: pathlib.Path) -> None:
    """Refuse a file that cannot be written, before there is something to write.

    Raises:
        ValueError: its folder does not exist, or it is a folder.
    """
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder; give the name of a file")


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


def read_object(path: pathlib.Path) -> dict:
    """Read what `replace_json` wrote of a dict.

    Raises:
        ValueError: it cannot be read, or is something else.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: it holds no object")
    return values
