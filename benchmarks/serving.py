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
import csv
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

import numpy as np

WORKER = pathlib.Path(__file__).with_name("serving_worker.py")
FORMS = {
    "transformers, PyTorch": ("transformers", "float32"),
    "transformers, PyTorch, compiled": ("transformers_compiled", "float32"),
    "transformers, onnxruntime": ("transformers_onnx", "float32"),
    "transformers, OpenVINO": ("transformers_openvino", "float32"),
    "SavedModel": ("saved_model", "float32"),
    "ONNX": ("onnx", "float32"),
    "OpenVINO": ("openvino", "float32"),
    "transformers, PyTorch, bf16": ("transformers", "bfloat16"),
    "transformers, PyTorch, compiled, bf16": ("transformers_compiled", "bfloat16"),
    "transformers, OpenVINO, bf16": ("transformers_openvino", "bfloat16"),
    "SavedModel, bf16": ("saved_model", "bfloat16"),
    "OpenVINO, bf16": ("openvino", "bfloat16"),
    "SavedModel, int8": ("saved_model", "int8"),
    "ONNX, int8": ("onnx", "int8"),
    "OpenVINO, int8": ("openvino", "int8"),
}
PACKAGES = ["keras", "tensorflow", "torch", "transformers", "onnxruntime", "openvino"]
REFERENCE = next(iter(FORMS))
LIMITS = {"float32": 2e-3, "bfloat16": 0.2, "int8": 0.5}  # of logits with a spread of about 1


@dataclasses.dataclass
class Form:
    """A process with a model."""

    name: str
    process: subprocess.Popen

    @classmethod
    def start(cls, name: str, folder: pathlib.Path, threads: int) -> "Form":
        """Start it; `ask` waits until it is there."""
        command = [sys.executable, str(WORKER), *FORMS[name], str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        log = (folder / f"{name}.log").open("w")
        return cls(name, subprocess.Popen(command, env=environment, stderr=log, **pipes))

    def ask(self, batch: int, length: int) -> dict:
        """Have it answer a request: its `seconds` and its `logits`."""
        print(json.dumps([batch, length]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} has ended: see its log")
        return json.loads(line)


def main():
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        subprocess.run(
            [sys.executable, str(WORKER), "make", str(options.layers), str(folder)],
            env={**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"},
            check=True,
        )
        names = [name for name in FORMS if not options.only or name in options.only]
        forms = [Form.start(name, folder, options.threads) for name in names]
        rows = []
        for length in options.lengths:
            for batch in options.batches:
                rows += measure(forms, batch, length, options.seconds)
                print_rows(rows[-len(forms) :])
        for form in forms:
            form.process.stdin.close()
    write(rows, options.output, f"serving_{options.layers}_layers_{options.threads}_cpu_threads")


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
    """Let forms take turns; the first two turns warm up and check, then 10 to 200 are timed."""
    expected = np.array(forms[0].ask(batch, length)["logits"])
    errors, turn = {}, 0.0
    for form in forms:
        form.ask(batch, length)
        answer = form.ask(batch, length)
        errors[form.name] = float(np.abs(np.array(answer["logits"]) - expected).max())
        limit = LIMITS[FORMS[form.name][1]]
        if not errors[form.name] < limit:
            raise ValueError(f"{form.name} differs by {errors[form.name]}, more than {limit}")
        turn += answer["seconds"]
    seconds = {form.name: [] for form in forms}
    for _ in range(int(np.clip(limit_s / turn, 10, 200))):
        for form in forms:
            seconds[form.name].append(form.ask(batch, length)["seconds"])
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


def write(rows: list[dict], folder: pathlib.Path, name: str) -> None:
    """Write the CSV, with the versions in its first line, and the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        file.write(f"# {datetime.date.today()}, {processor()}, {versions}\n")
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, folder / f"{name}.png")


def processor() -> str:
    """Return what the operating system calls the processor."""
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.processor()


def plot(rows: list[dict], path: pathlib.Path) -> None:
    """Draw the ratio to the reference of each form, a panel a batch and length."""
    from matplotlib.figure import Figure

    sizes = sorted({(row["batch"], row["length"]) for row in rows})
    names = [name for name in FORMS if any(row["form"] == name for row in rows)]
    figure = Figure((2.5 + 2.2 * len(sizes), 0.8 + 0.3 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for panel, size in zip(panels, sizes, strict=True):
        ratios = {
            row["form"]: row["times_reference"]
            for row in rows
            if (row["batch"], row["length"]) == size
        }
        theirs = [name.startswith("transformers") for name in names]
        colours = ["0.65" if their else "tab:blue" for their in theirs]
        bars = panel.barh(names, [ratios[name] for name in names], color=colours)
        panel.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
        panel.set_title(f"{size[0]} x {size[1]} tokens", fontsize=9)
        panel.axvline(1, color="0.3", linewidth=0.8)
        panel.margins(x=0.25)
    panels[0].invert_yaxis()
    figure.supxlabel(f"speed, x {REFERENCE}, float32", fontsize=9)
    figure.savefig(path, dpi=110)


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
