"""Megatron-core's own BertModel: what it saves, read and run here, next to its own logits."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoint_helpers import masked_lm_logits, one_line_error

from keras_megatron import MegatronBertMaskedLM, MegatronBertNextSentencePredictor
from keras_megatron.checkpoints import convert_checkpoint
from keras_megatron.checkpoints.megatron import read_megatron
from keras_megatron.checkpoints.sources import open_checkpoint
from keras_megatron.conversion import source_format
from keras_megatron.inspection import inspect_checkpoint

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


def test_a_distributed_checkpoint_is_no_keras_preset(saved):
    """Both have a metadata.json."""
    folder = saved / "run" / "iter_0000005"
    assert (folder / "metadata.json").is_file()
    for source in (folder, folder.parent):
        assert source_format(source) == "megatron"
        found = inspect_checkpoint(source)
        assert found.format == "Megatron-core, checkpoint version 3"
        assert found.settings["num_layers"] == LAYERS


def test_logits_are_those_of_megatron_core(saved, tmp_path, vocabulary, parity):
    difference = differences(
        saved / "core.pt", tmp_path / "preset", saved / "logits.npz", vocabulary
    )
    parity("masked LM and sentence order, Megatron-core", difference, 0, TOLERANCE)


def weights(source, **options):
    """The weights of a source, and its configuration."""
    found = read_megatron(open_checkpoint(source, source.parent), **options)
    return {name: tensor.read() for name, tensor in found.weights.items()}, found.config


# Those without arguments are given the number of heads.
SOURCES = {
    "bare.pt": {"num_heads": HEADS},
    "run": {},
    "run/iter_0000005": {},
    "numbered": {"num_heads": HEADS},
    "pieces": {},
    "ranks": {},
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_way_to_save_gives_the_same_weights(saved, source):
    """Layers stacked or numbered, pieces of two ranks, Megatron-core's own split in two files."""
    expected, config = weights(saved / "core.pt")
    found, found_config = weights(saved / source, **SOURCES[source])
    assert found_config == config
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_swapped_ranks_show(saved, tmp_path):
    expected, _ = weights(saved / "core.pt")
    for rank in (0, 1):
        shutil.copytree(
            saved / "ranks" / f"mp_rank_{rank:02d}", tmp_path / f"mp_rank_{1 - rank:02d}"
        )
    found, _ = weights(tmp_path)
    different = [name for name in expected if not np.array_equal(found[name], expected[name])]
    # The table of words, the head's bias, and of each layer query, key, value and what follows.
    assert len(different) == 2 + LAYERS * (3 * 2 + 1 + 2 + 1)


def test_fused_gelu_and_head_dimension_of_its_own(saved, tmp_path, vocabulary, parity):
    """`bias_activation_fusion` and `kv_channels`, both found in the arguments."""
    logits = saved / "wide_logits.npz"
    found = read_megatron(open_checkpoint(saved / "wide", tmp_path))
    expected = {
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "head_dim": 12,
        "hidden_dim": HIDDEN,
        "intermediate_dim": FEED_FORWARD,
        "max_sequence_length": POSITIONS,
        "activation": "gelu_approximate",
    }
    assert found.config.items() >= expected.items()
    assert found.head_activation == "gelu"
    difference = differences(saved / "wide", tmp_path / "preset", logits, vocabulary)
    parity("masked LM and sentence order, Megatron-core, wide", difference, 0, TOLERANCE)
    difference = differences(
        saved / "wide", tmp_path / "erf", logits, vocabulary, mlp_activation="gelu"
    )
    assert difference > 2 * TOLERANCE


def test_another_number_of_heads_shows(saved, tmp_path, vocabulary):
    difference = differences(
        saved / "core.pt", tmp_path / "preset", saved / "logits.npz", vocabulary, num_heads=2
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
