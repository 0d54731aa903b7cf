"""Fetching one large file over HTTP: resumed, checked and retried.

Beside `FILE` there may lie, while it is incomplete, `FILE.part` and `FILE.part.json`, which names
the version of the file on the server (ETag or Last-Modified) that the part belongs to. Once it is
complete, `FILE.json` keeps that record.
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable

import requests
import rich.console
import rich.progress
import urllib3

CHUNK = 1 << 16  # bytes
_LONGEST_WAIT = 120.0  # seconds, however long a server wants
_FINAL = (  # errors of `requests` that asking again does not mend
    requests.exceptions.SSLError,
    requests.exceptions.ProxyError,
    requests.TooManyRedirects,
    ValueError,  # a malformed address
)


class DownloadError(ValueError):
    """A download failed; the message is one line that says why."""


class _TransientError(DownloadError):
    """A failure that may be over when asked again.

    Attributes:
        wait: Seconds after which the server wants to be asked again; 0 if it does not say.
    """

    wait: float = 0.0


@dataclasses.dataclass
class _Record:
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
        return self.etag or self.last_modified

    def is_valid(self) -> bool:
        """Say whether all is of its type: somebody may have edited the file."""
        texts = isinstance(self.url, str) and all(
            isinstance(text, str | None) for text in (self.etag, self.last_modified)
        )
        return texts and isinstance(self.bytes, int | None)

    def agrees_with(self, other: "_Record") -> bool:
        """Whether all that is said here is the same there: a continuation may say less."""
        said = {name: value for name, value in vars(self).items() if value is not None}
        return said.items() <= vars(other).items()

    @classmethod
    def of_answer(cls, url: str, answer: requests.Response) -> "_Record":
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


class _Part:
    """The incomplete file and its record."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.file = path.with_name(path.name + ".part")
        self._record_file = path.with_name(path.name + ".part.json")

    @property
    def size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    @property
    def record(self) -> _Record | None:
        return self.recorded(self._record_file)

    @staticmethod
    def recorded(file: pathlib.Path) -> _Record | None:
        """Read a record, if there is one."""
        try:
            record = _Record(**json.loads(file.read_text(encoding="utf-8")))
            return record if record.is_valid() else None
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def resumable(self, url: str) -> _Record | None:
        """Return the record if this part can be continued from `url`."""
        record = self.record
        can = record and record.url == url and record.validator and self.size
        return record if can else None

    def start(self, record: _Record) -> None:
        """Begin anew."""
        self.file.write_bytes(b"")
        self._record_file.write_text(json.dumps(dataclasses.asdict(record)), encoding="utf-8")

    def discard(self) -> None:
        self.file.unlink(missing_ok=True)
        self._record_file.unlink(missing_ok=True)

    def publish(self) -> None:
        """Give the file its name; its record first, so that no complete file is without one."""
        self._record_file.replace(record_file(self.path))
        self.file.replace(self.path)


def is_download(path: pathlib.Path) -> bool:
    """Say whether a file is what `download` made, and not another one beside an old record."""
    record = _Part.recorded(record_file(path))
    return record is not None and record.bytes in (None, path.stat().st_size)


def discard_part(path: pathlib.Path) -> None:
    """Remove what an interrupted download of a file has left."""
    _Part(path).discard()


def record_file(path: pathlib.Path) -> pathlib.Path:
    """Return where `download` keeps the record (url, etag, last_modified, bytes) of a file."""
    return path.with_name(path.name + ".json")


