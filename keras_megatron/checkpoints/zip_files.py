"""Zip archives in mapped files: their members, checked, and the stored ones in place."""

import re
import stat
import struct
import zipfile

from keras_megatron.checkpoints.mapped_files import MappedFile
from keras_megatron.checkpoints.one_line import one_line

MAGIC = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 0x1
# Of LZMA: what a member asks for is allocated before anything is unpacked. 7-Zip's default.
_LARGEST_DICTIONARY = 1 << 26
_LONGEST_NAME = 1000
_DAMAGED = (zipfile.BadZipFile, NotImplementedError, LookupError, struct.error, ValueError)


def is_zip(file: MappedFile) -> bool:
    """Say whether the file begins as a zip does."""
    return file.window(0, min(4, len(file))).read() == MAGIC


def open_zip(file: MappedFile) -> zipfile.ZipFile:
    """Read the table of members.

    Raises:
        ValueError: the archive is truncated or damaged, two members have one name, or a name leads
            out of a folder it would be unpacked to.
    """
    try:
        archive = zipfile.ZipFile(file)
    except _DAMAGED as error:
        raise ValueError(f"the zip is truncated or damaged ({one_line(error)})") from error
    seen = set()
    for member in archive.infolist():
        name = member.filename
        if len(name) > _LONGEST_NAME or not name.isprintable():
            raise ValueError(f"refused: the zip has a member called {ascii(name)[:100]}")
        if name in seen:
            raise ValueError(f"refused: the zip has two members called {name[:100]!r}")
        seen.add(name)
        leads_out = name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name)
        if leads_out or ".." in re.split(r"[/\\]", name):
            raise ValueError(f"refused: the zip has a member that leads out of it, {name[:100]!r}")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"refused: the zip has a symbolic link, {name[:100]!r}")
        if member.flag_bits & _ENCRYPTED:
            raise ValueError(f"the zip's member {name[:100]!r} is encrypted")
    return archive


def stored_member(file: MappedFile, member: zipfile.ZipInfo) -> MappedFile:
    """Return the window that holds an uncompressed member.

    Raises:
        ValueError: it is compressed, or does not lie in the file.
    """
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise ValueError(f"the zip's member {member.filename[:100]!r} must not be compressed")
    return _data(file, member)


def check_packed(file: MappedFile, member: zipfile.ZipInfo) -> None:
    """Check that a compressed member lies in the file and can be unpacked in little memory.

    Raises:
        ValueError: it does not, or cannot.
    """
    data = _data(file, member)
    if member.compress_type == zipfile.ZIP_LZMA:
        # Two bytes of version, two with the properties' length, five of properties.
        size = int.from_bytes(data.window(5, 4).read(), "little")
        if size > _LARGEST_DICTIONARY:
            raise ValueError(
                f"refused: the zip's member {member.filename[:100]!r} takes {size} bytes of memory "
                "to unpack: deflate it, or store it"
            )


def _data(file: MappedFile, member: zipfile.ZipInfo) -> MappedFile:
    """Return the window that holds a member as it is stored."""
    header = file.window(member.header_offset, _LOCAL_HEADER.size).read()
    magic, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    if magic != MAGIC:
        raise ValueError("the zip is damaged: a member is not where its table says")
    start = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    return file.window(start, member.compress_size)
