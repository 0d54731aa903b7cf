"""BERT's order of LayerNorm and residual connections against Megatron's: Figure 7 at a small scale.

    KERAS_BACKEND=torch python tools/layernorm_order.py CORPUS HELD_OUT WORK_FOLDER

The first two are JSONL with `text`, as for `keras-megatron preprocess`. Pieces are characters, so
that small models soon learn more than which pieces are frequent. Both orders are pretrained
on the same batches with the same settings, at two depths, from three seeds each, by
`keras-megatron pretrain`; runs that are finished in WORK_FOLDER are left alone. Writes
docs/layernorm_order.md and its picture.
"""

import argparse
import itertools
import json
import pathlib

import keras
import numpy as np
import tokenizers

from keras_megatron import MegatronBertTokenizer
from keras_megatron.pretraining.corpus import write_corpus
from keras_megatron.pretraining.run import pretrain
from keras_megatron.pretraining.settings import PretrainSettings

ROOT = pathlib.Path(__file__).parent.parent
CHARACTERS = 64  # the most frequent ones, at the start of a word and within
DOCS = ROOT / "docs"
ORDERS = {False: "Megatron's: LayerNorm before each block", True: "BERT's: LayerNorm after the sum"}
INITIALIZER_RANGE = 0.1  # about what 0.02 is for the widths of real models
PARTS = ("corpus", "held_out")
COLOURS = {False: "tab:blue", True: "tab:orange"}
LOG_EVERY = 20


def main() -> None:
    """Run what is not there, then write page and picture."""
    options = parse_options()
    write_token_files(options)
    runs = {
        (depth, order, seed): run(options, depth, order, seed)
        for depth, seed, order in itertools.product(options.depths, options.seeds, ORDERS)
    }
    plot(runs, options, DOCS / "layernorm_order.png")
    (DOCS / "layernorm_order.md").write_text(report(runs, options), encoding="utf-8")


def write_token_files(options) -> None:
    """Make a vocabulary of the corpus and token files of both texts, if they are not there."""
    vocabulary = options.work / "vocab.txt"
    if vocabulary.exists():
        return
    options.work.mkdir(parents=True, exist_ok=True)
    trained = tokenizers.BertWordPieceTokenizer(lowercase=True)
    texts = (json.loads(line)["text"] for line in options.corpus.open(encoding="utf-8"))
    size = 5 + 2 * CHARACTERS
    trained.train_from_iterator(
        texts, vocab_size=size, limit_alphabet=CHARACTERS, show_progress=False
    )
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    tokenizer = MegatronBertTokenizer(pieces, lowercase=True)
    for name in PARTS:
        write_corpus([getattr(options, name)], options.work / name, tokenizer)
    vocabulary.write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")


def run(options, depth: int, order: bool, seed: int) -> dict:
    """Pretrain, or read what was done; return the log's lines and the metrics."""
    settings = PretrainSettings(
        tokens=str(options.work / "corpus"),
        held_out=str(options.work / "held_out"),
        vocabulary=str(options.work / "vocab.txt"),
        steps=options.steps,
        num_layers=depth,
        num_heads=2,
        hidden_dim=options.hidden,
        max_sequence_length=64,
        sequence_length=64,
        batch_size=options.batch_size,
        learning_rate=options.rate,
        final_learning_rate=0.0,
        warmup=0.05,
        dropout=0.0,
        max_ngram=1,
        whole_words=False,
        pair_rate=0.0,
        seed=seed,
        dtype="float32",
        initializer_range=INITIALIZER_RANGE,
        apply_residual_connection_post_layernorm=order,
    )
    folder = options.work / f"{depth}_layers_{'bert' if order else 'megatron'}_seed_{seed}"
    try:
        metrics = pretrain(settings, folder, log_every=LOG_EVERY, save_every=options.steps)
    except ValueError as error:  # a loss that is no number is a result
        if "the loss is" not in str(error):
            raise
        metrics = {}
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    return {"lines": lines, "metrics": metrics}


def plot(runs: dict, options, path: pathlib.Path) -> None:
    """Draw the loss of hidden characters over the steps, a line for each run."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3.6), layout="constrained")
    panels = figure.subplots(1, len(options.depths), sharey=True, squeeze=False)[0]
    for axes, depth in zip(panels, options.depths, strict=True):
        for (of_depth, order, seed), done in runs.items():
            if of_depth == depth:
                steps = [line["step"] for line in done["lines"]]
                losses = [line["mlm_loss"] for line in done["lines"]]
                label = ORDERS[order] if seed == options.seeds[0] else None
                axes.plot(steps, losses, color=COLOURS[order], linewidth=1, label=label)
        axes.set_title(f"{depth} layers", fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("loss of hidden characters (nats)")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def report(runs: dict, options) -> str:
    """Return the page with the table."""
    tokens = options.steps * options.batch_size * 64
    page = f"""# The order of LayerNorm and residual connections

Megatron-LM moves BERT's LayerNorm before each block, which lets deeper models train (arXiv
1909.08053, section 5.3, Figure 7). Here the same at a small scale: width {options.hidden}, a
vocabulary of {CHARACTERS} characters at the start of a word and within, {options.steps:,}
steps of {options.batch_size} samples of 64 tokens ({tokens / 1e6:.1f}M places),
AdamW at a peak rate of {options.rate:g}, no dropout, single characters hidden, float32, Keras on
{keras.config.backend()}. Both orders see the same batches; each seed has its own weights and data.
Held out are documents that no run saw.

![Loss over steps, both orders, two depths](layernorm_order.png)

| layers | order | loss of hidden characters, held out, by seed | mean |
|---|---|---|---|
"""
    for depth, order in itertools.product(options.depths, ORDERS):
        found = [runs[depth, order, seed]["metrics"] for seed in options.seeds]
        losses = [m["held_out"]["mlm_loss"] if m else float("nan") for m in found]
        by_seed = " / ".join("diverged" if np.isnan(x) else f"{x:.3f}" for x in losses)
        page += f"| {depth} | {ORDERS[order]} | {by_seed} | {np.mean(losses):.3f} |\n"
    return page + f"\nMade by `tools/{pathlib.Path(__file__).name}`.\n"


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=pathlib.Path, metavar="CORPUS", help="JSONL")
    parser.add_argument("held_out", type=pathlib.Path, metavar="HELD_OUT", help="JSONL")
    parser.add_argument("work", type=pathlib.Path, metavar="WORK_FOLDER")
    parser.add_argument("--depths", type=int, nargs="+", default=[3, 24])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
