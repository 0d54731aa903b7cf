from functools import cache

import keras
import numpy as np
import pytest
import tokenizers
from bert_reference import HARD_TEXTS, VOCABULARIES, paragraphs, tokenizer
from question_data import read_questions

from keras_megatron import MegatronBertQuestionAnsweringPreprocessor

pytestmark = pytest.mark.backend_independent
SQUAD = read_questions()
# Contexts of up to 900 tokens, with a piece of each as its answer.
LONG = paragraphs()[:400:5]
CONTEXTS = [" ".join(LONG[i : i + 1 + i % 5]) for i in range(len(LONG))]
QUESTIONS = [SQUAD[0][i % len(SQUAD[0])] for i in range(len(CONTEXTS))]


def preprocessor(casing: str = "uncased", **arguments):
    return MegatronBertQuestionAnsweringPreprocessor(tokenizer(casing), **arguments)


@cache
def reference(length: int, overlap: int, casing: str) -> tokenizers.BertWordPieceTokenizer:
    vocabulary, lowercase = str(VOCABULARIES[casing]), casing == "uncased"
    reference = tokenizers.BertWordPieceTokenizer(vocabulary, lowercase=lowercase)
    reference.enable_truncation(length, stride=overlap, strategy="only_second")
    reference.enable_padding(length=length)
    return reference


def reference_windows(question: str, context: str, length: int, overlap: int, casing="uncased"):
    """Cut one context by the `tokenizers` library."""
    encoding = reference(length, overlap, casing).encode(question, context)
    return [encoding, *encoding.overflowing]


def reference_label(window, answer: dict | None) -> list[int]:
    """Label one window as Hugging Face's `examples/pytorch/question-answering/run_qa.py` does."""
    if not answer:
        return [0, 0]
    begin, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
    context = [i for i, sequence in enumerate(window.sequence_ids) if sequence == 1]
    if not context:
        return [0, 0]
    first, last = context[0], context[-1]
    offsets = window.offsets
    if not (offsets[first][0] <= begin and offsets[last][1] >= end):
        return [0, 0]
    while first <= context[-1] and offsets[first][0] <= begin:
        first += 1
    while offsets[last][1] >= end:
        last -= 1
    return [first - 1, last + 1]


def random_answers(contexts: list[str]) -> list[dict | None]:
    """Mark one to three words of each context, and nothing of every seventh."""
    rng = np.random.default_rng(0)
    answers = []
    for index, context in enumerate(contexts):
        spaces = [i for i, character in enumerate(context) if character == " "]
        first = int(rng.integers(len(spaces) - 3))
        start, end = spaces[first] + 1, spaces[first + 1 + index % 3]
        answer = {"text": context[start:end], "answer_start": start}
        answers.append(answer if index % 7 and answer["text"].strip() else None)
    return answers


@pytest.mark.parametrize(("length", "overlap"), [(128, 32), (96, 0), (384, 128), (64, 10)])
def test_windows_and_labels_are_those_of_hugging_face(length, overlap):
    prepare = preprocessor(sequence_length=length, doc_stride=overlap, max_question_length=40)
    answers = random_answers(CONTEXTS)
    x, y = prepare((QUESTIONS, CONTEXTS), answers)
    windows, labels = [], []
    for question, context, answer in zip(QUESTIONS, CONTEXTS, answers, strict=True):
        of_example = reference_windows(question, context, length, overlap)
        windows += of_example
        labels += [reference_label(window, answer) for window in of_example]
    assert len(windows) > len(CONTEXTS)
    assert x["token_ids"].tolist() == [window.ids for window in windows]
    assert x["segment_ids"].tolist() == [window.type_ids for window in windows]
    assert x["padding_mask"].tolist() == [window.attention_mask for window in windows]
    assert y.tolist() == labels
    assert (y.sum(axis=1) > 0).sum() > 0.7 * len(CONTEXTS)

    # Negative control: another overlap gives other windows.
    other = preprocessor(sequence_length=length, doc_stride=overlap + 1, max_question_length=40)
    assert other((QUESTIONS, CONTEXTS))["token_ids"].tolist() != x["token_ids"].tolist()


def test_answers_of_squad_files_are_found_in_their_windows():
    questions, contexts, answers = SQUAD
    prepare = preprocessor(sequence_length=64, doc_stride=16, max_question_length=32)
    windows = prepare.windows(questions, contexts)
    x, y = prepare((questions, contexts), answers)
    texts = prepare.tokenizer.detokenize(
        [ids[first : last + 1] for ids, (first, last) in zip(x["token_ids"], y, strict=True)]
    )
    right = [answers[example][0]["text"].lower() for example in windows.example]
    assert all(text in (answer, "[CLS]") for text, answer in zip(texts, right, strict=True))
    found = {
        example for example, text in zip(windows.example, texts, strict=True) if text[0] != "["
    }
    assert found == set(range(len(questions)))


