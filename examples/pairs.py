"""Fine-tune the embedded model to tell whether a definition fits the use of a word in a sentence.

    python examples/pairs.py DATA_FOLDER

DATA_FOLDER holds pairs.tsv: columns split (train, dev, test), label (0, 1), sentence and
definition. The sentence does not say which of its words is meant.

3 epochs on 1 CPU core, other jobs running, PyTorch with `--dtype mixed_bfloat16`: 14 minutes, test
accuracy 0.521. From random weights 0.506, a bag of words 0.516, chance 0.5, all within noise: too
hard for a model of this size. The definitions and sentences are in the text that it was pretrained
on.
"""

from training import model_arguments, parse_options, report, share_right, train

from keras_megatron import MegatronBertTextClassifier, MegatronBertTextClassifierPreprocessor
from keras_megatron.finetuning.examples import text_examples
from keras_megatron.finetuning.labels import integer_label
from keras_megatron.finetuning.records import read_records

SEQUENCE_LENGTH = 40  # 99 % of the pairs fit
BATCH_SIZE = 64


def main():
    options = parse_options(__doc__, epochs=3, learning_rate=1e-3, from_random=3e-4)
    training, development, test = load(options.data)
    preprocessor = MegatronBertTextClassifierPreprocessor.from_preset(
        options.preset, sequence_length=SEQUENCE_LENGTH
    )
    model = MegatronBertTextClassifier.from_preset(
        options.preset, num_classes=2, preprocessor=preprocessor, **model_arguments(options)
    )
    train(model, training, development, options, BATCH_SIZE)
    report(model, accuracy, development if options.dev else test, options)


def load(data):
    return [
        text_examples(read_records(f"{data / 'pairs.tsv'}:{split}"), integer_label)
        for split in ("train", "dev", "test")
    ]


def accuracy(model, examples):
    return share_right(model.classify(examples.columns), "label", examples.labels)


if __name__ == "__main__":
    main()
