import json

import pytest
import transformers

from keras_megatron import MegatronBertTokenizer
from keras_megatron.presets.hugging_face_tokenizer import has_tokenizer, tokenizer_arguments

pytestmark = pytest.mark.backend_independent

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fox", "##es", "un", "Paris", "."]


def write_vocabulary(folder):
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")


def read(folder):
    """The arguments, with the vocabulary as a list."""
    arguments = tokenizer_arguments(str(folder))
    if isinstance(arguments["vocabulary"], str):
        with open(arguments["vocabulary"], encoding="utf-8") as file:
            arguments["vocabulary"] = file.read().splitlines()
    return arguments


def test_vocabulary_file(tmp_path):
    assert not has_tokenizer(str(tmp_path))
    write_vocabulary(tmp_path)
    assert has_tokenizer(str(tmp_path))
    assert read(tmp_path) == {"vocabulary": PIECES, "lowercase": None}


@pytest.mark.parametrize("lowercase", [True, False])
def test_lower_casing_as_configured(tmp_path, lowercase):
    write_vocabulary(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    assert read(tmp_path)["lowercase"] is lowercase


@pytest.mark.parametrize("lowercase", [True, False])
def test_as_transformers_saves_it(tmp_path, lowercase):
    write_vocabulary(tmp_path)
    tokenizer = transformers.BertTokenizer(
        vocab=str(tmp_path / "vocab.txt"), do_lower_case=lowercase
    )
    (tmp_path / "vocab.txt").unlink()
    tokenizer.add_tokens(["added"])
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    assert has_tokenizer(str(tmp_path))
    assert read(tmp_path) == {"vocabulary": [*PIECES, "added"], "lowercase": lowercase}
    (tmp_path / "tokenizer_config.json").unlink()
    assert read(tmp_path)["lowercase"] is lowercase


def write_tokenizer_file(folder, **model):
    (folder / "tokenizer.json").write_text(json.dumps({"model": model}))


# === What is refused ===


def write_settings(folder, form, strip_accents=None, chinese=True, lowercase=True):
    """As tokenizer_config.json, or in tokenizer.json's normalizer."""
    if form == "tokenizer_config.json":
        settings = {"do_lower_case": lowercase, "tokenize_chinese_chars": chinese}
        content = {**settings, "strip_accents": strip_accents}
    else:
        settings = {"lowercase": lowercase, "handle_chinese_chars": chinese}
        content = {"normalizer": {**settings, "strip_accents": strip_accents}}
    (folder / form).write_text(json.dumps(content))


@pytest.mark.parametrize("form", ["tokenizer_config.json", "tokenizer.json"])
def test_settings_that_our_tokenizer_does_not_have(tmp_path, form):
    write_vocabulary(tmp_path)
    for lowercase in (True, False):
        write_settings(tmp_path, form, strip_accents=lowercase, lowercase=lowercase)
        assert read(tmp_path)["lowercase"] is lowercase
        write_settings(tmp_path, form, strip_accents=not lowercase, lowercase=lowercase)
        with pytest.raises(ValueError, match=r"strips accents .* pass your own tokenizer"):
            read(tmp_path)
    write_settings(tmp_path, form, chinese=False)
    with pytest.raises(ValueError, match=r"Chinese .* pass your own tokenizer"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", [], "does not hold a JSON object"),
        ("tokenizer_config.json", {"do_lower_case": "yes"}, "do_lower_case .* true, false or null"),
        ("tokenizer.json", [], "does not hold a JSON object"),
        ("tokenizer.json", {"normalizer": [1]}, r"whose normalizer is \[1\], not BertNormalizer"),
    ],
)
def test_wrong_types(tmp_path, name, content, message):
    write_vocabulary(tmp_path)
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("model", [{}, {"vocab": []}, {"vocab": {"a": "0", "b": 1}}])
def test_no_table_of_pieces(tmp_path, model):
    write_tokenizer_file(tmp_path, type="WordPiece", **model)
    with pytest.raises(ValueError, match="no table of pieces"):
        read(tmp_path)


def test_no_vocabulary(tmp_path):
    with pytest.raises(ValueError, match=r"has no vocabulary: add vocab\.txt or tokenizer\.json"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("spiece.model", "SentencePiece"),
        ("tokenizer.model", "SentencePiece"),
        ("merges.txt", "byte"),
    ],
)
def test_files_of_other_tokenizers_are_named(tmp_path, file, kind):
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"has a {kind}.* \({file}\), .* WordPiece.*: add vocab"):
        read(tmp_path)


def test_tokenizer_of_another_kind(tmp_path):
    write_tokenizer_file(tmp_path, type="BPE", vocab={"a": 0})
    with pytest.raises(ValueError, match=r"a tokenizer of type 'BPE', .*preprocessor=None"):
        read(tmp_path)


