"""Print the table of differences to Hugging Face that README.md shows.

    python tools/parity_table.py [--full]

Runs the tests marked `parity` on each backend and puts what they measured side by side. `--full`
adds the 345M shape: minutes, and about 8 GB of memory.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BACKENDS = ("jax", "torch", "tensorflow")
TITLES = {"jax": "JAX", "torch": "PyTorch", "tensorflow": "TensorFlow"}


def measure(backend: str, marks: str, log: Path) -> None:
    """Run the marked tests on a backend; each appends to `log` what it measured.

    Raises:
        SystemExit: a test failed.
    """
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", marks],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "KERAS_BACKEND": backend, "PARITY_LOG": str(log)},
        capture_output=True,
        text=True,
    )
    if run.returncode:
        sys.exit(f"the tests on {backend} failed:\n{run.stdout[-4000:]}")


def table(rows: list[dict]) -> str:
    """Return rows of `what`, `backend`, `difference` and `limit` as a Markdown table."""
    lines = [
        "| largest absolute difference, float32 | " + " | ".join(TITLES.values()) + " | limit |",
        "|---|" + "---|" * (len(BACKENDS) + 1),
    ]
    for what in dict.fromkeys(row["what"] for row in rows):
        of = {row["backend"]: row for row in rows if row["what"] == what}
        cells = [
            f"{of[backend]['difference']:.1e}" if backend in of else "" for backend in BACKENDS
        ]
        limit = next(iter(of.values()))["limit"]
        lines.append(f"| {what} | " + " | ".join(cells) + f" | {limit:g} |")
    return "\n".join(lines)


def main() -> None:
    """Measure on all backends and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the 345M shape too")
    runs = ["parity", "parity and full_size"][: 1 + parser.parse_args().full]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "parity.jsonl"
        for marks, backend in itertools.product(runs, BACKENDS):
            measure(backend, marks, log)
        print(table([json.loads(line) for line in log.read_text().splitlines()]))


if __name__ == "__main__":
    main()
