"""The commands `keras-megatron preprocess` and `keras-megatron pretrain`."""

import pathlib
from typing import Annotated

import typer

from keras_megatron.cli_presets import DEFAULT_PRESET, check_preset


def preprocess(
    sources: Annotated[
        list[pathlib.Path],
        typer.Argument(
            metavar="FILE...",
            help="Documents: JSON Lines (.jsonl), or text with empty lines between them; .xz too.",
        ),
    ],
    output: Annotated[
        str, typer.Option(metavar="PREFIX", help="PREFIX.bin, .idx and .json are written.")
    ],
    preset: Annotated[
        str | None, typer.Option(help="Preset whose tokenizer is used; a tiny one by default.")
    ] = None,
    vocabulary: Annotated[
        str | None, typer.Option(metavar="FILE", help="In place of a preset: pieces, one a line.")
    ] = None,
    cased: Annotated[bool, typer.Option("--cased", help="The vocabulary keeps case.")] = False,
    key: Annotated[str, typer.Option(help="Of the text in a line of JSON.")] = "text",
    language: Annotated[str, typer.Option(help="Of the texts, such as en or de.")] = "en",
) -> None:
    """Make token files, which Megatron-LM reads too, of documents."""
    from keras_megatron.pretraining.corpus import write_corpus
    from keras_megatron.tokenizer import MegatronBertTokenizer

    if cased and vocabulary is None:
        raise ValueError("--cased is of a --vocabulary: a preset knows whether it keeps case")
    if vocabulary is None:
        tokenizer = MegatronBertTokenizer.from_preset(preset or DEFAULT_PRESET)
    elif preset is None:
        tokenizer = MegatronBertTokenizer(vocabulary, lowercase=not cased)
    else:
        raise ValueError("give either --preset or --vocabulary")
    counts = write_corpus(sources, output, tokenizer, key, language)
    print(", ".join(f"{number:,} {name}" for name, number in counts.items()))


def pretrain(
    settings: Annotated[
        pathlib.Path, typer.Argument(metavar="SETTINGS.toml", help="See `PretrainSettings`.")
    ],
    output: Annotated[
        str, typer.Option(metavar="DIR", help="Folder to make, or of this run, to go on with it.")
    ],
    save_every: Annotated[int, typer.Option(help="Steps a checkpoint.")] = 1000,
    keep: Annotated[int, typer.Option(help="Checkpoints that are kept.")] = 2,
    log_every: Annotated[
        int, typer.Option(help="Steps a line of the log; other numbers are multiples of it.")
    ] = 10,
    evaluate_every: Annotated[
        int | None, typer.Option(help="Steps until held-out data is measured; at the end if none.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that make batches.")] = 0,
    jit_compile: Annotated[
        bool, typer.Option("--jit-compile", help="Compile: the layers on PyTorch, for a GPU.")
    ] = False,
    model_parallel: Annotated[
        int, typer.Option(min=1, help="Devices that the kernels are split over.")
    ] = 1,
    data_parallel: Annotated[
        int, typer.Option(min=1, help="Devices that a batch is split over.")
    ] = 1,
) -> None:
    """Pretrain a model on token files; run again, a killed run goes on where it was.

    DIR gets checkpoints, log.jsonl, TensorBoard's files and, at the end, a preset.
    """
    import contextlib

    from keras_megatron.parallel import model_parallel as split
    from keras_megatron.pretraining.run import pretrain as run
    from keras_megatron.pretraining.settings import PretrainSettings
    from keras_megatron.processes import is_first

    read = PretrainSettings.from_file(settings)
    if read.preset is not None:
        check_preset(read.preset)
    is_split = model_parallel * data_parallel > 1
    with split(model_parallel, data_parallel) if is_split else contextlib.nullcontext():
        metrics = run(
            read,
            output,
            save_every=save_every,
            keep=keep,
            log_every=log_every,
            evaluate_every=evaluate_every,
            workers=workers,
            jit_compile=jit_compile or "auto",
        )
        if is_first():
            for name, value in metrics.get("held_out", {}).items():
                print(f"held out {name}: {value:.4f}")
