"""The picture of plans: memory of a device, and what it sends, by mesh."""

import io
from collections.abc import Sequence

from keras_megatron.parallel.planning.plans import Plan

_PARTS = ("parameters", "gradients", "optimizer", "activations")
_GIGA = 1e9


def plot_plans(plans: Sequence[Plan]) -> bytes:
    """Draw plans as a PNG: a column of two panels for each model.

    Args:
        plans: of one or more models, on one or more meshes each; of one sequence length and dtype,
            and of one batch, for all devices or for each copy of the model.

    Returns:
        The file's bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    models = {}
    for plan in plans:
        models.setdefault(plan.workload.name, []).append(plan)
    width = 1.2 + sum(max(2.4, 0.62 * len(group)) for group in models.values())
    figure = Figure(figsize=(max(6.5, width), 5.6), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display, whatever matplotlib is set to
    panels = figure.subplots(2, len(models), squeeze=False, sharey="row", sharex="col")
    for column, (name, group) in enumerate(models.items()):
        above, below = panels[:, column]
        above.set_title(name, fontsize="medium")
        _draw_memory(above, group)
        _draw_communication(below, group)
        below.set_xticks(range(len(group)), [plan.workload.mesh for plan in group])
        below.set_xlabel("mesh, data x model devices")
        for axes in (above, below):
            axes.grid(axis="y", alpha=0.3)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("memory of a device, GB")
    panels[1, 0].set_ylabel("arrays sent a step, GB")
    # The smallest model is usually the first, and its panels have room.
    handles, labels = panels[0, 0].get_legend_handles_labels()
    style = {"frameon": False, "fontsize": "small"}
    panels[0, 0].legend(handles[::-1], labels[::-1], loc="upper right", **style)  # as they stand
    panels[1, 0].legend(loc="upper left", **style)
    if len(models) == 1:
        for axes in panels[:, 0]:
            axes.margins(y=0.5)
    figure.suptitle(_title(plans), fontsize="medium", x=0.01, ha="left")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()


def _draw_memory(axes, plans: Sequence[Plan]) -> None:
    bottoms = [0.0] * len(plans)
    for index, part in enumerate(_PARTS):
        heights = [getattr(plan, part) / _GIGA for plan in plans]
        axes.bar(range(len(plans)), heights, 0.7, bottoms, color=f"C{index}", label=part)
        bottoms = [low + height for low, height in zip(bottoms, heights, strict=True)]
    axes.bar(
        range(len(plans)),
        [max(0, plan.compiled_total - plan.total) / _GIGA for plan in plans],
        0.7,
        bottoms,
        facecolor="none",
        edgecolor="C3",
        linestyle=":",
        label="activations, at most",
    )


def _draw_communication(axes, plans: Sequence[Plan]) -> None:
    series = (
        ("transformer layers", [plan.sent_along("model", layers=True)[1] for plan in plans]),
        ("table, head, loss", [plan.sent_along("model", layers=False)[1] for plan in plans]),
        ("gradients", [plan.sent_along("data")[1] for plan in plans]),
    )
    bottoms = [0.0] * len(plans)
    for index, (label, sizes) in enumerate(series):
        heights = [size / _GIGA for size in sizes]
        axes.bar(range(len(plans)), heights, 0.7, bottoms, color=f"C{index + 4}", label=label)
        bottoms = [low + height for low, height in zip(bottoms, heights, strict=True)]
    expected = [
        (place, plan.expected[1] / _GIGA)
        for place, plan in enumerate(plans)
        if plan.workload.model > 1
    ]
    if expected:
        axes.plot(*zip(*expected, strict=True), "k_", ms=22, mew=2, label="layers, by the paper")


def _title(plans: Sequence[Plan]) -> str:
    works = [plan.workload for plan in plans]
    if len({work.batch for work in works}) == 1:
        batch = f"a batch of {works[0].batch} sequences"
    else:
        batch = f"{works[0].batch // works[0].data} sequences a copy of the model"
    return f"A training step: {batch}, {works[0].sequence} tokens each, {works[0].dtype}"
