"""The command `keras-megatron export`."""

from typing import Annotated

import typer

from keras_megatron.cli_presets import DEFAULT_PRESET, check_preset


def export(
    output: Annotated[
        str,
        typer.Argument(
            help="Folder to make; of a SavedModel the model's, in which the next version is made."
        ),
    ],
    preset: Annotated[
        str, typer.Option(help="Name of a preset, or a folder that a task was saved to.")
    ] = DEFAULT_PRESET,
    format: Annotated[
        str, typer.Option(help="saved_model (for TensorFlow Serving), onnx or openvino.")
    ] = "saved_model",
    precision: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or int8; float32 by default.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Tokens for each mask of a masked LM; 5 by default.")
    ] = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="The texts to classify are pairs, if no signature is named."),
    ] = False,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens that a causal LM makes, prompt included.")
    ] = None,
    warmup: Annotated[bool, typer.Option(help="Write requests that warm the server up.")] = True,
) -> None:
    """Write a model for a server that knows nothing of Keras."""
    from keras_megatron.serving.exporting import export_preset
    from keras_megatron.serving.settings import ExportSettings

    settings = ExportSettings(
        format=format,
        precision=precision,
        top_k=top_k,
        pairs=pairs,
        max_length=max_length,
        warmup=warmup,
    )
    check_preset(preset)
    exported = export_preset(preset, output, settings)
    print(f"wrote {exported.folder}")
    for name, signature in sorted(exported.signatures.items()):
        print(f"{name}: {', '.join(signature['inputs'])} -> {', '.join(signature['outputs'])}")
    if exported.operations:
        print(f"operations: {' '.join(exported.operations)}")
