"""A short run of the script that trained the embedded preset, and what the preset itself can do."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from models import as_numpy

import keras_megatron
from keras_megatron import MegatronBertMaskedLM, MegatronBertTokenizer
from keras_megatron.masking import MaskingScheme

ROOT = pathlib.Path(__file__).parents[1]
EMBEDDED = ROOT / "keras_megatron" / "presets" / "megatron_bert_tiny_uncased"
PARAGRAPHS = (ROOT / "tests" / "data" / "paragraphs.txt").read_text("utf-8").splitlines()


@pytest.mark.backend_independent
def test_a_short_run_makes_a_preset(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "paragraphs.txt").write_text("\n\n".join(PARAGRAPHS[:400]), "utf-8")
    script = ROOT / "tools" / "train_tiny_preset.py"
    sizes = "--layers 1 --hidden 16 --tokens 256 --sequence-length 32 --no-compile"
    sizes += " --steps 4 --warmup 1 --decay 2 --report-every 2"
    start = ["--start", tmp_path / "preset", "--learning-rate", "0"]
    for name, options in (("preset", []), ("continued", start)):
        subprocess.run(
            [sys.executable, script, corpus, tmp_path / name, *sizes.split(), *options],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "torch"},
        )
    facts = json.loads((tmp_path / "preset" / "training.json").read_text())
    assert facts["steps"] == 4
    assert facts["masks"] > 20
    assert 5 < facts["unigram_loss"] < 11
    assert facts["loss"] == pytest.approx(np.log(30522), abs=1)  # it has learned next to nothing
    continued = json.loads((tmp_path / "continued" / "training.json").read_text())
    assert continued["loss"] == pytest.approx(facts["loss"], abs=1e-3)  # at a rate of 0
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
def test_the_loop_computes_the_model(monkeypatch):
    """Its forward pass, written out, and its chunked loss, next to the Keras model's."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    sentence_pairs = importlib.import_module("sentence_pairs")
    loop = importlib.import_module("torch_pretraining")
    monkeypatch.setattr(loop, "HALF", torch.float32)
    monkeypatch.setattr(loop, "CHUNK", 7)
    masked_lm = MegatronBertMaskedLM.from_preset("megatron_bert_tiny_uncased")
    tokenizer = masked_lm.preprocessor.tokenizer
    samples = sentence_pairs.make_samples([PARAGRAPHS[:60]], tokenizer, 32)
    batches = sentence_pairs.Batches(samples, tokenizer, MaskingScheme(), 512, 32)
    made = [batches.make(0, place, *what) for place, what in enumerate(batches.order(0))]
    orders = np.concatenate([batch.order for batch in made])
    assert set(orders) == {0, 1, sentence_pairs.NO_ORDER}
    batch = made[0]
    assert len(set(batch.segment_ids.ravel())) == 2

    backbone = masked_lm.backbone
    weights = {v.path: torch.tensor(as_numpy(v)) for v in masked_lm.trainable_variables}
    trainer = loop.Trainer(weights, backbone.num_heads, backbone.num_layers, compiled=False)
    ids = {
        "token_ids": batch.token_ids,
        "segment_ids": batch.segment_ids,
        "padding_mask": batch.token_ids != 0,
        "mask_positions": np.tile(np.arange(batch.token_ids.shape[1]), (len(batch.token_ids), 1)),
    }
    logits = masked_lm.logits(ids).reshape(-1, backbone.vocabulary_size)[batch.positions]
    tensors = torch.from_numpy(logits), torch.from_numpy(batch.labels)
    expected = torch.nn.functional.cross_entropy(*tensors, reduction="none").numpy()
    expected = (expected * batch.weights).sum() / batch.weights.sum()
    found = trainer.step(batch, rate=1e-3)
    assert found["loss"] == pytest.approx(expected, abs=2e-5)
    guessed = (logits.argmax(-1) == batch.labels) * batch.weights
    assert found["accuracy"] == pytest.approx(guessed.sum() / batch.weights.sum(), abs=1e-6)


@pytest.mark.backend_independent
def test_the_chunked_loss_has_the_gradient_of_cross_entropy(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    loop = importlib.import_module("torch_pretraining")
    monkeypatch.setattr(loop, "HALF", torch.float32)
    monkeypatch.setattr(loop, "CHUNK", 7)
    torch.manual_seed(0)
    tensors = [torch.randn(size).requires_grad_() for size in ((20, 8), (50, 8), (50,))]
    labels, weights = torch.randint(50, (20,)), torch.rand(20)
    hidden, table, bias = tensors
    losses = torch.nn.functional.cross_entropy(hidden @ table.T + bias, labels, reduction="none")
    expected = torch.autograd.grad((losses * weights).sum() * 3, tensors)
    loss, _ = loop.VocabularyLoss.apply(*tensors, labels, weights, loop.chunk_of_loss)
    for ours, theirs in zip(torch.autograd.grad(loss * 3, tensors), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


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
