"""Finds the checkpoint in what users have: a release zip, a folder, one file of either."""

import os
import pathlib
import re

from keras_megatron.checkpoints.mapped_files import MappedFile
from keras_megatron.checkpoints.one_line import one_line
from keras_megatron.checkpoints.shards import Shard
from keras_megatron.checkpoints.source_files import FolderFiles, ZipFiles
from keras_megatron.checkpoints.staging import reason
from keras_megatron.checkpoints.torch_dist import METADATA, PIECES, read_torch_dist
from keras_megatron.checkpoints.torch_files import load_torch_file
from keras_megatron.checkpoints.zip_files import is_zip

# The second is what version 3.0 writes with a distributed optimizer, whose state is beside it.
CHECKPOINTS = ("model_optim_rng.pt", "model_rng.pt")
TRACKER = "latest_checkpointed_iteration.txt"
_RANK_FOLDER = r"mp_rank_(?P<tensor>\d{2,3})(?:_(?P<pipeline>\d{3}))?"
_RANK = re.compile(
    rf"(?P<folder>(?:.*/)?){_RANK_FOLDER}/(?:{'|'.join(map(re.escape, CHECKPOINTS))})"
)
_RANK_FILES = tuple(f"mp_rank_*/{name}" for name in CHECKPOINTS)
_BESIDE = (*_RANK_FILES, METADATA)
_LISTED = tuple(
    f"{folders}{name}" for folders in ("", "*/", "*/*/") for name in (*_BESIDE, TRACKER)
)
_LONGEST_TRACKER = 64


def open_checkpoint(source: str | os.PathLike, scratch: pathlib.Path) -> list[Shard]:
    """Read what Megatron-LM saved, all shards of it.

    Args:
        source: A zip in the release's format, a folder with such a zip's content (or with
            `iter_*` folders, `mp_rank_*` or what `torch_dist` writes), or a file of these; a
            file's sibling ranks are read with it.
        scratch: Folder for what a compressed zip holds; remove it when done.

    Returns:
        The shards, see `load_torch_file` for their content. What `torch_dist` writes is one shard.

    Raises:
        ValueError: there is no checkpoint, or several, or a file is damaged.
    """
    source = pathlib.Path(source)
    try:
        source.stat()  # it is there, whatever is beside it
        # A folder of one rank is as good as its file.
        source = next((file for name in CHECKPOINTS if (file := source / name).is_file()), source)
        if folder := _folder_of(source):
            return _read(FolderFiles(folder, _LISTED if folder == source else _BESIDE))
        file = MappedFile.open(source)
        if is_zip(file):
            files = ZipFiles(file, scratch)
            pieces = any(name.endswith(PIECES) for name in files.names)
            if pieces or any(_RANK.fullmatch(name) for name in files.names):
                return _read(files)
        return [Shard(0, 0, load_torch_file(file))]
    except OSError as error:
        raise ValueError(f"cannot read {source}: {reason(error)}") from error
    except ValueError as error:
        raise ValueError(f"cannot read {source}: {one_line(error)}") from error


def _folder_of(source: pathlib.Path) -> pathlib.Path | None:
    """Return the folder that holds the whole checkpoint, of which `source` may be one file."""
    if source.is_dir():
        return source
    folder = source.absolute().parent
    if source.name in CHECKPOINTS and re.fullmatch(_RANK_FOLDER, folder.name):
        return folder.parent
    return folder if source.name == METADATA or source.name.endswith(PIECES) else None


def _read(files: FolderFiles | ZipFiles) -> list[Shard]:
    """Read the checkpoint that the tracker file names, or the only one."""
    folder = _choose(files)
    matches = [match for name in files.names if (match := _RANK.fullmatch(name))]
    matches = [match for match in matches if match["folder"] == folder]
    if not matches:
        content = read_torch_dist(lambda name: files.open(folder + name), _checker(files, folder))
        return [Shard(0, 0, content)]
    shards: dict[tuple[int, int], Shard] = {}
    for match in matches:
        rank = int(match["tensor"]), int(match["pipeline"] or 0)
        name = match[0].removeprefix(folder).partition("/")[0]
        if rank in shards:
            raise ValueError(f"{name} and {shards[rank].name} are one rank: remove the older")
        try:
            shards[rank] = Shard(*rank, load_torch_file(files.open(match[0])), name)
        except ValueError as error:
            raise ValueError(f"{name}: {error}" if len(matches) > 1 else error) from error
    return list(shards.values())


def _checker(files: FolderFiles | ZipFiles, folder: str):
    return lambda name: files.has(folder + name)


def _choose(files: FolderFiles | ZipFiles) -> str:
    """Return the folder of the checkpoint, with a slash at the end if it is not the top."""
    names = files.names
    folders = {match["folder"] for name in names if (match := _RANK.fullmatch(name))}
    folders |= {name.removesuffix(METADATA) for name in names if _last(name) == METADATA}
    if not folders:
        raise ValueError(
            f"it has no release/mp_rank_00/{CHECKPOINTS[0]}, no iter_*/mp_rank_00/..., and no "
            f"{METADATA} of torch_dist"
        )
    trackers = [name for name in names if _last(name) == TRACKER]
    if trackers:
        folders &= {_tracked(name, files.beginning(name, _LONGEST_TRACKER)) for name in trackers}
        if not folders:
            raise ValueError(f"{trackers[0]} names a checkpoint that is not there")
    if len(folders) > 1:
        found = ", ".join(sorted(folder or "mp_rank_*" for folder in folders))
        raise ValueError(f"it has several checkpoints ({found}) and no {TRACKER}: give one of them")
    return folders.pop()


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _tracked(tracker: str, content: str) -> str:
    """Return the folder that a tracker file means by `release` or by an iteration's number."""
    content = content.strip()
    if content.isdecimal():
        content = f"iter_{int(content):07d}"
    return f"{tracker.removesuffix(TRACKER)}{content}/"
