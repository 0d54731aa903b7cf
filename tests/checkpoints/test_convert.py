"""From a checkpoint in its real format to the logits of the Hugging Face model it was made from."""

import json
import os
import shutil

import numpy as np
import pytest
import release_format
import torch
from checkpoint_helpers import (
    make_inputs,
    make_reference,
    masked_lm_logits,
    one_line_error,
    reference_outputs,
    tree,
)

from keras_megatron import (
    MegatronBertMaskedLM,
    MegatronBertNextSentencePredictor,
    MegatronBertPretrainer,
    MegatronBertTextClassifier,
)
from keras_megatron.checkpoints import convert_checkpoint

TOLERANCE = 2e-5


def converted_difference(source, output, model, **options):
    """Largest difference of logits and of the encoder's outputs, padding aside."""
    convert_checkpoint(source, output, progress=False, **options)
    masked_lm = MegatronBertMaskedLM.from_preset(str(output))
    inputs = make_inputs(model.config)
    expected = reference_outputs(model, inputs)
    logits = masked_lm_logits(masked_lm, inputs)
    pooled = np.asarray(masked_lm.backbone.predict_on_batch(inputs)["pooled_output"])
    with torch.no_grad():
        encoded = reference_outputs(model.bert, inputs)
    differences = (
        np.abs(logits - expected["prediction_logits"])[inputs["padding_mask"] == 1].max(),
        np.abs(pooled - encoded["pooler_output"]).max(),
    )
    return max(differences)


