"""Fine-tune the embedded model to choose the definition that fits the use of a word.

    python examples/multiple_choice.py DATA_FOLDER

DATA_FOLDER holds multiple_choice.jsonl: an object a line, with split (train, dev, test), context,
choices (a list of definitions) and label (the place of the right one).

Its score has not been measured yet.
"""

import argparse
import json
import pathlib

import keras

from keras_megatron import MegatronBertMultipleChoice, MegatronBertMultipleChoicePreprocessor
from keras_megatron.finetuning.examples import choice_examples
from keras_megatron.finetuning.recipe import adamw
from keras_megatron.finetuning.records import read_records

SEQUENCE_LENGTH = 40  # 99 % of the definitions fit
BATCH_SIZE = 16
LEARNING_RATE = 5e-4


def main():
    arguments = parse_arguments()
    keras.utils.set_random_seed(0)
    train, dev, test = (
        choice_examples(read_records(f"{arguments.data / 'multiple_choice.jsonl'}:{split}"))
        for split in ("train", "dev", "test")
    )
    preprocessor = MegatronBertMultipleChoicePreprocessor.from_preset(
        arguments.preset, sequence_length=SEQUENCE_LENGTH
    )
    model = MegatronBertMultipleChoice.from_preset(
        arguments.preset,
        preprocessor=preprocessor,
        load_weights=not arguments.random_init,
    )
    steps = arguments.epochs * -(-len(train) // BATCH_SIZE)
    model.compile(optimizer=adamw(LEARNING_RATE, total_steps=steps))
    model.fit(
        train.columns,
        train.labels,
        batch_size=BATCH_SIZE,
        epochs=arguments.epochs,
        validation_data=(dev.columns, dev.labels),
        verbose=2,
    )
    scores = model.evaluate(test.columns, test.labels, verbose=0, return_dict=True)
    print(json.dumps({"accuracy": scores["accuracy"]}))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=pathlib.Path, metavar="DATA_FOLDER")
    parser.add_argument("--preset", default="megatron_bert_tiny_uncased")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--random-init", action="store_true", help="start from random weights, for comparison"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
