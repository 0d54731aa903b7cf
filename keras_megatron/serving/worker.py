"""The part of an export that runs on Keras's TensorFlow backend, whatever backend trained a model.

    echo SETTINGS | KERAS_BACKEND=tensorflow python -m keras_megatron.serving.worker PRESET FOLDER

SETTINGS is JSON of `ExportSettings`. The last line of what it prints is JSON: what was written, or
an `error`.
"""

import contextlib
import json
import pathlib
import sys

import keras
import keras_hub

from keras_megatron.presets.stored_task import is_quantized
from keras_megatron.serving.loading import load
from keras_megatron.serving.settings import ExportSettings


def write(preset: str, folder: pathlib.Path, settings: ExportSettings) -> dict:
    """Load a preset and write it as a SavedModel.

    Args:
        preset: a folder or a name.
        folder: empty; what is written goes there.
        settings: what was asked for.

    Returns:
        What `write_saved_model` says of it.

    Raises:
        ValueError: the preset cannot be loaded, or not be written in this way.
    """
    from keras_megatron.serving.saved_model import write_saved_model

    model = load(preset, settings, "bfloat16" if settings.precision == "bfloat16" else "float32")
    if settings.precision == "int8" and not is_quantized(preset):
        model.quantize("int8")
    if settings.sampler is not None:
        model.compile(sampler=_sampler(settings.sampler))
    return write_saved_model(model, folder, settings)


def _sampler(config: dict) -> keras_hub.samplers.Sampler:
    """Make the sampler that the model was compiled with.

    Raises:
        ValueError: it is a class of the user's, which this process may not know.
    """
    with contextlib.suppress(TypeError):
        sampler = keras_hub.samplers.deserialize(config)
        if isinstance(sampler, keras_hub.samplers.Sampler):
            return sampler
    name = config["class_name"]
    raise ValueError(
        f"the sampler {name} is none of KerasHub's: compile the model with one that is"
    )


def main() -> None:
    """Do what the module says; exit with 2 after an error of the user's."""
    preset, folder = sys.argv[1:]
    settings = ExportSettings(**json.load(sys.stdin))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            written = write(preset, pathlib.Path(folder), settings)
    except ValueError as error:
        print(json.dumps({"error": str(error)}))
        sys.exit(2)
    print(json.dumps(written))


if __name__ == "__main__":
    assert keras.backend.backend() == "tensorflow"
    main()
