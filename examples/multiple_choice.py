"""Fine-tune the embedded model to choose the definition that fits the use of a word.

    python examples/multiple_choice.py DATA_FOLDER

DATA_FOLDER holds multiple_choice.jsonl: an object a line, with split (train, dev, test), context,
choices (a list of definitions) and label (the place of the right one).

2 epochs on 1 CPU core, other jobs running, PyTorch with `--dtype mixed_bfloat16`: 8 minutes, test
accuracy 0.297 (two seeds). From random weights 0.288, which is within noise; chance 0.25. The
definitions and sentences are in the text that the model was pretrained on.
"""

from training import model_arguments, parse_options, report, share_right, train

from keras_megatron import MegatronBertMultipleChoice, MegatronBertMultipleChoicePreprocessor
from keras_megatron.finetuning.examples import choice_examples
from keras_megatron.finetuning.records import read_records

SEQUENCE_LENGTH = 40  # 99 % of the definitions fit
BATCH_SIZE = 32


def main():
    options = parse_options(__doc__, epochs=2, learning_rate=1e-3, from_random=5e-4)
    training, development, test = load(options.data)
    preprocessor = MegatronBertMultipleChoicePreprocessor.from_preset(
        options.preset, sequence_length=SEQUENCE_LENGTH
    )
    model = MegatronBertMultipleChoice.from_preset(
        options.preset, preprocessor=preprocessor, **model_arguments(options)
    )
    train(model, training, development, options, BATCH_SIZE)
    report(model, accuracy, development if options.dev else test, options)


def load(data):
    return [
        choice_examples(read_records(f"{data / 'multiple_choice.jsonl'}:{split}"))
        for split in ("train", "dev", "test")
    ]


def accuracy(model, examples):
    return share_right(model.choose(*examples.columns), "choice", examples.labels)


if __name__ == "__main__":
    main()
