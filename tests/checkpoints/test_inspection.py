"""What `inspect` says of each format, next to what the files hold."""

import json

import numpy as np
import pytest
import release_format
import safetensors.torch
import sharded_format
import torch
from checkpoint_helpers import make_reference, one_line_error

from keras_megatron import MegatronBertPretrainer, cli
from keras_megatron.checkpoints import convert_checkpoint
from keras_megatron.inspection import inspect_checkpoint

pytestmark = pytest.mark.backend_independent


def shapes(found):
    return {tensor.name: (tensor.shape, tensor.dtype) for tensor in found.tensors}


def test_a_release(tmp_path, reference):
    source = tmp_path / "release.zip"
    release_format.write_release_zip(source, reference, half=True)
    found = inspect_checkpoint(source)
    assert found.format == "Megatron-LM, checkpoint version 0"
    assert found.settings["num_layers"] == 3
    assert found.arguments["num_attention_heads"] == 4
    assert found.arguments["params_dtype"] == "torch.float16"
    state = release_format.model_state(reference)
    words = state["language_model"]["embedding"]["word_embeddings"]["weight"]
    name = "language_model.embedding.word_embeddings.weight"
    assert shapes(found)[name] == (tuple(words.shape), "float16")
    layer = state["language_model"]["transformer"]
    for key, tensor in layer.items():
        name = f"language_model.transformer.{key}"
        assert shapes(found)[name] == (tuple(tensor.shape), "float16")
    assert {"optimizer", "lr_scheduler", "random_rng_state"} <= set(found.dropped)
    assert "becomes a MegatronBertPretrainer" in found.notes
    assert "iteration 2000000" in found.notes
    assert any("give one with --vocabulary" in note for note in found.notes)  # 128 rows


def test_ranks_are_counted(tmp_path):
    model = make_reference(vocab_size=30522, hidden_size=8, num_hidden_layers=2)
    sharded_format.write_shards(tmp_path / "run", sharded_format.shards(model, 3.0, 2, 2))
    found = inspect_checkpoint(tmp_path / "run")
    tensors = {tensor.name: tensor for tensor in found.tensors}
    dense = tensors["language_model.transformer.layers.0.mlp.dense_h_to_4h.weight"]
    assert (dense.shape, dense.shards) == ((24, 8), 4)
    assert "128 of 30720 rows of words cut: padding for tensor parallelism" in found.notes
    assert found.settings["vocabulary_size"] == 30592


def test_heads_that_the_task_has_not(tmp_path, reference):
    path = tmp_path / "model_optim_rng.pt"
    release_format.write_checkpoint(path, reference, 3.0)
    state = torch.load(path, weights_only=False)
    state["model"]["classification_head"] = {"weight": torch.ones(3, 32), "bias": torch.ones(3)}
    torch.save(state, path)
    found = inspect_checkpoint(path)
    assert "becomes a MegatronBertTextClassifier" in found.notes
    heads = {name for name in found.dropped if "head" in name}
    unused = convert_checkpoint(path, tmp_path / "out", vocabulary_file(tmp_path), progress=False)
    assert heads == set(unused)
    assert "lm_head.dense.weight" in heads


def vocabulary_file(folder):
    path = folder / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) + "\n")
    return path


def test_what_cannot_be_converted_is_shown(tmp_path, reference):
    path = tmp_path / "model_optim_rng.pt"
    release_format.write_checkpoint(path, reference, 3.0, arguments={"swiglu": True})
    found = inspect_checkpoint(path)
    assert found.notes[-1].startswith("cannot be converted: ")
    assert "swiglu=True" in found.notes[-1]
    assert found.settings == {}
    assert len(found.tensors) == len(list(_leaves(torch.load(path, weights_only=False)["model"])))


def _leaves(tree):
    for value in tree.values():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield value


def test_transformers(tmp_path, reference):
    reference.save_pretrained(tmp_path / "theirs")
    stored = safetensors.torch.load_file(tmp_path / "theirs" / "model.safetensors")
    found = inspect_checkpoint(tmp_path / "theirs")
    assert found.format == "transformers (MegatronBertForPreTraining)"
    assert shapes(found) == {
        name: (tuple(tensor.shape), "float32") for name, tensor in stored.items()
    }
    assert found.arguments["hidden_act"] == "gelu"
    assert found.settings["activation"] == "gelu"
    assert found.dropped == []
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config["architectures"] = ["MegatronBertForMaskedLM"]
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    dropped = inspect_checkpoint(tmp_path / "theirs").dropped
    assert dropped == ["cls.seq_relationship.bias", "cls.seq_relationship.weight"]


def test_a_keras_preset(tmp_path, reference):
    source = tmp_path / "release.zip"
    release_format.write_release_zip(source, reference)
    convert_checkpoint(source, tmp_path / "out", vocabulary_file(tmp_path), progress=False)
    found = inspect_checkpoint(tmp_path / "out")
    assert found.format == "Keras preset"
    assert found.notes == ["saved from a MegatronBertPretrainer"]
    stored = [tensor for tensor in found.tensors if "optimizer" not in tensor.name]
    model = MegatronBertPretrainer.from_preset(str(tmp_path / "out"))
    assert sum(tensor.size for tensor in stored) == model.count_params()
    assert {tensor.name.partition(":")[0] for tensor in stored} == {
        "model.weights.h5",
        "task.weights.h5",
    }
    assert found.settings["hidden_dim"] == 32


def test_presets_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    found = inspect_checkpoint("megatron_bert_345m_uncased")
    assert found.settings["num_layers"] == 24
    assert found.tensors == []
    assert "downloaded on first use" in found.notes[0]
    found = inspect_checkpoint("megatron_bert_tiny_uncased")
    assert sum(np.prod(tensor.shape) for tensor in found.tensors) > 11_000_000


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["inspect", *map(str, arguments)])
    return stopped.value.code, *capsys.readouterr()


def test_the_command(tmp_path, reference, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    source = tmp_path / "release.zip"
    release_format.write_release_zip(source, reference)
    status, out, err = run(capsys, source)
    assert (status, err) == (0, "")
    for text in ("checkpoint version 0", "num_layers", "128 x 32", "float32", "optimizer"):
        assert text in out
    for tensor in inspect_checkpoint(source).tensors:
        assert tensor.name in out  # whole, however narrow
    status, out, _ = run(capsys, source, "--json")
    assert json.loads(out)["settings"]["hidden_dim"] == 32
    source.write_bytes(source.read_bytes()[:1000])
    status, out, err = run(capsys, source)
    assert (status, out, err.count("\n")) == (2, "", 1)
    status, out, err = run(capsys, tmp_path / "missing")
    assert status == 2
    assert "missing" in err


def test_nothing_is_left(tmp_path, reference, monkeypatch):
    source = tmp_path / "release.zip"
    release_format.write_release_zip(source, reference, compressed=True)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert inspect_checkpoint(source).settings
    assert list(scratch.iterdir()) == []
    for other in ({"other": 1}, torch.ones(3)):
        torch.save(other, tmp_path / "other.pt")
        with one_line_error("no 'model'"):
            inspect_checkpoint(tmp_path / "other.pt")


def test_arguments_that_would_be_endless_text(tmp_path, reference):
    """Each level of the tuple is the one before it, twice."""
    deep = ()
    for _ in range(60):
        deep = (deep, deep)
    path = tmp_path / "model_optim_rng.pt"
    release_format.write_checkpoint(path, reference, 3.0, arguments={"deep": deep})
    assert len(inspect_checkpoint(path).arguments["deep"]) <= 200
