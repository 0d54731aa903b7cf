"""What is written with Megatron-core's names, held and run by Megatron-core's own BertModel."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoint_helpers import make_reference

from keras_megatron import MegatronBertBackbone, MegatronBertMaskedLM, MegatronBertPretrainer

pytestmark = [pytest.mark.backend_independent, pytest.mark.parity]
TOLERANCE = 2e-5
SCRIPT = pathlib.Path(__file__).with_name("megatron_core_load.py")
FILE = "release/mp_rank_00/model_optim_rng.pt"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Of the sizes of Megatron-core's model in the script."""
    folder = tmp_path_factory.mktemp("reference")
    make_reference(vocab_size=256, num_hidden_layers=3).save_pretrained(folder)
    with pytest.warns(UserWarning, match="no vocabulary"):
        return MegatronBertPretrainer.from_preset(str(folder))


@pytest.fixture(scope="module")
def masked_lms(model):
    """Of the same weights: one whose segments matter, and one that makes nothing of them."""
    found = {}
    for name in ("segments", "plain"):
        backbone = MegatronBertBackbone.from_config(model.backbone.get_config())
        found[name] = MegatronBertMaskedLM(backbone)
        weights = {variable.path: variable for variable in model.weights}
        for variable in found[name].weights:
            variable.assign(np.array(weights[variable.path]))  # not the same buffer
    table = next(
        variable
        for variable in found["plain"].weights
        if variable.path.endswith("segment_embedding/embeddings")
    )
    table.assign(np.zeros(table.shape, "float32"))
    return found


@pytest.fixture(scope="module")
def loaded(model, masked_lms, tmp_path_factory):
    """A folder with the logits of Megatron-core's model, which holds our checkpoints' weights."""
    folder = tmp_path_factory.mktemp("megatron_core")
    for name, masked_lm in masked_lms.items():
        masked_lm.export_to_megatron(folder / name, core=True)
    model.export_to_megatron(folder / "one", core=True)
    model.export_to_megatron(folder / "two", core=True, tensor_parallel=2)
    done = subprocess.run(
        [sys.executable, SCRIPT, folder],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def our_logits(model, saved):
    inputs = {
        name: saved[name].astype("int32") for name in ("token_ids", "segment_ids", "padding_mask")
    }
    positions = np.tile(np.arange(inputs["token_ids"].shape[1], dtype="int32"), (2, 1))
    return model.logits({**inputs, "mask_positions": positions}), inputs["padding_mask"] == 1


@pytest.mark.parametrize("rank", ["one_0", "two_0", "two_1"])
def test_logits_of_megatron_core_s_model(model, loaded, parity, rank):
    saved = np.load(loaded / f"logits_{rank}.npz")
    ours, tokens = our_logits(model, saved)
    of_rank = f"Megatron-core holding our checkpoint, rank {rank[-1]} of {rank[:-2]}"
    parity(f"{of_rank}, words", ours["mlm"][tokens], saved["mlm"][tokens], TOLERANCE)
    parity(f"{of_rank}, sentence order", ours["nsp"], saved["binary"], TOLERANCE)


@pytest.mark.parametrize("name", ["segments", "plain"])
def test_masked_language_models(masked_lms, loaded, parity, name):
    """With a binary head of zeros and segments, or without either."""
    saved = np.load(loaded / f"logits_{name}_0.npz")
    ours, tokens = our_logits(masked_lms[name], saved)
    what = f"Megatron-core holding our masked LM, {name}"
    parity(what, ours[tokens], saved["mlm"][tokens], TOLERANCE)
    assert ("binary" in saved) == (name == "segments")
    other, _ = our_logits(masked_lms["plain" if name == "segments" else "segments"], saved)
    assert np.abs(other - saved["mlm"])[tokens].max() > 100 * TOLERANCE


def test_other_weights_show(model, loaded):
    """Negative control: one weight of the middle layer differs."""
    saved = np.load(loaded / "logits_one_0.npz")
    kernel = model.backbone.transformer_layers[1].feedforward_output_dense.kernel
    before = kernel.numpy() if hasattr(kernel, "numpy") else np.array(kernel)
    try:
        kernel.assign(before * 1.01)
        ours, tokens = our_logits(model, saved)
    finally:
        kernel.assign(before)
    assert np.abs(ours["mlm"] - saved["mlm"])[tokens].max() > 10 * TOLERANCE


def test_names_of_transformer_engine_s_layers(model, loaded, tmp_path):
    """Megatron-core's distributed format has these names for layers of either kind."""
    expected = (loaded / "names.txt").read_text().split()
    model.export_to_megatron(tmp_path / "out", core=True, transformer_engine=True)
    written = torch.load(tmp_path / "out" / FILE, weights_only=False)["model"]
    without_layers = {re.sub(r"layers\.\d+\.", "layers.", name) for name in written}
    assert without_layers == {name for name in expected if not name.endswith("_extra_state")}


def test_the_last_stage_has_the_table_of_words(model, tmp_path):
    model.export_to_megatron(tmp_path / "out", core=True, pipeline_parallel=3)
    stages = [
        torch.load(
            tmp_path / "out" / "release" / f"mp_rank_00_{stage:03d}" / "model_optim_rng.pt",
            weights_only=False,
        )["model"]
        for stage in range(3)
    ]
    words = stages[0]["embedding.word_embeddings.weight"]
    assert torch.equal(stages[2]["output_layer.weight"], words)
    assert [sum("linear_qkv.weight" in name for name in stage) for stage in stages] == [1, 1, 1]
