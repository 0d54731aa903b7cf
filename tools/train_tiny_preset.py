r"""Train the preset that the package carries, `megatron_bert_tiny_uncased`.

    KERAS_BACKEND=jax python tools/train_tiny_preset.py CORPUS_DIR WORK_DIR OUTPUT_DIR

The preset that is there went on from the one before it, in float32 on one CPU core:

    KERAS_BACKEND=torch OMP_NUM_THREADS=1 python tools/train_tiny_preset.py CORPUS_DIR WORK_DIR \
        OUTPUT_DIR --start megatron_bert_tiny_uncased --steps 3200 --batch-size 32 \
        --dtype float32 --learning-rate 4e-4

CORPUS_DIR holds `*.txt` or `*.txt.xz`: one paragraph a line, a blank line between documents. Two
per cent of the documents are held out. WORK_DIR gets token files and a run of `keras-megatron
pretrain`, which goes on where it was stopped. OUTPUT_DIR becomes a preset directory in float16,
with a `training.json` of what was measured; the preset's README.md is its model card.
"""

import argparse
import json
import lzma
import os
import zlib
from pathlib import Path

import keras
import numpy as np

from keras_megatron import (
    MegatronBertBackbone,
    MegatronBertMaskedLM,
    MegatronBertMaskedLMPreprocessor,
    MegatronBertTokenizer,
)
from keras_megatron.masking import MaskingScheme
from keras_megatron.pretraining.corpus import write_corpus
from keras_megatron.pretraining.run import pretrain
from keras_megatron.pretraining.sentence_pairs import pretraining_batches
from keras_megatron.pretraining.settings import PretrainSettings
from keras_megatron.pretraining.token_files import TokenFiles

PRESETS = Path(__file__).parent.parent / "keras_megatron" / "presets"
VOCABULARY = PRESETS / "vocabularies" / "bert_uncased.txt"
PARTS = ("training", "held_out")


def write_parts(directory: Path, work: Path, tokenizer) -> dict[str, dict[str, int]]:
    """Write token files of the documents, held out ones apart, if they are not there.

    Raises:
        ValueError: there is no text file in the directory.
    """
    counts = work / "corpus.json"
    if counts.exists():
        return json.loads(counts.read_text())
    files = sorted([*directory.glob("*.txt"), *directory.glob("*.txt.xz")])
    if not files:
        raise ValueError(f"{directory} holds no *.txt or *.txt.xz: give the corpus directory")
    texts = {part: [] for part in PARTS}
    for path in files:
        opener = lzma.open if path.suffix == ".xz" else open
        with opener(path, "rt", encoding="utf-8") as lines:
            for text in filter(str.strip, lines.read().split("\n\n")):
                texts[PARTS[is_held_out(text)]].append(json.dumps({"text": text}) + "\n")
    found = {}
    for part, lines in texts.items():
        source = work / f"{part}.jsonl"
        source.write_text("".join(lines), "utf-8")
        found[part] = write_corpus([source], work / part, tokenizer)
    counts.write_text(json.dumps(found))
    return found


def is_held_out(text: str, share: float = 0.02) -> bool:
    """Choose documents by a hash of their text."""
    return zlib.crc32("\n".join(text.splitlines()).encode()) % 10_000 < share * 10_000


