"""Conversions in processes of their own that start at once: Keras is imported before they fork.

Of each format that `staged_folder` makes there is how it is written, and how it is loaded.
"""

import ctypes
import dataclasses
import json
import multiprocessing
import os
import pathlib
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing import forkserver

from keras_megatron import MegatronBertBackbone, MegatronBertMaskedLM
from keras_megatron.checkpoints.megatron import read_megatron
from keras_megatron.checkpoints.sources import open_checkpoint
from keras_megatron.conversion import convert

# Of <sched.h> and <sys/mount.h>.
_NEW_NAMESPACE, _NEW_USER, _PRIVATE = 0x20000, 0x10000000, 1 << 18 | 1 << 14


# === Formats ===


def writer(to):
    def write(source, output, vocabulary):
        convert(source, output, to, vocabulary=vocabulary, progress=False)

    return write


def load_preset(folder):
    return MegatronBertMaskedLM.from_preset(str(folder))


def load_transformers(folder):
    """With this package, which checks every weight: transformers takes seconds to import."""
    return MegatronBertBackbone.from_preset(str(folder))


def load_megatron(folder):
    for array in read_megatron(open_checkpoint(folder, folder)).weights.values():
        array.read()


@dataclasses.dataclass(frozen=True)
class Format:
    """What a conversion makes.

    Attributes:
        write: Takes the source, the output and a vocabulary.
        load: Takes the output; raises if it is not whole.
    """

    write: Callable
    load: Callable


FORMATS = {
    "keras": Format(writer("keras"), load_preset),
    "transformers": Format(writer("transformers"), load_transformers),
    "megatron": Format(writer("megatron"), load_megatron),
}


# === Processes ===


def start_server():
    """Start the process that imports Keras, of which the others are copies; once."""
    multiprocessing.set_forkserver_preload(["conversions"])
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # it does not take ours over by itself
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if path is not None:
            os.environ["PYTHONPATH"] = path


class Conversion:
    """A process that converts; it exits with 2 after an error.

    Args:
        report: File for what it says in the end.
        name: Of the format.
        arguments: Of `Format.write`.
        prepare: Called before, with the arguments that follow it.
    """

    context = multiprocessing.get_context("forkserver")

    def __init__(self, report, name, *arguments, prepare=()):
        self.report = pathlib.Path(report)
        self.report.unlink(missing_ok=True)
        start_server()
        self.process = self.context.Process(
            target=_convert, args=(report, name, arguments, prepare)
        )
        self.process.start()

    def kill(self):
        self.process.kill()
        self.process.join()

    def result(self):
        """Wait for the end; return the exit status, the error, and what is beside the output."""
        self.process.join(120)
        said = json.loads(self.report.read_text()) if self.report.exists() else {}
        return self.process.exitcode, said.get("error"), said.get("left")


def _convert(report, name, arguments, prepare):
    error = None
    if prepare:
        prepare[0](*prepare[1:])
    try:
        FORMATS[name].write(*arguments)
    except ValueError as caught:
        error = str(caught)
    output = pathlib.Path(arguments[1])
    if output.exists():
        FORMATS[name].load(output)
    left = sorted(path.name for path in output.parent.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    pathlib.Path(report).write_text(json.dumps({"error": error, "left": left}))
    sys.stdout.flush()
    os._exit(2 if error else 0)  # no backend's threads are waited for


# === Small disks ===


def small_disk(folder, size):
    """Put a file system of so many bytes on a folder, for this process alone; or raise OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    options = f"size={max(size, 4096)}".encode()
    flags = _NEW_NAMESPACE | (0 if os.getuid() == 0 else _NEW_USER)
    if (
        library.unshare(flags)
        or library.mount(b"none", b"/", None, _PRIVATE, None)
        or library.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options)
    ):
        raise OSError(ctypes.get_errno(), "cannot mount a file system")


def can_have_small_disks(folder):
    """Say whether the system lets this user have them; containers often do not."""
    start_server()
    process = Conversion.context.Process(target=small_disk, args=(folder, 4096))
    process.start()
    process.join()
    return process.exitcode == 0


def small_files(folder, size, unprepared=False):
    """Let no file have more bytes: what a full disk does, at another place.

    Args:
        folder: Ignored.
        size: In bytes.
        unprepared: Do not let the converter try first whether there is room, as if another process
            filled the disk after that.
    """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    if unprepared:
        for name in ("checkpoints.convert", "presets.saver"):
            sys.modules[f"keras_megatron.{name}"].reserve_space = lambda folder, size: None
