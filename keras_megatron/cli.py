"""The `keras-megatron` command."""

import sys
from collections.abc import Sequence
from typing import Annotated

import rich.console
import rich.table
import rich.text
import typer

from keras_megatron import (
    cli_checkpoints,
    cli_finetuning,
    cli_planning,
    cli_pretraining,
    cli_serving,
)
from keras_megatron.cli_presets import DEFAULT_PRESET, check_fills_masks, check_preset

# Each with the work it is from; all are in the public domain.
EXAMPLES = {
    "It is a truth universally acknowledged, that a single [MASK] in possession of a good fortune, "
    "must be in want of a wife.": "Jane Austen, Pride and Prejudice, 1813",
    "In the beginning God created the [MASK] and the [MASK].": "Genesis 1:1, King James Version",
    "The LORD is my shepherd; I shall not [MASK].": "Psalm 23:1, King James Version",
    "Fellow-citizens, we can not escape [MASK].": "Abraham Lincoln, message to Congress, 1862",
}

app = typer.Typer(
    add_completion=False,
    help="Megatron BERT for Keras 3. The environment variable KERAS_BACKEND picks the backend.",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0, or 2 after one line on stderr if the user made an error."""
    usage_error = typer.BadParameter.__base__  # typer does not export it
    try:
        status = app(args=arguments, standalone_mode=False)
    except usage_error as error:
        _fail(f"{error.format_message()} (see --help)")
    except (ValueError, OSError) as error:
        _fail(str(error))
    except typer.Abort:
        status = 130  # as shells report Ctrl-C
    sys.exit(status or 0)


def _fail(message: str) -> None:
    print(f"keras-megatron: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        from keras_megatron.version import __version__

        print(f"keras-megatron {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


@app.command()
def fill_mask(
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Sentences with [MASK]; some classics if none."),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Name of a preset, or a folder with one.")
    ] = DEFAULT_PRESET,
    top_k: Annotated[int, typer.Option(help="Tokens to show for each [MASK].")] = 5,
) -> None:
    """Fill the [MASK]s of sentences."""
    import keras

    from keras_megatron import MegatronBertMaskedLM

    sources = [] if texts else list(EXAMPLES.values())
    texts = texts or list(EXAMPLES)
    check_preset(preset)
    check_fills_masks(preset)
    model = MegatronBertMaskedLM.from_preset(preset)
    title = f"{preset} on Keras {keras.__version__}, backend {keras.backend.backend()}"
    table = _table(title, lines=True)
    table.add_column("Sentence", ratio=1)
    table.add_column("Tokens, with their probability", ratio=1)
    for index, masks in enumerate(model.fill_mask(texts, top_k=top_k)):
        sentence = rich.text.Text(texts[index])
        if sources:
            sentence.append(f"\n{sources[index]}", style="dim")
        lines = ("  ".join(f"{a['token_str']} {a['score']:.1%}" for a in mask) for mask in masks)
        table.add_row(sentence, rich.text.Text("\n".join(lines)))
    rich.console.Console().print(table)


@app.command()
def presets() -> None:
    """List the names that from_preset knows."""
    from keras_megatron.presets.cache import cache_folder, cached_folder
    from keras_megatron.presets.registry import known

    table = _table("Presets")
    table.add_column("Name")
    table.add_column("Parameters", justify="right")
    table.add_column("Weights")
    for preset in known():
        if preset.embedded:
            weights = "in the package"
        elif preset.release is None:
            weights = "none released"
        else:
            weights = "cached" if cached_folder(preset.name) else "downloaded on first use"
        table.add_row(preset.name, f"{preset.parameters():,}", weights)
    rich.console.Console().print(table)
    print(f"Cache: {cache_folder()} (set KERAS_HOME to move it)")


app.command()(cli_checkpoints.convert)
app.command()(cli_checkpoints.inspect)
app.command()(cli_finetuning.finetune)
app.command()(cli_finetuning.predict)
app.command()(cli_planning.plan)
app.command()(cli_pretraining.preprocess)
app.command()(cli_pretraining.pretrain)
app.command()(cli_serving.export)


def _table(title: str, lines: bool = False) -> rich.table.Table:
    return rich.table.Table(title=rich.markup.escape(title), title_justify="left", show_lines=lines)
