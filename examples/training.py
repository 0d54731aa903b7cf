"""What the examples share: their options, the training, and the report of what it reached."""

import argparse
import json
import pathlib
import tempfile
import time
from collections.abc import Callable

import keras

from keras_megatron.finetuning.examples import Examples
from keras_megatron.finetuning.recipe import adamw

LORA_RATE = 5  # adapters start from nothing and learn at a higher rate, by so much


def parse_options(
    description: str, epochs: int, learning_rate: float, from_random: float | None = None
) -> argparse.Namespace:
    """Read the command line of an example; its numbers were chosen on development data.

    Args:
        description: the example's docstring.
        epochs: passes over the training data.
        learning_rate: the highest rate.
        from_random: the highest rate from random weights, if another one does better there.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("data", type=pathlib.Path, metavar="DATA_FOLDER")
    parser.add_argument("--preset", default="megatron_bert_tiny_uncased")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", help="or mixed_bfloat16, for the training")
    parser.add_argument("--lora", type=int, metavar="RANK", help="train adapters, not the weights")
    parser.add_argument("--dev", action="store_true", help="score development data instead of test")
    parser.add_argument(
        "--random-init", action="store_true", help="start from random weights, for comparison"
    )
    parser.add_argument(
        "--lower-precision", action="store_true", help="score the model in fewer bits too"
    )
    options = parser.parse_args()
    if options.learning_rate is None:
        options.learning_rate = (options.random_init and from_random) or learning_rate
        options.learning_rate *= LORA_RATE if options.lora else 1
    keras.utils.set_random_seed(options.seed)
    return options


def model_arguments(options: argparse.Namespace) -> dict:
    """Return the arguments of `from_preset` that options decide."""
    return {"load_weights": not options.random_init, "dtype": options.dtype}


def train(
    model, examples: Examples, development: Examples, options: argparse.Namespace, batch_size: int
) -> None:
    """Train a model on raw samples, with the recipe of BERT's fine-tuning."""
    x, y = as_x(examples), examples.labels
    if options.lora:
        model.backbone.enable_lora(options.lora)
    steps = options.epochs * len(model.preprocessor.dataset(x, y, batch_size=batch_size))
    model.compile(optimizer=adamw(options.learning_rate, total_steps=steps))
    start = time.perf_counter()
    model.fit(
        x,
        y,
        batch_size=batch_size,
        epochs=options.epochs,
        validation_data=(as_x(development), development.labels),
        verbose=2,
    )
    print(f"trained for {(time.perf_counter() - start) / 60:.1f} minutes")


def as_x(examples: Examples) -> list | tuple[list, ...]:
    """Return samples as `fit` takes them: several columns are a tuple."""
    return examples.columns if len(examples.columns) > 1 else examples.columns[0]


def report(model, score: Callable, examples: Examples, options: argparse.Namespace) -> None:
    """Print the score of a trained model as JSON, and, if it is wanted, its scores in fewer bits.

    Args:
        model: a trained task.
        score: function of a model and of samples that returns a number.
        examples: samples that the model has not seen.
        options: as parsed.
    """
    scores = {"score": score(model, examples)}
    if options.lower_precision:
        with tempfile.TemporaryDirectory() as folder:
            model.save_to_preset(folder)
            for name in ("float32", "bfloat16", "int8", "int4"):
                dtype = name if "float" in name else "float32"
                stored = type(model).from_preset(folder, dtype=dtype)
                if name.startswith("int"):
                    stored.quantize(name)
                scores[name] = score(stored, examples)
    print(json.dumps(scores))


def share_right(answers: list[dict], key: str, labels: list) -> float:
    """Return the share of answers that are right."""
    right = [answer[key] == label for answer, label in zip(answers, labels, strict=True)]
    return sum(right) / len(right)
