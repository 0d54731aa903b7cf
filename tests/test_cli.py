"""The `keras-megatron` command, in process; its own process is started once."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import pytest
import release_format
from transformers import MegatronBertConfig, MegatronBertForPreTraining

import keras_megatron
from keras_megatron import cli

pytestmark = pytest.mark.backend_independent

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fox", "##es", "un", "."]


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def run(capsys):
    """Run the command; returns exit status, stdout and stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as exit:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return exit.value.code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny release zip, and its vocabulary beside it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = MegatronBertConfig(
        vocab_size=128,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    release_format.write_release_zip(folder / "release.zip", MegatronBertForPreTraining(config))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def converted(checkpoint):
    folder = checkpoint / "converted"
    vocabulary = ("--vocabulary", str(checkpoint / "vocab.txt"))
    with pytest.raises(SystemExit) as exit:
        cli.main(["convert", str(checkpoint / "release.zip"), str(folder), *vocabulary])
    assert exit.value.code == 0
    return folder


def test_converted_checkpoint_fills_masks(run, converted, monkeypatch):
    filled = []
    fill_mask = keras_megatron.MegatronBertMaskedLM.fill_mask

    def remember(self, *args, **kwargs):
        filled.extend(fill_mask(self, *args, **kwargs))
        return filled

    monkeypatch.setattr(keras_megatron.MegatronBertMaskedLM, "fill_mask", remember)
    text = "The fox [MASK] the [MASK]."
    status, out, err = run("fill-mask", text, "Un [MASK]", "--preset", converted, "--top-k", 2)
    assert (status, err) == (0, "")
    assert text in out
    assert f"backend {keras.backend.backend()}" in out
    answers = [answer for masks in filled for mask in masks for answer in mask]
    assert len(answers) == len(re.findall(r"\d\.\d%", out)) == 2 * 3
    assert all(f"{answer['token_str']} {answer['score']:.1%}" in out for answer in answers)


def test_examples_fill_masks(run, converted):
    """Without a text: each example, with the work that it is from."""
    status, out, _ = run("fill-mask", "--preset", converted)
    assert status == 0
    assert "Pride and Prejudice" in out
    assert "message to Congress, 1862" in out
    assert all("[MASK]" in sentence for sentence in cli.EXAMPLES)


def test_convert_passes_its_options(run, checkpoint, tmp_path):
    folder = tmp_path / "output"
    status, _, _ = run(
        *("convert", checkpoint / "release.zip", folder),
        *("--vocabulary", checkpoint / "vocab.txt"),
        *("--layer-norm-epsilon", "1e-12", "--mlp-activation", "gelu_approximate"),
    )
    assert status == 0
    backbone = keras_megatron.MegatronBertBackbone.from_preset(str(folder))
    assert backbone.layer_norm_epsilon == 1e-12
    assert backbone.activation == "gelu_approximate"
    assert backbone.num_heads == 2


def test_presets_are_listed(run, tmp_path):
    cached = tmp_path / "home" / "models" / "keras_megatron" / "megatron_bert_345m_cased"
    (cached / "format_2").mkdir(parents=True)
    status, out, _ = run("presets")
    assert status == 0
    for row in (
        r"megatron_bert_345m_uncased +│ +335,213,568 │ downloaded on first use",
        r"megatron_bert_345m_cased +│ +333,640,704 │ cached",
        r"megatron_bert_3_9b_uncased +│ 3,862,663,680 │ none released",
        f"Cache: {re.escape(str(cached.parent))} ",
    ):
        assert re.search(row, out), row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "no_such.zip", "out"], "no_such.zip"),
        (["convert", "only_one"], "Missing argument 'output'"),
        (["fill-mask", "no mask here"], "has no [MASK] to fill: 'no mask here'"),
        (["fill-mask", "[MASK]", "--top-k", "0"], "top_k must be an integer from 1 to"),
        (["fill-mask", "[MASK]", "--top-k", "many"], "Invalid value for '--top-k'"),
        (["fill-mask", "[MASK]", "--preset", "no_such_preset"], "no_such_preset"),
        (
            ["fill-mask", "[MASK]", "--preset", "megatron_bert_345_uncased"],
            "did you mean megatron_bert_345m_uncased",
        ),
        (["fill-mask", "[MASK]", "--preset", "no_such_folder/x"], "`keras-megatron presets`"),
        (["fill-mask", "--preset", "megatron_bert_1_3b_uncased"], "no weights were released"),
        ([], "Missing command. (see --help)"),
        (["no-such-command"], "No such command 'no-such-command'"),
        (["presets", "--loud"], "No such option: --loud"),
    ],
)
def test_user_errors_are_one_line(run, converted, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    if "--preset" not in arguments and "fill-mask" in arguments:
        arguments = [*arguments, "--preset", converted]
    status, out, err = run(*arguments)
    assert status == 2
    assert "[MASK]" not in out
    assert message.lower() in err.lower()
    assert err.startswith("keras-megatron: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_presets_that_cannot_fill_masks_are_refused(run, converted, tmp_path):
    backbone = keras_megatron.MegatronBertBackbone.from_preset(str(converted))
    backbone.save_to_preset(str(tmp_path / "run/preset"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{")
    for folder, message in (
        (tmp_path / "run/preset", "holds a backbone alone, which has no head that fills masks"),
        (tmp_path / "run", f"is no preset, as it has no config.json: did you mean {tmp_path}/run/"),
        (tmp_path / "broken", f"cannot read {tmp_path}/broken/config.json: Expecting"),
    ):
        status, _, err = run("fill-mask", "a [MASK]", "--preset", str(folder))
        assert (status, message in err, err.count("\n")) == (2, True, 1)


def test_names_of_folders_are_no_markup(run, converted, tmp_path):
    shutil.copytree(converted, tmp_path / "x[b]y[" / "b]z")
    status, out, _ = run("fill-mask", "--preset", tmp_path / "x[b]y[" / "b]z", "the [MASK].")
    assert (status, "x[b]y[" in "".join(out.split())) == (0, True)


def test_refused_source_leaves_no_output(run, checkpoint, tmp_path):
    (tmp_path / "broken.zip").write_bytes((checkpoint / "release.zip").read_bytes()[:-99])
    status, _, err = run("convert", tmp_path / "broken.zip", tmp_path / "output")
    assert status == 2
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["broken.zip"]


def test_help_names_the_commands(run):
    status, out, _ = run("--help")
    assert status == 0
    assert all(name in out for name in ("fill-mask", "convert", "presets"))


def test_in_a_process_of_its_own():
    root = str(pathlib.Path(keras_megatron.__file__).parents[1])
    program = "from keras_megatron.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--version"],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"keras-megatron {keras_megatron.__version__}\n"
