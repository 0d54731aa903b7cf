"""Where converted weights live, and how they get there.

    $KERAS_HOME/models/keras_megatron/NAME/     (KERAS_HOME is ~/.keras by default)
        format_2/       the converted preset; its source.json says what it was made from
        *.zip           the release, until it is converted; one that you put here is used, and kept
        *.zip.part      what an interrupted download got so far
        converting/     a conversion at work, or what a killed one left: never used, soon removed
        lock            held by the one process that downloads and converts

`format_2` appears by one renaming, so it is whole or absent. KERAS_MEGATRON_KEEP_DOWNLOADS=1 keeps
the downloaded zip too.
"""

import contextlib
import gc
import hashlib
import json
import os
import pathlib
import random
import shutil
import sys
import zipfile
from collections.abc import Iterator

import filelock

from keras_megatron.checkpoints import convert_checkpoint
from keras_megatron.presets.download import DownloadError, download
from keras_megatron.presets.partial_file import discard_part, is_download, record_file
from keras_megatron.presets.registry import Preset
from keras_megatron.version import __version__

FORMAT = 2  # of the converted files; a higher number makes everybody convert again
SIZES = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim")
FILES = ("config.json", "model.weights.h5", "task.weights.h5")  # what a conversion makes
KEEP_VARIABLE = "KERAS_MEGATRON_KEEP_DOWNLOADS"


def cache_folder() -> pathlib.Path:
    """Return the folder with a folder for each preset; it need not exist."""
    home = os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras"
    return pathlib.Path(home).expanduser() / "models" / "keras_megatron"


def cached_folder(name: str) -> pathlib.Path | None:
    """Return the folder of a preset's converted weights, or None if they are not there."""
    folder = _converted_folder(name)
    return folder if folder.is_dir() else None


def _converted_folder(name: str) -> pathlib.Path:
    return cache_folder() / name / f"format_{FORMAT}"


def converted_weights(preset: Preset) -> pathlib.Path:
    """Return the folder of a preset's converted weights; download and convert them if need be.

    Raises:
        ValueError: no weights were released, or they cannot be fetched, converted or stored. The
            line says what to do.
    """
    if preset.release is None:
        raise ValueError(
            f"no weights were released for {preset.name}: pass load_weights=False to build it with "
            "random ones"
        )
    ready = _converted_folder(preset.name)
    try:
        if not ready.is_dir():
            ready.parent.mkdir(parents=True, exist_ok=True)
            with _locked(ready.with_name("lock"), preset.name):
                if not ready.is_dir():  # another process may have made it while this one waited
                    _make(preset, ready)
        missing = [name for name in FILES if not (ready / name).is_file()]
    except OSError as error:
        raise ValueError(
            f"cannot store {preset.name} in {ready.parent}: {error.strerror or error}; make room "
            "there, or set KERAS_HOME to a folder that can be written"
        ) from error
    if missing:
        raise ValueError(f"{ready} lacks {', '.join(missing)}: remove {ready} to convert again")
    return ready


@contextlib.contextmanager
def _locked(path: pathlib.Path, name: str) -> Iterator[None]:
    """Hold a lock that the operating system frees if this process dies."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"Waiting for another process, which prepares {name} ...", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(preset: Preset, ready: pathlib.Path) -> None:
    folder = ready.parent
    archive = _archive(preset, folder)
    if not is_download(archive):  # one that was put there, beside the record of another one
        record_file(archive).unlink(missing_ok=True)
    _convert(preset, archive, ready)
    discard_part(folder / preset.release.file_name)
    if is_download(archive) and os.environ.get(KEEP_VARIABLE, "0") in ("", "0"):
        _remove_download(archive)


def _remove_download(archive: pathlib.Path) -> None:
    archive.unlink()
    record_file(archive).unlink()


def _archive(preset: Preset, folder: pathlib.Path) -> pathlib.Path:
    """Return the release's zip: the one in the folder, or else the one that was published."""
    placed = sorted(folder.glob("*.zip"))
    if len(placed) > 1:
        names = ", ".join(path.name for path in placed)
        raise ValueError(f"{folder} holds more than one zip ({names}): keep the right one")
    if placed:
        return placed[0]
    url, archive = preset.release.url, folder / preset.release.file_name
    try:
        download(url, archive)
        if not zipfile.is_zipfile(archive):
            _remove_download(archive)
            raise DownloadError("what the server sent is not a zip")
    except DownloadError as error:
        raise ValueError(
            f"cannot download {preset.name}: {error}. Fetch {url} by other means, then either put "
            f"it at {archive}, or run `keras-megatron convert FILE.zip DIR --vocabulary "
            f"{preset.vocabulary}` and give DIR to from_preset"
        ) from error
    return archive


def _convert(preset: Preset, archive: pathlib.Path, ready: pathlib.Path) -> None:
    scratch = ready.with_name("converting")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    random_state = random.getstate()
    try:
        made = scratch / ready.name
        convert_checkpoint(archive, made, vocabulary=preset.vocabulary)
        _check_sizes(preset, made)
        source = _describe(archive)
        (made / "source.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
        made.rename(ready)
    except ValueError as error:
        raise ValueError(
            f"{error} (to download {preset.name} again remove {archive}; to move the cache to "
            "another disk set KERAS_HOME)"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        random.setstate(random_state)  # Keras draws seeds from it: a seeded run stays reproducible
        gc.collect()  # the model of the conversion has reference cycles; another one comes next


def _check_sizes(preset: Preset, made: pathlib.Path) -> None:
    """Refuse the zip of another model."""
    found = json.loads((made / "config.json").read_text(encoding="utf-8"))["config"]
    expected = preset.backbone_arguments()
    for name in SIZES:
        if found[name] != expected[name]:
            raise ValueError(
                f"this is not the zip of {preset.name}: {name} is {found[name]} instead of "
                f"{expected[name]}"
            )


def _describe(archive: pathlib.Path) -> dict:
    """Say what a conversion was made from, for those who want the same again."""
    with open(archive, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    record = record_file(archive)
    server = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    return {
        "format": FORMAT,
        "keras_megatron": __version__,
        "file": archive.name,
        **server,
        "bytes": archive.stat().st_size,
        "sha256": sha256,
    }
