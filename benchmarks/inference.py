"""Speed of inference: a fixed shape, real sentences, real documents; here and with the peers.

    python benchmarks/inference.py DATA_FOLDER benchmarks/results [--precision bfloat16]

DATA_FOLDER holds finetune/sentiment.tsv, as for examples/, and corpus/postgres.txt.xz, the
PostgreSQL manual with an empty line between documents, which are cut at 512 tokens.

One classifier of the 345M shape with random weights, in every form; each form has a process of its
own, and they take turns. Peers get batches that are padded to the longest text. Results have to be
equal before anything is timed, but for KerasHub's Bert, which is another model of the same size.
Writes a CSV with the machine in its name, and a plot. Needs about 18 GB of memory for 24 layers.
"""

import argparse
import lzma
import os
import pathlib
import tempfile

import numpy as np
from turns import Kind, compare, make, show, started, write_and_plot

WORKER = pathlib.Path(__file__).with_name("inference_worker.py")
BACKENDS = {"jax": "JAX", "torch": "PyTorch", "tensorflow": "TensorFlow"}
SENTENCES, DOCUMENTS = 32, 8  # texts a batch


def forms_of(precision: str) -> dict[str, Kind]:
    """Return what is compared, `transformers` first."""
    hub = "jax" if precision == "float32" else "torch"  # where it is fastest
    kinds = {
        "transformers": Kind("transformers", precision, "torch"),
        "transformers, compiled": Kind("transformers_compiled", precision, "torch"),
        "transformers, sorted by length": Kind("transformers_sorted", precision, "torch"),
        "transformers, onnxruntime": Kind("transformers_onnx", precision, "torch"),
        "transformers, OpenVINO": Kind("transformers_openvino", precision, "torch"),
        f"KerasHub Bert, {BACKENDS[hub]}": Kind("keras_hub", precision, hub, same_model=False),
        "OpenVINO": Kind("openvino", precision, "torch"),
        **{name: Kind("keras_megatron", precision, key) for key, name in BACKENDS.items()},
    }
    if precision == "bfloat16":
        del kinds["transformers, onnxruntime"]  # has none on a CPU
    return kinds


def main():
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        counts = write_texts(options, folder)
        make(WORKER, options.layers, folder)
        kinds = forms_of(options.precision)
        with started(WORKER, kinds, folder, options.threads, options.only) as forms:
            panels = {}
            for title, (question, tokens) in works(options, counts).items():
                is_short = question[0] == "ids"
                rounds = options.rounds * (3 if is_short else 1)
                panels[title] = compare(forms, question, rounds, tokens)
                if is_short:
                    add_products(panels[title], forms, tokens, options.layers)
                show(title, panels[title])
    name = f"inference_{options.precision}_{options.layers}_layers_{options.threads}_cpu_threads"
    columns = {key: "" for rows in panels.values() for row in rows for key in row}
    panels = {title: [{**columns, **row} for row in rows] for title, rows in panels.items()}
    write_and_plot(panels, options.output, name, f", all in {options.precision}")


def works(options, counts: dict[str, int]) -> dict[str, tuple[list, int]]:
    """Return the questions to forms, and how many tokens each has, by titles."""
    sentences, documents = counts["sentences"], counts["documents"]
    return {
        "4 x 128, no padding": (["ids", 4, 128], 512),
        f"{options.sentences} sentences, {sentences / options.sentences:.0f} tokens each": (
            ["texts", "sentences", SENTENCES],
            sentences,
        ),
        f"{options.documents} documents, {documents / options.documents:.0f} tokens each": (
            ["texts", "documents", DOCUMENTS],
            documents,
        ),
    }


def add_products(rows: list[dict], forms: list, tokens: int, layers: int) -> None:
    """Say which part of the time the layers' matrix products alone take on the same backend."""
    for row, form in zip(rows, forms, strict=True):
        seconds = form.ask(["products", tokens])["logits"][0] * layers
        if seconds:
            row["share_of_product_peak"] = round(seconds / row["seconds"], 3)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=pathlib.Path, metavar="DATA_FOLDER")
    parser.add_argument("output", type=pathlib.Path, help="folder")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--layers", type=int, default=24, help="of the 345M shape")
    parser.add_argument("--sentences", type=int, default=128)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="+", help="names of forms")
    return parser.parse_args()


def write_texts(options, folder: pathlib.Path) -> dict[str, int]:
    """Tokenize sentences and documents, drawn at random; return how many tokens they have."""
    from keras_megatron import MegatronBertTokenizer

    tokenizer = MegatronBertTokenizer.from_preset("megatron_bert_tiny_uncased")
    counts = {}
    for name, texts in read_texts(options.data).items():
        chosen = np.random.default_rng(0).choice(len(texts), getattr(options, name), replace=False)
        inputs = tokenizer.encode([texts[i] for i in chosen], sequence_length=512)
        np.savez(folder / f"{name}.npz", **inputs)
        counts[name] = int(inputs["padding_mask"].sum())
    return counts


def read_texts(data: pathlib.Path) -> dict[str, list[str]]:
    """Return all sentences and all documents."""
    from keras_megatron.finetuning.records import read_records

    records = read_records(f"{data / 'finetune' / 'sentiment.tsv'}:train")
    with lzma.open(data / "corpus" / "postgres.txt.xz", "rt", encoding="utf-8") as file:
        documents = file.read().split("\n\n")
    return {"sentences": [record.values["text"] for record in records], "documents": documents}


if __name__ == "__main__":
    main()
