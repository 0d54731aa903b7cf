"""Makes a folder whole or not at all."""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows: there, what a killed process leaves stays
    fcntl = None

_LOCK = "keras_megatron.lock"


@contextlib.contextmanager
def staged_folder(output: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield an empty folder beside `output`, which takes its place if all goes well.

    Of several processes that make the same folder, the first to be ready does; the others fail.
    What a process that was killed has left beside `output` is removed by the next one.

    Args:
        output: The folder to make; parents that do not exist are made too.

    Raises:
        ValueError: `output` exists and is not an empty folder, or cannot be written. Whatever is
            raised inside, nothing is left behind.
    """
    output = pathlib.Path(output).absolute()
    made_parents = []
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ValueError(f"{output} exists already: remove it, or choose another place")
        remove_abandoned(output)
        made_parents = [parent for parent in output.parents if not parent.exists()]
        output.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch,
            _in_use(pathlib.Path(scratch)),
        ):
            folder = pathlib.Path(scratch, output.name)  # with permissions as any other folder
            folder.mkdir()
            yield folder
            _move(folder, output)
    except BaseException as error:
        with contextlib.suppress(OSError):
            for parent in made_parents:
                parent.rmdir()
        if isinstance(error, OSError):
            raise ValueError(f"cannot write {output}: {reason(error)}") from error
        raise


def _move(folder: pathlib.Path, output: pathlib.Path) -> None:
    try:
        os.replace(folder, output)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise ValueError(
            f"{output} exists already: another process made it meanwhile, and it is kept"
        ) from error


@contextlib.contextmanager
def _in_use(scratch: pathlib.Path) -> Iterator[None]:
    """Hold a lock in a scratch folder, which the operating system frees if this process dies."""
    if fcntl is None:
        yield
        return
    with open(scratch / f"{_LOCK}.new", "wb") as file:
        with contextlib.suppress(OSError):  # a file system without locks: it is never removed
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(file.name, scratch / _LOCK)  # held from the moment that it is there
        yield


def remove_abandoned(output: pathlib.Path) -> None:
    """Remove the scratch folders of processes that were killed while they made `output`.

    A folder is one if it has a lock that nobody holds; what cannot be removed is left.
    """
    if fcntl is None or not output.parent.is_dir():
        return
    for scratch in output.parent.iterdir():
        lock = scratch / _LOCK
        if not scratch.name.startswith(f".{output.name}.") or scratch.is_symlink():
            continue
        with contextlib.suppress(OSError), open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(scratch, ignore_errors=True)


def reserve_space(folder: pathlib.Path, size: int) -> None:
    """Make sure that a file of `size` bytes fits in a folder, by making one.

    For what HDF5 is about to write: where a write of its fails, it crashes the whole process.

    Raises:
        ValueError: it does not fit.
    """
    ballast = folder / ".ballast"
    try:
        with open(ballast, "wb") as file:
            if shutil.disk_usage(folder).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise ValueError(
            f"there is no room for a file of {size / 1e6:,.0f} MB: {reason(error)}; free some, or "
            "choose another place"
        ) from error
    finally:
        ballast.unlink(missing_ok=True)


def reason(error: OSError) -> str:
    """Say in a few words why the operating system refused."""
    return os.strerror(error.errno) if error.errno else str(error).partition("\n")[0]
