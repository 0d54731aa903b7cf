"""Token files in Megatron's format, next to `megatron-core`'s own reader and writer."""

import itertools
import json
import pathlib
import struct

import numpy as np
import pytest

from keras_megatron import MegatronBertTokenizer
from keras_megatron.pretraining.token_files import TokenFiles, write_token_files

pytestmark = pytest.mark.backend_independent
PARAGRAPHS = pathlib.Path(__file__).parents[1] / "data" / "paragraphs.txt"


@pytest.fixture(scope="module")
def documents(tokenizer):
    """A document of each paragraph, a sentence of what ends with a stop."""
    paragraphs = [p for p in PARAGRAPHS.read_text("utf-8").splitlines() if p.strip()]
    tokenized = [tokenizer.tokenize(p.split(". ")) for p in paragraphs]
    documents = [[ids for ids in sentences if len(ids)] for sentences in tokenized]
    assert len(documents) > 20
    assert max(map(len, documents)) > 3
    return documents


@pytest.fixture
def prefix(tmp_path, documents, tokenizer):
    write_token_files(tmp_path / "corpus", documents, tokenizer)
    return tmp_path / "corpus"


def as_lists(files: TokenFiles):
    return [[ids.tolist() for ids in files.document(i)] for i in range(len(files))]


@pytest.mark.parametrize("dtype", [None, "int32", "int64"])
def test_megatron_reads_ours(tmp_path, documents, tokenizer, dtype):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    write_token_files(tmp_path / "corpus", documents, tokenizer, dtype)
    theirs = IndexedDataset(str(tmp_path / "corpus"), mmap=True)
    bounds = theirs.document_indices.tolist()
    found = [
        [theirs[i].tolist() for i in range(start, end)] for start, end in itertools.pairwise(bounds)
    ]
    assert found == documents
    assert found != documents[::-1]
    assert theirs.index.dtype == np.dtype(dtype or "uint16").type


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_we_read_megatrons(tmp_path, documents, tokenizer, dtype):
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "corpus.bin"), dtype=np.dtype(dtype).type)
    for document in documents:
        for ids in document:
            builder.add_item(torch.tensor(ids))
        builder.end_document()
    builder.finalize(str(tmp_path / "corpus.idx"))
    files = TokenFiles.open(tmp_path / "corpus", tokenizer)
    assert as_lists(files) == documents
    assert files.about == {}  # Megatron does not say with which vocabulary
    assert isinstance(files.tokens.base, np.memmap)


def test_reads_what_it_wrote(prefix, documents, tokenizer):
    files = TokenFiles.open(prefix, tokenizer)
    assert as_lists(files) == documents
    assert files.about["vocabulary_size"] == 30522
    assert sorted(path.name for path in prefix.parent.iterdir()) == [
        "corpus.bin",
        "corpus.idx",
        "corpus.json",
    ]


def test_another_vocabulary_is_refused(prefix, tokenizer):
    cased = MegatronBertTokenizer(tokenizer.get_vocabulary(), lowercase=False)
    with pytest.raises(ValueError, match=r"another tokenizer: its lowercase is True, this one's F"):
        TokenFiles.open(prefix, cased)
    fewer = MegatronBertTokenizer(tokenizer.get_vocabulary()[:-1], lowercase=True)
    with pytest.raises(ValueError, match="its vocabulary_size is 30522, this one's 30521"):
        TokenFiles.open(prefix, fewer)