@pytest.mark.parametrize("ids", [[0, 2], [0, 0], [1, 2]])
def test_ids_with_holes(tmp_path, ids):
    write_tokenizer_file(tmp_path, type="WordPiece", vocab=dict(zip("ab", ids, strict=True)))
    with pytest.raises(ValueError, match="are not 0 to 1"):
        read(tmp_path)


def test_added_tokens_that_word_pieces_cannot_be(tmp_path):
    write_vocabulary(tmp_path)
    tokenizer = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    (tmp_path / "vocab.txt").unlink()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[E1]"]})
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"tokens added that WordPiece splits, '\[E1\]'"):
        read(tmp_path)


@pytest.mark.filterwarnings("ignore:.* has tokens added, such as")
def test_tokens_added_beside_a_vocabulary(tmp_path):
    """As transformers before 5 wrote them, and as tokenizer.json has them."""
    write_vocabulary(tmp_path)
    added = tmp_path / "added_tokens.json"
    added.write_text(json.dumps({"later": len(PIECES) + 1, "added": len(PIECES), "[CLS]": 2}))
    expected = {"vocabulary": [*PIECES, "added", "later"], "lowercase": False}  # there is Paris
    assert read(tmp_path) == expected
    added.write_text(json.dumps({"[E1]": len(PIECES)}))
    with pytest.raises(ValueError, match=r"tokens added that WordPiece splits, '\[E1\]'"):
        read(tmp_path)
    added.write_text(json.dumps({"added": len(PIECES) + 1}))
    with pytest.raises(ValueError, match="are not 0 to"):
        read(tmp_path)
    added.unlink()
    content = {"added_tokens": [{"content": "added", "id": len(PIECES)}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert read(tmp_path)["vocabulary"] == [*PIECES, "added"]


def lower_case_folder(folder) -> transformers.BertTokenizer:
    pieces = [*PIECES[:5], "the", "cat", "##s", "run", "[unused1]"]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return transformers.BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=True)


@pytest.mark.parametrize("word", ["Covid", "café", "新冠", "한국", "a-b", "[unused1]"])
@pytest.mark.parametrize("keeps_vocabulary", [True, False])
def test_added_tokens_are_those_of_transformers_or_refused(tmp_path, word, keeps_vocabulary):
    tokenizer = lower_case_folder(tmp_path)
    if word.startswith("["):
        tokenizer.add_special_tokens({"additional_special_tokens": [word]})
    else:
        tokenizer.add_tokens([word])
    assert len(tokenizer.tokenize(f"the {word} cat")) == 3
    tokenizer.save_pretrained(tmp_path)
    if not keeps_vocabulary:
        (tmp_path / "vocab.txt").unlink()
    with pytest.raises(
        ValueError, match=r"tokens added that WordPiece splits, .*preprocessor=None"
    ):
        read(tmp_path)


def test_an_added_word_is_found_as_a_word(tmp_path):
    tokenizer = lower_case_folder(tmp_path)
    tokenizer.add_tokens(["covid"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.warns(
        UserWarning, match="added, such as 'covid': here they are words of their own"
    ):
        arguments = read(tmp_path)
    ours = MegatronBertTokenizer(**arguments)
    for text in ("The COVID cats run", "covid, covid"):
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ours.tokenize(text).tolist() == expected
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"covid": 10}))
    with pytest.warns(UserWarning, match="words of their own"):
        assert read(tmp_path)["lowercase"] is True  # as the vocabulary says


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer.json", {"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer is 'Whitesp"),
        ("tokenizer.json", {"normalizer": None}, "whose normalizer is None, not BertNormalizer"),
        ("tokenizer.json", {"normalizer": {"clean_text": False}}, "with clean_text=False"),
        ("tokenizer.json", {"model": {"continuing_subword_prefix": "@"}}, "subword_prefix='@'"),
        ("tokenizer.json", {"model": {"max_input_chars_per_word": 5}}, "chars_per_word=5"),
        ("tokenizer.json", {"model": {"unk_token": "<unk>"}}, "with unk_token='<unk>'"),
        ("tokenizer_config.json", {"tokenizer_class": "BertJapaneseTokenizer"}, "of the class"),
        ("tokenizer_config.json", {"do_basic_tokenize": False}, "do_basic_tokenize=False"),
        ("tokenizer_config.json", {"added_tokens_decoder": 3}, "added tokens that are damaged"),
    ],
)
def test_tokenizers_that_make_other_pieces(tmp_path, file, change, message):
    lower_case_folder(tmp_path).save_pretrained(tmp_path)
    assert read(tmp_path)["lowercase"] is True
    content = json.loads((tmp_path / file).read_text("utf-8"))
    for name, value in change.items():
        is_part = isinstance(value, dict) and isinstance(content.get(name), dict)
        content[name] = {**content[name], **value} if is_part else value
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read(tmp_path)
