"""Latency and throughput of what `keras_megatron.serving` writes, next to `transformers`.

    python benchmarks/serving.py benchmarks/results [--layers 24] [--batches 1 8]

One classifier with random weights in every form: ours as SavedModel, ONNX and OpenVINO, the same
weights in `transformers` (PyTorch, eager and compiled) and its ONNX and OpenVINO conversions. Each
form is in a process of its own, which waits while another is timed; they take turns, a request
each, so that a busy machine is busy for all. Inputs are ids without padding. Results have to be
equal before anything is timed. Writes a CSV with the machine in its name, and a plot beside it.
Needs about 20 GB of memory and of disk for 24 layers.
"""

import argparse
import os
import pathlib
import tempfile

import numpy as np
from turns import Form, Kind, make, make_equal, started, take_turns, write_and_plot

WORKER = pathlib.Path(__file__).with_name("serving_worker.py")
FORMS = {
    "transformers, PyTorch": Kind("transformers", "float32"),
    "transformers, PyTorch, compiled": Kind("transformers_compiled", "float32"),
    "transformers, onnxruntime": Kind("transformers_onnx", "float32"),
    "transformers, OpenVINO": Kind("transformers_openvino", "float32"),
    "SavedModel": Kind("saved_model", "float32"),
    "ONNX": Kind("onnx", "float32"),
    "OpenVINO": Kind("openvino", "float32"),
    "transformers, PyTorch, bf16": Kind("transformers", "bfloat16"),
    "transformers, PyTorch, compiled, bf16": Kind("transformers_compiled", "bfloat16"),
    "transformers, OpenVINO, bf16": Kind("transformers_openvino", "bfloat16"),
    "SavedModel, bf16": Kind("saved_model", "bfloat16"),
    "OpenVINO, bf16": Kind("openvino", "bfloat16"),
    "SavedModel, int8": Kind("saved_model", "int8"),
    "ONNX, int8": Kind("onnx", "int8"),
    "OpenVINO, int8": Kind("openvino", "int8"),
}


def main():
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        make(WORKER, options.layers, folder, "tensorflow")
        with started(WORKER, FORMS, folder, options.threads, options.only) as forms:
            panels = {}
            for length in options.lengths:
                for batch in options.batches:
                    rows = measure(forms, batch, length, options.seconds)
                    panels[f"{batch} x {length} tokens"] = rows
                    print_rows(rows)
    name = f"serving_{options.layers}_layers_{options.threads}_cpu_threads"
    write_and_plot(panels, options.output, name)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=pathlib.Path, help="folder")
    parser.add_argument("--layers", type=int, default=24, help="of the 345M shape")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--seconds", type=float, default=120, help="for a batch and length")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="+", choices=FORMS)
    return parser.parse_args()


def measure(forms: list[Form], batch: int, length: int, limit_s: float) -> list[dict]:
    """Let forms take turns, 10 to 200 times, in about `limit_s` seconds."""
    question = [batch, length]
    errors, _ = make_equal(forms, question)
    (turn,) = zip(*take_turns(forms, question, 1).values(), strict=True)
    seconds = take_turns(forms, question, int(np.clip(limit_s / sum(turn), 10, 200)))
    reference = np.median(seconds[forms[0].name])
    return [
        {
            "form": name,
            "batch": batch,
            "length": length,
            "requests": len(times),
            "p50_ms": round(1e3 * float(np.median(times)), 2),
            "p99_ms": round(1e3 * float(np.quantile(times, 0.99)), 2),
            "requests_per_second": round(1 / float(np.mean(times)), 2),
            "times_reference": round(float(reference / np.median(times)), 2),
            "largest_difference": f"{errors[name]:.1e}",
        }
        for name, times in seconds.items()
    ]


def print_rows(rows: list[dict]) -> None:
    """Print what was measured, the ratio to `transformers` last."""
    print(f"\nbatch {rows[0]['batch']}, {rows[0]['length']} tokens")
    for row in rows:
        print(
            f"{row['form']:<40}{row['p50_ms']:>10} ms p50{row['p99_ms']:>10} ms p99"
            f"{row['requests_per_second']:>9} requests/s{row['times_reference']:>7} x",
            flush=True,
        )


if __name__ == "__main__":
    main()
