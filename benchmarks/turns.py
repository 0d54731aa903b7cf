"""Processes that take turns in being timed, so that a busy machine is busy for all of them."""

import concurrent.futures
import contextlib
import csv
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator

import numpy as np

PACKAGES = (
    *("keras", "keras-hub", "jax", "tensorflow", "torch"),
    *("transformers", "onnxruntime", "openvino"),
)
PEERS = ("transformers", "KerasHub")
LIMITS = {"float32": 2e-3, "bfloat16": 0.2, "int8": 0.5}  # of logits with a spread of about 1


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a process runs: a form that its script knows, in a precision, on a backend."""

    form: str
    precision: str
    backend: str = "tensorflow"
    same_model: bool = True  # so that results have to be equal


@dataclasses.dataclass
class Form:
    """A process with a model."""

    name: str
    kind: Kind
    process: subprocess.Popen
    log: pathlib.Path

    @classmethod
    def start(
        cls, worker: pathlib.Path, name: str, kind: Kind, folder: pathlib.Path, threads: int
    ) -> "Form":
        """Start it; `ask` waits until it is there."""
        command = [sys.executable, str(worker), kind.form, kind.precision, str(folder)]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "KERAS_BACKEND": kind.backend,
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        log = folder / f"{name}.log"
        with log.open("w") as stderr:
            process = subprocess.Popen(command, env=environment, stderr=stderr, **pipes)
        return cls(name, kind, process, log)

    def ask(self, question) -> dict:
        """Have it answer a question: its `seconds` and its `logits`."""
        line = ""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(question), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} has ended: {self.log.read_text()[-2000:]}")
        return json.loads(line)


def ask_all(forms: list[Form], question, at_once: bool) -> dict[str, float]:
    """Ask all forms, one after the other or at once, and return the seconds of each."""
    with concurrent.futures.ThreadPoolExecutor(len(forms) if at_once else 1) as pool:
        answers = list(pool.map(lambda form: form.ask(question), forms))
    return {form.name: answer["seconds"] for form, answer in zip(forms, answers, strict=True)}


def make_equal(
    forms: list[Form], question, at_once: bool = False
) -> tuple[dict[str, float], dict[str, float]]:
    """Warm all forms up.

    Args:
        forms: the first one is what others are compared with.
        question: what is asked.
        at_once: whether forms may compile while others do.

    Returns:
        By how much their logits differ from the first one's, and the seconds of each one's first
        answer, compilation included.

    Raises:
        ValueError: logits differ by more than their precision explains.
    """
    expected, errors = None, {}
    first = ask_all(forms, question, at_once)
    for form in forms:
        found = np.array(form.ask(question)["logits"])
        expected = found if expected is None else expected
        errors[form.name] = float(np.abs(found - expected).max()) if form.kind.same_model else 0
        limit = LIMITS[form.kind.precision]
        if not errors[form.name] < limit:
            raise ValueError(f"{form.name} differs by {errors[form.name]}, more than {limit}")
    return errors, first


def take_turns(forms: list[Form], question, rounds: int) -> dict[str, list[float]]:
    """Return the seconds that each form took in each round."""
    seconds = {form.name: [] for form in forms}
    for _ in range(rounds):
        for form in forms:
            seconds[form.name].append(form.ask(question)["seconds"])
    return seconds


def make(worker: pathlib.Path, layers: int, folder: pathlib.Path, backend: str = "torch") -> None:
    """Have a worker write its model, of so many layers, in every form."""
    subprocess.run(
        [sys.executable, str(worker), "make", str(layers), str(folder)],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=True,
    )


@contextlib.contextmanager
def started(
    worker: pathlib.Path,
    kinds: dict[str, Kind],
    folder: pathlib.Path,
    threads: int,
    only: list[str] | None = None,
) -> Iterator[list[Form]]:
    """Start the forms by their names, or only some of them; end them at the end."""
    chosen = {name: kind for name, kind in kinds.items() if not only or name in only}
    forms = [Form.start(worker, *item, folder, threads) for item in chosen.items()]
    try:
        yield forms
    finally:
        for form in forms:
            with contextlib.suppress(BrokenPipeError):
                form.process.stdin.close()


def compare(
    forms: list[Form],
    question,
    rounds: int,
    tokens: int,
    warm: object = None,
    at_once: bool = False,
) -> list[dict]:
    """Let forms take turns, and return a row for each of how fast it is.

    Args:
        forms: the first one is what others are compared with.
        question: what is timed.
        rounds: turns of each.
        tokens: that a turn has.
        warm: the question by which results are compared, if not by `question` itself.
        at_once: whether forms may compile while others do.
    """
    errors, first = make_equal(forms, question if warm is None else warm, at_once)
    if warm is not None:
        first = ask_all(forms, question, at_once)
    times = take_turns(forms, question, rounds)
    reference = np.median(times[forms[0].name])
    return [
        {
            "form": form.name,
            "tokens_per_second": round(tokens / float(np.median(times[form.name])), 1),
            "times_reference": round(float(reference / np.median(times[form.name])), 3),
            "seconds": round(float(np.median(times[form.name])), 4),
            "first_seconds": round(first[form.name], 2),
            "turns": rounds,
            "largest_difference": f"{errors[form.name]:.1e}" if form.kind.same_model else "",
        }
        for form in forms
    ]


def show(title: str, rows: list[dict]) -> None:
    """Print rows."""
    print(f"\n{title}")
    for row in rows:
        print(
            f"{row['form']:<44}{row['tokens_per_second']:>9} tokens/s"
            f"{row['times_reference']:>8} x   first {row['first_seconds']} s",
            flush=True,
        )


def write(rows: list[dict], folder: pathlib.Path, name: str) -> None:
    """Write a CSV with the date, the processor and the versions in its first line."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        file.write(f"# {datetime.date.today()}, {processor()}, {', '.join(versions())}\n")
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_and_plot(
    panels: dict[str, list[dict]], folder: pathlib.Path, name: str, note: str = ", float32"
) -> None:
    """Write a CSV of all rows, and a plot of ratios, a panel for each item."""
    panels = {title: [{"work": title, **row} for row in rows] for title, rows in panels.items()}
    write([row for rows in panels.values() for row in rows], folder, name)
    plot(panels, folder / f"{name}.png", note)


