"""How the speed of inference changes with the sequence length and with the batch.

    python benchmarks/growth.py benchmarks/results [--layers 4]

A classifier of the 345M shape, of a few layers, with random weights, on ids without padding, here
on each backend and in `transformers`; they take turns. Writes a CSV with the machine in its name,
and a plot.
"""

import argparse
import os
import pathlib
import tempfile

from inference import BACKENDS, WORKER
from turns import Kind, compare, make, started, write

FORMS = {
    "transformers": Kind("transformers", "float32", "torch"),
    **{name: Kind("keras_megatron", "float32", backend) for backend, name in BACKENDS.items()},
}
LENGTHS, USUAL_LENGTH = (64, 128, 256, 512), 128
BATCHES, USUAL_BATCH = (1, 2, 4, 8, 16, 32, 64), 8


def main():
    options = parse_options()
    shapes = [(USUAL_BATCH, length) for length in LENGTHS]
    shapes += [(batch, USUAL_LENGTH) for batch in BATCHES if batch != USUAL_BATCH]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        make(WORKER, options.layers, folder)
        with started(WORKER, FORMS, folder, options.threads) as forms:
            rows = []
            for batch, length in shapes:
                of_shape = compare(forms, ["ids", batch, length], options.rounds, batch * length)
                rows += [{"batch": batch, "length": length, **row} for row in of_shape]
                print(batch, length, *(row["tokens_per_second"] for row in of_shape), flush=True)
    name = f"growth_{options.layers}_layers_{options.threads}_cpu_threads"
    write(rows, options.output, name)
    plot(rows, options.layers, options.output / f"{name}.png")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=pathlib.Path, help="folder")
    parser.add_argument("--layers", type=int, default=4, help="of the 345M shape")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def plot(rows: list[dict], layers: int, path: pathlib.Path) -> None:
    """Draw tokens a second over the length and over the batch."""
    from matplotlib.figure import Figure

    figure = Figure((8, 3.2), layout="constrained")
    panels = zip(
        figure.subplots(1, 2, sharey=True),
        (("length", "batch", USUAL_BATCH), ("batch", "length", USUAL_LENGTH)),
        strict=True,
    )
    for panel, (varied, other, usual) in panels:
        for name in FORMS:
            points = sorted(
                (row[varied], row["tokens_per_second"])
                for row in rows
                if row["form"] == name and row[other] == usual
            )
            colour = {"color": "0.6"} if name == "transformers" else {}
            panel.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, **colour)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:.0f}")
        panel.set_xlabel(
            f"tokens a text, batch {usual}"
            if varied == "length"
            else f"texts a batch, {usual} tokens each"
        )
        panel.grid(alpha=0.3)
    figure.axes[0].set_ylabel(f"tokens/s, {layers} layers")
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[1].legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