def settings_of(args) -> PretrainSettings:
    """Return the settings of the run."""
    model = {"preset": args.start}
    if args.start is None:
        shape = {"num_layers": args.layers, "num_heads": max(1, args.hidden // 64)}
        shape |= {"hidden_dim": args.hidden, "max_sequence_length": args.sequence_length}
        model = {"vocabulary": str(VOCABULARY), **shape}
    return PretrainSettings(
        **model,
        tokens=str(args.work / "training"),
        steps=args.steps,
        sequence_length=args.sequence_length,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        final_learning_rate=0.0,
        warmup=0.02,
        dropout=0.0,  # so few passes over the corpus do not overfit
        selection_rate=0.2,
        max_ngram=1,
        whole_words=False,
        pair_rate=0.6,
        dtype=args.dtype,
        seed=1,
    )


def evaluate(masked_lm: MegatronBertMaskedLM, files: TokenFiles, length: int) -> dict:
    """Return loss (nats) and accuracy on 15 % of the tokens, hidden as BERT hides them."""
    tokenizer = masked_lm.preprocessor.tokenizer
    batches = held_out_batches(files, tokenizer, length)
    masked_lm.compile()
    loss, accuracy = masked_lm.evaluate(batches, verbose=0)
    masks = sum(int(weight.sum()) for _, _, weight in batches)
    return {"loss": float(loss), "accuracy": float(accuracy), "masks": masks}


def held_out_batches(files: TokenFiles, tokenizer, length: int):
    """Return samples of one part, with masks that depend on no run, for a masked LM."""
    batches = pretraining_batches(
        files, tokenizer, 64, length, MaskingScheme(), seed=2, pair_rate=0.0
    )
    return batches.map(lambda batch: (batch[0], batch[1]["mlm"], batch[2]["mlm"]))


def baselines(training: TokenFiles, held_out: TokenFiles, tokenizer, length: int) -> dict:
    """Score two models that read no context, on the masks that `evaluate` uses.

    The most frequent token answers the same to all. The unigram model gives each token its add-one
    frequency in the training text.
    """
    counts = np.bincount(training.tokens, minlength=tokenizer.vocabulary_size()).astype("float64")
    unigram = np.log((counts + 1) / (counts + 1).sum())
    batches = held_out_batches(held_out, tokenizer, length)
    labels = np.concatenate([y[weight > 0] for _, y, weight in batches])
    return {
        "unigram_loss": float(-unigram[labels].mean()),
        "most_frequent_accuracy": float((labels == counts.argmax()).mean()),
        "most_frequent_token": tokenizer.id_to_token(int(counts.argmax())),
    }


def save(trained: MegatronBertMaskedLM, output: Path) -> None:
    """Write the preset with float16 weights, and with dropout for who fine-tunes it."""
    config = trained.backbone.get_config() | {"dropout": 0.1, "attention_dropout": 0.1}
    config |= {"dtype": "float16", "name": "megatron_bert_backbone"}
    tokenizer = trained.preprocessor.tokenizer
    preprocessor = MegatronBertMaskedLMPreprocessor(
        tokenizer, config["max_sequence_length"], name="masked_lm_preprocessor"
    )
    half = MegatronBertMaskedLM(
        MegatronBertBackbone.from_config(config), preprocessor, name="megatron_bert_masked_lm"
    )
    half.set_weights(trained.get_weights())
    half.save_to_preset(output)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--start", help="preset of this shape to go on from, not random weights")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--dtype", default="mixed_bfloat16")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=100)
    return parser.parse_args()


def main() -> None:
    """Train, measure and save."""
    args = parse_arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = MegatronBertTokenizer(str(VOCABULARY), lowercase=True)
    counts = write_parts(args.corpus, args.work, tokenizer)
    settings, run = settings_of(args), args.work / "run"
    every = {"log_every": args.log_every, "save_every": 10 * args.log_every}
    metrics = pretrain(settings, run, workers=args.workers, **every)

    trained = MegatronBertMaskedLM.from_preset(str(run / "preset"), dtype="float32")
    training, held_out = (TokenFiles.open(args.work / part, tokenizer) for part in PARTS)
    facts = {
        "parameters": trained.count_params(),
        "steps": metrics["steps"],
        "batch_size": settings.batch_size,
        "sequence_length": settings.sequence_length,
        "places": metrics["tokens"],
        "corpus_tokens": counts["training"]["tokens"],
        "minutes": round(metrics["seconds"] / 60, 1),
        "hardware": f"Keras on {keras.backend.backend()}, {os.cpu_count()} CPU cores",
        **evaluate(trained, held_out, settings.sequence_length),
        **baselines(training, held_out, tokenizer, settings.sequence_length),
    }
    save(trained, args.output)
    (args.output / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
