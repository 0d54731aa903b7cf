"""Finds the checkpoint in what users have: a release zip, an unpacked folder, a `.pt` file."""

import lzma
import os
import pathlib
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable

from keras_megatron.checkpoints.mapped_files import MappedFile
from keras_megatron.checkpoints.staging import reason
from keras_megatron.checkpoints.torch_files import load_torch_file
from keras_megatron.checkpoints.zip_files import is_zip, open_zip, stored_member

CHECKPOINT = "model_optim_rng.pt"
TRACKER = "latest_checkpointed_iteration.txt"
_RANK = re.compile(
    r"(?P<folder>(?:.*/)?)mp_rank_(?P<rank>\d{2,3}(?:_\d{3})?)/" + re.escape(CHECKPOINT)
)
_FOLDER_PATTERNS = ("mp_rank_*/" + CHECKPOINT, "*/mp_rank_*/" + CHECKPOINT, TRACKER)
_CHUNK = 1 << 24
_LONGEST_TRACKER = 64
# Weights hardly shrink: what grows more than this when unpacked is no checkpoint.
_HIGHEST_RATIO = 100
_SMALL = 1 << 24
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError)


def open_checkpoint(source: str | os.PathLike, scratch: pathlib.Path):
    """Read what Megatron-LM saved.

    Args:
        source: A zip in the release's format, a folder with such a zip's content (or with
            `iter_*` folders, or `mp_rank_00`), or the `.pt` file itself.
        scratch: Folder for a compressed zip's checkpoint; remove it when done.

    Returns:
        The content, see `load_torch_file`.

    Raises:
        ValueError: there is no checkpoint, it is one of several shards, or the file is damaged.
    """
    source = pathlib.Path(source)
    try:
        if source.is_dir():
            source = source / _choose(*_list_folder(source))
        file = MappedFile.open(source)
        if is_zip(file):
            archive = open_zip(file)
            if any(_RANK.fullmatch(name) for name in archive.namelist()):
                file = _member(file, archive, scratch)
        return load_torch_file(file)
    except OSError as error:
        raise ValueError(f"cannot read {source}: {reason(error)}") from error
    except ValueError as error:
        raise ValueError(f"cannot read {source}: {error}") from error


def _list_folder(folder: pathlib.Path) -> tuple[list[str], Callable[[str], str]]:
    names = [
        path.relative_to(folder).as_posix()
        for pattern in (*_FOLDER_PATTERNS, *(f"*/{pattern}" for pattern in _FOLDER_PATTERNS))
        for path in folder.glob(pattern)
    ]

    def read(name: str) -> str:
        with open(folder / name, "rb") as tracker:
            return tracker.read(_LONGEST_TRACKER).decode("ascii", "replace")

    return sorted(set(names)), read


def _choose(names: list[str], read: Callable[[str], str]) -> str:
    """Choose the checkpoint that the tracker file names, or the only one.

    Args:
        names: Paths of a folder's or a zip's files.
        read: Returns the beginning of a file as text.
    """
    matches = [match for name in names if (match := _RANK.fullmatch(name))]
    folders = {match["folder"] for match in matches}
    if not folders:
        raise ValueError(f"it has no release/mp_rank_00/{CHECKPOINT}, nor iter_*/mp_rank_00/...")
    for tracker in (name for name in names if name.rpartition("/")[2] == TRACKER):
        folders = folders.intersection([_tracked(tracker, read(tracker).strip())])
        if not folders:
            raise ValueError(f"{tracker} names a checkpoint that is not there")
    if len(folders) > 1:
        found = ", ".join(sorted(folder or "mp_rank_*" for folder in folders))
        raise ValueError(f"it has several checkpoints ({found}) and no {TRACKER}: give one of them")
    chosen = [match for match in matches if match["folder"] in folders]
    ranks = [match["rank"] for match in chosen]
    if ranks not in (["00"], ["00_000"]):
        raise ValueError(
            f"the checkpoint is split into shards, of which mp_rank_{ranks[-1]} is one; only whole "
            "models are read: merge the shards with Megatron-LM's tools first"
        )
    return chosen[0][0]


def _tracked(tracker: str, content: str) -> str:
    """Return the folder that a tracker file means by `release` or by an iteration's number."""
    if content.isdecimal():
        content = f"iter_{int(content):07d}"
    return f"{tracker.removesuffix(TRACKER)}{content}/"


def _member(file: MappedFile, archive: zipfile.ZipFile, scratch: pathlib.Path) -> MappedFile:
    """Return the checkpoint of a zip: in place if it is stored, else unpacked into `scratch`."""

    def read(name: str) -> str:
        with archive.open(name) as tracker:
            return tracker.read(_LONGEST_TRACKER).decode("ascii", "replace")

    try:
        member = archive.getinfo(_choose(archive.namelist(), read))
        if member.compress_type == zipfile.ZIP_STORED:
            stored = stored_member(file, member)
            _check_sum(stored, member)
            return stored
        _check_size(member, scratch)
        target = scratch / CHECKPOINT
        with archive.open(member) as packed, open(target, "wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, _CHUNK)
        return MappedFile.open(target)
    except (*_DAMAGED, EOFError, NotImplementedError) as error:
        raise ValueError(f"the zip is truncated or damaged ({error})") from error


def _check_sum(stored: MappedFile, member: zipfile.ZipInfo) -> None:
    checksum = 0
    while chunk := stored.read(_CHUNK):
        checksum = zlib.crc32(chunk, checksum)
    stored.seek(0)
    if checksum != member.CRC:
        raise ValueError(f"the zip is damaged: {member.filename} does not have its checksum")


def _check_size(member: zipfile.ZipInfo, scratch: pathlib.Path) -> None:
    size = member.file_size
    if size > _SMALL and size > _HIGHEST_RATIO * member.compress_size:
        raise ValueError(f"refused: the zip's {member.filename} claims to unpack to {size} bytes")
    free = shutil.disk_usage(scratch).free
    if size > free:
        raise ValueError(f"{scratch.parent} has {free} bytes free; unpacking takes {size}")
