"""Fetching one large file over HTTP: resumed, checked and retried."""

import contextlib
import pathlib
import time
from collections.abc import Callable

import requests
import rich.console
import rich.progress
import urllib3

from keras_megatron.presets.partial_file import Part, Record

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
    part = Part(path)
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


def _fetch(url: str, part: Part, timeout: tuple[float, float], report: Callable[..., None]) -> None:
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
            offered = Record.of_answer(url, answer)
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


def _check_status(answer: requests.Response, part: Part) -> None:
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
    answer: requests.Response, offered: Record, record: Record | None, part: Part
) -> None:
    """Refuse a piece that is not the missing one: not all servers honour If-Range."""
    begins = answer.headers.get("Content-Range", "").startswith(f"bytes {part.size}-")
    if not begins or record is None or not offered.agrees_with(record):
        part.discard()
        raise _TransientError("the file on the server has changed")


def _explain(error: requests.RequestException | ValueError, part: Part) -> DownloadError:
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
