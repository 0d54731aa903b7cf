"""Fine-tune the embedded model to say which part of speech each word of a sentence is.

    python examples/part_of_speech.py DATA_FOLDER

DATA_FOLDER holds part_of_speech.conll: a word and its Brown tag a line, a blank line between
sentences. Of ten sentences the first eight train, the ninth validates, the tenth tests. The 472
tags are reduced to 92, see `base_tag`.

Its score has not been measured yet.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import re

import keras

from keras_megatron import MegatronBertTokenClassifier, MegatronBertTokenClassifierPreprocessor
from keras_megatron.finetuning.examples import Examples, word_examples
from keras_megatron.finetuning.metrics import tag_scores
from keras_megatron.finetuning.recipe import adamw
from keras_megatron.finetuning.records import Record, read_records

SEQUENCE_LENGTH = 48  # 92 % of the sentences fit; what is longer is tagged in windows
BATCH_SIZE = 64
LEARNING_RATE = 1e-3


def main():
    arguments = parse_arguments()
    keras.utils.set_random_seed(0)
    records = read_records(arguments.data / "part_of_speech.conll")
    train = sentences([record for i, record in enumerate(records) if i % 10 < 8])
    dev, test = sentences(records[8::10]), sentences(records[9::10])
    preprocessor = MegatronBertTokenClassifierPreprocessor.from_preset(
        arguments.preset,
        sequence_length=SEQUENCE_LENGTH,
        class_names=sorted({tag for part in (train, dev, test) for t in part.labels for tag in t}),
    )
    model = MegatronBertTokenClassifier.from_preset(
        arguments.preset,
        num_classes=len(preprocessor.class_names),
        preprocessor=preprocessor,
        load_weights=not arguments.random_init,
    )
    steps = arguments.epochs * -(-len(train) // BATCH_SIZE)
    model.compile(optimizer=adamw(LEARNING_RATE, total_steps=steps))
    model.fit(
        train.columns[0],
        train.labels,
        batch_size=BATCH_SIZE,
        epochs=arguments.epochs,
        validation_data=(dev.columns[0], dev.labels),
        verbose=2,
    )
    baseline = accuracy(test, most_frequent_tags(train, test))
    print(f"each word's most frequent tag: accuracy {baseline:.3f}")
    print(json.dumps({"accuracy": accuracy(test, model.tag(test.columns[0]))}))


def sentences(records: list[Record]) -> Examples:
    examples = word_examples(records)
    labels = [[base_tag(tag) for tag in tags] for tags in examples.labels]
    return dataclasses.replace(examples, labels=labels)


def base_tag(tag: str) -> str:
    """Reduce a Brown tag to its base.

    Of a contraction ("he's": pps+bez) the first tag; without "fw-" (foreign), without "-tl", "-hl"
    and "-nc" (in a title, in a headline, cited) and without "*" (negated: isn't).
    """
    tag = tag.split("+")[0].removeprefix("fw-")
    tag = re.sub(r"(-(tl|hl|nc))+$", "", tag)
    return tag.rstrip("*") or "*"


def accuracy(examples: Examples, tags: list[list[str]]) -> float:
    return tag_scores(examples.labels, tags, spans=False)["accuracy"]


def most_frequent_tags(train: Examples, test: Examples) -> list[list[str]]:
    """Give each word the tag that it has most often in training, unknown words "nn" (noun)."""
    counts = collections.defaultdict(collections.Counter)
    for words, tags in zip(train.columns[0], train.labels, strict=True):
        for word, tag in zip(words, tags, strict=True):
            counts[word][tag] += 1
    best = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    return [[best.get(word, "nn") for word in words] for words in test.columns[0]]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=pathlib.Path, metavar="DATA_FOLDER")
    parser.add_argument("--preset", default="megatron_bert_tiny_uncased")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument(
        "--random-init", action="store_true", help="start from random weights, for comparison"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
