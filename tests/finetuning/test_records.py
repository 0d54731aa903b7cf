"""Data files to samples, and what is wrong with a file said by name and line."""

import json

import pytest

from keras_megatron.finetuning import examples, labels
from keras_megatron.finetuning.job_table import job_named
from keras_megatron.finetuning.records import read_records

pytestmark = pytest.mark.backend_independent


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def squad(context="It was the best of times.", version="1.1", **question) -> str:
    question = {"id": "q1", "question": "What was it?", **question}
    return json.dumps(
        {"version": version, "data": [{"paragraphs": [{"context": context, "qas": [question]}]}]}
    )


BEST = {"text": "the best", "answer_start": 7}


def test_tsv_keeps_quotation_marks_and_selects_a_split(write):
    path = write(
        "reviews.tsv",
        "\ufeffsplit\tlabel\ttext\r\ntrain\tpos\tA \"fine\" film of the ''old'' kind\r\n"
        'dev\tneg\t"\r\n\r\ntrain\tneg\tcafé\r\n',
    )
    read = examples.text_examples(read_records(f"{path}:train"), labels.name_label)
    assert read.columns == (["A \"fine\" film of the ''old'' kind", "café"],)
    assert read.labels == ["pos", "neg"]
    assert read.places == ["reviews.tsv, line 2", "reviews.tsv, line 5"]
    assert read.ids is None
    quote = examples.text_examples(read_records(f"{path}:dev"), labels.name_label)
    assert quote.columns == (['"'],)


def test_pairs_are_the_two_other_columns_or_those_that_are_named(write):
    path = write("pairs.tsv", "id\tlabel\tfirst\tsecond\n7\t1\ta b\tc\n8\t0\td\te f\n")
    records = read_records(path)
    pairs = examples.text_examples(records, labels.order_label, sizes=(2,))
    assert pairs.columns == (["a b", "d"], ["c", "e f"])
    assert (pairs.labels, pairs.ids) == ([1, 0], ["7", "8"])
    assert examples.text_examples(records, columns=["second"]).columns == (["c", "e f"],)
    assert examples.text_examples(records).labels is None
    with pytest.raises(ValueError, match=r"line 2: there are 2 text columns \(first, second\)"):
        examples.text_examples(records, sizes=(1,))


def test_csv_and_a_list_of_objects(write):
    long = "a" * 200_000
    rows = f'\ufeffid,label,text\r\n1,pos,"A ""fine"", long\nfilm"\r\n\r\n2,neg,{long}\r\n'
    read = examples.text_examples(read_records(write("a.CSV", rows)), labels.name_label)
    assert read.columns == (['A "fine", long\nfilm', long],)
    assert read.labels == ["pos", "neg"]
    assert read.places[1] == "a.CSV, line 5"
    objects = [{"id": 3, "label": "pos", "text": "a"}, {"id": "x", "label": "neg", "text": "b"}]
    read = examples.text_examples(read_records(write("a.json", json.dumps(objects))))
    assert (read.columns, read.ids, read.places[1]) == ((["a", "b"],), [3, "x"], "a.json, object 2")
    for name, content, message in (
        ("b.csv", 'text\n"a', r"b\.csv, line 2: this is not CSV"),
        ("b.csv", "text,label\na\n", r"line 2: there are 1 values for 2 columns"),
        ("b.csv", "text,text\na,b\n", r"line 1: the header must name each column once"),
        ("b.json", "[1]", r"b\.json, object 1: this is not a JSON object"),
    ):
        with pytest.raises(ValueError, match=message):
            read_records(write(name, content))


def test_labels_in_a_column_of_another_name(write):
    path = write("mnli.tsv", "label\tgold_label\ts1\ts2\n3\tyes\ta\tb\n4\tno\tc\td\n")
    read = job_named("text-classification").read(path, ("s1", "s2"), label="gold_label")
    assert (read.labels, read.columns) == (["yes", "no"], (["a", "c"], ["b", "d"]))
    with pytest.raises(ValueError, match=r"line 2: there is no column 'gold', only .* --label"):
        job_named("text-classification").read(path, ("s1", "s2"), label="gold")


