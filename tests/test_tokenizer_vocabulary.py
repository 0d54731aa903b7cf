import warnings

import numpy as np
import pytest
from bert_reference import AA, PIECES, THE, UNK, S, reference, tokenizer

from keras_megatron import MegatronBertTokenizer


@pytest.fixture
def small() -> MegatronBertTokenizer:
    return MegatronBertTokenizer(PIECES)


@pytest.mark.parametrize("casing", ["uncased", "cased"])
def test_bundled_vocabularies(casing):
    bert = tokenizer(casing)
    assert bert.lowercase == (casing == "uncased")
    assert bert.vocabulary_size() == {"uncased": 30522, "cased": 28996}[casing]
    assert bert.get_vocabulary()[100:104] == ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = (bert.pad_token_id, bert.unk_token_id, bert.cls_token_id, bert.sep_token_id)
    assert (*ids, bert.mask_token_id) == (0, 100, 101, 102, 103)
    assert (bert.start_token_id, bert.end_token_id) == (101, 102)
    assert sorted(bert.special_token_ids) == [0, 100, 101, 102, 103]
    assert bert.id_to_token(103) == "[MASK]"
    assert bert.token_to_id("the") == reference(casing).token_to_id("the")


def test_continuation_mask(small):
    mask = small.continuation_mask
    assert mask.dtype == bool
    assert np.flatnonzero(mask).tolist() == [S, AA]
    with pytest.raises(ValueError, match="read-only"):
        mask[0] = True


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_vocabulary_files_of_any_system(tmp_path, line_end, start):
    pieces = [*PIECES, "two\u2028lines", "\u00a0"]
    text = start + line_end.join(pieces) + line_end * 2
    (tmp_path / "vocab.txt").write_text(text, encoding="utf-8", newline="")
    assert MegatronBertTokenizer(tmp_path / "vocab.txt").get_vocabulary() == pieces
    assert MegatronBertTokenizer(str(tmp_path / "vocab.txt")).vocabulary_size() == len(pieces)


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ([], "the vocabulary is empty"),
        (["the", "[PAD]", "[UNK]", "[SEP]"], r"the vocabulary lacks \[CLS\], \[MASK\]"),
        ([*PIECES, "the"], "has 'the' twice, as ids 5 and 11"),
        ([*PIECES, ""], r"vocabulary\[11\] is blank"),
        ([*PIECES, "b\n"], r"vocabulary\[11\] is blank or has a line end in it: 'b\\n'"),
        ([*PIECES, 7], r"vocabulary\[11\] must be a string, not int"),
        (7, "a path or a list of pieces, not int"),
        (dict.fromkeys(PIECES), "a path or a list of pieces, not dict"),
    ],
)
def test_flawed_vocabularies(vocabulary, message):
    with pytest.raises(ValueError, match=message) as error:
        MegatronBertTokenizer(vocabulary)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the vocabulary file .*vocab.txt: No such file"),
        (b"", "vocab.txt: the vocabulary is empty"),
        (b"[PAD]\n\n[UNK]\n", r"vocab.txt: vocabulary\[1\] is blank"),
        (b"\xff\xfe[\x00P\x00", "vocab.txt is not UTF-8 text"),
        (b"{}", r"vocab.txt: the vocabulary lacks \[PAD\]"),
    ],
)
def test_flawed_vocabulary_files(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        MegatronBertTokenizer(path)
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_vocabulary_says_so():
    empty = MegatronBertTokenizer()
    assert empty.vocabulary is None
    for call in (empty.get_vocabulary, empty.vocabulary_size, lambda: empty.tokenize("a")):
        with pytest.raises(ValueError, match="no vocabulary yet"):
            call()


@pytest.mark.parametrize("id", [-1, len(PIECES), 1.0, "a"])
def test_ids_and_pieces_out_of_the_vocabulary(small, id):
    with pytest.raises(ValueError, match=f"has ids 0 to {len(PIECES) - 1}, not {id!r}"):
        small.id_to_token(id)
    with pytest.raises(ValueError, match="no piece 'nowhere'"):
        small.token_to_id("nowhere")


def test_casing_is_inferred_and_contradictions_are_named():
    cased = [*PIECES, "The"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert MegatronBertTokenizer(PIECES).lowercase
        assert not MegatronBertTokenizer(cased).lowercase
        assert MegatronBertTokenizer(PIECES, lowercase=True).lowercase
        assert not MegatronBertTokenizer(cased, lowercase=False).lowercase
    with pytest.warns(
        UserWarning, match="lowercase=True, but the vocabulary is cased: 1 of .*'The'"
    ):
        assert MegatronBertTokenizer(cased, lowercase=True).tokenize(["The"]) == [[THE]]
    with pytest.warns(UserWarning, match="lowercase=False, but the vocabulary is uncased"):
        assert MegatronBertTokenizer(PIECES, lowercase=False).tokenize(["The"]) == [[UNK]]