def shape_345m(layers: int = 24) -> types.SimpleNamespace:
    """Return the sizes of the 345M shape, by the names that a backbone has for them."""
    return types.SimpleNamespace(
        vocabulary_size=30_592,
        num_layers=layers,
        num_heads=16,
        head_dim=64,
        hidden_dim=1024,
        intermediate_dim=4096,
    )


def versions() -> list[str]:
    """Return the packages that are installed, with their versions."""
    found = []
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return found


def gpu() -> str:
    """Return the name of the first GPU; "" if there is none."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0]


def processor() -> str:
    """Return the name of the GPU, or what the operating system calls the processor."""
    if gpu():
        return gpu()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.processor()


def plot(panels: dict[str, list[dict]], path: pathlib.Path, note: str) -> None:
    """Draw how many times as fast as the first form each one is, in panels by their titles."""
    from matplotlib.figure import Figure

    names = [row["form"] for row in next(iter(panels.values()))]
    figure = Figure((2.5 + 2.2 * len(panels), 0.8 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (title, rows) in zip(axes, panels.items(), strict=True):
        forms = [row["form"] for row in rows]  # some of the first panel's
        colours = ["0.65" if form.startswith(PEERS) else "tab:blue" for form in forms]
        bars = panel.barh(forms, [row["times_reference"] for row in rows], color=colours)
        panel.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
        panel.set_title(title, fontsize=9)
        panel.axvline(1, color="0.3", linewidth=0.8)
        panel.margins(x=0.25)
    axes[0].invert_yaxis()
    figure.supxlabel(f"speed, x {names[0]}{note}", fontsize=9)
    figure.savefig(path, dpi=110)
