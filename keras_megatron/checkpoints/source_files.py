"""The files of a folder or of a zip, by their paths in it, mapped instead of loaded."""

import lzma
import pathlib
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable

from keras_megatron.checkpoints.mapped_files import MappedFile
from keras_megatron.checkpoints.one_line import one_line
from keras_megatron.checkpoints.zip_files import check_packed, open_zip, stored_member

_CHUNK = 1 << 20
# Weights hardly shrink: what grows more than this when unpacked is no checkpoint.
_HIGHEST_RATIO = 100
_SMALL = 1 << 24
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


class FolderFiles:
    """Files of a folder.

    Args:
        folder: The folder.
        patterns: Of the files to list, as in `pathlib.Path.glob`.
    """

    def __init__(self, folder: pathlib.Path, patterns: Iterable[str]):
        self.folder = folder
        found = {path for pattern in patterns for path in folder.glob(pattern)}
        self.names = sorted(path.relative_to(folder).as_posix() for path in found)

    def has(self, name: str) -> bool:
        """Say whether there is such a file, listed or not."""
        return (self.folder / name).is_file()

    def beginning(self, name: str, size: int) -> str:
        """Return the first bytes of a file as text."""
        with open(self.folder / name, "rb") as file:
            return file.read(size).decode("ascii", "replace")

    def open(self, name: str) -> MappedFile:
        """Map a file.

        Raises:
            ValueError: it is empty, or no regular file.
            OSError: it cannot be read.
        """
        return MappedFile.open(self.folder / name)


class ZipFiles:
    """Members of a zip: stored ones are read in place, others unpacked when they are opened.

    Args:
        file: The zip.
        scratch: Folder for what is unpacked; remove it when done.
    """

    def __init__(self, file: MappedFile, scratch: pathlib.Path):
        self.file = file
        self.archive = open_zip(file)
        self.scratch = scratch
        self.names = self.archive.namelist()

    def has(self, name: str) -> bool:
        """Say whether there is such a member."""
        return name in self.archive.NameToInfo

    def beginning(self, name: str, size: int) -> str:
        """Return the first bytes of a member as text."""
        member = self.archive.getinfo(name)
        try:
            if member.compress_type != zipfile.ZIP_STORED:
                check_packed(self.file, member)
            with self.archive.open(member) as content:
                return content.read(size).decode("ascii", "replace")
        except _DAMAGED as error:
            raise ValueError(f"the zip is truncated or damaged ({one_line(error)})") from error

    def open(self, name: str) -> MappedFile:
        """Map a member.

        Raises:
            ValueError: it is damaged, grows too much when it is unpacked, or does not fit the disk.
        """
        member = self.archive.getinfo(name)
        try:
            if member.compress_type == zipfile.ZIP_STORED:
                stored = stored_member(self.file, member)
                _check_sum(stored, member)
                return stored
            check_packed(self.file, member)
            _check_size(member, self.scratch)
            target = pathlib.Path(tempfile.mkdtemp(dir=self.scratch), "unpacked")
            with self.archive.open(member) as packed, open(target, "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, _CHUNK)
            return MappedFile.open(target)
        except _DAMAGED as error:
            raise ValueError(f"the zip is truncated or damaged ({one_line(error)})") from error


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
