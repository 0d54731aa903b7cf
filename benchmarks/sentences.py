"""Speed on real sentences: packed rows here, padded batches of `transformers`.

    python benchmarks/sentences.py DATA_FOLDER benchmarks/results [--layers 24] [--count 128]

DATA_FOLDER holds sentiment.tsv, as for examples/. One classifier with random weights; each form has
a process of its own, and they take turns, a pass over all sentences each. Batches of `transformers`
have 32 sentences, padded to the longest. Results have to be equal before anything is timed. Writes
a CSV with the machine in its name, and a plot. Needs about 16 GB of memory for 24 layers.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from turns import Form, Kind, make_equal, take_turns, write

WORKER = pathlib.Path(__file__).with_name("sentences_worker.py")
BACKENDS = ("jax", "torch", "tensorflow")
FORMS = {
    f"{name}{suffix}": Kind(form, precision, backend)
    for suffix, precision in (("", "float32"), (", bf16", "bfloat16"))
    for name, form, backend in (
        ("transformers, PyTorch", "transformers", "torch"),
        ("transformers, PyTorch, sorted", "transformers_sorted", "torch"),
        ("transformers, OpenVINO", "transformers_openvino", "torch"),
        *((f"packed, {backend}", "keras_megatron", backend) for backend in BACKENDS),
    )
}


def main():
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        tokens = write_sentences(options, folder)
        subprocess.run(
            [sys.executable, str(WORKER), "make", str(options.layers), str(folder)],
            env={**os.environ, "KERAS_BACKEND": "torch", "TF_CPP_MIN_LOG_LEVEL": "3"},
            check=True,
        )
        kinds = {name: FORMS[name] for name in FORMS if not options.only or name in options.only}
        forms = [Form.start(WORKER, *item, folder, options.threads) for item in kinds.items()]
        errors = make_equal(forms, [])
        times = take_turns(forms, [], options.rounds)
        for form in forms:
            form.process.stdin.close()
    reference = np.median(times[forms[0].name])
    rows = [
        {
            "form": name,
            "tokens_per_second": round(tokens / float(np.median(seconds)), 1),
            "times_reference": round(float(reference / np.median(seconds)), 2),
            "passes": len(seconds),
            "largest_difference": f"{errors[name]:.1e}",
        }
        for name, seconds in times.items()
    ]
    for row in rows:
        print(*row.values(), sep="\t")
    name = f"sentences_{options.layers}_layers_{options.threads}_cpu_threads"
    title = f"{options.count} sentences, {tokens / options.count:.0f} tokens each"
    write({title: rows}, options.output, name)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=pathlib.Path, metavar="DATA_FOLDER")
    parser.add_argument("output", type=pathlib.Path, help="folder")
    parser.add_argument("--layers", type=int, default=24, help="of the 345M shape")
    parser.add_argument("--count", type=int, default=128, help="sentences")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="+", choices=FORMS)
    return parser.parse_args()


def write_sentences(options, folder: pathlib.Path) -> int:
    """Tokenize some sentences, drawn at random; return how many tokens they have."""
    from keras_megatron import MegatronBertTokenizer
    from keras_megatron.finetuning.records import read_records

    records = read_records(f"{options.data / 'sentiment.tsv'}:train")
    chosen = np.random.default_rng(0).choice(len(records), options.count, replace=False)
    tokenizer = MegatronBertTokenizer.from_preset("megatron_bert_tiny_uncased")
    inputs = tokenizer.encode([records[i].values["text"] for i in chosen])
    np.savez(folder / "sentences.npz", **inputs)
    return int(inputs["padding_mask"].sum())


if __name__ == "__main__":
    main()