def test_numbers_that_are_equal_have_one_order():
    assert [labels.class_names([*order]) for order in (["01", "1", "0"], ["1", "0", "01"])] == [
        ["0", "01", "1"]
    ] * 2


@pytest.mark.parametrize(("name", "header"), [("a.txt", ""), ("a.tsv", "text\n")])
def test_an_empty_line_between_texts_is_a_text(write, name, header):
    """So that answers, a line each, lie beside their texts."""
    records = read_records(write(name, f"{header}one\n\ntwo\r\n\r\n\n"))
    assert [record.values for record in records] == [{"text": t} for t in ("one", "", "two")]
    assert records[2].place == f"{name}, line {4 if header else 3}"


def test_texts_of_any_length(write):
    text = "a" * 200_000
    path = write("a.tsv", f"label\ttext\nX\t{text}\n")
    assert examples.text_examples(read_records(path), labels.name_label).columns == ([text],)


def test_a_part_in_percent(write):
    path = write("texts.txt", "".join(f"text {number}\n" for number in range(10)))
    parts = [read_records(f"{path}:{part}") for part in ("0-80%", "80-90%", "90-100%")]
    assert [len(part) for part in parts] == [8, 1, 1]
    assert [record.values["text"] for part in parts for record in part][-2:] == ["text 8", "text 9"]


def test_conll_sentences_with_and_without_tags(write):
    path = write("tags.conll", "Atlanta\tB-LOC\n's\tO\n\n\n,\t,\n")
    read = examples.word_examples(read_records(path))
    assert read.columns == ([["Atlanta", "'s"], [","]],)
    assert read.labels == [["B-LOC", "O"], [","]]
    assert read.places == ["tags.conll, line 1", "tags.conll, line 5"]
    # As CoNLL-2003 has it: four columns, spaces between them.
    lines = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\r\nrejects VBZ B-VP O\n"
    (sentence,) = read_records(write("four.conll", lines))
    assert sentence.values == {"words": ["EU", "rejects"], "tags": ["B-ORG", "O"]}
    assert sentence.place == "four.conll, line 3"
    path = write("words.conll", "Atlanta\n's\n\n,\n")
    assert examples.word_examples(read_records(path), labelled=False).columns[0][1] == [","]
    with pytest.raises(ValueError, match="line 1: 'tags' is missing"):
        examples.word_examples(read_records(path))


def test_json_lines_of_words_choices_and_questions(write):
    path = write("words.jsonl", '{"words": ["a", "b"], "tags": ["X", "Y"]}\n')
    assert examples.word_examples(read_records(path)).labels == [["X", "Y"]]
    path = write("c.jsonl", '{"context": "c", "choices": ["a", "b", "d"], "label": 2}\n\n')
    read = examples.choice_examples(read_records(path))
    assert (read.columns, read.labels) == ((["c"], [["a", "b", "d"]]), [2])
    line = {"id": 3, "question": "q", "context": "It was the best", "answers": [BEST]}
    read = examples.question_examples(read_records(write("q.jsonl", json.dumps(line))))
    assert (read.labels, read.ids) == ([[BEST]], [3])
    for given in ([BEST], []):  # as Hugging Face's datasets write it
        columns = {name: [answer[name] for answer in given] for name in BEST}
        path = write("q.jsonl", json.dumps({**line, "answers": columns}))
        assert examples.question_examples(read_records(path)).labels == [given]
    for wrong in ({"text": ["the"]}, {"text": ["the"], "answer_start": []}, {"text": "the"}):
        path = write("q.jsonl", json.dumps({**line, "answers": wrong}))
        with pytest.raises(ValueError, match="line 1: 'answers' must have lists text and"):
            examples.question_examples(read_records(path))


