"""The commands `keras-megatron finetune` and `keras-megatron predict`."""

import json
import pathlib
import sys
from typing import Annotated

import typer

from keras_megatron.cli_presets import DEFAULT_PRESET, check_preset

_FILE = (
    "TSV, CSV, JSONL, CoNLL or SQuAD's JSON; FILE:SPLIT for one split of it, FILE:0-80% for a part."
)


def finetune(
    task: Annotated[
        str,
        typer.Option(
            help="text-classification, text-regression, next-sentence, token-classification, "
            "question-answering or multiple-choice."
        ),
    ],
    train: Annotated[str, typer.Option(metavar="FILE", help=f"To learn from. {_FILE}")],
    dev: Annotated[str, typer.Option(metavar="FILE", help="To choose the best epoch by.")],
    output: Annotated[
        str, typer.Option(metavar="DIR", help="Folder to make, or of this run, to go on with it.")
    ],
    preset: Annotated[
        str, typer.Option(help="Name of a preset, or a folder with one.")
    ] = DEFAULT_PRESET,
    test: Annotated[
        str | None, typer.Option(metavar="FILE", help="To measure the best epoch on.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="Numbers of the paper, such as mnli-336m, or default.")
    ] = "default",
    epochs: Annotated[int | None, typer.Option(help="In place of the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="In place of the recipe's.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="The peak, in place of the recipe's.")
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Share of the steps in which the rate rises.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="In place of the recipe's.")] = None,
    sequence_length: Annotated[
        int | None, typer.Option(help="Tokens a sample; by default those of the longest one.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the head, dropout and the data's order.")] = 0,
    lora_rank: Annotated[
        int | None, typer.Option(help="Train adapters of this rank instead of the backbone.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, mixed_bfloat16, ...")] = "float32",
    columns: Annotated[
        str | None, typer.Option(help="Text columns, such as premise,hypothesis.")
    ] = None,
    label: Annotated[str, typer.Option(help="Column with the labels.")] = "label",
    save_every: Annotated[int, typer.Option(help="Steps until the state is saved again.")] = 200,
    jit_compile: Annotated[
        bool, typer.Option("--jit-compile", help="Compile: the layers on PyTorch, for a GPU.")
    ] = False,
) -> None:
    """Fine-tune a preset on files; run again, a killed run goes on where it was.

    DIR gets the best epoch as a preset, metrics.json, training.png and log.jsonl.
    """
    check_preset(preset)
    from keras_megatron.finetuning import FinetuneSettings
    from keras_megatron.finetuning import finetune as run

    settings = FinetuneSettings(
        task=task,
        preset=preset,
        train=train,
        dev=dev,
        test=test,
        recipe=recipe,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        sequence_length=sequence_length,
        seed=seed,
        lora_rank=lora_rank,
        dtype=dtype,
        columns=_names(columns),
        label=label,
    )
    metrics = run(settings, output, save_every=save_every, jit_compile=jit_compile or "auto")
    for part in ("dev", "test"):
        if part in metrics:
            scores = ", ".join(f"{name} {value:.4f}" for name, value in metrics[part].items())
            print(f"{part} of epoch {metrics['best_epoch']}: {scores}")


def predict(
    file: Annotated[
        str, typer.Argument(help=f"Samples, labelled or not, or texts, one a line (.txt). {_FILE}")
    ],
    preset: Annotated[str, typer.Option(help="Folder that a task was saved to.")],
    output: Annotated[
        pathlib.Path | None, typer.Option(metavar="FILE", help="JSONL to write; stdout by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a step.")] = 32,
    columns: Annotated[
        str | None, typer.Option(help="Text columns, such as premise,hypothesis.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, mixed_bfloat16, ...")] = "float32",
) -> None:
    """Answer each sample of a file: a line of JSON each."""
    check_preset(preset)
    from keras_megatron.finetuning import predict as run
    from keras_megatron.finetuning.atomic import check_can_write, replace_text

    if output:
        check_can_write(output)
    answers = run(preset, file, batch_size, _names(columns), dtype)
    lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    if output:
        replace_text(output, lines)
    else:
        sys.stdout.write(lines)


def _names(columns: str | None) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in columns.split(",")) if columns else None
