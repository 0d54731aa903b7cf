"""Run all examples, from pretrained and from random weights, and write a table of their scores.

    python examples/score_table.py DATA_FOLDER docs/scores [--workers 2] [--dtype mixed_bfloat16]

Each run is a process of its own. What a run gives is kept in docs/scores.json as soon as it is
there, so that a stopped table goes on where it was; docs/scores.md has the tables.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import baselines
import keras

RUNS = {
    "pretrained": ("--lower-precision",),
    "random": ("--random-init",),
    "lora": ("--lora", "8"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table."""

    example: str
    title: str
    metric: str
    baseline_name: str
    baseline: str


ROWS = (
    Row("sentiment", "sentiment", "accuracy", "TF-IDF, logistic regression", "tf_idf"),
    Row("pairs", "pairs", "accuracy", "bag of words, logistic regression", "bag_of_words"),
    Row("multiple_choice", "multiple choice", "accuracy", "chance", "chance"),
    Row("question_answering", "questions", "F1", "any word of the text", "any_word"),
    Row("entities", "entities", "span F1", "most frequent tag of the word", "tagged_spans"),
    Row("part_of_speech", "part of speech", "accuracy", "most frequent tag of the word",
        "tagged_words"),
)  # fmt: skip


class Results:
    """What has been measured so far, by example and run, in a file."""

    def __init__(self, path: pathlib.Path):
        self._path, self._lock = path, threading.Lock()
        self.values = json.loads(path.read_text()) if path.exists() else {}

    def has(self, example: str, run: str, seed: int) -> bool:
        """Say whether a run has been measured."""
        return str(seed) in self.values.get(example, {}).get(run, {})

    def add(self, example: str, run: str, value, seed: int | None = None) -> None:
        """Keep what a run gave; a baseline has no seed."""
        with self._lock:
            runs = self.values.setdefault(example, {})
            if seed is None:
                runs[run] = value
            else:
                runs.setdefault(run, {})[str(seed)] = value
            self._path.write_text(json.dumps(self.values, indent=2, sort_keys=True) + "\n")


def main():
    options = parse_options()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    results = Results(options.output.with_suffix(".json"))
    rows = [row for row in ROWS if not options.only or row.example in options.only]
    for row in rows:
        if "baseline" not in results.values.get(row.example, {}):
            load = importlib.import_module(row.example).load
            training, _, test = load(options.data)
            score = getattr(baselines, row.baseline)(training, test)
            baseline = {"score": score, "samples": samples(row, test)}
            results.add(row.example, "baseline", baseline)
    with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
        runs = [
            pool.submit(run_example, row.example, run, seed, options, results)
            for seed in options.seeds
            for run in options.runs
            for row in rows
            if not results.has(row.example, run, seed)
        ]
        for done in concurrent.futures.as_completed(runs):
            done.result()
    options.output.with_suffix(".md").write_text(page(results.values))


def samples(row: Row, test) -> int:
    """Return how many answers a score is the mean of; of span F1 the sentences stand for them."""
    if row.baseline == "tagged_words":
        return sum(map(len, test.labels))
    return len(test.labels)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=pathlib.Path, metavar="DATA_FOLDER")
    parser.add_argument("output", type=pathlib.Path, help="of .json and .md, without the ending")
    parser.add_argument("--preset", default="megatron_bert_tiny_uncased")
    parser.add_argument("--dtype", default="float32", help="or mixed_bfloat16, for the training")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side")
    parser.add_argument(
        "--logs", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()), metavar="DIR"
    )
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--only", nargs="+", choices=[row.example for row in ROWS])
    return parser.parse_args()


