"""A short run of the script that trained the embedded preset, and what the preset itself can do."""

import json
import os
import pathlib
import subprocess
import sys

import h5py
import numpy as np
import pytest

import keras_megatron
from keras_megatron import MegatronBertMaskedLM, MegatronBertTokenizer

ROOT = pathlib.Path(__file__).parents[1]
EMBEDDED = ROOT / "keras_megatron" / "presets" / "megatron_bert_tiny_uncased"
PARAGRAPHS = (ROOT / "tests" / "data" / "paragraphs.txt").read_text("utf-8").splitlines()


@pytest.mark.backend_independent
def test_a_short_run_makes_a_preset(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "paragraphs.txt").write_text("\n\n".join(PARAGRAPHS * 12), "utf-8")
    script = ROOT / "tools" / "train_tiny_preset.py"
    sizes = "--layers 1 --hidden 16 --sequence-length 32 --batch-size 8 --dtype float32"
    sizes += " --steps 4 --log-every 2"
    sizes = sizes.split()
    start = ["--start", tmp_path / "preset", "--learning-rate", "1e-9"]
    for name, options in (("preset", sizes), ("continued", [*sizes, *start])):
        subprocess.run(
            [sys.executable, script, corpus, tmp_path / f"{name} work", tmp_path / name, *options],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    facts = json.loads((tmp_path / "preset" / "training.json").read_text())
    assert facts["steps"] == 4
    assert facts["masks"] > 20
    assert 5 < facts["unigram_loss"] < 11
    assert facts["loss"] == pytest.approx(np.log(30522), abs=1)  # it has learned next to nothing
    continued = json.loads((tmp_path / "continued" / "training.json").read_text())
    assert continued["loss"] == pytest.approx(facts["loss"], abs=1e-3)  # at a rate of next to 0
    masked_lm = MegatronBertMaskedLM.from_preset(str(tmp_path / "preset"))
    assert masked_lm.count_params() == facts["parameters"]
    assert len(masked_lm.fill_mask("It was the [MASK] of times.", top_k=2)[0]) == 2
    with h5py.File(tmp_path / "preset" / "model.weights.h5") as file:
        kinds = set()
        file.visititems(
            lambda _, item: kinds.add(item.dtype) if isinstance(item, h5py.Dataset) else None
        )
    assert np.dtype("float16") in kinds
    assert np.dtype("float32") not in kinds


@pytest.mark.backend_independent
def test_the_embedded_preset_is_small_and_has_its_card():
    size = sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file())
    assert size <= 25 * 2**20
    facts = json.loads((EMBEDDED / "training.json").read_text())
    assert facts["accuracy"] > 3 * facts["most_frequent_accuracy"]
    assert facts["loss"] < facts["unigram_loss"] - 1
    card = (EMBEDDED / "README.md").read_text()
    for number in (f"{facts['accuracy']:.1%}", f"{facts['loss']:.2f}", str(facts["steps"])):
        assert number in card
    vocabulary = EMBEDDED / "assets" / "tokenizer" / "vocabulary.txt"
    bundled = ROOT / "keras_megatron" / "presets" / "vocabularies" / "bert_uncased.txt"
    assert vocabulary.read_bytes().split() == bundled.read_bytes().split()


def test_the_embedded_preset_fills_masks():
    assert "megatron_bert_tiny_uncased" in keras_megatron.MegatronBertMaskedLM.presets
    masked_lm = MegatronBertMaskedLM.from_preset("megatron_bert_tiny_uncased")
    assert isinstance(masked_lm.preprocessor.tokenizer, MegatronBertTokenizer)
    answers = masked_lm.fill_mask("The [MASK] of the United States.", top_k=3)[0]
    assert answers[0]["score"] > answers[2]["score"] > 0.001  # far above one in 30,522
    facts = json.loads((EMBEDDED / "training.json").read_text())
    loss, accuracy = masked_lm.evaluate(PARAGRAPHS[:64], verbose=0)
    assert accuracy > 2 * facts["most_frequent_accuracy"]
    assert loss < facts["unigram_loss"]
