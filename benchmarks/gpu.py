"""Speed on a GPU in bfloat16: inference, training steps and what they use of the device.

    python benchmarks/gpu.py DATA_FOLDER benchmarks/results [--layers 24]

DATA_FOLDER is as for inference.py. Each form has a process of its own, with the same weights, and
they take turns on the one GPU; the backends that are installed take part. Results have to be equal
before anything is timed. A training step is one of mixed precision: bfloat16 products, float32
weights, dropout, clipping, AdamW. The utilisation is that of `pretraining.throughput`, of the dense
bfloat16 products in the device's data sheet. Writes two CSVs with the device in their names, and
plots.
"""

import argparse
import importlib.util
import os
import pathlib
import tempfile

import inference
import training
from turns import Kind, compare, gpu, make, shape_345m, show, started, write_and_plot

BACKENDS = {key: name for key, name in inference.BACKENDS.items() if importlib.util.find_spec(key)}
FORMS = {
    "transformers": Kind("transformers", "bfloat16", "torch"),
    "transformers, compiled": Kind("transformers_compiled", "bfloat16", "torch"),
    **{name: Kind("keras_megatron", "bfloat16", key) for key, name in BACKENDS.items()},
    "PyTorch, compiled": Kind("keras_megatron_compiled", "bfloat16", "torch"),
}
TOGETHER = (  # in the memory while training
    ("transformers, compiled", "PyTorch, compiled"),
    ("JAX", "TensorFlow"),
    ("transformers", "PyTorch"),
)
BATCH, LENGTH = 32, 512
SENTENCES, DOCUMENTS = 128, 32  # texts a batch
WORKS = ("inference", "training")


def main():
    options = parse_options()
    os.environ.setdefault("KERAS_BACKEND", next(iter(BACKENDS)))  # of this process
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # others are on the GPU too
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        counts = inference.write_texts(options, folder)
        batches = training.write_batches(options.data, folder, BATCH, LENGTH, 2 * SENTENCES)
        make(training.WORKER, options.layers, folder)
        (folder / "preset").symlink_to("classifier")
        (folder / "transformers").symlink_to("transformers_classifier")
        if "training" in options.works:
            save("training", measure_training(options, folder, batches), options)
        if "inference" in options.works:
            with started(inference.WORKER, FORMS, folder, os.cpu_count()) as forms:
                save("inference", measure_inference(forms, options, counts), options)


def save(name: str, panels: dict[str, list[dict]], options) -> None:
    """Write a table and its plot, with the device in their names."""
    machine = gpu().replace(" ", "_") or "no_gpu"
    name = f"{name}_bfloat16_{options.layers}_layers_{machine}"
    write_and_plot(panels, options.output, name, ", all in bfloat16")


def measure_inference(forms: list, options, counts: dict[str, int]) -> dict[str, list[dict]]:
    """Time two fixed shapes, and real texts; what is compiled anew for each shape is left out."""
    works = {
        "32 x 128, no padding": (["ids", 32, 128], 32 * 128, forms),
        f"{BATCH} x {LENGTH}, no padding": (["ids", BATCH, LENGTH], BATCH * LENGTH, forms),
    }
    eager = [form for form in forms if form.kind.form != "transformers_compiled"]
    for name, batch in (("sentences", SENTENCES), ("documents", DOCUMENTS)):
        texts = getattr(options, name)
        title = f"{texts} {name}, {counts[name] / texts:.0f} tokens each"
        works[title] = (["texts", name, batch], counts[name], eager)
    panels = {}
    for title, (question, tokens, able) in works.items():
        panels[title] = compare(able, question, options.rounds, tokens, at_once=True)
        show(title, panels[title])
    return panels


def measure_training(options, folder: pathlib.Path, batches: dict) -> dict[str, list[dict]]:
    """Time steps, with the part of the device's peak that they use."""
    from keras_megatron.pretraining.throughput import peak_flops, training_flops

    works = {title: work for title, work in batches.items() if work[0] in options.batches}
    panels = {title: [] for title in works}
    groups = [[name for name in names if name in FORMS] for names in TOGETHER]
    for able in filter(None, groups):
        with started(training.WORKER, FORMS, folder, os.cpu_count(), able) as forms:
            for title, (name, tokens, masks) in works.items():
                question, warm = [name, "step"], [name, "loss"]
                rows = compare(forms, question, options.rounds, tokens, warm, at_once=True)
                flops = training_flops(shape_345m(options.layers), tokens, LENGTH, masks)
                is_known = peak_flops(gpu()) and name != "sentences"
                for row in rows:
                    used = flops / row["seconds"] / peak_flops(gpu()) if is_known else 0
                    row["model_flop_utilisation"] = round(used, 3) if is_known else ""
                panels[title] += rows
    for title, rows in panels.items():
        rows.sort(key=lambda row: list(FORMS).index(row["form"]))
        for row in rows:
            row["times_reference"] = round(rows[0]["seconds"] / row["seconds"], 3)
        show(title, rows)
    return panels


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=pathlib.Path, metavar="DATA_FOLDER")
    parser.add_argument("output", type=pathlib.Path, help="folder")
    parser.add_argument("--layers", type=int, default=24, help="of the 345M shape")
    parser.add_argument("--sentences", type=int, default=1024)
    parser.add_argument("--documents", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", nargs="+", default=["fixed", "sentences", "masked"])
    parser.add_argument("--works", nargs="+", default=WORKS, choices=WORKS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
