"""Fine-tune the embedded model to find the answers to questions in short texts.

    python examples/question_answering.py DATA_FOLDER

DATA_FOLDER holds questions_train.json, questions_dev.json and questions_test.json, SQuAD files:
six sentences a text, and which of their words has the meaning that WordNet gives.

3 epochs on 1 CPU core, other jobs running, PyTorch with `--dtype mixed_bfloat16`: 19 minutes, test
F1 0.184. From random weights 0.072; any word of the text gives 0.024. The definitions and sentences
are in the text that the model was pretrained on.
"""

from training import model_arguments, parse_options, report, train

from keras_megatron import (
    MegatronBertQuestionAnswering,
    MegatronBertQuestionAnsweringPreprocessor,
)
from keras_megatron.finetuning.examples import question_examples
from keras_megatron.finetuning.records import read_records
from keras_megatron.finetuning.squad_metrics import squad_scores

SEQUENCE_LENGTH = 96  # 98 % of the samples fit; of the others there are two windows
BATCH_SIZE = 32


def main():
    options = parse_options(__doc__, epochs=3, learning_rate=1e-3)
    training, development, test = load(options.data)
    preprocessor = MegatronBertQuestionAnsweringPreprocessor.from_preset(
        options.preset, sequence_length=SEQUENCE_LENGTH
    )
    model = MegatronBertQuestionAnswering.from_preset(
        options.preset,
        preprocessor=preprocessor,
        null_threshold=float("inf"),  # each of these questions has an answer
        **model_arguments(options),
    )
    train(model, training, development, options, BATCH_SIZE)
    report(model, f1, development if options.dev else test, options)


def load(data):
    return [
        question_examples(read_records(data / f"questions_{split}.json"))
        for split in ("train", "dev", "test")
    ]


def f1(model, examples):
    answers = model.answer(*examples.columns)
    right = [[answer["text"] for answer in given] for given in examples.labels]
    return squad_scores([answer["answer"] for answer in answers], right)["f1"]


if __name__ == "__main__":
    main()
