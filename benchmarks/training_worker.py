"""A way to train, which `training.py` times, a step at each question.

python training_worker.py make LAYERS FOLDER
python training_worker.py FORM PRECISION FOLDER
python training_worker.py memory FORM kept|recomputed FOLDER
"""

import functools
import gc
import json
import pathlib
import sys
import time

import numpy as np
import serving_worker
from serving_worker import OURS, THEIRS

RATE, DECAY, CLIP = 1e-5, 0.01, 1.0
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


def make(layers: int, folder: pathlib.Path) -> None:
    """Write a classifier and a masked language model of the 345M shape, of so many layers."""
    import keras

    from keras_megatron import MegatronBertMaskedLM

    model = serving_worker.classifier(layers)
    keras.utils.set_random_seed(1)
    masked = MegatronBertMaskedLM(model.backbone, preprocessor=None)
    for name, task in (("classifier", model), ("masked", masked)):
        task.save_to_preset(folder / name)
        task.export_to_transformers(folder / f"transformers_{name}")


def batch_of(folder: pathlib.Path, name: str) -> tuple[dict, np.ndarray, np.ndarray | None]:
    """Return inputs, labels and, for masked words, weights."""
    with np.load(folder / f"{name}.npz") as arrays:
        inputs = {key: arrays[key] for key in (*OURS, "mask_positions") if key in arrays}
        return inputs, arrays["labels"], arrays.get("weights")


# === The forms: each makes, of the name of a batch, two functions that return a loss ===


def transformers(folder, name, precision="float32", checkpointing=False, compiled=False):
    import torch
    import transformers

    device = serving_worker.device()
    kind = "MaskedLM" if name == "masked" else "SequenceClassification"
    path = folder / f"transformers_{'masked' if name == 'masked' else 'classifier'}"
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(path).to(device)
    if checkpointing:
        model.gradient_checkpointing_enable()
    is_plain = {
        id(p) for n, p in model.named_parameters() if n.endswith("bias") or ".ln." in n.lower()
    }
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in is_plain]},
        {"params": [p for p in model.parameters() if id(p) in is_plain], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, RATE, weight_decay=DECAY, fused=True)
    run = torch.compile(model) if compiled else model
    inputs, labels, weights = batch_of(folder, name)
    tensors = {THEIRS[key]: torch.from_numpy(inputs[key]).long() for key in OURS}
    if name == "masked":
        there = np.full(inputs["token_ids"].shape, -100)
        rows, places = np.nonzero(weights)
        there[rows, inputs["mask_positions"][rows, places]] = labels[rows, places]
        labels = there
    tensors["labels"] = torch.from_numpy(labels).long()
    tensors = {key: tensor.to(device) for key, tensor in tensors.items()}
    mixed = functools.partial(
        torch.autocast, device, torch.bfloat16, enabled=precision == "bfloat16"
    )

    def loss():
        model.eval()
        with torch.no_grad(), mixed():
            return float(model(**tensors).loss)

    def step():
        model.train()
        with mixed():
            result = run(**tensors).loss
        result.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return float(result)

    return {"loss": loss, "step": step}


def transformers_compiled(folder, name, precision="float32"):
    return transformers(folder, name, precision, compiled=True)


def keras_hub(folder, name, precision="float32"):
    import keras

    model = serving_worker.keras_hub_classifier(folder / "classifier", POLICIES[precision])
    optimizer = keras.optimizers.AdamW(RATE, weight_decay=DECAY, global_clipnorm=CLIP)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return _functions(model, batch_of(folder, name)[:2])


def keras_megatron(folder, name, precision="float32", checkpointing=False, jit_compile="auto"):
    import grain

    from keras_megatron import MegatronBertMaskedLM, MegatronBertTextClassifier
    from keras_megatron.finetuning.recipe import adamw
    from keras_megatron.tasks.packed_training import pack_batches

    task, path = MegatronBertTextClassifier, "classifier"
    if name == "masked":
        task, path = MegatronBertMaskedLM, "masked"
    model = task.from_preset(str(folder / path), preprocessor=None, dtype=POLICIES[precision])
    model.backbone.gradient_checkpointing = checkpointing
    optimizer = adamw(RATE, 1000, weight_decay=DECAY, clip=CLIP)
    model.compile(optimizer=optimizer, jit_compile=jit_compile)
    batch = tuple(part for part in batch_of(folder, name) if part is not None)
    return _functions(model, pack_batches(model, grain.MapDataset.source([batch]))[0])


def keras_megatron_compiled(folder, name, precision="float32"):
    return keras_megatron(folder, name, precision, jit_compile=True)


def _functions(model, batch):
    return {
        "loss": lambda: float(np.ravel(model.test_on_batch(*batch))[0]),
        "step": lambda: float(np.ravel(model.train_on_batch(*batch))[0]),
    }


def main(form: str, precision: str, folder: pathlib.Path) -> None:
    held = {}  # functions for one batch: two models would take twice the memory

    def answer(asked):
        name, action = asked
        return np.array([held[name][action]()])

    def prepare(name, action):
        if name not in held:
            held.clear()
            gc.collect()
            held[name] = globals()[form](folder, name, precision)
        return name, action

    serving_worker.serve(answer, prepare)


def memory(form: str, activations: str, folder: pathlib.Path) -> None:
    """Print the peak of memory in two steps, above what imports take."""
    import keras_megatron  # noqa: F401  and all that it brings

    before = _status("VmRSS")
    functions = globals()[form](folder, "fixed", checkpointing=activations == "recomputed")
    functions["step"]()
    start = time.perf_counter()
    functions["step"]()
    seconds = time.perf_counter() - start
    parameters = sum(
        np.prod(shape)
        for shape in _shapes(folder / "transformers_classifier" / "model.safetensors")
    )
    peak = _status("VmHWM") - before
    print(json.dumps({"peak": peak, "seconds": seconds, "parameters": int(parameters)}))


def _status(kind: str) -> float:
    """Return a line of the process's status, in MiB."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[kind].split()[0]) / 1024


def _shapes(path: pathlib.Path) -> list[tuple]:
    import safetensors

    with safetensors.safe_open(path, "numpy") as file:
        return [file.get_slice(name).get_shape() for name in list(file.keys())]


if __name__ == "__main__":
    if sys.argv[1] == "memory":
        memory(*sys.argv[2:4], pathlib.Path(sys.argv[4]))
        sys.exit()
    if sys.argv[1] == "make":
        make(int(sys.argv[2]), pathlib.Path(sys.argv[3]))
    else:
        main(*sys.argv[1:3], pathlib.Path(sys.argv[3]))
