"""Memory of a training step at 512 tokens, with gradient checkpointing and without.

    python benchmarks/memory.py DATA_FOLDER benchmarks/results [--layers 12]

Each form in a process of its own, one after the other: a classifier of the 345M shape, a batch of
real documents, two steps of AdamW with dropout. Written is the peak of the process's memory less
what it had after its imports, in MiB, also as a multiple of weights, gradients and the two moments
of Adam; a CSV with the machine in its name.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from inference import BACKENDS, read_texts
from turns import make, write

WORKER = pathlib.Path(__file__).with_name("training_worker.py")
FORMS = {"transformers": ("transformers", "torch")}
FORMS |= {name: ("keras_megatron", backend) for backend, name in BACKENDS.items()}


def main():
    options = parse_options()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_documents(options, folder)
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        make(WORKER, options.layers, folder)
        for name, (form, backend) in FORMS.items():
            for precision in ("kept", "recomputed"):
                command = [sys.executable, str(WORKER), "memory", form, precision, str(folder)]
                done = subprocess.run(
                    command,
                    env={**environment, "KERAS_BACKEND": backend},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                found = json.loads(done.stdout.splitlines()[-1])
                state = 16 * found["parameters"] / 2**20
                rows.append(
                    {
                        "form": name,
                        "activations": precision,
                        "peak_mib": round(found["peak"]),
                        "times_state": round(found["peak"] / state, 2),
                        "seconds": round(found["seconds"], 1),
                    }
                )
                print(*rows[-1].values(), sep="\t", flush=True)
    shape = f"{options.layers}_layers_{options.batch}x512"
    write(rows, options.output, f"training_memory_{shape}")


def write_documents(options, folder: pathlib.Path) -> None:
    """Write a batch of documents of 512 tokens."""
    from keras_megatron import MegatronBertTokenizer

    tokenizer = MegatronBertTokenizer.from_preset("megatron_bert_tiny_uncased")
    documents = [text for text in read_texts(options.data)["documents"] if len(text) > 4000]
    inputs = tokenizer.encode(documents[: options.batch], sequence_length=512)
    np.savez(folder / "fixed.npz", **inputs, labels=np.arange(options.batch) % 3)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=pathlib.Path, metavar="DATA_FOLDER")
    parser.add_argument("output", type=pathlib.Path, help="folder")
    parser.add_argument("--layers", type=int, default=12, help="of the 345M shape")
    parser.add_argument("--batch", type=int, default=4)
    return parser.parse_args()


if __name__ == "__main__":
    main()
