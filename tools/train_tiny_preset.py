"""Train the preset that the package carries, `megatron_bert_tiny_uncased`.

    KERAS_BACKEND=tensorflow python tools/train_tiny_preset.py CORPUS_DIR OUTPUT_DIR

CORPUS_DIR holds `*.txt` or `*.txt.xz`: one paragraph a line, a blank line between documents. Two
per cent of the documents are held out. OUTPUT_DIR becomes a preset directory in float16, with a
`training.json` of what was measured; the preset's README.md is its model card. The defaults made
the released preset, in an hour and a half on two busy CPU cores.
"""

import argparse
import json
import lzma
import os
import time
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
from keras_megatron.pretraining.masking import MaskingScheme
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


def build(args) -> MegatronBertMaskedLM:
    """Make the model with random weights."""
    tokenizer = MegatronBertTokenizer(str(args.vocabulary), lowercase=True)
    backbone = MegatronBertBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=args.layers,
        num_heads=max(1, args.hidden // 64),
        hidden_dim=args.hidden,
        intermediate_dim=4 * args.hidden,
        dropout=0.0,  # so few passes over the corpus do not overfit
        attention_dropout=0.0,
        max_sequence_length=args.sequence_length,
        dtype=args.dtype,
    )
    return MegatronBertMaskedLM(backbone)  # no preprocessor: it is trained on ids


def train(masked_lm, samples: np.ndarray, tokenizer, args) -> None:
    """Train with AdamW, linear warm-up and cosine decay."""
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=args.decay_steps - args.warmup,
        alpha=0.01,
        warmup_target=args.learning_rate,
        warmup_steps=args.warmup,
    )
    optimizer = keras.optimizers.AdamW(
        schedule, weight_decay=0.01, beta_2=0.98, epsilon=1e-6, global_clipnorm=1.0
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    masked_lm.compile(optimizer=optimizer)
    scheme = MaskingScheme(selection_rate=args.selection_rate)
    batches = masked_batches(samples, tokenizer, scheme, args.batch, seed=1)
    steps_an_epoch = min(args.report_every, args.steps)
    masked_lm.fit(
        batches.repeat(),
        steps_per_epoch=steps_an_epoch,
        epochs=args.steps // steps_an_epoch,
        verbose=2,
    )


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


def save(masked_lm, tokenizer, output: Path, args) -> None:
    """Write the preset with float16 weights."""
    half = MegatronBertBackbone.from_config(
        {**masked_lm.backbone.get_config(), "dtype": "float16", "dropout": 0.1,
         "attention_dropout": 0.1, "name": "megatron_bert_backbone"}
    )  # fmt: skip
    preprocessor = MegatronBertMaskedLMPreprocessor(
        tokenizer, sequence_length=args.sequence_length, name="masked_lm_preprocessor"
    )
    released = MegatronBertMaskedLM(half, preprocessor, name="megatron_bert_masked_lm")
    trained = {variable.path: variable for variable in masked_lm.trainable_variables}
    for variable in released.trainable_variables:
        variable.assign(keras.ops.convert_to_numpy(trained[variable.path]))
    released.save_to_preset(output)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--vocabulary", type=Path, default=VOCABULARY)
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--decay-steps", type=int, default=3200, help="where the rate reaches 1 %%")
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--selection-rate", type=float, default=0.2)
    parser.add_argument("--report-every", type=int, default=50)
    parser.add_argument("--dtype", default="float32")
    return parser.parse_args()


def main() -> None:
    """Train, measure and save."""
    args = parse_arguments()
    keras.utils.set_random_seed(0)
    masked_lm = build(args)
    tokenizer = MegatronBertTokenizer(str(args.vocabulary), lowercase=True)
    training, held_out = hold_out(read_documents(args.corpus))
    training = pack_documents(training, tokenizer, args.sequence_length, seed=0)
    held_out = pack_documents(held_out, tokenizer, args.sequence_length, seed=0)
    print(f"{len(training)} training samples, {len(held_out)} held out", flush=True)

    start = time.time()
    train(masked_lm, training, tokenizer, args)
    facts = {
        "parameters": masked_lm.count_params(),
        "steps": int(masked_lm.optimizer.iterations),
        "batch": args.batch,
        "sequence_length": args.sequence_length,
        "tokens": int(
            (training != tokenizer.pad_token_id).mean()
            * args.steps
            * args.batch
            * args.sequence_length
        ),
        "corpus_tokens": int((training != tokenizer.pad_token_id).sum()),
        "minutes": round((time.time() - start) / 60, 1),
        "hardware": f"{os.cpu_count()} CPU cores, {keras.backend.backend()}, {args.dtype}",
        **evaluate(masked_lm, held_out, tokenizer),
        **baselines(training, held_out, tokenizer),
    }
    save(masked_lm, tokenizer, args.output, args)
    (args.output / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