VARIANTS = {
    "as released": {"version": 0},
    "compressed, version 1": {"version": 1.0, "compressed": True, "legacy_stream": False},
    "renamed, version 2": {"version": 2.0, "names": release_format.NEWEST_NAMES, "folder": "top/"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_hugging_face(tmp_path, reference, vocabulary, variant):
    source, output = tmp_path / "release.zip", tmp_path / "preset"
    release_format.write_release_zip(source, reference, **VARIANTS[variant])
    assert converted_difference(source, output, reference, vocabulary=vocabulary) < TOLERANCE
    assert tree(tmp_path)[0] == "preset"  # no hidden file was left
    config = json.loads((output / "config.json").read_text())
    assert config["registered_name"] == "keras_megatron>MegatronBertBackbone"


def test_a_wrong_order_of_query_key_value_shows(tmp_path, reference, vocabulary):
    """Negative control: version 2 rows read as version 0."""
    state = release_format.checkpoint(reference, 2.0)
    del state["checkpoint_version"]
    torch.save(state, tmp_path / "model_optim_rng.pt")
    difference = converted_difference(
        tmp_path / "model_optim_rng.pt", tmp_path / "preset", reference, vocabulary=vocabulary
    )
    assert difference > 1000 * TOLERANCE


def test_half_precision_becomes_float32(tmp_path, vocabulary):
    model = make_reference()
    model.half().float()  # what float16 can hold
    release_format.write_release_zip(tmp_path / "release.zip", model, half=True)
    difference = converted_difference(
        tmp_path / "release.zip", tmp_path / "preset", model, vocabulary=vocabulary
    )
    assert difference < TOLERANCE


@pytest.mark.parametrize("fused", [False, True])
def test_the_fused_gelu_is_found_in_the_arguments(tmp_path, vocabulary, fused):
    model = make_reference(hidden_act="gelu_new" if fused else "gelu")
    model.cls.predictions.transform.transform_act_fn = torch.nn.GELU()  # Megatron's is always erf
    source = tmp_path / "model_optim_rng.pt"
    arguments = {"bias_gelu_fusion": fused, "layernorm_epsilon": 1e-5}
    release_format.write_checkpoint(source, model, 3.0, arguments=arguments)
    difference = converted_difference(source, tmp_path / "preset", model, vocabulary=vocabulary)
    assert difference < TOLERANCE
    wrong = "gelu" if fused else "gelu_approximate"
    difference = converted_difference(
        source, tmp_path / "wrong", model, vocabulary=vocabulary, mlp_activation=wrong
    )
    assert difference > 2 * TOLERANCE


def test_the_gelu_of_openai_is_the_head_s_too(tmp_path, vocabulary):
    model = make_reference(hidden_act="gelu_new")
    source = tmp_path / "model_optim_rng.pt"
    arguments = {"openai_gelu": True, "bias_gelu_fusion": False}
    release_format.write_checkpoint(source, model, 3.0, arguments=arguments)
    difference = converted_difference(source, tmp_path / "preset", model, vocabulary=vocabulary)
    assert difference < TOLERANCE
    model.cls.predictions.transform.transform_act_fn = torch.nn.GELU()
    masked_lm = MegatronBertMaskedLM.from_preset(str(tmp_path / "preset"))
    assert masked_lm.head_activation == "gelu_approximate"
    inputs = make_inputs(model.config)
    other = reference_outputs(model, inputs)["prediction_logits"]
    assert np.abs(masked_lm_logits(masked_lm, inputs) - other).max() > 2 * TOLERANCE


def test_epsilon_can_be_set(tmp_path, vocabulary):
    model = make_reference(layer_norm_eps=1e-2)
    source = tmp_path / "release.zip"
    release_format.write_release_zip(source, model)
    difference = converted_difference(
        source, tmp_path / "preset", model, vocabulary=vocabulary, layer_norm_epsilon=1e-2
    )
    assert difference < TOLERANCE
    difference = converted_difference(source, tmp_path / "wrong", model, vocabulary=vocabulary)
    assert difference > 100 * TOLERANCE


def test_what_is_not_converted_is_reported(tmp_path, reference, vocabulary, capsys):
    source = tmp_path / "model_optim_rng.pt"
    release_format.write_checkpoint(source, reference, token_types=False)
    state = torch.load(source, weights_only=False)
    head = {"weight": torch.zeros(3, 32), "bias": torch.zeros(3)}
    state["model"]["classification_head"] = head
    torch.save(state, source)
    unused = convert_checkpoint(source, tmp_path / "preset", vocabulary=vocabulary)
    assert len(unused) == 7  # of the masked language model's and of the binary head
    printed = capsys.readouterr().out
    parts = (
        "not converted: lm_head.dense.weight",
        "not converted: binary_head.bias",
        "zeros",
        "version 0",
        "4 attention heads",
    )
    for text in parts:
        assert text in printed


@pytest.mark.parity
def test_every_task_takes_its_head_from_a_conversion(tmp_path, reference, vocabulary, parity):
    source = tmp_path / "release.zip"
    release_format.write_release_zip(source, reference)
    convert_checkpoint(source, tmp_path / "preset", vocabulary=vocabulary)
    preset, inputs = str(tmp_path / "preset"), make_inputs(reference.config)
    expected = reference_outputs(reference, inputs)
    predictor = MegatronBertNextSentencePredictor.from_preset(preset)
    pretrainer = MegatronBertPretrainer.from_preset(preset)
    positions = np.tile(np.arange(19, dtype="int32"), (2, 1))
    both = pretrainer.logits({**inputs, "mask_positions": positions})
    order = expected["seq_relationship_logits"]
    parity("sentence order, converted", predictor.logits(inputs), order, TOLERANCE)
    parity("sentence order, converted, pretrainer", both["nsp"], order, TOLERANCE)
    parity(
        "masked LM, converted, pretrainer", both["mlm"], expected["prediction_logits"], TOLERANCE
    )
    assert np.abs(predictor.logits(inputs)[:, ::-1] - order).max() > 2 * TOLERANCE
    with pytest.raises(ValueError, match="give num_classes"):
        MegatronBertTextClassifier.from_preset(preset)


# === Vocabularies ===


@pytest.mark.parametrize(
    ("rows", "option", "pieces", "kept"),
    [
        (29056, None, 28996, 29056),
        (29184, None, 28996, 29056),
        (29696, "cased", 28996, 29056),
        (30592, None, 30522, 30592),
        (30720, None, 30522, 30592),
    ],
)
def test_bundled_vocabularies(tmp_path, rows, option, pieces, kept):
    model = make_reference(vocab_size=rows, hidden_size=8, num_hidden_layers=1)
    release_format.write_release_zip(tmp_path / "release.zip", model)
    convert_checkpoint(
        tmp_path / "release.zip", tmp_path / "preset", vocabulary=option, progress=False
    )
    masked_lm = MegatronBertMaskedLM.from_preset(str(tmp_path / "preset"))
    tokenizer = masked_lm.preprocessor.tokenizer
    assert tokenizer.vocabulary_size() == pieces
    assert tokenizer.lowercase == (pieces == 30522)
    assert masked_lm.backbone.vocabulary_size == kept
    words = model.get_input_embeddings().weight.detach().numpy()[:kept]
    np.testing.assert_array_equal(masked_lm.backbone.token_embedding.get_weights()[0], words)
    assert masked_lm.preprocessor.sequence_length == masked_lm.backbone.max_sequence_length


@pytest.mark.parametrize(
    ("rows", "option", "parts"),
    [
        (30592, "cased", ["28996", "30592"]),
        (29056, "uncased", ["30522", "29056"]),
        (50176, None, ["50176", "--vocabulary"]),
        (64, "SMALL", ["100 pieces", "64 rows"]),
        (128, "spanish", ["spanish", "uncased"]),
    ],
)
def test_a_vocabulary_that_does_not_fit(tmp_path, vocabulary, rows, option, parts):
    model = make_reference(vocab_size=rows, hidden_size=8, num_hidden_layers=1)
    release_format.write_release_zip(tmp_path / "release.zip", model)
    option = vocabulary if option == "SMALL" else option
    with one_line_error(*parts):
        convert_checkpoint(
            tmp_path / "release.zip", tmp_path / "preset", vocabulary=option, progress=False
        )
    assert tree(tmp_path) == ["release.zip"]


# === Errors leave nothing behind ===


@pytest.fixture
def source(tmp_path, reference):
    path = tmp_path / "release.zip"
    release_format.write_release_zip(path, reference)
    return path


def test_an_output_that_exists_is_kept(tmp_path, source, vocabulary):
    output = tmp_path / "preset"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    with one_line_error(output, "exists"):
        convert_checkpoint(source, output, vocabulary=vocabulary, progress=False)
    with one_line_error(source, "exists"):
        convert_checkpoint(source, source, vocabulary=vocabulary, progress=False)
    assert tree(tmp_path) == ["preset", "preset/mine.txt", "release.zip"]


def test_an_output_whose_name_is_too_long(tmp_path, source, vocabulary):
    with one_line_error("cannot write", "name too long"):
        convert_checkpoint(source, tmp_path / ("x" * 300), vocabulary, progress=False)
    assert tree(tmp_path) == ["release.zip"]


def test_parents_are_made_and_an_empty_output_is_used(tmp_path, source, vocabulary):
    convert_checkpoint(source, tmp_path / "a" / "b", vocabulary=vocabulary, progress=False)
    (tmp_path / "empty").mkdir()
    convert_checkpoint(source, tmp_path / "empty", vocabulary=vocabulary, progress=False)
    assert tree(tmp_path / "a" / "b") == tree(tmp_path / "empty")
    assert (tmp_path / "empty").stat().st_mode == (tmp_path / "a").stat().st_mode


@pytest.mark.parametrize(
    "failure",
    [OSError(28, "No space left on device"), PermissionError(13, "denied"), KeyboardInterrupt()],
)
def test_a_failed_write_leaves_nothing(tmp_path, source, vocabulary, monkeypatch, failure):
    def save(self, folder):
        (tmp_path / os.path.relpath(folder, tmp_path) / "half.h5").write_bytes(b"half")
        raise failure

    monkeypatch.setattr(MegatronBertPretrainer, "save_to_preset", save)
    output = tmp_path / "deep" / "preset"
    if isinstance(failure, OSError):
        with one_line_error(f"cannot write {output}", os.strerror(failure.errno)):
            convert_checkpoint(source, output, vocabulary=vocabulary, progress=False)
    else:
        with pytest.raises(KeyboardInterrupt):
            convert_checkpoint(source, output, vocabulary=vocabulary, progress=False)
    assert tree(tmp_path) == ["release.zip"]


def test_a_full_disk_is_told_before_writing(tmp_path, source, vocabulary, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with one_line_error("no room", "No space left"):
        convert_checkpoint(source, tmp_path / "preset", vocabulary=vocabulary, progress=False)
    assert tree(tmp_path) == ["release.zip"]


def test_a_bad_checkpoint_leaves_nothing(tmp_path, source, vocabulary):
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    with one_line_error(source, "truncated"):
        convert_checkpoint(source, tmp_path / "preset", vocabulary=vocabulary, progress=False)
    assert tree(tmp_path) == ["release.zip"]
