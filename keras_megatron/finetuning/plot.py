"""The picture of a training: the loss of its steps, and the metric after each epoch."""

import io
import os
import pathlib

from keras_megatron.finetuning.atomic import replace_file


def plot_training(path: str | os.PathLike, log: list[dict], metric: str, title: str) -> None:
    """Draw loss and metric over epochs as a PNG.

    Args:
        path: the file to write.
        log: lines of a `TrainingLog`.
        metric: which one of the development data to draw.
        title: above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps = [line for line in log if "step" in line]
    epochs = [line for line in log if "dev" in line]
    steps_an_epoch = max(line["step"] for line in steps)
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display, whatever matplotlib is set to
    above, below = figure.subplots(2, sharex=True)
    done = [line["epoch"] - 1 + line["step"] / steps_an_epoch for line in steps]
    above.plot(done, [line["loss"] for line in steps], color="C0", linewidth=1)
    above.set_ylabel("training loss")
    above.set_title(title, loc="left", fontsize="medium")

    values = [line["dev"][metric] for line in epochs]
    best = max(range(len(values)), key=values.__getitem__)
    below.plot([line["epoch"] for line in epochs], values, color="C1", marker="o")
    below.annotate(
        f"{values[best]:.3f}",
        (epochs[best]["epoch"], values[best]),
        xytext=(0, -14),
        textcoords="offset points",
        ha="center",
    )
    below.margins(y=0.25)
    below.set_ylabel(f"dev {metric.replace('_', ' ')}")
    below.set_xlabel("epoch")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    replace_file(pathlib.Path(path), lambda partial: partial.write_bytes(image.getvalue()))