def download(
    url: str,
    path: pathlib.Path,
    *,
    attempts: int = 5,
    pause: float = 1.0,
    timeout: tuple[float, float] = (10.0, 60.0),
) -> None:
    """Fetch `url` to `path`, with a progress bar on stderr.

    What a previous call left in `path.part` is continued if the server still has the same file.

    Args:
        url: http or https address; redirects are followed.
        path: File to write. It appears only when it is complete.
        attempts: How often to ask, for failures that may pass: a cut connection, a server error.
        pause: Seconds before the second attempt; doubled before each further one.
        timeout: Seconds to wait for a connection, and for each piece of the answer.

    Raises:
        DownloadError: the file cannot be fetched. What was received is kept for the next call.
        OSError: the file cannot be written.
    """
    part = _Part(path)
    with contextlib.ExitStack() as stack:
        report = _reporter(path.name, stack)
        for attempt in range(attempts):
            try:
                _fetch(url, part, timeout, report)
                break
            except _TransientError as error:
                if attempt == attempts - 1:
                    raise
                time.sleep(max(pause * 2**attempt, error.wait))
    part.publish()


def _fetch(
    url: str, part: _Part, timeout: tuple[float, float], report: Callable[..., None]
) -> None:
    """Ask once for what is missing, and append it to the part."""
    record = part.resumable(url)
    if record and part.size == record.bytes:
        return  # a process was killed between the last byte and the renaming
    headers = {"Accept-Encoding": "identity"}  # Content-Length then counts the file's own bytes
    if record:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": record.validator}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as answer:
            _check_status(answer, part)
            offered = _Record.of_answer(url, answer)
            if answer.status_code == 206:
                _check_continues(answer, offered, record, part)
            else:
                part.start(offered)
            report(total=offered.bytes, completed=part.size)
            with open(part.file, "ab") as file:
                for chunk in answer.iter_content(CHUNK):
                    file.write(chunk)
                    report(advance=len(chunk))
    except DownloadError:
        raise
    except (requests.RequestException, ValueError) as error:  # urllib's, of a malformed redirect
        raise _explain(error, part) from error
    if offered.bytes not in (None, part.size):
        raise _TransientError(f"received {part.size} of {offered.bytes} bytes")


def _check_status(answer: requests.Response, part: _Part) -> None:
    status = answer.status_code
    if status in (200, 206):
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise DownloadError(
                "the answer is a web page, not the file: does the network ask to log in?"
            )
        return
    if status == 416:  # the part is longer than the file: it belongs to another one
        part.discard()
    passing = status in (408, 416, 429) or status >= 500
    error = (_TransientError if passing else DownloadError)(
        f"the server answered {status} {answer.reason}"
    )
    wait = answer.headers.get("Retry-After", "")  # seconds; a date is left to the pauses
    if passing and wait.isdecimal():
        error.wait = min(float(wait), _LONGEST_WAIT)
    raise error


def _check_continues(
    answer: requests.Response, offered: _Record, record: _Record | None, part: _Part
) -> None:
    """Refuse a piece that is not the missing one: not all servers honour If-Range."""
    begins = answer.headers.get("Content-Range", "").startswith(f"bytes {part.size}-")
    if not begins or record is None or not offered.agrees_with(record):
        part.discard()
        raise _TransientError("the file on the server has changed")


def _explain(error: requests.RequestException | ValueError, part: _Part) -> DownloadError:
    """Turn an error of `requests` into one line."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    detail = " ".join(str(reason or error).split()).rpartition(": ")[2]
    if isinstance(error, requests.ConnectTimeout):
        return DownloadError("no connection: the server does not answer")
    if isinstance(reason, urllib3.exceptions.NewConnectionError):
        return DownloadError(f"no connection: {detail}")
    if isinstance(error, _FINAL):
        return DownloadError(detail)
    silent = isinstance(error, requests.Timeout) or "timed out" in detail
    what = "the server fell silent" if silent else "the connection broke"
    total = part.record and part.record.bytes
    return _TransientError(f"{what} after {part.size} of {total or 'unknown'} bytes")


def _reporter(name: str, stack: contextlib.ExitStack) -> Callable[..., None]:
    """Return what updates a progress bar; the first call shows it, the end of `stack` stops it."""
    progress = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
    )
    task = progress.add_task(name, total=None)

    def report(**state) -> None:
        if not progress.live.is_started:
            stack.enter_context(progress)
        progress.update(task, **state)

    return report
