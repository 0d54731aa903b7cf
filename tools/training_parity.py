"""Train the embedded model next to transformers, from the same weights, and plot the losses.

    python tools/training_parity.py docs/training_parity.png

30 steps of AdamW with warm-up, decay and clipping on real sentences, without dropout: on each
backend, and in a plain PyTorch loop over transformers' MegatronBertForSequenceClassification. Two
minutes on 2 cores.
"""

import argparse
import csv
import json
import os
import pathlib
import subprocess
import sys
import tempfile

BACKENDS = ("jax", "torch", "tensorflow")
SENTENCES = pathlib.Path(__file__).parent.parent / "tests" / "data" / "sentiment.tsv"
STEPS, BATCH_SIZE, LENGTH = 30, 16, 64
LEARNING_RATE, WARMUP, WEIGHT_DECAY, CLIP = 5e-4, 0.1, 0.01, 1.0


def write_model(folder: str) -> None:
    """Write the embedded model, with a new head and no dropout, for transformers and for us."""
    import keras

    from keras_megatron import MegatronBertBackbone, MegatronBertTextClassifier

    keras.utils.set_random_seed(0)
    backbone = MegatronBertBackbone.from_preset(
        "megatron_bert_tiny_uncased", dropout=0.0, attention_dropout=0.0
    )
    classifier = MegatronBertTextClassifier(backbone, num_classes=2)
    classifier.export_to_transformers(folder)


def batches() -> list[tuple[dict, list[int]]]:
    """Return the samples of each step: token ids, segment ids, padding mask, and labels."""
    from keras_megatron import MegatronBertTokenizer

    with open(SENTENCES, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    tokenizer = MegatronBertTokenizer.from_preset("megatron_bert_tiny_uncased")
    steps = [rows[i * BATCH_SIZE : (i + 1) * BATCH_SIZE] for i in range(STEPS)]
    return [
        (
            tokenizer.encode([row["text"] for row in step], sequence_length=LENGTH),
            [int(row["label"] == "pos") for row in step],
        )
        for step in steps
    ]


def keras_losses(folder: str, weight_decay: float = WEIGHT_DECAY) -> list[float]:
    """Return the loss of each step on Keras's backend."""
    import numpy as np

    from keras_megatron import MegatronBertTextClassifier
    from keras_megatron.finetuning import adamw

    classifier = MegatronBertTextClassifier.from_preset(folder, preprocessor=None)
    classifier.compile(
        optimizer=adamw(LEARNING_RATE, STEPS, WARMUP, weight_decay=weight_decay, clip=CLIP)
    )
    losses = []
    for inputs, labels in batches():
        classifier.reset_metrics()  # train_on_batch answers with the mean since the last reset
        loss, *_ = classifier.train_on_batch(inputs, np.array(labels))
        losses.append(float(loss))
    return losses


def transformers_losses(folder: str) -> list[float]:
    """Return the loss of each step of a plain PyTorch loop."""
    import torch
    import transformers

    model = transformers.MegatronBertForSequenceClassification.from_pretrained(folder).train()
    decayed = [p for name, p in model.named_parameters() if _decays(name)]
    others = [p for name, p in model.named_parameters() if not _decays(name)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0}],
        lr=LEARNING_RATE,
    )
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, int(WARMUP * STEPS), STEPS)
    losses = []
    for inputs, labels in batches():
        ids = {name: torch.from_numpy(array).long() for name, array in inputs.items()}
        loss = model(
            input_ids=ids["token_ids"],
            token_type_ids=ids["segment_ids"],
            attention_mask=ids["padding_mask"],
            labels=torch.tensor(labels),
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def _decays(name: str) -> bool:
    return not name.endswith(("bias", "ln.weight"))


def plot(losses: dict[str, list[float]], path: str) -> None:
    """Draw the losses, and below them how far each backend's are from the reference's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    reference = np.array(losses["transformers"])
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(7, 5.5), layout="constrained")
    steps = np.arange(1, len(reference) + 1)
    above.plot(steps, reference, color="0.75", linewidth=7, label="transformers, PyTorch loop")
    for name, style in zip(BACKENDS, ("-", "--", ":"), strict=True):
        difference = np.maximum(np.abs(np.array(losses[name]) - reference), 1e-9)
        above.plot(steps, losses[name], style, linewidth=2, label=f"keras_megatron, {name}")
        below.semilogy(steps, difference, style, linewidth=2)
    below.axhline(1e-3, color="0.5", linewidth=1)
    below.annotate("limit", (1, 1e-3), textcoords="offset points", xytext=(0, 3), color="0.4")
    above.set(title="Fine-tuning on sentences of movie reviews", ylabel="loss")
    above.legend()
    below.set(xlabel="step", ylabel="absolute difference", ylim=(1e-9, 5e-3))
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run each backend in a process of its own, then plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", help="PNG to write, or - to print losses of this backend only")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.model:
        print(json.dumps(keras_losses(arguments.model)))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(folder, "model")
        write_model(model)
        losses = {"transformers": transformers_losses(model)}
        for backend in BACKENDS:
            done = subprocess.run(
                [sys.executable, __file__, "-", "--model", model],
                env={**os.environ, "KERAS_BACKEND": backend},
                stdout=subprocess.PIPE,
                check=True,
            )
            losses[backend] = json.loads(done.stdout.splitlines()[-1])
            pairs = zip(losses[backend], losses["transformers"], strict=True)
            print(f"{backend}: largest difference {max(abs(a - b) for a, b in pairs):.1e}")
    plot(losses, arguments.output)


if __name__ == "__main__":
    main()
