"""Documents to token files: every format, and what cannot be read."""

import gzip
import json
import lzma

import pytest

from keras_megatron.pretraining.corpus import read_documents, write_corpus
from keras_megatron.pretraining.token_files import TokenFiles

pytestmark = pytest.mark.backend_independent


@pytest.fixture(scope="module")
def texts(documents_file):
    return documents_file.read_text("utf-8").strip("\n").split("\n\n")


def test_every_format_gives_the_same_files(corpus, texts, documents_file, tokenizer, tmp_path):
    lines = "".join(json.dumps({"body": text, "id": 1}) + "\n" for text in texts)
    (tmp_path / "documents.jsonl").write_text(lines, encoding="utf-8")
    for source in (documents_file, tmp_path / "documents.jsonl"):
        (tmp_path / f"{source.name}.xz").write_bytes(lzma.compress(source.read_bytes()))
        (tmp_path / f"{source.name}.gz").write_bytes(gzip.compress(source.read_bytes()))
    expected = corpus.with_suffix(".bin").read_bytes()
    names = [f"documents.{kind}" for kind in ("jsonl", "jsonl.xz", "txt.xz", "jsonl.gz", "txt.gz")]
    for name in names:
        counts = write_corpus([tmp_path / name], tmp_path / name, tokenizer, key="body")
        assert (tmp_path / f"{name}.bin").read_bytes() == expected
        files = TokenFiles.open(tmp_path / name, tokenizer)
        assert counts == {
            "documents": len(files) == len(texts) and len(texts),
            "sentences": len(files.lengths),
            "tokens": len(files.tokens),
        }
    write_corpus([documents_file, documents_file], tmp_path / "twice", tokenizer)
    assert (tmp_path / "twice.bin").read_bytes() == 2 * expected


def test_sentences_are_the_texts_own(texts, corpus, tokenizer):
    files = TokenFiles.open(corpus, tokenizer)
    for index, text in enumerate(texts[:20]):
        sentences = files.document(index)
        joined = [int(piece) for sentence in sentences for piece in sentence]
        assert joined == list(tokenizer.tokenize(text.replace("\n", " ")))
        assert len(sentences) >= len(text.splitlines())
    ends = [tokenizer.id_to_token(int(s[-1])) for i in range(20) for s in files.document(i)]
    assert sum(end in (".", "?", "!", '"', "'", ";", ":", ")") for end in ends) > 0.7 * len(ends)


def test_names_of_special_tokens_are_text(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("It says [MASK] and [SEP] here.\n", encoding="utf-8")
    write_corpus([tmp_path / "a.txt"], tmp_path / "a", tokenizer)
    ids = TokenFiles.open(tmp_path / "a", tokenizer).document(0)[0].tolist()
    pieces = [tokenizer.id_to_token(id) for id in ids]
    assert pieces == ["it", "says", "[", "mask", "]", "and", "[", "sep", "]", "here", "."]
    special = {tokenizer.mask_token_id, tokenizer.sep_token_id}
    assert not special & set(ids)
    assert special & set(tokenizer.tokenize("It says [MASK] and [SEP] here.").tolist())


def test_what_has_no_tokens_is_left_out(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": "One. Two."}\n{"text": " \\n"}\n')
    counts = write_corpus([tmp_path / "a.jsonl"], tmp_path / "a", tokenizer)
    assert counts == {"documents": 1, "sentences": 2, "tokens": 4}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, r"cannot read the documents in .*missing.txt: No such file"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', r"a.jsonl:2 is not a JSON object with 'te"),
        ("a.jsonl", b'{"text": "x"}\nx\n', r"a.jsonl:2 is not a JSON object"),
        ("a.jsonl", b"[1]\n", r"a.jsonl:1 is not a JSON object"),
        ("a.jsonl", b'{"text": 5}\n', r"a.jsonl:1 has int under 'text', not a text"),
        ("a.jsonl", b"[" * 200_000, r"a.jsonl:1 is not a JSON object"),
        ("a.jsonl", b'\n{"text": "\\ud800"}\n', r"a.jsonl:2 has half of a character"),
        ("a.txt", b"\xff\xfe\x00", r"cannot read the documents in .*a.txt: 'utf-8'"),
        ("a.txt.xz", b"no xz", r"cannot read the documents in .*a.txt.xz: Input format"),
        ("a.txt", b" \n\n", r"there are no documents"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, tokenizer, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        write_corpus([tmp_path / name], tmp_path / "out", tokenizer)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(("out", "."))] == []


def test_documents_are_read_one_by_one(tmp_path):
    """A bad line is no hindrance to those before it."""
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n?\n')
    documents = read_documents(tmp_path / "a.jsonl")
    assert next(documents) == "x"
    with pytest.raises(ValueError, match=r"a\.jsonl:2"):
        next(documents)


def test_marks_of_files_and_empty_lines_are_no_text(tmp_path):
    (tmp_path / "a.JSONL").write_bytes(b'\xef\xbb\xbf{"text": "x"}\n\n{"text": "y"}\n')
    assert list(read_documents(tmp_path / "a.JSONL")) == ["x", "y"]


@pytest.mark.parametrize("name", ["a.json", "link.json"])
def test_sources_are_not_overwritten(tmp_path, tokenizer, name):
    (tmp_path / "a.json").write_text('{"text": "One. Two."}\n')
    (tmp_path / "link.json").symlink_to("a.json")
    with pytest.raises(ValueError, match="would be overwritten by the token files"):
        write_corpus([tmp_path / name], tmp_path / "a", tokenizer)
    assert (tmp_path / "a.json").read_text() == '{"text": "One. Two."}\n'


@pytest.mark.parametrize("prefix", ["", "folder/"])
def test_a_prefix_has_a_name(tmp_path, tokenizer, prefix):
    (tmp_path / "a.txt").write_text("One. Two.")
    with pytest.raises(ValueError, match=f"must end with a name, not '{prefix}'"):
        write_corpus([tmp_path / "a.txt"], prefix, tokenizer)