def test_ids_of_another_vocabulary_are_refused_where_nothing_names_it(prefix, tokenizer):
    pathlib.Path(f"{prefix}.json").unlink()  # as Megatron-LM's own files
    TokenFiles.open(prefix, tokenizer)
    small = MegatronBertTokenizer(tokenizer.get_vocabulary()[:1000], lowercase=True)
    with pytest.raises(
        ValueError, match=r"corpus.bin has ids from \d+ to \d+, and the vocabulary 1"
    ):
        TokenFiles.open(prefix, small)


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def put(path, place, form, value):
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, place, value)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: cut(p.with_suffix(".bin"), -2), "corpus.bin is truncated, or of another"),
        (lambda p: cut(p.with_suffix(".bin"), -1), "corpus.bin is truncated: .* uint16"),
        (lambda p: cut(p.with_suffix(".bin"), 0), "corpus.bin is empty"),
        (lambda p: cut(p.with_suffix(".idx"), -1), "corpus.idx is truncated"),
        (lambda p: cut(p.with_suffix(".idx"), 20), "no index of Megatron's"),
        (
            lambda p: put(p.with_suffix(".idx"), 0, "<Q", 1),
            "it does not begin with b.MMIDIDX",
        ),
        (lambda p: put(p.with_suffix(".idx"), 9, "<Q", 2), "of version 2; only version 1"),
        (lambda p: put(p.with_suffix(".idx"), 17, "<B", 7), "ids of type 7; those known"),
        (lambda p: put(p.with_suffix(".idx"), 18, "<Q", 2**62), "corpus.idx is truncated"),
        (lambda p: put(p.with_suffix(".idx"), 26, "<Q", 1), "its documents are not those"),
        (lambda p: put(p.with_suffix(".idx"), 34, "<i", -5), "a length, a place or"),
        (
            lambda p: put(p.with_suffix(".idx"), 34, "<i", 10**6),
            "its sentence 0 ends at byte 2000000",
        ),
        (lambda p: p.with_suffix(".idx").unlink(), "cannot read .*corpus.idx: No such file"),
        (lambda p: p.with_suffix(".json").write_text("["), "corpus.json is damaged"),
        (lambda p: p.with_suffix(".json").write_text("[]"), "it holds no object"),
        (lambda p: p.with_suffix(".json").write_text("[" * 99_999), "corpus.json is damaged"),
        (
            lambda p: p.with_suffix(".json").write_text(json.dumps({"lowercase": "x" * 9999})),
            "made with another tokenizer",
        ),
    ],
)
def test_damaged_files_are_refused(prefix, tokenizer, damage, message):
    damage(prefix)
    with pytest.raises(ValueError, match=message) as caught:
        TokenFiles.open(prefix, tokenizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pointers", "bounds"),
    [
        # The end of the sentence, or the documents' sizes, would wrap around to what seems right.
        ([0, 2**63 - 4, 4, 6], [0, 4]),
        ([0, 2, 4, 6], [0, 2**62, 2**63 - 1, -(2**63), -(2**62), 0, 4]),
    ],
)
def test_numbers_that_wrap_around_are_refused(tmp_path, pointers, bounds):
    lengths = np.array([1, 2**31 - 1, 1, 1], "<i4") if pointers[1] > 2 else np.ones(4, "<i4")
    np.zeros(4, "<u2").tofile(tmp_path / "a.bin")
    with open(tmp_path / "a.idx", "wb") as file:
        file.write(struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, 4, len(bounds)))
        for array in (lengths, np.array(pointers, "<i8"), np.array(bounds, "<i8")):
            file.write(array.tobytes())
    with pytest.raises(ValueError, match=r"a\.(idx|bin) is (damaged|truncated)"):
        TokenFiles.open(tmp_path / "a")


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "there are no documents"),
        ([[[1]], []], "document 1 is empty"),
        ([[[1], []]], "document 0 has a sentence without ids"),
        ([[[30522]]], "an id outside of the vocabulary of 30522"),
        ([[[-1]]], "an id outside"),
        ([[["a"]]], "a sentence without ids"),
    ],
)
def test_what_is_no_corpus_is_refused(tmp_path, tokenizer, documents, message):
    with pytest.raises(ValueError, match=message):
        write_token_files(tmp_path / "corpus", documents, tokenizer)
    assert not list(tmp_path.iterdir())  # nothing half-written


def test_a_type_that_is_too_small_is_refused(tmp_path, tokenizer):
    pieces = [*tokenizer.get_vocabulary(), *(f"x{i}" for i in range(70000 - 30522))]
    many = MegatronBertTokenizer(pieces, lowercase=True)
    with pytest.raises(ValueError, match="int16 does not hold the ids of 70000"):
        write_token_files(tmp_path / "corpus", [[[1]]], many, "int16")
    with pytest.raises(ValueError, match="dtype must be one of"):
        write_token_files(tmp_path / "corpus", [[[1]]], tokenizer, "float32")


def test_files_are_replaced_whole(prefix, tokenizer):
    write_token_files(prefix, [[[5, 6]]], tokenizer)
    assert as_lists(TokenFiles.open(prefix)) == [[[5, 6]]]
    with pytest.raises(ValueError, match="document 1 is empty"):
        write_token_files(prefix, [[[7]], []], tokenizer)
    assert as_lists(TokenFiles.open(prefix)) == [[[5, 6]]]
    assert json.loads(prefix.with_suffix(".json").read_text())["documents"] == 1