def test_squad_1_and_2(write):
    read = examples.question_examples(read_records(write("q.json", squad(answers=[BEST]))))
    assert read.columns == (["What was it?"], ["It was the best of times."])
    assert (read.labels, read.ids, read.places) == ([[BEST]], ["q1"], ["q.json, question q1"])
    version_2 = squad(version="v2.0", is_impossible=True, answers=[], plausible_answers=[BEST])
    assert examples.question_examples(read_records(write("q.json", version_2))).labels == [[]]
    without = read_records(write("q.json", squad()))
    assert examples.question_examples(without, labelled=False).labels is None
    with pytest.raises(ValueError, match="question q1: 'answers' is missing"):
        examples.question_examples(without)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.tsv", "", "is empty"),
    ("a.tsv", "text\tlabel\n", "is empty"),
    ("a.tsv", "text\tlabel\na\tb\nc\n", "a.tsv, line 3: there are 1 values for 2 columns"),
    ("a.tsv", "text\tlabel\na\tb\n\nc\td\te\n", "line 4: there are 3 values for 2 columns"),
    ("a.tsv", "text\ttext\na\tb\n", "line 1: the header must name each column once"),
    ("a.tsv", b"text\tlabel\nfine\tb\n\xff\xfe\tb\n", "a.tsv, line 3: this is not UTF-8"),
    ("a.jsonl", '{"text": 1}\n\n{"text"\n', "a.jsonl, line 3: this is not JSON"),
    ("a.jsonl", '["text"]\n', "line 1: this is not a JSON object"),
    ("a.jsonl", "\n\n", "is empty"),
    ("a.conll", "a\tX\nb\n", "a.conll, line 2: there must be 2 columns, .* none empty: 'b'"),
    ("a.conll", "a\tX\nb\t\n", "line 2: there must be 2 columns"),
    ("a.conll", "a\tX\nb\tX\tY\n", "line 2: there must be 2 columns"),
    ("a.conll", "a\n\nb\tX\n", "line 3: there must be 1 columns"),
    ("a.json", "{}", "a.json: 'data' is missing; SQuAD's form of JSON is expected"),
    ("a.json", '{"data": []}', "is empty"),
    ("a.json", '{"data": [\n{]}', "a.json, line 2: this is not JSON"),
    ("a.json", "[" * 100_000, "nested too deeply"),
    ("a.json", squad().replace('"context"', '"text"'), "a paragraph: 'context' is missing"),
    ("a.json", squad(id=True), "question 0 of the paragraph 'It was .*: 'id' is of type bool"),
    ("a.json", squad(answers={"text": []}), "question q1: 'answers' is of type dict"),
    ("a.xls", "text,label\n", r"is of an unknown format: give \.tsv, \.csv, \.jsonl, \.conll"),
])  # fmt: skip
def test_broken_files_are_refused(write, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_records(write(name, content))


def test_parts_that_are_not_there(write, tmp_path):
    path = write("a.tsv", "split\ttext\ntrain\ta\ndev\tb\n")
    with pytest.raises(
        ValueError, match=r"has the splits dev, train: choose one, as in .*a\.tsv:dev"
    ):
        read_records(path)
    with pytest.raises(ValueError, match="no samples in 'tset': choose one of dev, train, 0-80%"):
        read_records(f"{path}:tset")
    for part in ("80-20%", "0-0%", "0-101%"):
        with pytest.raises(ValueError, match=f"no samples in '{part}', of 2: give a part within"):
            read_records(f"{path}:{part}")
    with pytest.raises(ValueError, match=r"there is no file .*b\.tsv:dev"):
        read_records(f"{tmp_path}/b.tsv:dev")
    with pytest.raises(ValueError, match="there is no file"):
        read_records(tmp_path)


def test_labels_that_are_none(write):
    def read(label, convert):
        return examples.text_examples(
            read_records(write("a.jsonl", json.dumps({"text": "a", "label": label}))), convert
        )

    for label, convert, message in (
        ("", labels.name_label, "a.jsonl, line 1: the label must be a name or an integer"),
        (True, labels.name_label, "not True"),
        (1.5, labels.name_label, "not 1.5"),
        (None, labels.name_label, "'label' is missing; there is text, label"),
        (2, labels.order_label, r"must be 0 \(it follows\) or 1 \(it does not\), not 2"),
        ("first", labels.order_label, "must be an integer, not 'first'"),
        ("many", labels.number_label, "must be a number, not 'many'"),
        ("nan", labels.number_label, "must be a number, not 'nan'"),
    ):
        with pytest.raises(ValueError, match=message):
            read(label, convert)
    assert read("2.5", labels.number_label).labels == [2.5]
    assert read(3, labels.name_label).labels == ["3"]


@pytest.mark.parametrize(("make", "values", "message"), [
    (examples.word_examples, {"words": ["a", "b"], "tags": ["X"]}, "1 tags for 2 words"),
    (examples.word_examples, {"words": [], "tags": []}, "there are no words"),
    (examples.word_examples, {"words": ["a", 1], "tags": []}, "must be a list of str, not of 1"),
    (examples.word_examples, {"text": "a b"}, "line 1: 'words' is missing; there is text"),
    (examples.choice_examples, {"context": "c", "choices": ["a"], "label": 0},
     "line 1: there must be at least two choices, not 1"),
    (examples.choice_examples, {"context": "c", "choices": ["a", "b"], "label": 2},
     "line 1: the label must be from 0 to 1, not 2"),
    (examples.choice_examples, {"context": "c", "choices": "ab", "label": 1},
     "'choices' must be of type list, not str"),
    (examples.question_examples,
     {"question": "q", "context": "at the best", "answers": [BEST]},
     "line 1: the answer 'the best' is not in its context at character 7"),
    (examples.question_examples,
     {"question": "q", "context": "a b", "answers": [{"text": "b", "answer_start": -1}]},
     "is not in its context at character -1"),
    (examples.question_examples,
     {"question": "q", "context": "c", "answers": [{"text": "", "answer_start": 0}]},
     "an answer is empty"),
    (examples.question_examples, {"question": "q", "context": "c", "answers": [{"text": "c"}]},
     "'answer_start' is missing"),
])  # fmt: skip
def test_what_is_no_sample_is_refused(write, make, values, message):
    with pytest.raises(ValueError, match=message):
        make(read_records(write("a.jsonl", json.dumps(values))))


def test_classes_are_those_of_the_training_data(write):
    assert labels.class_names(["pos", "neg", "pos"]) == ["neg", "pos"]
    assert labels.class_names(["10", "2", "-1"]) == ["-1", "2", "10"]
    assert labels.class_names([["O", "B-X"], ["I-X"]]) == ["B-X", "I-X", "O"]
    with pytest.raises(ValueError, match="has a single class, 'pos'"):
        labels.class_names(["pos", "pos"])
    path = write("a.tsv", "label\ttext\nneg\ta\nneutral\tb\n")
    read = examples.text_examples(read_records(path), labels.name_label)
    assert labels.class_indices(read.labels, ["neg", "neutral"], read.places) == [0, 1]
    with pytest.raises(ValueError, match=r"line 3: the label 'neutral' is none of neg, pos"):
        labels.class_indices(read.labels, ["neg", "pos"], read.places)
    tagged = examples.word_examples(read_records(write("a.conll", "a\tX\nb\tY\n")))
    assert labels.class_indices(tagged.labels, ["Y", "X"], tagged.places) == [[1, 0]]
    with pytest.raises(ValueError, match="line 1: the label 'Y' is none of X, Z"):
        labels.class_indices(tagged.labels, ["X", "Z"], tagged.places)


@pytest.mark.parametrize("name", ["idx", "index", "guid", "id"])
def test_columns_that_number_samples_are_no_text(write, name):
    path = write("a.tsv", f"{name}\tsentence\n0\ta b\n1\tc\n")
    assert examples.text_examples(read_records(path)).columns == (["a b", "c"],)
