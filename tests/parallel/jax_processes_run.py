"""One of several processes with virtual devices: `jax_processes_run.py FOLDER CHECK [CHECK ...]`.

Keras's environment variables say which process it is. What the checks return is written to
FOLDER/PROCESS.json; arguments of a check follow a colon.
"""

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import keras
import numpy as np
from sharded_models import BATCH, TEXTS, Losses, batch, build, compile_, tokenizer

import keras_megatron
from keras_megatron import parallel

PROCESS = int(os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", 0))


def masked_lm(seed: int = 0) -> keras.Model:
    """Return a compiled model of raw texts."""
    preprocessor = keras_megatron.MegatronBertMaskedLMPreprocessor(
        tokenizer=tokenizer(), sequence_length=24, mask_selection_length=5, seed=0
    )
    model = build("MaskedLM", seed=seed, preprocessor=preprocessor, num_layers=1)
    compile_(model)
    return model


def fit(model: keras.Model, epochs: int = 1, callbacks=()) -> list[float]:
    """Train on raw texts; return the losses of the steps."""
    losses = Losses()
    settings = {"batch_size": BATCH, "epochs": epochs, "verbose": 0}
    model.fit(TEXTS, callbacks=[losses, *callbacks], **settings)
    return losses.values


def training(folder: Path) -> dict:
    """Fit, evaluate and predict on raw texts, a number of these that no mesh divides."""
    model = masked_lm()
    seen = {"losses": fit(model), "evaluated": model.evaluate(TEXTS, verbose=0)}
    seen["predicted"] = model.predict(TEXTS[:3], verbose=0).tolist()
    seen["filled"] = model.fill_mask("it was the [MASK] of times,", top_k=1)[0][0]["score"]
    return seen


def sharded(folder: Path, data: str) -> dict:
    """Do the same on the devices of all processes."""
    # Each process has other random numbers, which must not show.
    keras.utils.set_random_seed(PROCESS)
    with parallel.model_parallel(data=int(data)):
        first = keras.ops.convert_to_numpy(keras.random.uniform((4,)))
        return {**training(folder), "random": _hash(first)}


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def saving(folder: Path) -> dict:
    """Train and save in each way, on 2x2 devices; load on 1x4, and go on."""
    callbacks = [
        keras.callbacks.ModelCheckpoint(folder / "checkpoint.keras"),
        keras.callbacks.CSVLogger(folder / f"{PROCESS}.csv"),
    ]
    with parallel.model_parallel(data=2):
        model = masked_lm(seed=3)
        fit(model, callbacks=callbacks)
        model.save_weights(folder / "saved.weights.h5")
        model.save_to_preset(str(folder / "preset"))
        weights = [weight.numpy() for weight in model.weights]
        slots = [variable.numpy() for variable in model.optimizer.variables]
        seen = {"loss": float(model.train_on_batch(*batch("MaskedLM"), return_dict=True)["loss"])}
    seen["left"] = sorted(path.name for path in folder.iterdir() if path.name[0] == ".")
    with parallel.model_parallel():
        other = masked_lm(seed=4)
        other.load_weights(folder / "saved.weights.h5")
        preset = type(other).from_preset(str(folder / "preset"))
        loaded = keras.saving.load_model(folder / "checkpoint.keras")
        for name, model in (("weights", other), ("preset", preset), ("keras", loaded)):
            seen[name] = _are_equal(model.weights, weights)
        seen["slots"] = _are_equal(loaded.optimizer.variables, slots)
        seen["query"] = loaded.backbone.transformer_layers[
            0
        ].self_attention.query.kernel.value.sharding.shard_shape((16, 4, 4))
        seen["loss again"] = float(
            loaded.train_on_batch(*batch("MaskedLM"), return_dict=True)["loss"]
        )
    return seen


def _are_equal(variables: list, values: list) -> bool:
    pairs = zip(variables, values, strict=True)
    return all(np.array_equal(variable.numpy(), value) for variable, value in pairs)


def errors(folder: Path) -> dict:
    """Return the messages of what must not run."""
    messages = {}

    @contextlib.contextmanager
    def noting(name: str):
        try:
            yield
        except ValueError as error:
            messages[name] = str(error)

    with parallel.model_parallel(data=2):
        model = masked_lm()
        x, y, weight = batch("MaskedLM")
        with noting("batch"):
            model.train_on_batch(x, y + PROCESS, weight)
        with noting("variable"):
            model.weights[0].assign(model.weights[0].numpy() + PROCESS)
    return messages


class _Kill(keras.callbacks.Callback):
    """Kills process 1 in the middle of an epoch."""

    def __init__(self, epoch: int, folder: Path):
        super().__init__()
        self.epoch, self.folder, self.now = epoch, folder, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.epoch and batch == 0 and PROCESS == 1:
            (self.folder / "killed_at").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)


def resumable(folder: Path, kill_in_epoch: str) -> list[float]:
    """Fit three epochs with a backup after each; return the losses of the steps."""
    with parallel.model_parallel(data=2):
        backup = keras.callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False)
        model = masked_lm()
        return fit(model, epochs=3, callbacks=[backup, _Kill(int(kill_in_epoch), folder)])


def main(folder: Path, checks: list[str]) -> None:
    """Run checks, and write what they return."""
    results = {}
    for check in checks:
        name, *arguments = check.split(":")
        results[check] = globals()[name](folder, *arguments)
    (folder / f"{PROCESS}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
