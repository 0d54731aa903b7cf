"""The commands `keras-megatron convert` and `inspect`."""

import dataclasses
import json
from collections.abc import Iterable
from typing import Annotated

import rich.box
import rich.console
import rich.table
import rich.text
import typer

_SOURCE = (
    "Of Megatron-LM: release zip, checkpoint folder or a file of one. Or a folder of "
    "transformers, or name or folder of a Keras preset."
)


def convert(
    source: Annotated[str, typer.Argument(help=_SOURCE)],
    output: Annotated[str, typer.Argument(help="Folder to make.")],
    to: Annotated[
        str,
        typer.Option(
            help="keras (a preset for from_preset), transformers, megatron or megatron-core."
        ),
    ] = "keras",
    vocabulary: Annotated[
        str | None,
        typer.Option(help="uncased, cased, or a file; by default BERT's of this size."),
    ] = None,
    num_heads: Annotated[
        int | None,
        typer.Option(help="Attention heads; by default as the checkpoint says, else hidden / 64."),
    ] = None,
    layer_norm_epsilon: Annotated[
        float | None,
        typer.Option(help="By default as the checkpoint says, else 1e-5; Hugging Face has 1e-12."),
    ] = None,
    mlp_activation: Annotated[
        str | None,
        typer.Option(help="gelu or gelu_approximate; by default as the checkpoint was trained."),
    ] = None,
    tensor_parallel: Annotated[
        int | None, typer.Option(help="Tensor ranks of a Megatron checkpoint that is written.")
    ] = None,
    pipeline_parallel: Annotated[int | None, typer.Option(help="Its pipeline stages.")] = None,
    virtual_pipeline: Annotated[
        int | None, typer.Option(help="Chunks of layers of each stage.")
    ] = None,
    checkpoint_version: Annotated[
        float | None, typer.Option(help="0 (as released), 1, 2 or 3 (since 2021), the default.")
    ] = None,
    transformer_engine: Annotated[
        bool,
        typer.Option(
            "--transformer-engine", help="Of megatron-core: names for Transformer Engine's layers."
        ),
    ] = False,
) -> None:
    """Convert a model between Megatron-LM, Megatron-core, transformers and Keras."""
    from keras_megatron.conversion import convert

    layout = {
        "tensor_parallel": tensor_parallel,
        "pipeline_parallel": pipeline_parallel,
        "virtual_pipeline": virtual_pipeline,
        "version": checkpoint_version,
        "transformer_engine": transformer_engine or None,
    }
    convert(
        source,
        output,
        to,
        vocabulary=vocabulary,
        num_heads=num_heads,
        layer_norm_epsilon=layer_norm_epsilon,
        mlp_activation=mlp_activation,
        **{name: value for name, value in layout.items() if value is not None},
    )


def inspect(
    source: Annotated[str, typer.Argument(help=_SOURCE)],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.")
    ] = False,
) -> None:
    """Show what a checkpoint or preset holds, without loading its weights."""
    from keras_megatron.inspection import inspect_checkpoint

    found = inspect_checkpoint(source)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
        return
    console = rich.console.Console(highlight=False, markup=False)
    console.print(f"{source}: {found.format}")
    for line in found.notes:
        console.print(f"  {line}")
    for title, values in (("Settings", found.settings), ("Arguments", found.arguments)):
        if values:
            console.print(_table(title, ("Name", "Value"), values.items()))
    rows = (
        (t.name, " x ".join(map(str, t.shape)) or "scalar", t.dtype, t.shards)
        for t in found.tensors
    )
    console.print(_table("Tensors", ("Name", "Shape", "Type", "Files"), rows))
    count = sum(tensor.size for tensor in found.tensors)
    console.print(f"{len(found.tensors)} tensors, {count:,} numbers")
    for name in found.dropped:
        console.print(f"not converted: {name}")


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable]) -> rich.table.Table:
    table = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(rich.text.Text(str(cell)) for cell in row))
    return table