def run_example(example: str, run: str, seed: int, options, results: Results) -> None:
    """Run an example in a process of its own and keep what it prints last.

    Raises:
        RuntimeError: it failed.
    """
    script = pathlib.Path(__file__).with_name(f"{example}.py")
    command = [sys.executable, str(script), str(options.data), "--dtype", options.dtype]
    command += ["--preset", options.preset, "--seed", str(seed)]
    threads = max(1, (os.cpu_count() or 1) // options.workers)
    log = options.logs / f"{example}_{run}_{seed}.log"
    start = time.perf_counter()
    with log.open("w") as stream:
        done = subprocess.run(
            [*command, *RUNS[run]],
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise RuntimeError(f"{example}, {run}, failed: see {log}")
    lines = [line for line in log.read_text().splitlines() if line.startswith("{")]
    scores = json.loads(lines[-1])  # warnings may stand around it
    scores["minutes"] = round((time.perf_counter() - start) / 60, 1)
    scores["backend"], scores["dtype"] = keras.backend.backend(), options.dtype
    results.add(example, run, scores, seed)
    print(f"{example}, {run}, seed {seed}: {scores}", flush=True)


# === The page ===


def page(values: dict) -> str:
    """Return the two tables as Markdown."""
    needed = {"baseline", "random", "pretrained"}
    rows = [row for row in ROWS if values.get(row.example, {}).keys() >= needed]
    how = sorted(
        {
            f"{one['backend']}, {one['dtype']}"
            for row in rows
            for run in RUNS
            for one in values[row.example].get(run, {}).values()
        }
    )
    lines = [
        "# Fine-tuned scores of `megatron_bert_tiny_uncased`",
        "",
        "Written by `examples/score_table.py`. Test data; hyperparameters chosen on development",
        f"data; trained with {'; '.join(how)}. Of several seeds the mean, and in brackets the",
        "lowest and the highest.",
        "",
        "Within noise: less than two standard errors apart, for shares of so many test samples.",
        "In each seed: the worst pretrained one is above the best one from random weights.",
        "",
        "| task | metric | simple baseline | random weights | pretrained | minutes | verdict |",
        "|---|---|---|---|---|---|---|",
        *(_score_line(row, values[row.example]) for row in rows),
        "",
        "What fewer bits, and training adapters of rank 8 instead of all weights, cost; int8 and",
        "int4 quantize the trained encoder, bfloat16 is the whole model. First seed:",
        "",
        "| task | metric | float32 | bfloat16 | int8 | int4 | LoRA |",
        "|---|---|---|---|---|---|---|",
        *(_precision_line(row, values[row.example]) for row in rows),
    ]
    if any(_is_outdated(values[row.example].get(run, {})) for row in rows for run in RUNS):
        lines += [
            "",
            "† From an earlier preset, of fewer steps: `preset_steps` in the JSON file beside.",
        ]
    return "\n".join(lines) + "\n"


def _is_outdated(runs: dict) -> bool:
    """Say whether runs began with weights that the preset has no more."""
    return any("preset_steps" in one for one in runs.values())


def _score_line(row: Row, values: dict) -> str:
    baseline, count = values["baseline"]["score"], values["baseline"]["samples"]
    random, pretrained = (
        [one["score"] for one in values[run].values()] for run in ("random", "pretrained")
    )
    mean = statistics.mean(pretrained)
    against_random = _verdict(mean, "random", statistics.mean(random), count)
    if len(random) > 1 and min(pretrained) > max(random):
        against_random += ", in each seed"
    minutes = statistics.mean(one["minutes"] for one in values["pretrained"].values())
    cells = (
        *(row.title, row.metric, f"{baseline:.3f} ({row.baseline_name})", _scores(random)),
        _scores(pretrained) + " †" * _is_outdated(values["pretrained"]),
        f"{minutes:.0f}",
        f"{against_random}; {_verdict(mean, 'the baseline', baseline, count)}",
    )
    return f"| {' | '.join(cells)} |"


def _scores(scores: list[float]) -> str:
    mean = f"{statistics.mean(scores):.3f}"
    several = f" ({min(scores):.3f} - {max(scores):.3f}, {len(scores)} seeds)"
    return mean + several * (len(scores) > 1)


def _verdict(score: float, name: str, other: float, samples: int) -> str:
    """Say which score is the higher one, and whether two standard errors are between them."""
    error = math.sqrt((score * (1 - score) + other * (1 - other)) / samples)
    noise = "" if abs(score - other) > 2 * error else " (within noise)"
    return f"{'above' if score > other else 'not above'} {name}{noise}"


def _precision_line(row: Row, values: dict) -> str:
    pretrained = next(iter(values["pretrained"].values()))
    cells = [row.title, row.metric, f"{pretrained['float32']:.3f}"]
    scores = [pretrained[name] for name in ("bfloat16", "int8", "int4")]
    lora = list(values.get("lora", {}).values())[:1]
    scores += [one["score"] for one in lora]
    cells += [f"{score:.3f} ({score - pretrained['float32']:+.3f})" for score in scores]
    cells[-1] += " †" * _is_outdated(values.get("lora", {}))
    cells += ["not run"] * (not lora)
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
