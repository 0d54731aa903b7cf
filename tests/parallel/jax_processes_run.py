"""One of several processes with virtual devices: `jax_processes_run.py FOLDER CHECK [CHECK ...]`.

Keras's environment variables say which process it is. What the checks return is written to
FOLDER/PROCESS.json; arguments of a check follow a colon.
"""

import json
import os
import sys
from pathlib import Path

import keras
import numpy as np
from sharded_models import BATCH, TEXTS, Kill, Losses, batch, build, compile_, data, tokenizer

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


def fit(model: keras.Model, callbacks=()) -> list[float]:
    """Train on raw texts; return the losses of the steps."""
    losses = Losses()
    model.fit(TEXTS, batch_size=BATCH, verbose=0, callbacks=[losses, *callbacks])
    return losses.values


def answers(model: keras.Model) -> dict:
    """Evaluate and predict, a number of rows that the mesh does not divide."""
    ids = {name: array[:3] for name, array in batch("MaskedLM")[0].items()}
    return {
        "evaluated": model.evaluate(TEXTS, batch_size=BATCH, verbose=0),
        "predicted": model.predict(ids, verbose=0).tolist(),
    }


def alone(folder: Path) -> dict:
    """Train and answer on one device of one process."""
    if PROCESS > 0:
        return {}
    model = masked_lm()
    return {"losses": fit(model), **answers(model)}


def two_by_two(folder: Path) -> dict:
    """Train on 2x2 devices, answer, and save in each way."""
    keras.utils.set_random_seed(PROCESS)  # each process has other random numbers: must not show
    checkpoint = keras.callbacks.ModelCheckpoint(folder / "checkpoint.keras")
    with parallel.model_parallel(data=2):
        random = float(keras.random.uniform(()))
        model = masked_lm()
        seen = {"random": random, "losses": fit(model, callbacks=[checkpoint]), **answers(model)}
        model.save_weights(folder / "saved.weights.h5")
        model.save_to_preset(str(folder / "preset"))
        for name, variables in (("w", model.weights), ("slots", model.optimizer.variables)):
            values = [variable.numpy() for variable in variables]
            if PROCESS == 0:
                np.savez(folder / name, *values)
        seen["left"] = sorted(path.name for path in folder.iterdir() if path.name[0] == ".")
        seen["errors"] = _errors(model)
    return seen


def one_by_four(folder: Path) -> dict:
    """Train on 1x4 devices, and load what was saved on 2x2."""
    weights, slots = ([*np.load(folder / f"{name}.npz").values()] for name in ("w", "slots"))
    with parallel.model_parallel():
        model = masked_lm()
        seen = {"losses": fit(model)}
        kernel = model.backbone.transformer_layers[0].self_attention.query.kernel.value
        seen["parts"] = [shard.data.shape for shard in kernel.addressable_shards]
        model.load_weights(folder / "saved.weights.h5")
        loaded = keras.saving.load_model(folder / "checkpoint.keras")
        preset = type(model).from_preset(str(folder / "preset"))
        seen["loaded"] = [_are_equal(x.weights, weights) for x in (model, loaded, preset)]
        seen["slots"] = _are_equal(loaded.optimizer.variables, slots)
    return seen


def four_by_one(folder: Path) -> dict:
    """Train on 4x1 devices."""
    with parallel.model_parallel(data=4):
        return {"losses": fit(masked_lm())}


def _are_equal(variables: list, values: list) -> bool:
    pairs = zip(variables, values, strict=True)
    return all(np.array_equal(variable.numpy(), value) for variable, value in pairs)


def _errors(model: keras.Model) -> dict:
    """Return the messages of what must not run."""
    messages = {}
    (x, y, weight), value = batch("MaskedLM"), model.weights[0].numpy()
    for name, call in {
        "batch": lambda: model.train_on_batch(x, y + PROCESS, weight),
        "variable": lambda: model.weights[0].assign(value + PROCESS),
    }.items():
        try:
            call()
        except ValueError as error:
            messages[name] = str(error)
    return messages


def resumable(folder: Path, kill_in_epoch: str) -> list[float]:
    """Fit three epochs with a backup after each; return the losses of the steps."""
    with parallel.model_parallel(data=2):
        backup = keras.callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False)
        kill = [Kill(int(kill_in_epoch), 0, folder)] if PROCESS == 1 else []
        losses = Losses()
        # Raw texts would be masked anew in each epoch, in another way after a new start.
        x, y, weight = data("MaskedLM")
        masked_lm().fit(
            x,
            y,
            sample_weight=weight,
            batch_size=BATCH,
            epochs=3,
            shuffle=False,
            verbose=0,
            callbacks=[losses, backup, *kill],
        )
    return losses.values


def main(folder: Path, checks: list[str]) -> None:
    """Run checks, and write what they return."""
    results = {}
    for check in checks:
        name, *arguments = check.split(":")
        results[check] = globals()[name](folder, *arguments)
    (folder / f"{PROCESS}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
