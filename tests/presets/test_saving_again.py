"""Saving where a preset is: the old one stays until the new one is whole."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from models import small_backbone

import keras_megatron
from keras_megatron import (
    MegatronBertBackbone,
    MegatronBertMaskedLM,
    MegatronBertTextClassifier,
    MegatronBertTextEmbedder,
    MegatronBertTokenizer,
)

pytestmark = pytest.mark.backend_independent


@pytest.fixture
def preset(tmp_path):
    """A preset of a masked language model, with a file of the user's."""
    folder = tmp_path / "preset"
    MegatronBertMaskedLM(small_backbone(), preprocessor=None).save_to_preset(str(folder))
    (folder / "README.md").write_text("mine")
    return folder


def tree(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_another_model_takes_its_place(preset):
    model = MegatronBertTextClassifier(small_backbone(num_layers=1), num_classes=3)
    model.save_to_preset(str(preset))
    loaded = MegatronBertTextClassifier.from_preset(str(preset))
    for ours, theirs in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (preset / "README.md").read_text() == "mine"
    assert not [name for name in os.listdir(preset) if name.startswith(".")]


@pytest.mark.parametrize("fails_at", ["model.weights.h5", "task.weights.h5", "metadata.json"])
def test_a_save_that_fails_leaves_the_old_one(preset, monkeypatch, fails_at):
    before = tree(preset)
    new = MegatronBertMaskedLM(small_backbone(num_layers=1), preprocessor=None)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    owner, name = {
        "model.weights.h5": (MegatronBertBackbone, "save_weights"),
        "task.weights.h5": (MegatronBertMaskedLM, "save_task_weights"),
        "metadata.json": (MegatronBertBackbone, "count_params"),
    }[fails_at]
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(ValueError, match=r"cannot write .*: No space left") as error:
        new.save_to_preset(str(preset))
    assert "\n" not in str(error.value)
    assert tree(preset) == before


def test_a_killed_save_leaves_the_old_one_and_the_next_cleans_up(preset):
    before = tree(preset)
    script = """
        import os, signal, sys
        from models import small_backbone
        from keras_megatron import MegatronBertBackbone
        def die(*args): os.kill(os.getpid(), signal.SIGKILL)
        MegatronBertBackbone.count_params = die
        small_backbone(num_layers=1).save_to_preset(sys.argv[1])
    """
    paths = [pathlib.Path(keras_megatron.__file__).parents[1], pathlib.Path(__file__).parents[1]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", textwrap.dedent(script), str(preset)]
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    after = tree(preset)
    assert {name: after[name] for name in before} == before
    assert after.keys() > before.keys()  # it was killed in the midst of it
    small_backbone().save_to_preset(str(preset))
    assert tree(preset).keys() == before.keys()


def test_weights_in_several_files_do_not_outlive_their_model(preset):
    model = MegatronBertMaskedLM(small_backbone(), preprocessor=None)
    model.save_to_preset(str(preset), max_shard_size=1e-4)
    assert (preset / "model.weights.json").exists()
    assert not (preset / "model.weights.h5").exists()
    new = small_backbone()
    new.save_to_preset(str(preset))
    assert not list(preset.glob("model_*"))
    loaded = MegatronBertBackbone.from_preset(str(preset))
    np.testing.assert_array_equal(loaded.weights[0], new.weights[0])
    assert keras.ops.any(model.backbone.weights[0] != new.weights[0])  # they do differ


def test_the_head_of_another_task_does_not_outlive_it(preset):
    embedder = MegatronBertTextEmbedder(small_backbone(), preprocessor=None)
    assert (preset / "task.weights.h5").exists()
    embedder.save_to_preset(str(preset))
    assert not (preset / "task.weights.h5").exists()
    assert MegatronBertTextEmbedder.from_preset(str(preset), preprocessor=None)


def test_a_file_is_no_preset(tmp_path):
    place = tmp_path / "file"
    place.write_text("mine")
    with pytest.raises(ValueError, match="is a file: choose another place"):
        small_backbone().save_to_preset(str(place))
    assert place.read_text() == "mine"


def test_a_tokenizer_alone_is_saved_as_before(tmp_path):
    tokenizer = MegatronBertTokenizer.from_preset("megatron_bert_tiny_uncased")
    tokenizer.save_to_preset(str(tmp_path / "a" / "b"))
    small_backbone(vocabulary_size=30592).save_to_preset(str(tmp_path / "a" / "b"))
    assert MegatronBertTokenizer.from_preset(str(tmp_path / "a" / "b")).vocabulary_size() == (
        tokenizer.vocabulary_size()
    )
