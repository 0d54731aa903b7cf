"""Fine-tune the embedded model to find the answers to questions in short texts.

    python examples/question_answering.py DATA_FOLDER

DATA_FOLDER holds questions_train.json and questions_test.json in SQuAD's format: six sentences a
text, and which of their words has the meaning that WordNet gives.

Its score has not been measured yet.
"""

import argparse
import json
import pathlib

import keras

from keras_megatron import (
    MegatronBertQuestionAnswering,
    MegatronBertQuestionAnsweringPreprocessor,
)
from keras_megatron.finetuning.examples import Examples, question_examples
from keras_megatron.finetuning.recipe import adamw
from keras_megatron.finetuning.records import read_records
from keras_megatron.finetuning.squad_metrics import squad_scores

SEQUENCE_LENGTH = 96  # 98 % of the samples fit; of the others there are two windows
BATCH_SIZE = 32
LEARNING_RATE = 1e-3


def main():
    arguments = parse_arguments()
    keras.utils.set_random_seed(0)
    train, test = (
        question_examples(read_records(arguments.data / f"questions_{split}.json"))
        for split in ("train", "test")
    )
    preprocessor = MegatronBertQuestionAnsweringPreprocessor.from_preset(
        arguments.preset, sequence_length=SEQUENCE_LENGTH
    )
    model = MegatronBertQuestionAnswering.from_preset(
        arguments.preset, preprocessor=preprocessor, load_weights=not arguments.random_init
    )
    windows = len(preprocessor.windows(*train.columns))
    steps = arguments.epochs * -(-windows // BATCH_SIZE)
    model.compile(optimizer=adamw(LEARNING_RATE, total_steps=steps))
    model.fit(
        train.columns, train.labels, batch_size=BATCH_SIZE, epochs=arguments.epochs, verbose=2
    )
    print(json.dumps(score(model, test)))


def score(model: MegatronBertQuestionAnswering, test: Examples) -> dict[str, float]:
    # Each of these questions has an answer, so the model may not say that there is none.
    answers = model.answer(*test.columns, null_threshold=float("inf"))
    right = [[answer["text"] for answer in given] for given in test.labels]
    return squad_scores([answer["answer"] for answer in answers], right)


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
