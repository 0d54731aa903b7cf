"""Train the preset that the package carries, `megatron_bert_tiny_uncased`.

    KERAS_BACKEND=torch python tools/train_tiny_preset.py CORPUS_DIR OUTPUT_DIR --state run.pt

CORPUS_DIR holds `*.txt` or `*.txt.xz`: one paragraph a line, a blank line between documents. Two
per cent of the documents are held out. OUTPUT_DIR becomes a preset directory in float16, with a
`training.json` of what was measured; the preset's README.md is its model card. The training is
that of `torch_pretraining.py`; what it reached is measured with the Keras model. A run that is
stopped goes on from its state.
"""

import argparse
import collections
import json
import lzma
import os
import time
import zlib
from pathlib import Path

import keras
import numpy as np
import torch
from sentence_pairs import Batches, make_samples
from torch_pretraining import Trainer

from keras_megatron import (
    MegatronBertBackbone,
    MegatronBertMaskedLM,
    MegatronBertMaskedLMPreprocessor,
    MegatronBertTokenizer,
)
from keras_megatron.masking import MaskingScheme
from keras_megatron.pretraining.samples import masked_batches, pack_documents

EVALUATION = MaskingScheme()  # BERT's: 15 %, single tokens
VOCABULARY = (
    Path(__file__).parent.parent
    / "keras_megatron"
    / "presets"
    / "vocabularies"
    / "bert_uncased.txt"
)


def read_documents(directory: Path) -> list[list[str]]:
    """Read all documents of a corpus, a list of paragraphs each.

    Raises:
        ValueError: there is no text file in the directory.
    """
    documents = []
    files = sorted([*directory.glob("*.txt"), *directory.glob("*.txt.xz")])
    if not files:
        raise ValueError(f"{directory} holds no *.txt or *.txt.xz: give the corpus directory")
    for path in files:
        opener = lzma.open if path.suffix == ".xz" else open
        with opener(path, "rt", encoding="utf-8") as lines:
            texts = lines.read().split("\n\n")
        documents += [text.splitlines() for text in texts if text.strip()]
    return documents


def hold_out(documents: list[list[str]], share: float = 0.02) -> tuple[list, list]:
    """Split documents into (training, held out) by a hash of their text."""
    held = [zlib.crc32("\n".join(d).encode()) % 10_000 < share * 10_000 for d in documents]
    training = [d for d, out in zip(documents, held, strict=True) if not out]
    return training, [d for d, out in zip(documents, held, strict=True) if out]


def build(args, dtype: str = "float32", dropout: float = 0.1) -> MegatronBertMaskedLM:
    """Make the model with random weights."""
    tokenizer = MegatronBertTokenizer(str(args.vocabulary), lowercase=True)
    backbone = MegatronBertBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=args.layers,
        num_heads=max(1, args.hidden // 64),
        hidden_dim=args.hidden,
        intermediate_dim=4 * args.hidden,
        dropout=dropout,
        attention_dropout=dropout,
        max_sequence_length=args.sequence_length,
        dtype=dtype,
        name="megatron_bert_backbone",
    )
    preprocessor = MegatronBertMaskedLMPreprocessor(
        tokenizer, sequence_length=args.sequence_length, name="masked_lm_preprocessor"
    )
    return MegatronBertMaskedLM(backbone, preprocessor, name="megatron_bert_masked_lm")


