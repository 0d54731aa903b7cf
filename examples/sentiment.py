"""Fine-tune the embedded model to tell whether sentences of movie reviews are favourable.

    python examples/sentiment.py DATA_FOLDER

DATA_FOLDER holds sentiment.tsv: columns split (train, dev, test), label (neg, pos) and text.

3 epochs on 1 CPU core, other jobs running, PyTorch with `--dtype mixed_bfloat16`: 4 minutes, test
accuracy 0.816 (three seeds, 0.809 to 0.822). From random weights 0.791 (0.784 to 0.795); TF-IDF and
logistic regression 0.783.
"""

from training import model_arguments, parse_options, report, share_right, train

from keras_megatron import MegatronBertTextClassifier, MegatronBertTextClassifierPreprocessor
from keras_megatron.finetuning.examples import text_examples
from keras_megatron.finetuning.labels import name_label
from keras_megatron.finetuning.records import read_records

CLASSES = ["neg", "pos"]
SEQUENCE_LENGTH = 64  # 99.9 % of the sentences fit
BATCH_SIZE = 32


def main():
    options = parse_options(__doc__, epochs=3, learning_rate=1e-3, from_random=5e-4)
    training, development, test = load(options.data)
    preprocessor = MegatronBertTextClassifierPreprocessor.from_preset(
        options.preset, sequence_length=SEQUENCE_LENGTH, class_names=CLASSES
    )
    model = MegatronBertTextClassifier.from_preset(
        options.preset,
        num_classes=len(CLASSES),
        preprocessor=preprocessor,
        **model_arguments(options),
    )
    train(model, training, development, options, BATCH_SIZE)
    report(model, accuracy, development if options.dev else test, options)


def load(data):
    return [
        text_examples(read_records(f"{data / 'sentiment.tsv'}:{split}"), name_label)
        for split in ("train", "dev", "test")
    ]


def accuracy(model, examples):
    return share_right(model.classify(*examples.columns), "label", examples.labels)


if __name__ == "__main__":
    main()
