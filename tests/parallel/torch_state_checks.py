"""What each process of `torch_run.py` does: files, errors and interrupted runs."""

import contextlib
import sys
from pathlib import Path

import keras
import numpy as np
import sharded_models as models
import torch.distributed as dist

from keras_megatron import parallel

sys.path.append(str(Path(__file__).parents[2] / "tools"))
import checkpoint_matrix


def save(folder) -> dict:
    """Train, and save in each way."""
    with parallel.model_parallel():
        model = models.build("MaskedLM", seed=3)
        models.compile_(model)
        models.train(model, "MaskedLM")
        model.save_weights(folder / "saved.weights.h5")
        model.save(folder / "saved.keras")
        model.save_to_preset(preset_dir=str(folder / "preset"))
        model.backbone.export_to_transformers(folder / "exported")
        values = {v.path: v.numpy() for v in model.weights}
        if dist.get_rank() == 0:
            np.savez(folder / "values.npz", **values)
    return {"left": sorted(path.name for path in folder.iterdir() if path.name[0] == ".")}


def load(folder) -> dict:
    """Load what `save` saved on other processes; return what is not bit-equal."""
    saved = folder.parent / "two"
    values = np.load(saved / "values.npz")
    wrong = {}
    with parallel.model_parallel(data=2):
        model = models.build("MaskedLM", seed=4)
        models.compile_(model)
        model.load_weights(saved / "saved.weights.h5")
        preset = type(model).from_preset(str(saved / "preset"), preprocessor=None)
        for name, loaded in (("weights", model), ("preset", preset)):
            wrong[name] = [
                v.path for v in loaded.weights if not np.array_equal(v.numpy(), values[v.path])
            ]
            assert len(loaded.weights) == len(values)
    return wrong


def matrix(folder) -> None:
    """Save as a cell of tools/checkpoint_matrix.py does."""
    (folder / "torch 2").mkdir(exist_ok=True)
    checkpoint_matrix.work(folder, "save", 2, ["torch 2"])


def errors(folder) -> dict:
    """Return the messages of what must not run."""
    messages = {}

    @contextlib.contextmanager
    def noting(name: str):
        try:
            yield
        except ValueError as error:
            messages[name] = str(error)

    x, y, _ = models.batch("TextClassifier")
    outside = models.build("TextClassifier")
    models.compile_(outside)
    with noting("devices"), parallel.model_parallel(model=3):
        pass
    with noting("other devices"), parallel.model_parallel(devices=["gpu:0"]):
        pass
    with parallel.model_parallel(data=2):
        with noting("outside"):
            outside.fit(x, y, verbose=0)
        with noting("nested"), parallel.model_parallel():
            pass
        model = models.build("TextClassifier")
        models.compile_(model)
        three = keras.tree.map_structure(lambda array: array[:3], (x, y))
        with noting("batch"):
            model.train_on_batch(*three)
        with noting("different"):
            model.train_on_batch(x, np.roll(y, dist.get_rank()))
    with noting("vocabulary"), parallel.model_parallel():
        models.build("TextClassifier", vocabulary_size=55)
    return messages


def resumable(folder, kill_in_epoch: str) -> dict:
    """Fit four epochs with a backup after each; return the losses by epoch."""
    x, y, weight = models.data("MaskedLM")
    with parallel.model_parallel():
        model = models.build("MaskedLM")
        models.compile_(model)
        kill = [models.Kill(int(kill_in_epoch), 1, folder)] if dist.get_rank() == 1 else []
        callbacks = [
            *kill,
            keras.callbacks.BackupAndRestore(str(folder / "backup"), delete_checkpoint=False),
            keras.callbacks.ModelCheckpoint(
                str(folder / "epoch_{epoch}.weights.h5"), save_weights_only=True
            ),
        ]
        history = model.fit(
            x,
            y,
            sample_weight=weight,
            batch_size=models.BATCH,
            shuffle=False,
            verbose=0,
            epochs=4,
            callbacks=callbacks,
        )
    return dict(zip(map(str, history.epoch), history.history["loss"], strict=True))
