"""Packed rows: several texts a row give each text what it gets alone in a row."""

import itertools

import keras
import numpy as np
import pytest
import torch
from huggingface import (
    largest_difference,
    random_inputs,
    random_model,
    torch_inputs,
)
from hypothesis import given
from hypothesis import strategies as st
from models import as_numpy, encoder_inputs

import keras_megatron
from keras_megatron import (
    MegatronBertBackbone,
    MegatronBertTextClassifier,
    MegatronBertTextEmbedder,
)
from keras_megatron.packing import PackedRows, length_for_all, round_up

TOLERANCE = 2e-5


def documents(batch: int = 9, sequence: int = 24) -> dict[str, np.ndarray]:
    """Ids of documents of 1 to all tokens."""
    inputs = random_inputs(131, batch, sequence, masks=1)
    lengths = np.random.default_rng(4).integers(1, sequence, batch)
    lengths[:2] = 1, sequence
    inputs["padding_mask"] = (np.arange(sequence) < lengths[:, None]).astype("int32")
    inputs["mask_positions"] = np.stack([lengths - 1, lengths // 2, lengths * 0], axis=1)
    return inputs


@pytest.fixture
def packed_steps(monkeypatch) -> list:
    """The inputs of each step of `logits`, as they come."""
    steps = []
    run = keras.Model.predict_on_batch
    monkeypatch.setattr(
        keras.Model, "predict_on_batch", lambda task, x: (steps.append(x), run(task, x))[1]
    )
    return steps


# === Where documents lie ===


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.sampled_from([None, 30, 41]))
def test_a_plan_lays_each_token_once(lengths, row_length):
    plan = PackedRows.plan(lengths, row_length)
    width = max(1, *lengths)
    values = np.arange(1, 1 + len(lengths) * width).reshape(len(lengths), width)
    laid = plan.lay(values)
    there = np.arange(width) < np.array(lengths)[:, None]
    assert sorted(laid[laid > 0]) == sorted(values[there])
    np.testing.assert_array_equal(plan.tokens_of(laid, width), np.where(there, values, 0))
    # Best fit leaves no two rows that would fit into one.
    used = sorted((laid > 0).sum(axis=1))
    assert len(used) < 2 or used[0] + used[1] > plan.row_length


def test_rows_are_filled():
    lengths = np.random.default_rng(0).geometric(1 / 27, 3000).clip(3, 128)
    plan = PackedRows.plan(lengths)
    assert plan.row_length == 128
    assert lengths.sum() / (plan.rows * 128) > 0.99


def test_a_few_texts_fill_rows_where_no_shapes_are_compiled():
    lengths = np.random.default_rng(0).geometric(1 / 27, 32).clip(3, 60)
    plan = PackedRows.plan(lengths, length_for_all(60))
    places = plan.rounded().rows * plan.row_length
    assert (lengths.sum() > 0.96 * places) == (keras.config.backend() == "torch")
    assert lengths.sum() < 0.96 * PackedRows.plan(lengths, 128).rows * 128  # negative control


def test_a_row_has_to_hold_the_longest():
    with pytest.raises(ValueError, match="a text of 31 tokens is longer than a row: give"):
        PackedRows.plan([3, 31], row_length=30)


def test_shapes_are_few():
    assert [round_up(n) for n in (0.2, 1, 2, 2.5, 3.5, 5, 7, 9, 13, 25)] == [
        *(1, 1, 2, 3, 4, 6, 8, 12, 16, 32)
    ]
    lengths = np.random.default_rng(0).integers(0, 30, 100)
    steps = list(PackedRows.plan(lengths, 32).steps(8))
    assert {plan.rows for plan, _ in steps[:-1]} == {8}
    assert steps[-1][0].rows in (1, 2, 3, 4, 6, 8)
    assert sorted(np.concatenate([documents for _, documents in steps])) == [
        *np.flatnonzero(lengths)
    ]


# === The backbone ===


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    reference = random_model("MegatronBertModel")
    reference.save_pretrained(folder)
    return reference, MegatronBertBackbone.from_preset(str(folder))


@pytest.mark.parity
@pytest.mark.parametrize("row_length", [24, 64])  # the model has 40 positions
def test_packed_rows_next_to_transformers(encoders, row_length, parity):
    reference, backbone = encoders
    inputs = encoder_inputs(documents())
    plan = PackedRows.plan(inputs["padding_mask"].sum(axis=1), row_length)
    assert plan.rows < len(plan.lengths)
    packed = plan.inputs(inputs)
    with torch.no_grad():
        expected = reference(**torch_inputs(inputs))

    def differences(**changes):
        given = {**packed, **changes}
        outputs = as_numpy(backbone(keras.tree.map_structure(keras.ops.convert_to_tensor, given)))
        tokens = plan.tokens_of(outputs["sequence_output"], 24)
        real = inputs["padding_mask"] == 1
        return (
            largest_difference(tokens[real], expected.last_hidden_state.numpy()[real]),
            largest_difference(outputs["pooled_output"], expected.pooler_output.numpy()),
        )

    found = differences()
    parity("packed rows", max(found), 0.0, TOLERANCE)
    # Negative controls: documents that see each other, whose positions go on, or begin elsewhere.
    # As one document they would be too long, which is looked for in arrays and not in tensors.
    one = (packed["document_ids"] > 0).astype("int32")
    assert differences(document_ids=one)[0] > 0.01
    positions = np.arange(row_length)[None] % 40
    assert differences(position_ids=positions.astype("int32"))[0] > 0.01
    shifted = np.roll(packed["cls_positions"], 1)
    assert differences(cls_positions=shifted)[1] > 0.01


def test_packed_rows_may_be_causal(encoders):
    _, backbone = encoders
    inputs = encoder_inputs(documents())
    plan = PackedRows.plan(inputs["padding_mask"].sum(axis=1), 32)
    expected = as_numpy(backbone(inputs, causal=True)["sequence_output"])
    packed = as_numpy(backbone(plan.inputs(inputs), causal=True)["sequence_output"])
    real = inputs["padding_mask"] == 1
    assert largest_difference(plan.tokens_of(packed, 24)[real], expected[real]) < TOLERANCE


def test_errors(encoders):
    _, backbone = encoders
    packed = PackedRows.plan([3, 5]).inputs(encoder_inputs(random_inputs(131, 2, 9)))
    without = {name: array for name, array in packed.items() if name != "document_ids"}
    with pytest.raises(ValueError, match="give document_ids too"):
        backbone(without)
    far = {**packed, "cls_positions": packed["cls_positions"] + 99}
    with pytest.raises(ValueError, match=r"must be from 0 to \d+, but there is 104"):
        backbone(far)


# === Tasks ===


TASKS = [
    (keras_megatron.MegatronBertTextClassifier, "ForSequenceClassification"),
    (keras_megatron.MegatronBertNextSentencePredictor, "ForNextSentencePrediction"),
    (keras_megatron.MegatronBertTokenClassifier, "ForTokenClassification"),
    (keras_megatron.MegatronBertQuestionAnswering, "ForQuestionAnswering"),
    (keras_megatron.MegatronBertMaskedLM, "ForMaskedLM"),
    (keras_megatron.MegatronBertPretrainer, "ForPreTraining"),
    (keras_megatron.MegatronBertCausalLM, "ForCausalLM"),
]


@pytest.mark.parity
@pytest.mark.parametrize(("task", "name"), TASKS)
def test_tasks(task, name, tmp_path, parity, packed_steps):
    settings = {"is_decoder": True} if name == "ForCausalLM" else {"num_labels": 3}
    settings = settings if "Classification" in name or "Causal" in name else {}
    reference = random_model(f"MegatronBert{name}", **settings)
    reference.save_pretrained(tmp_path)
    model = task.from_preset(str(tmp_path), preprocessor=None)
    inputs = documents()
    with torch.no_grad():
        outputs = reference(**torch_inputs(inputs))
    inputs = {name: inputs[name] for name in model.input}
    actual = model.logits(inputs, batch_size=4)
    assert "document_ids" in packed_steps[0]
    assert len(packed_steps) > 1
    for kind, found, expected in outputs_by_kind(model, actual, outputs):
        if kind == "masks":
            expected = np.take_along_axis(expected, inputs["mask_positions"][..., None], axis=1)
        elif kind == "tokens":
            real = inputs["padding_mask"] == 1
            assert not found[~real].any()
            found, expected = found[real], expected[real]
        parity("packed", found, expected, TOLERANCE)
        assert largest_difference(found[::-1], expected) > 0.01  # negative control


def outputs_by_kind(model, actual, outputs) -> list[tuple]:
    """Return what each output is for, itself, and what transformers has for it."""
    if isinstance(model.outputs_for, dict):
        expected = {"mlm": outputs.prediction_logits, "nsp": outputs.seq_relationship_logits}
        return [
            (kind, actual[name], expected[name].numpy()) for name, kind in model.outputs_for.items()
        ]
    if "start_logits" in outputs:
        expected = torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
    else:
        expected = outputs.logits
    return [(model.outputs_for, actual, expected.numpy())]


@pytest.mark.parity
def test_multiple_choice(tmp_path, parity, packed_steps):
    reference = random_model("MegatronBertForMultipleChoice")
    reference.save_pretrained(tmp_path)
    model = keras_megatron.MegatronBertMultipleChoice.from_preset(str(tmp_path), preprocessor=None)
    flat = encoder_inputs(documents())
    inputs = {name: array.reshape(3, 3, 24) for name, array in flat.items()}
    with torch.no_grad():
        expected = reference(**torch_inputs(inputs)).logits.numpy()
    inputs["padding_mask"][2, 1] = 0  # a choice that is not there
    expected[2, 1] = -1e4
    actual = model.logits(inputs)
    assert "document_ids" in packed_steps[0]
    parity("packed", actual, expected, TOLERANCE)
    assert largest_difference(actual[::-1], expected) > 0.01


@pytest.mark.parametrize(
    ("pooling", "normalize"), list(itertools.product(["mean", "max", "cls"], [True, False]))
)
def test_pooling(encoders, pooling, normalize, packed_steps):
    reference, backbone = encoders
    embedder = MegatronBertTextEmbedder(backbone, pooling=pooling, normalize=normalize)
    inputs = encoder_inputs(documents())
    with torch.no_grad():
        states = reference(**torch_inputs(inputs)).last_hidden_state.numpy()
    lengths = inputs["padding_mask"].sum(axis=1)
    pool = {"mean": lambda x: x.mean(0), "max": lambda x: x.max(0), "cls": lambda x: x[0]}[pooling]
    expected = np.stack([pool(x[:n]) for x, n in zip(states, lengths, strict=True)])
    if normalize:
        expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    actual = embedder.logits(inputs)
    assert "document_ids" in packed_steps[0]
    assert largest_difference(actual, expected) < TOLERANCE
    assert largest_difference(actual[::-1], expected) > 0.01


def test_what_cannot_be_packed_is_run_as_it_is(encoders, packed_steps):
    reference, backbone = encoders
    model = keras_megatron.MegatronBertTokenClassifier(backbone, num_classes=2)
    full = encoder_inputs(random_inputs(131, 4, 16))
    full["padding_mask"][:] = 1
    with_hole = {**full, "padding_mask": full["padding_mask"].copy()}
    with_hole["padding_mask"][:, 4:9] = 0
    for inputs in (full, with_hole):
        packed_steps.clear()
        actual = model.logits(inputs)
        assert "document_ids" not in packed_steps[0]
        with torch.no_grad():
            states = reference(**torch_inputs(inputs)).last_hidden_state.numpy()
        kernel, bias = (as_numpy(w) for w in (model.classifier.kernel, model.classifier.bias))
        assert largest_difference(actual, states @ kernel + bias) < TOLERANCE
    inputs = documents()
    inputs["mask_positions"][0, 0] = 23  # of padding
    packed_steps.clear()
    keras_megatron.MegatronBertMaskedLM(backbone).logits(inputs)
    assert "document_ids" not in packed_steps[0]


def test_predict_packs_texts_and_keeps_their_order(packed_steps):
    classifier = MegatronBertTextClassifier.from_preset("megatron_bert_tiny_uncased", num_classes=3)
    texts = ["It was the best of times.", "Once.", "It was the age of wisdom, the age of light."]
    texts = [text * count for count in (1, 5, 2) for text in texts]
    seen = []
    show = keras.callbacks.LambdaCallback(
        on_predict_batch_end=lambda batch, logs: seen.append(batch)
    )
    actual = classifier.predict(texts, batch_size=4, verbose=0, callbacks=[show])
    inputs = classifier.preprocessor(texts)
    expected = as_numpy(classifier(inputs))
    assert len(seen) < 3  # rows of 128: of padded texts there would be three batches
    assert actual.shape == (9, 3)
    assert largest_difference(actual, expected) < TOLERANCE
    assert largest_difference(actual[::-1], expected) > 1e-3