@pytest.mark.parametrize("casing", ["uncased", "cased"])
def test_windows_of_hard_texts(casing):
    contexts = [text for text in HARD_TEXTS if text.strip()] + ["", "\u200b"]
    prepare = preprocessor(casing, sequence_length=24, doc_stride=5, max_question_length=8)
    x = prepare((["Où est-ce?"] * len(contexts), contexts))
    windows = [
        window.ids
        for context in contexts
        for window in reference_windows("Où est-ce?", context, 24, 5, casing)
    ]
    assert x["token_ids"].tolist() == windows


def test_a_long_question_loses_its_end():
    question, context = "one two three four five six", "seven eight nine"
    prepare = preprocessor(sequence_length=12, max_question_length=4)
    ids = prepare((question, context))["token_ids"]
    assert prepare.tokenizer.detokenize(ids)[0].startswith("[CLS] one two three four [SEP] seven")
    # By default only where it has to: here all fits, but in 11 tokens it does not.
    for length, kept in ((12, "four five six"), (11, "four")):
        ids = preprocessor(sequence_length=length)((question, context))["token_ids"]
        row = f"[CLS] one two three {kept} [SEP] seven eight nine [SEP]"
        assert prepare.tokenizer.detokenize(ids)[0].startswith(row)


@pytest.mark.parametrize("answer", [
    {"text": "eight", "answer_start": 6},
    {"text": ["eight", "nine"], "answer_start": [6, 12]},
    {"text": np.array(["eight"], object), "answer_start": np.array([6])},
    [{"text": "eight", "answer_start": 6}, {"text": "nine", "answer_start": 12}],
])  # fmt: skip
def test_forms_of_answers(answer):
    context = "seven eight nine"
    x, y = preprocessor(sequence_length=12)(("what", context), answer)
    assert y.tolist() == [[4, 4]]
    assert x["token_ids"].shape == (1, 12)
    _, y = preprocessor(sequence_length=12)((["what"], [context]), [answer])
    assert y.tolist() == [[4, 4]]


@pytest.mark.parametrize("answer", [
    None, [], {"text": [], "answer_start": []}, {"text": "", "answer_start": 0}
])  # fmt: skip
def test_no_answer_points_to_cls(answer):
    _, y = preprocessor(sequence_length=12)((["what"] * 2, ["seven eight"] * 2), [answer] * 2)
    assert y.tolist() == [[0, 0], [0, 0]]


def test_an_answer_may_begin_inside_of_a_word_or_have_spaces_around_it():
    prepare = preprocessor(sequence_length=12)
    context = "a twenty-one  guns"
    for text, expected in (("enty-o", [4, 6]), ("one  ", [6, 6]), ("  gun", [7, 7])):
        answer = {"text": text, "answer_start": context.index(text)}
        _, y = prepare(("what", context), answer)
        assert y.tolist() == [expected], text


GOOD = ("what", "seven eight")


