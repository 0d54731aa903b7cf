"""Makes a folder whole or not at all."""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def staged_folder(output: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield an empty folder beside `output`, which takes its place if all goes well.

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
        made_parents = [parent for parent in output.parents if not parent.exists()]
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            folder = pathlib.Path(scratch, output.name)  # with permissions as any other folder
            folder.mkdir()
            yield folder
            os.replace(folder, output)
    except BaseException as error:
        with contextlib.suppress(OSError):
            for parent in made_parents:
                parent.rmdir()
        if isinstance(error, OSError):
            raise ValueError(f"cannot write {output}: {reason(error)}") from error
        raise


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
