"""Makes a folder whole or not at all, or has it updated so."""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator

try:
    import fcntl
except ImportError:  # Windows: there, what a killed process leaves stays
    fcntl = None

_LOCK = "keras_megatron.lock"
_HDF5_OVERHEAD = 8192  # bytes for each array


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
    with _errors_named(output) as output:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ValueError(f"{output} exists already: remove it, or choose another place")
        with _scratch_for(output, output.parent) as folder:
            yield folder
            _move(folder, output)


@contextlib.contextmanager
def updated_folder(output: str | os.PathLike, outdated: Iterable[str]) -> Iterator[pathlib.Path]:
    """Yield an empty folder beside `output`, whose files join those in `output` if all goes well.

    Args:
        output: The folder; if it does not exist, it is made.
        outdated: Patterns of names of files in `output` that are removed, unless made anew.

    Raises:
        ValueError: `output` is a file, or cannot be written. Whatever is raised inside, `output`
            stays as it was.
    """
    with _errors_named(output) as output:
        if not output.exists():
            with _scratch_for(output, output.parent) as folder:
                yield folder
                _move(folder, output)
        elif not output.is_dir():
            raise ValueError(f"{output} is a file: choose another place")
        else:  # which may be the only place that can be written
            with _scratch_for(output, output) as folder:
                yield folder
                _move_files(folder, output, outdated)


@contextlib.contextmanager
def _errors_named(output: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield the absolute path of what is to be written; name it where that fails."""
    output = pathlib.Path(output).absolute()
    try:
        yield output
    except OSError as error:
        raise ValueError(f"cannot write {output}: {reason(error)}") from error


def _move_files(folder: pathlib.Path, output: pathlib.Path, outdated: Iterable[str]) -> None:
    made = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    for name in made:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / name, output / name)
    for path in [path for pattern in outdated for path in output.glob(pattern)]:
        if path.relative_to(output) not in made:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _scratch_for(output: pathlib.Path, parent: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield an empty folder somewhere in `parent`, for what becomes `output`."""
    made_parents = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            with _alone_in(parent) as alone:
                remove_abandoned(output, parent, alone)
                scratch = stack.enter_context(
                    tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=parent)
                )
                stack.enter_context(_in_use(pathlib.Path(scratch)))
            folder = pathlib.Path(scratch, output.name)  # with permissions as any other folder
            folder.mkdir()
            yield folder
    except BaseException:
        with contextlib.suppress(OSError):
            for made in made_parents:
                made.rmdir()
        raise


@contextlib.contextmanager
def _alone_in(parent: pathlib.Path) -> Iterator[bool]:
    """Yield whether no other process begins a scratch folder in `parent` meanwhile."""
    alone, descriptor = False, None
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks of folders
            descriptor = os.open(parent, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            alone = True
    try:
        yield alone
    finally:
        if descriptor is not None:
            os.close(descriptor)


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


def remove_abandoned(output: pathlib.Path, parent: pathlib.Path, alone: bool = False) -> None:
    """Remove scratch folders in `parent` of processes that were killed while they made `output`.

    A folder is one if it has a lock that nobody holds; what cannot be removed is left.

    Args:
        output: What was to be made.
        parent: Where the scratch folders are.
        alone: Whether no process is about to lock one: then those that are still empty go too.
    """
    if fcntl is None or not parent.is_dir():
        return
    name = re.compile(re.escape(f".{output.name}.") + "[a-z0-9_]{8}")  # as tempfile makes them
    for scratch in parent.iterdir():
        if not name.fullmatch(scratch.name) or scratch.is_symlink() or not scratch.is_dir():
            continue
        with contextlib.suppress(OSError):
            if alone and {path.name for path in scratch.iterdir()} <= {f"{_LOCK}.new"}:
                shutil.rmtree(scratch, ignore_errors=True)
                continue
            with open(scratch / _LOCK, "rb") as file:
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


def hdf5_size(sizes: Collection[int]) -> int:
    """Return how many bytes arrays of so many bytes take in an HDF5 file, rather too many."""
    return sum(sizes) + _HDF5_OVERHEAD * len(sizes)


def reason(error: OSError) -> str:
    """Say in a few words why the operating system refused."""
    return os.strerror(error.errno) if error.errno else str(error).partition("\n")[0]
