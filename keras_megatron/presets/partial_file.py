"""What has arrived of a file so far, and what the server said of it.

Beside `FILE` there may lie, while it is incomplete, `FILE.part` and `FILE.part.json`, which names
the version of the file on the server (ETag or Last-Modified) that the part belongs to. Once it is
complete, `FILE.json` keeps that record.
"""

import dataclasses
import json
import pathlib

import requests


@dataclasses.dataclass
class Record:
    """What is known of a file on a server.

    Attributes:
        url: Address that was asked for.
        etag: Its strong ETag, or None.
        last_modified: Its Last-Modified header, or None.
        bytes: Its length, or None if the server does not say.
    """

    url: str
    etag: str | None = None
    last_modified: str | None = None
    bytes: int | None = None

    @property
    def validator(self) -> str | None:
        """Return what a server can tell this version of the file by, if anything."""
        return self.etag or self.last_modified

    def is_valid(self) -> bool:
        """Say whether all is of its type: somebody may have edited the file."""
        texts = isinstance(self.url, str) and all(
            isinstance(text, str | None) for text in (self.etag, self.last_modified)
        )
        return texts and isinstance(self.bytes, int | None)

    def agrees_with(self, other: "Record") -> bool:
        """Whether all that is said here is the same there: a continuation may say less."""
        said = {name: value for name, value in vars(self).items() if value is not None}
        return said.items() <= vars(other).items()

    @classmethod
    def of_answer(cls, url: str, answer: requests.Response) -> "Record":
        """Return what the headers of an answer say."""
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            return cls(url)  # compressed although not asked for: its lengths are of other bytes
        etag = answer.headers.get("ETag")
        if etag and etag.startswith("W/"):
            etag = None  # a weak one does not promise equal bytes
        length = answer.headers.get("Content-Length")
        if answer.status_code == 206:
            length = answer.headers.get("Content-Range", "").rpartition("/")[2]
        known = int(length) if length and length.isdigit() else None
        return cls(url, etag, answer.headers.get("Last-Modified"), known)


class Part:
    """The incomplete file and its record."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.file = path.with_name(path.name + ".part")
        self._record_file = path.with_name(path.name + ".part.json")

    @property
    def size(self) -> int:
        """Return how many bytes there are."""
        return self.file.stat().st_size if self.file.exists() else 0

    @property
    def record(self) -> Record | None:
        """Return the record, if there is one."""
        return self.recorded(self._record_file)

    @staticmethod
    def recorded(file: pathlib.Path) -> Record | None:
        """Read a record, if there is one."""
        try:
            record = Record(**json.loads(file.read_text(encoding="utf-8")))
            return record if record.is_valid() else None
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def resumable(self, url: str) -> Record | None:
        """Return the record if this part can be continued from `url`."""
        record = self.record
        can = record and record.url == url and record.validator and self.size
        return record if can else None

    def start(self, record: Record) -> None:
        """Begin anew."""
        self.file.write_bytes(b"")
        self._record_file.write_text(json.dumps(dataclasses.asdict(record)), encoding="utf-8")

    def discard(self) -> None:
        """Remove what is there."""
        self.file.unlink(missing_ok=True)
        self._record_file.unlink(missing_ok=True)

    def publish(self) -> None:
        """Give the file its name; its record first, so that no complete file is without one."""
        self._record_file.replace(record_file(self.path))
        self.file.replace(self.path)


def is_download(path: pathlib.Path) -> bool:
    """Say whether a file is what `download` made, and not another one beside an old record."""
    record = Part.recorded(record_file(path))
    return record is not None and record.bytes in (None, path.stat().st_size)


def discard_part(path: pathlib.Path) -> None:
    """Remove what an interrupted download of a file has left."""
    Part(path).discard()


def record_file(path: pathlib.Path) -> pathlib.Path:
    """Return where `download` keeps the record (url, etag, last_modified, bytes) of a file."""
    return path.with_name(path.name + ".json")