def sinusoids(positions: int, hidden: int, scale: float = 0.02) -> np.ndarray:
    """Return waves over the positions, float32 (positions, hidden), to start their table from.

    Those of arXiv 1706.03762, section 3.5, up to 600 positions long, and with the `scale` of the
    other tables. Attending to the place before is then one rotation for all places, which a random
    table has to learn for each: the loss leaves its first plateau earlier.
    """
    angles = np.arange(positions)[:, None] * np.geomspace(1, 1e-2, hidden // 2)
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return (waves * scale * 2**0.5).astype("float32")


def train(masked_lm, documents: list, tokenizer, args) -> dict:
    """Train the model's weights, from where `args.state` stopped; return what was done."""
    length = args.sequence_length
    samples = make_samples(documents, tokenizer, length)
    scheme = MaskingScheme(selection_rate=args.selection_rate)
    batches = Batches(samples, tokenizer, scheme, args.tokens, length)
    weights = {v.path: v.value.detach() for v in masked_lm.trainable_variables}
    if args.start is None:
        table = weights["embeddings/position_embedding/embeddings"]
        waves = torch.from_numpy(sinusoids(*table.shape))
        weights["embeddings/position_embedding/embeddings"] = waves
    heads = masked_lm.backbone.num_heads
    trainer = Trainer(weights, heads, args.layers, compiled=not args.no_compile)
    done = {"step": 0, "epoch": 0, "place": 0, "tokens": 0, "seconds": 0.0}
    if args.state and args.state.exists():
        done = trainer.load(args.state)
    order, saved, sums = batches.order(done["epoch"]), time.time(), collections.Counter()
    while done["step"] < args.steps:
        if done["place"] == len(order):
            done["epoch"], done["place"] = done["epoch"] + 1, 0
            order = batches.order(done["epoch"])
        batch = batches.make(done["epoch"], done["place"], *order[done["place"]])
        start = time.time()
        sums.update(trainer.step(batch, learning_rate(done["step"], args)))
        done["seconds"] += time.time() - start
        done["tokens"] += int((batch.token_ids != tokenizer.pad_token_id).sum())
        done["step"], done["place"] = done["step"] + 1, done["place"] + 1
        if done["step"] % args.report_every == 0:
            means = {name: round(value / args.report_every, 3) for name, value in sums.items()}
            print(done["step"], f"{done['tokens'] / 1e6:.1f}M tokens", means, flush=True)
            sums.clear()
        if args.state and (time.time() - saved > 300 or done["step"] == args.steps - args.decay):
            trainer.save(args.state, done)
            saved = time.time()
    for variable in masked_lm.trainable_variables:
        variable.assign(trainer.weights[variable.path].detach().reshape(variable.shape))
    return done


def learning_rate(step: int, args) -> float:
    """Rise, stay, and fall to nothing in the last `args.decay` steps: so a run can be prolonged."""
    rising = (step + 1) / max(1, args.warmup)
    falling = (args.steps - step) / max(1, args.decay)
    return args.learning_rate * min(1.0, rising, falling)


def evaluate(masked_lm, samples: np.ndarray, tokenizer) -> dict[str, float]:
    """Return loss (nats) and accuracy of the masked tokens, with masks that depend on no run."""
    batches = masked_batches(samples, tokenizer, EVALUATION, batch_size=64, seed=2, shuffle=False)
    losses, hits, weights = [], [], []
    for x, y, weight in batches:
        logits = masked_lm.logits(x)
        shifted = logits - logits.max(-1, keepdims=True)
        log_sum = np.log(np.exp(shifted).sum(-1))
        losses.append(log_sum - np.take_along_axis(shifted, y[..., None], -1)[..., 0])
        hits.append(logits.argmax(-1) == y)
        weights.append(weight)
    weight = np.concatenate(weights)
    loss = (np.concatenate(losses) * weight).sum() / weight.sum()
    accuracy = (np.concatenate(hits) * weight).sum() / weight.sum()
    return {"loss": float(loss), "accuracy": float(accuracy), "masks": int(weight.sum())}


def baselines(training: np.ndarray, held_out: np.ndarray, tokenizer) -> dict[str, float]:
    """Score two models that read no context, on the masks that `evaluate` uses.

    The most frequent token answers the same to all. The unigram model gives each token its add-one
    frequency in the training samples.
    """
    vocabulary_size = tokenizer.vocabulary_size()
    counts = np.bincount(training.ravel(), minlength=vocabulary_size).astype("float64")
    counts[tokenizer.special_token_ids] = 0
    unigram = np.log((counts + 1) / (counts + 1).sum())
    batches = masked_batches(held_out, tokenizer, EVALUATION, batch_size=64, seed=2, shuffle=False)
    labels = np.concatenate([y[weight > 0] for _, y, weight in batches])
    return {
        "unigram_loss": float(-unigram[labels].mean()),
        "most_frequent_accuracy": float((labels == counts.argmax()).mean()),
        "most_frequent_token": tokenizer.id_to_token(int(counts.argmax())),
    }


def save(masked_lm, output: Path, args) -> None:
    """Write the preset with float16 weights."""
    half = build(args, dtype="float16")
    trained = {variable.path: variable for variable in masked_lm.trainable_variables}
    for variable in half.trainable_variables:
        variable.assign(keras.ops.convert_to_numpy(trained[variable.path]))
    half.save_to_preset(output)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--vocabulary", type=Path, default=VOCABULARY)
    parser.add_argument("--start", help="preset of this shape to go on from, not random weights")
    parser.add_argument("--state", type=Path, help="file to keep a run in, and to go on from")
    parser.add_argument("--steps", type=int, default=8_400)
    parser.add_argument("--decay", type=int, default=3_600, help="last steps, of a falling rate")
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--tokens", type=int, default=4096, help="slots a batch")
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--selection-rate", type=float, default=0.2)
    parser.add_argument("--report-every", type=int, default=50)
    parser.add_argument("--no-compile", action="store_true", help="needs no C++ compiler")
    return parser.parse_args()


def main() -> None:
    """Train, measure and save."""
    args = parse_arguments()
    keras.utils.set_random_seed(0)
    masked_lm = build(args, dropout=0.0)  # so few passes over the corpus do not overfit
    if args.start is not None:
        started = MegatronBertMaskedLM.from_preset(args.start, dtype="float32")
        masked_lm.set_weights(started.get_weights())
    tokenizer = masked_lm.preprocessor.tokenizer
    training, held_out = hold_out(read_documents(args.corpus))
    done = train(masked_lm, training, tokenizer, args)

    training, held_out = (
        pack_documents(documents, tokenizer, args.sequence_length, seed=0)
        for documents in (training, held_out)
    )
    facts = {
        "parameters": masked_lm.count_params(),
        "steps": done["step"],
        "batch_tokens": args.tokens,
        "sequence_length": args.sequence_length,
        "tokens": done["tokens"],
        "corpus_tokens": int((training != tokenizer.pad_token_id).sum()),
        "minutes": round(done["seconds"] / 60, 1),
        "hardware": f"{torch.get_num_threads()} threads on {os.cpu_count()} CPU cores",
        **evaluate(masked_lm, held_out, tokenizer),
        **baselines(training, held_out, tokenizer),
    }
    save(masked_lm, args.output, args)
    (args.output / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
