"""Speed of a training step: a fixed shape, real sentences, masked words; here and with the peers.

    python benchmarks/training.py DATA_FOLDER benchmarks/results [--layers 8]

DATA_FOLDER is as for inference.py. Each form has a process of its own, with the same weights, and
they take turns, a step each: forward with dropout, backward, clipping, AdamW. `transformers` pads a
batch to its longest sentence; here it is packed. Losses without dropout have to be equal before
anything is timed, but for KerasHub's Bert, which is another model of the same size. Writes a CSV
with the machine in its name, and a plot. All forms need about 2 GB of memory a layer: take fewer
layers, or some with --only.
"""

import argparse
import os
import pathlib
import tempfile

import numpy as np
from inference import BACKENDS, read_texts
from turns import Kind, compare, make, show, started, write_and_plot

WORKER = pathlib.Path(__file__).with_name("training_worker.py")
FORMS = {
    "transformers": Kind("transformers", "float32", "torch"),
    "KerasHub Bert, JAX": Kind("keras_hub", "float32", "jax", same_model=False),
    **{name: Kind("keras_megatron", "float32", backend) for backend, name in BACKENDS.items()},
}
BATCH, LENGTH, SENTENCES = 4, 128, 32


def main():
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        works = write_batches(options.data, folder, sentences=options.sentences)
        make(WORKER, options.layers, folder)
        with started(WORKER, FORMS, folder, options.threads, options.only) as forms:
            panels = {}
            for title, (name, tokens, _) in works.items():
                if options.works and name not in options.works:
                    continue
                able = [form for form in forms if name != "masked" or form.kind.form != "keras_hub"]
                panels[title] = compare(
                    able, [name, "step"], options.rounds, tokens, warm=[name, "loss"]
                )
                show(title, panels[title])
    of = "" if options.sentences == SENTENCES else f"_{options.sentences}_sentences"
    name = f"training_{options.layers}_layers{of}_{options.threads}_cpu_threads"
    write_and_plot(panels, options.output, name)


def write_batches(
    data: pathlib.Path,
    folder: pathlib.Path,
    batch: int = BATCH,
    length: int = LENGTH,
    sentences: int = SENTENCES,
) -> dict[str, tuple[str, int, int]]:
    """Write a batch of each kind; return by titles their names, and their tokens and masks."""
    from keras_megatron import MegatronBertMaskedLMPreprocessor, MegatronBertTokenizer

    tokenizer = MegatronBertTokenizer.from_preset("megatron_bert_tiny_uncased")
    texts = read_texts(data)
    rng = np.random.default_rng(0)
    documents = [text for text in texts["documents"] if len(text.split()) > length]
    documents = [documents[i] for i in rng.choice(len(documents), batch, replace=False)]
    fixed = tokenizer.encode(documents, sequence_length=length)
    chosen = rng.choice(len(texts["sentences"]), sentences, replace=False)
    short = tokenizer.encode([texts["sentences"][i] for i in chosen])
    for name, inputs in (("fixed", fixed), ("sentences", short)):
        labels = rng.integers(0, 3, len(inputs["token_ids"]))
        np.savez(folder / f"{name}.npz", **inputs, labels=labels)
    preprocessor = MegatronBertMaskedLMPreprocessor(tokenizer, sequence_length=length)
    inputs, labels, weights = preprocessor(documents)
    np.savez(folder / "masked.npz", **inputs, labels=labels, weights=weights)
    tokens, masks = int(short["padding_mask"].sum()), int(weights.sum())
    return {
        f"classify {batch} x {length} tokens": ("fixed", batch * length, 0),
        f"classify {sentences} sentences": ("sentences", tokens, 0),
        f"masked words of {batch} x {length} tokens": ("masked", batch * length, masks),
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=pathlib.Path, metavar="DATA_FOLDER")
    parser.add_argument("output", type=pathlib.Path, help="folder")
    parser.add_argument("--layers", type=int, default=8, help="of the 345M shape")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--sentences", type=int, default=SENTENCES, help="a batch")
    parser.add_argument("--only", nargs="+", choices=FORMS)
    parser.add_argument("--works", nargs="+", choices=["fixed", "sentences", "masked"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
