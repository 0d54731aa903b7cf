"""A way to run a classifier over ids or real texts, which `inference.py` times.

python inference_worker.py make LAYERS FOLDER
python inference_worker.py FORM PRECISION FOLDER
"""

import functools
import pathlib
import sys
import time

import numpy as np
import serving_worker
from serving_worker import OURS

HIDDEN, INTERMEDIATE = 1024, 4096


def make(layers: int, folder: pathlib.Path) -> None:
    """Write a classifier of the 345M shape, of so many layers, in every form."""
    from keras_megatron import serving

    model = serving_worker.classifier(layers)
    model.save_to_preset(folder / "preset")
    model.export_to_transformers(folder / "transformers")
    for precision in ("float32", "bfloat16"):
        path = folder / f"openvino_{precision}"
        serving.export(model, path, format="openvino", precision=precision, warmup=False)
    serving_worker.write_transformers(serving_worker.hugging_face(folder, "float32"), folder)


# === The forms: each a function of ids and of the texts in a batch that returns logits ===


def transformers(folder, precision, in_order=None):
    return _padded(serving_worker.transformers(folder, precision), in_order)


def transformers_compiled(folder, precision):
    return _padded(serving_worker.transformers_compiled(folder, precision))


def transformers_sorted(folder, precision):
    by_length = functools.partial(np.argsort, kind="stable")
    return transformers(folder, precision, in_order=by_length)


def transformers_onnx(folder, precision):
    return _padded(serving_worker.transformers_onnx(folder, precision))


def transformers_openvino(folder, precision):
    return _padded(serving_worker.transformers_openvino(folder, precision))


def openvino(folder, precision):
    return _padded(serving_worker.openvino(folder, precision))


def keras_hub(folder, precision):
    model = serving_worker.keras_hub_classifier(folder / "preset", precision)
    return _padded(lambda inputs: np.asarray(model.predict_on_batch(inputs), "float32"))


def keras_megatron(folder, precision, jit_compile="auto"):
    from keras_megatron import MegatronBertTextClassifier

    model = MegatronBertTextClassifier.from_preset(
        str(folder / "preset"), preprocessor=None, dtype=precision
    )
    model.compile(jit_compile=jit_compile)
    return lambda inputs, batch: model.logits(inputs, batch_size=batch)


def keras_megatron_compiled(folder, precision):
    return keras_megatron(folder, precision, jit_compile=True)


def _padded(answer, in_order=None):
    """Run batches, each padded to its longest row."""

    def run(inputs, batch):
        lengths = inputs["padding_mask"].sum(axis=1)
        order = np.arange(len(lengths)) if in_order is None else in_order(lengths)
        logits = [None] * len(order)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            longest = lengths[rows].max()
            part = {name: array[rows, :longest] for name, array in inputs.items()}
            for row, of_row in zip(rows, answer(part), strict=True):
                logits[row] = of_row
        return np.stack(logits)

    return run


# === What is asked ===


def inputs_for(folder: pathlib.Path, kind: str, *numbers) -> tuple:
    """Return ids, and how many rows a batch has."""
    if kind == "ids":
        batch, length = numbers
        return serving_worker.inputs_of(batch, length), batch
    name, batch = numbers
    with np.load(folder / f"{name}.npz") as arrays:
        return {name: arrays[name] for name in OURS}, batch


def products_seconds(form: str, precision: str, tokens: int) -> float:
    """Return the seconds of one layer's six products with kernels, alone; 0 if not of a backend."""
    import keras

    if form not in ("keras_megatron", "keras_hub", "transformers"):
        return 0.0
    backend = keras.config.backend()
    shapes = [(HIDDEN, HIDDEN)] * 4 + [(HIDDEN, INTERMEDIATE), (INTERMEDIATE, HIDDEN)]
    made = np.random.default_rng(0).normal
    pairs = [
        tuple(keras.ops.convert_to_tensor(made(size=s), precision) for s in ((tokens, a), (a, b)))
        for a, b in shapes
    ]
    product, finished = _product_on(backend)

    def run():
        finished([product(*pair) for pair in pairs])

    run()
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def _product_on(backend: str):
    """Return a backend's product of matrices, and what waits for its results."""
    if backend == "jax":
        import jax

        return jax.jit(lambda a, b: a @ b), jax.block_until_ready
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda a, b: a @ b), lambda results: [x.numpy().shape for x in results]
    import torch

    on_gpu = torch.cuda.is_available()
    finished = (lambda results: torch.cuda.synchronize()) if on_gpu else lambda results: None
    return torch.inference_mode()(torch.matmul), finished


def main(form: str, precision: str, folder: pathlib.Path) -> None:
    run = globals()[form](folder, precision)

    def answer(asked):
        if asked[0] == "products":
            return np.array([products_seconds(form, precision, asked[1])])
        return run(*asked)

    def prepare(*question):
        return question if question[0] == "products" else inputs_for(folder, *question)

    serving_worker.serve(answer, prepare)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(int(sys.argv[2]), pathlib.Path(sys.argv[3]))
    else:
        main(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]))
