"""Megatron-core's own BertModel: what it saves, read and run here, next to its own logits."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoint_helpers import masked_lm_logits, one_line_error

from keras_megatron import MegatronBertMaskedLM, MegatronBertNextSentencePredictor
from keras_megatron.checkpoints import convert_checkpoint

pytestmark = [pytest.mark.backend_independent, pytest.mark.parity]
TOLERANCE = 2e-5
LAYERS, HIDDEN, HEADS, FEED_FORWARD, POSITIONS = 3, 32, 4, 48, 24  # of the script
SCRIPT = pathlib.Path(__file__).with_name("megatron_core_run.py")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with Megatron-core's saves, and the logits of its model."""
    folder = tmp_path_factory.mktemp("megatron_core")
    done = subprocess.run(
        [sys.executable, SCRIPT, folder],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def differences(source, output, logits, vocabulary, **options):
    """Largest difference of both heads' logits from Megatron-core's, padding aside."""
    convert_checkpoint(source, output, vocabulary=vocabulary, progress=False, **options)
    expected = dict(np.load(logits))
    inputs = {
        name: expected.pop(name).astype("int32")
        for name in ("token_ids", "segment_ids", "padding_mask")
    }
    model = MegatronBertMaskedLM.from_preset(str(output))
    rows = model.backbone.vocabulary_size
    assert rows == 128  # of 256
    found = masked_lm_logits(model, inputs)
    mlm = np.abs(found - expected["mlm"][..., :rows])[inputs["padding_mask"] == 1].max()
    predictor = MegatronBertNextSentencePredictor.from_preset(str(output))
    binary = np.abs(np.asarray(predictor.logits(inputs)) - expected["binary"]).max()
    return max(mlm, binary)


# The bare one has no arguments, so the heads are given.
SOURCES = {
    "bare.pt": {"num_heads": HEADS},
    "core.pt": {},
    "run": {},
    "run/iter_0000005": {},
    "run/iter_0000005/.metadata": {},
    "run/iter_0000005/__0_0.distcp": {},
    "numbered": {"num_heads": HEADS},
    "pieces": {},
    "ranks": {},
    "ranks/mp_rank_01": {},
}


@pytest.mark.parametrize("source", SOURCES)
def test_logits_are_those_of_megatron_core(saved, tmp_path, vocabulary, parity, source):
    difference = differences(
        saved / source, tmp_path / "preset", saved / "logits.npz", vocabulary, **SOURCES[source]
    )
    parity(f"masked LM and sentence order, Megatron-core, {source}", difference, 0, TOLERANCE)


def test_fused_gelu_and_head_dimension_of_its_own(saved, tmp_path, vocabulary, parity):
    """`bias_activation_fusion` and `kv_channels`, both found in the arguments."""
    logits = saved / "wide_logits.npz"
    difference = differences(saved / "wide", tmp_path / "preset", logits, vocabulary)
    parity("masked LM and sentence order, Megatron-core, wide", difference, 0, TOLERANCE)
    difference = differences(
        saved / "wide", tmp_path / "erf", logits, vocabulary, mlp_activation="gelu"
    )
    assert difference > 2 * TOLERANCE


def test_another_number_of_heads_shows(saved, tmp_path, vocabulary):
    difference = differences(
        saved / "run", tmp_path / "preset", saved / "logits.npz", vocabulary, num_heads=2
    )
    assert difference > 1000 * TOLERANCE


def fused_names(state):
    """The names of Transformer Engine's layers, whose LayerNorm is part of what follows."""
    renamed = {}
    for name, tensor in state.items():
        name = name.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_")
        name = name.replace("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_")
        renamed[name] = tensor
    return renamed


def pipelined(state, stages):
    """Megatron-core's names over pipeline stages, one layer each; the last has the output."""
    found = []
    for stage in range(stages):
        own = {}
        for name, tensor in state.items():
            if name.startswith("encoder.layers."):
                number, rest = name.removeprefix("encoder.layers.").split(".", 1)
                if int(number) == stage:
                    own[f"encoder.layers.0.{rest}"] = tensor
            elif name.startswith("embedding."):
                if stage == 0:
                    own[name] = tensor
            elif stage == stages - 1:
                own[name] = tensor
        if stage == stages - 1:
            own["output_layer.weight"] = state["embedding.word_embeddings.weight"].clone()
        found.append(own)
    return found


def test_fused_names_over_pipeline_stages(saved, tmp_path, vocabulary, parity):
    state = torch.load(saved / "core.pt", weights_only=False)
    state["args"].pipeline_model_parallel_size = LAYERS
    for stage, own in enumerate(pipelined(fused_names(state["model"]), LAYERS)):
        folder = tmp_path / "run" / "release" / f"mp_rank_00_{stage:03d}"
        folder.mkdir(parents=True)
        torch.save({**state, "model": own}, folder / "model_optim_rng.pt")
    difference = differences(
        tmp_path / "run", tmp_path / "preset", saved / "logits.npz", vocabulary
    )
    parity("masked LM and sentence order, Megatron-core, stages", difference, 0, TOLERANCE)


def test_an_untied_output_is_refused(saved, tmp_path, vocabulary):
    state = torch.load(saved / "core.pt", weights_only=False)
    state["model"]["output_layer.weight"] = torch.randn(256, HIDDEN)
    torch.save(state, tmp_path / "model.pt")
    with one_line_error("word_embeddings_for_head", "tied"):
        convert_checkpoint(tmp_path / "model.pt", tmp_path / "out", vocabulary, progress=False)


def test_the_configuration_is_found(saved, tmp_path, vocabulary, capsys):
    convert_checkpoint(saved / "wide", tmp_path / "preset", vocabulary)
    backbone = MegatronBertMaskedLM.from_preset(str(tmp_path / "preset")).backbone
    assert backbone.head_dim == 12
    assert (backbone.num_layers, backbone.hidden_dim) == (LAYERS, HIDDEN)
    assert (backbone.num_heads, backbone.intermediate_dim) == (HEADS, FEED_FORWARD)
    assert backbone.max_sequence_length == POSITIONS
    printed = capsys.readouterr().out
    for text in ("Megatron-core's names", "12 wide each", "128 of 256 rows", "bias_gelu_fusion"):
        assert text in printed