@pytest.mark.parametrize(("x", "y", "message"), [
    (([GOOD[0]], [GOOD[1]]), [{"text": "eight", "answer_start": 5}],
     "answer 0, 'eight', is not in its context at answer_start=5: it is at 6"),
    (([GOOD[0]] * 2, [GOOD[1]] * 2), [None, {"text": "nine", "answer_start": 0}],
     "answer 1, 'nine', is not in its context at answer_start=0: nor anywhere"),
    (([GOOD[0]], [GOOD[1]]), [{"text": "eight", "answer_start": -5}], "answer_start=-5"),
    (([GOOD[0]], [GOOD[1]]), [{"text": "eight", "answer_start": "6"}], "must be an integer"),
    (([GOOD[0]], [GOOD[1]]), [{"text": ["eight"], "answer_start": []}],
     "answer 0 has 1 texts but 0 answer_starts"),
    (([GOOD[0]], [GOOD[1]]), [{"text": [7], "answer_start": [6]}], "must be a str"),
    (([GOOD[0]], [GOOD[1]]), ["eight"], "answer 0 must be a dict of 'text' and 'answer_start'"),
    (([GOOD[0]], [GOOD[1]]), [{"answer": "eight"}], "answer 0 must be a dict"),
    (([GOOD[0]], ["a \u200b b"]), [{"text": "\u200b", "answer_start": 2}], "has no tokens"),
    (([GOOD[0]], [GOOD[1]]), [None, None], "there are 1 samples but 2 labels"),
    ((["what", " "], [GOOD[1]] * 2), None, "question 1 is empty"),
    ((["what", None], [GOOD[1]] * 2), None, "question 1 must be a str, not NoneType"),
    (([GOOD[0]], [3]), None, "context 0 must be a str, not int: 3"),
    (([GOOD[0]], [GOOD[1]] * 2), None, "there are 1 questions but 2 contexts"),
    ([GOOD[0]], None, r"give a tuple of questions and contexts"),
    (([], []), None, "there are no texts"),
    ((GOOD[0], [GOOD[1]]), None, "two lists, or two texts"),
])  # fmt: skip
def test_what_are_no_samples_is_refused(x, y, message):
    prepare = preprocessor(sequence_length=12)
    for call in (prepare, prepare.dataset):
        with pytest.raises(ValueError, match=message):
            call(x, y)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"doc_stride": 21, "max_question_length": 16},
     "doc_stride=21 must be less than the 21 tokens that are left for a context"),
    ({"max_question_length": 37}, "max_question_length=37 leaves no room .* less than 37"),
    ({"sequence_length": 4}, "sequence_length must be an integer of at least 5, not 4"),
    ({"doc_stride": -1}, "doc_stride must be an integer of at least 0, not -1"),
    ({"max_answer_length": 0}, "max_answer_length must be an integer of at least 1"),
    ({"max_question_length": 2.5}, "max_question_length must be an integer"),
])  # fmt: skip
def test_lengths_that_do_not_go_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        preprocessor(**{"sequence_length": 40, **arguments})


def test_lengths_follow_the_sequence_length():
    prepare = preprocessor(doc_stride=100)
    prepare.sequence_length = 128
    with pytest.raises(ValueError, match="doc_stride=100 must be less than the 63 tokens"):
        prepare(GOOD)
    for length in (5, 6, 12, 40, 128, 512):
        x = preprocessor(sequence_length=length)(("what is it", "seven eight nine " * 60))
        assert x["token_ids"].shape[1] == length
        assert (x["token_ids"] == prepare.tokenizer.sep_token_id).sum(axis=1).tolist() == [2] * len(
            x["token_ids"]
        )


def test_the_dataset_shuffles_windows_and_repeats_weights():
    questions, contexts, answers = SQUAD
    prepare = preprocessor(sequence_length=64, doc_stride=16, max_question_length=32)
    weights = np.arange(len(questions)) + 1.0
    x, y, weight = prepare((questions, contexts), answers, weights)
    assert len(x["token_ids"]) > len(questions)
    assert weight.tolist() == (prepare.windows(questions, contexts).example + 1).tolist()
    expected = [(*ids, *ends, w) for ids, ends, w in zip(x["token_ids"], y, weight, strict=True)]

    def rows(dataset):
        return [
            (*ids, *ends, weight)
            for batch_x, batch_y, batch_weight in dataset
            for ids, ends, weight in zip(batch_x["token_ids"], batch_y, batch_weight, strict=True)
        ]

    in_order = prepare.dataset((questions, contexts), answers, weights, batch_size=5)
    assert rows(in_order) == expected
    keras.utils.set_random_seed(0)
    shuffled = prepare.dataset((questions, contexts), answers, weights, batch_size=5, shuffle=True)
    epochs = rows(shuffled.repeat(2))
    first, second = epochs[: len(expected)], epochs[len(expected) :]
    assert first != second
    assert sorted(first) == sorted(second) == sorted(expected)
    only_x = next(iter(prepare.dataset((questions, contexts), batch_size=5)))
    np.testing.assert_array_equal(only_x["token_ids"], x["token_ids"][:5])


def test_a_tensorflow_graph_is_refused():
    import tensorflow as tf

    pairs = tf.data.Dataset.from_tensor_slices((["what"], ["seven"])).batch(1)
    with pytest.raises(ValueError, match="does not run in a TensorFlow graph"):
        pairs.map(lambda question, context: preprocessor()((question, context)))


def test_arguments_are_in_the_config():
    arguments = {
        "sequence_length": 64,
        "doc_stride": 7,
        "max_question_length": 9,
        "max_answer_length": 3,
    }
    config = preprocessor(**arguments).get_config()
    assert {name: config[name] for name in arguments} == arguments
    again = MegatronBertQuestionAnsweringPreprocessor.from_config(config)
    assert {name: getattr(again, name) for name in arguments} == arguments
