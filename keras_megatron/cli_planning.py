"""The command `keras-megatron plan`."""

import pathlib
import re
import sys
from typing import Annotated

import rich.console
import typer


def plan(
    preset: Annotated[
        list[str], typer.Option(help="Name of a preset; several times for several models.")
    ],
    mesh: Annotated[
        list[str],
        typer.Option(metavar="DATAxMODEL", help="Devices, such as 1x8; several times for several."),
    ],
    batch: Annotated[int, typer.Option(help="Sequences a step, over all devices.")] = 8,
    sequence: Annotated[int, typer.Option(help="Tokens a sequence.")] = 512,
    dtype: Annotated[str, typer.Option(help="float32, mixed_bfloat16, bfloat16, ...")] = "float32",
    sequence_parallel: Annotated[
        bool, typer.Option("--sequence-parallel", help="Split LayerNorms over the sequence too.")
    ] = False,
    per_copy: Annotated[
        bool, typer.Option("--per-copy", help="--batch is for each copy of the model instead.")
    ] = False,
    to_json: Annotated[
        pathlib.Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers there.")
    ] = None,
    plot: Annotated[
        pathlib.Path | None, typer.Option(metavar="FILE.png", help="Draw a picture there.")
    ] = None,
) -> None:
    """Say what training needs on each device, and what it sends, before there are devices.

    JAX compiles the step for devices that exist in name only; no weight is ever made. That takes
    half a minute for each model and mesh. Gradient checkpointing is not planned for: XLA on CPUs,
    which compiles here, undoes it.
    """
    from keras_megatron.finetuning.atomic import check_can_write, replace_file, replace_json

    for path in filter(None, (to_json, plot)):
        check_can_write(path)
    if plot and plot.suffix.lower() != ".png":
        raise ValueError(f"--plot draws a PNG: give a name that ends with .png, not {plot}")
    meshes = [_mesh(text) for text in mesh]
    configs = {name: _config(name) for name in preset}
    from keras_megatron.parallel.planning import Workload, make_plans
    from keras_megatron.parallel.planning.plot import plot_plans
    from keras_megatron.parallel.planning.tables import as_tables

    workloads = [
        Workload(
            name=name,
            config=config,
            data=data,
            model=model,
            batch=batch * data if per_copy else batch,
            sequence=sequence,
            dtype=dtype,
            sequence_parallel=sequence_parallel,
        )
        for name, config in configs.items()
        for data, model in meshes
    ]
    with rich.console.Console(file=sys.stderr).status("compiling") as status:
        plans = make_plans(
            workloads, lambda done, of: status.update(f"compiled {done} of {of} programs")
        )
    print(as_tables(plans))
    if to_json:
        replace_json(to_json, [plan.to_dict() for plan in plans])
    if plot:
        image = plot_plans(plans)
        replace_file(plot, lambda partial: partial.write_bytes(image))


def _mesh(text: str) -> tuple[int, int]:
    """Read `1x8`.

    Raises:
        ValueError: it is something else.
    """
    if not (match := re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)):
        raise ValueError(f"a mesh is data x model devices, such as 1x8, not {text!r}")
    return int(match[1]), int(match[2])


def _config(name: str) -> dict:
    """Return the backbone's arguments of a preset.

    Raises:
        ValueError: there is no preset of this name.
    """
    from keras_megatron.presets.registry import find, known

    preset = find(name)
    if preset is None:
        names = ", ".join(preset.name for preset in known())
        raise ValueError(f"there is no preset {name!r}: choose from {names}")
    arguments = preset.backbone_arguments()
    return {key: arguments[key] for key in arguments if key not in ("name", "trainable", "dtype")}
