"""The picture of plans: memory of a device, and what it sends, by mesh."""

import io
from collections.abc import Sequence

from keras_megatron.parallel.planning.plans import Plan

_PARTS = ("parameters", "gradients", "optimizer", "activations")
_GIGA = 1e9


def plot_plans(plans: Sequence[Plan]) -> bytes:
    """Draw plans as a PNG: a column of two panels for each model.

    Args:
        plans: of one or more models, on one or more meshes each.

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
    for axes in panels[:, 0]:
        handles, labels = axes.get_legend_handles_labels()
        order = slice(None, None, -1) if axes is panels[0, 0] else slice(None)  # as they stand
        panels[list(panels[:, 0]).index(axes), -1].legend(
            handles[order], labels[order], frameon=False, fontsize="small"
        )
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
        label="more, on a CPU",
    )


def _draw_communication(axes, plans: Sequence[Plan]) -> None:
    series = (
        ("layers' blocks", [plan.sent_along("model", layers=True)[1] for plan in plans]),
        ("table, head, loss", [plan.sent_along("model", layers=False)[1] for plan in plans]),
        ("gradients", [plan.sent_along("data")[1] for plan in plans]),
    )
    bottoms = [0.0] * len(plans)
    for index, (label, sizes) in enumerate(series):
        heights = [size / _GIGA for size in sizes]
        axes.bar(range(len(plans)), heights, 0.7, bottoms, color=f"C{index + 4}", label=label)
        bottoms = [low + height for low, height in zip(bottoms, heights, strict=True)]
    expected = [plan.expected[1] / _GIGA for plan in plans]
    axes.plot(
        range(len(plans)), expected, "k_", markersize=22, markeredgewidth=2, label="paper's layers"
    )


def _title(plans: Sequence[Plan]) -> str:
    works = [plan.workload for plan in plans]
    batches = {work.batch // work.data for work in works}
    batch = f"{batches.pop()} sequences a copy of the model" if len(batches) == 1 else "a batch"
    if len(batches) and len({work.batch for work in works}) == 1:
        batch = f"a batch of {works[0].batch} sequences"
    tokens = " and ".join(str(size) for size in sorted({work.sequence for work in works}))
    return f"A training step: {batch}, {tokens} tokens each, {works[0].dtype}"
