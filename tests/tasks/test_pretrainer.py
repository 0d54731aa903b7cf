import keras
import numpy as np
import pytest
import torch
from huggingface import (
    SMALL,
    largest_difference,
    random_inputs,
    random_model,
    torch_inputs,
)
from models import as_numpy, small_backbone

from keras_megatron import (
    MegatronBertMaskedLMPreprocessor,
    MegatronBertPretrainer,
    MegatronBertPretrainerPreprocessor,
    MegatronBertTokenizer,
)

SMALL_TOLERANCE = 2e-5
# Dickens, A Tale of Two Cities (1859), public domain.
FIRST = [
    "it was the best of times,",
    "it was the age of wisdom,",
    "it was the epoch of belief,",
    "it was the season of light,",
]
SECOND = [
    "it was the worst of times,",
    "it was the age of foolishness,",
    "it was the epoch of incredulity,",
    "it was the season of darkness,",
]
# What follows, then what does not.
PAIRS = (FIRST + FIRST, SECOND + FIRST[::-1])
ORDER = [0] * 4 + [1] * 4
WORDS = sorted({word.strip(",") for text in FIRST + SECOND for word in text.split()})
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", "##s", *WORDS]


def preprocessor(**arguments) -> MegatronBertPretrainerPreprocessor:
    arguments = {"sequence_length": 20, "seed": 1, **arguments}
    return MegatronBertPretrainerPreprocessor(MegatronBertTokenizer(PIECES), **arguments)


def small_pretrainer(arguments: dict | None = None, **backbone) -> MegatronBertPretrainer:
    """Return a model on the words above, with 40 rows for fewer pieces."""
    backbone = small_backbone(**{"vocabulary_size": 40, "num_layers": 1, **backbone})
    return MegatronBertPretrainer(backbone, preprocessor(**(arguments or {})))


@pytest.fixture(scope="module")
def inputs():
    return random_inputs(SMALL["vocab_size"])


@pytest.fixture(scope="module")
def labels():
    rng = np.random.default_rng(0)
    return {
        "mlm": rng.integers(SMALL["vocab_size"], size=(4, 3)).astype("int32"),
        "nsp": np.array([0, 1, 1, 1], "int32"),
    }


@pytest.fixture(scope="module")
def weights():
    """Rows with fewer masks than others, and one pair without a label."""
    mlm = np.ones((4, 3), "float32")
    mlm[1, 1:] = mlm[2, 2:] = 0
    return {"mlm": mlm, "nsp": np.array([1, 1, 1, 0], "float32")}


def reference(folder, **config):
    """Return a pretraining model of transformers and the same one here."""
    model = random_model("MegatronBertForPreTraining", **config)
    model.save_pretrained(folder)
    return model, MegatronBertPretrainer.from_preset(str(folder), preprocessor=None)


def reference_outputs(model, inputs) -> dict[str, np.ndarray]:
    with torch.no_grad():
        outputs = model(**torch_inputs(inputs))
    mlm = outputs.prediction_logits.float().numpy()
    return {
        "mlm": np.take_along_axis(mlm, inputs["mask_positions"][..., None], axis=1),
        "nsp": outputs.seq_relationship_logits.float().numpy(),
    }


def reference_loss(model, inputs, labels, weights) -> float:
    """Return the joint loss of transformers, whose ignored labels are -100."""
    mlm = np.full(inputs["token_ids"].shape, -100)
    for row, column in np.argwhere(weights["mlm"] > 0):
        mlm[row, inputs["mask_positions"][row, column]] = labels["mlm"][row, column]
    nsp = np.where(weights["nsp"] > 0, labels["nsp"], -100)
    with torch.no_grad():
        return model(
            **torch_inputs(inputs),
            labels=torch.from_numpy(mlm),
            next_sentence_label=torch.from_numpy(nsp).long(),
        ).loss.item()


# === Parity ===


@pytest.mark.parity
@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new"])
def test_logits_equal_hugging_face(hidden_act, inputs, tmp_path, parity):
    model, pretrainer = reference(tmp_path, hidden_act=hidden_act)
    expected = reference_outputs(model, inputs)
    outputs = as_numpy(pretrainer(inputs))
    assert set(outputs) == {"mlm", "nsp"}
    for name in outputs:
        assert np.abs(expected[name]).max() > 0.1
        what = f"pretrainer {name} logits, {hidden_act}"
        parity(what, outputs[name], expected[name], SMALL_TOLERANCE)

    # Negative control: which segment is the second.
    wrong = as_numpy(pretrainer({**inputs, "segment_ids": 1 - inputs["segment_ids"]}))
    for name in outputs:
        assert largest_difference(wrong[name], expected[name]) > SMALL_TOLERANCE


@pytest.mark.parity
def test_joint_loss_equals_hugging_faces(inputs, labels, weights, tmp_path, parity):
    model, pretrainer = reference(tmp_path)
    loss = pretrainer.test_on_batch(inputs, labels, weights, return_dict=True)
    expected = reference_loss(model, inputs, labels, weights)
    parity("pretrainer loss", loss["loss"], expected, SMALL_TOLERANCE)
    assert float(loss["mlm_loss"] + loss["nsp_loss"]) == pytest.approx(expected, abs=2e-5)

    outputs = reference_outputs(model, inputs)
    for name in outputs:
        right = (outputs[name].argmax(-1) == labels[name])[weights[name] > 0]
        assert float(loss[f"{name}_accuracy"]) == pytest.approx(right.mean(), abs=1e-6)

    all_one = {name: np.ones_like(weight) for name, weight in weights.items()}
    unweighted = pretrainer.test_on_batch(inputs, labels, all_one)[0]
    assert abs(float(unweighted) - expected) > 1e-3  # negative control


def test_bfloat16_is_as_close_as_hugging_faces(inputs, tmp_path):
    model, _ = reference(tmp_path)
    exact = reference_outputs(model, inputs)
    pretrainer = MegatronBertPretrainer.from_preset(
        str(tmp_path), preprocessor=None, dtype="bfloat16"
    )
    ours = as_numpy(
        keras.tree.map_structure(lambda x: keras.ops.cast(x, "float32"), pretrainer(inputs))
    )
    theirs = reference_outputs(model.to(torch.bfloat16), inputs)
    for name in exact:
        our_error, their_error = (
            np.sqrt(((side[name] - exact[name]) ** 2).mean()) for side in (ours, theirs)
        )
        assert our_error <= 3 * their_error


# === Either label ===


@pytest.mark.parametrize(("name", "other"), [("mlm", "nsp"), ("nsp", "mlm")])
def test_a_missing_label_leaves_the_other_alone(name, other, inputs, labels, weights):
    backbone = small_backbone(num_layers=1, dropout=0.0, attention_dropout=0.0)
    pretrainer = MegatronBertPretrainer(backbone)
    pretrainer.compile(optimizer=keras.optimizers.SGD(0.1))
    both = pretrainer.test_on_batch(inputs, labels, weights, return_dict=True)
    one = pretrainer.test_on_batch(
        inputs, {name: labels[name]}, {name: weights[name]}, return_dict=True
    )
    assert float(one["loss"]) == pytest.approx(float(both[f"{name}_loss"]), rel=1e-5)
    assert float(one[f"{other}_loss"]) == 0

    heads = {"mlm": pretrainer.mlm_head.bias, "nsp": pretrainer.binary_head.bias}
    before = {head: as_numpy(bias) for head, bias in heads.items()}
    embeddings = as_numpy(backbone.token_embedding.embeddings)
    pretrainer.fit(inputs, {name: labels[name]}, verbose=0)
    assert np.abs(as_numpy(heads[name]) - before[name]).max() > 1e-4
    np.testing.assert_array_equal(as_numpy(heads[other]), before[other])
    assert np.abs(as_numpy(backbone.token_embedding.embeddings) - embeddings).max() > 0
    assert np.isfinite(as_numpy(pretrainer(inputs)[other])).all()


def test_a_weight_a_sample_applies_to_both(inputs, labels):
    pretrainer = MegatronBertPretrainer(small_backbone(num_layers=1))
    of_pair = np.array([1, 0.5, 0, 2], "float32")
    given = {"mlm": np.repeat(of_pair[:, None], 3, axis=1), "nsp": of_pair}
    expected = pretrainer.test_on_batch(inputs, labels, given)[0]
    assert float(pretrainer.test_on_batch(inputs, labels, of_pair)[0]) == pytest.approx(
        float(expected), rel=1e-5
    )


@pytest.mark.parametrize("bad", [{}, {"sop": np.zeros(4)}, np.zeros(4)])
def test_labels_that_are_neither_are_refused(bad, inputs):
    with pytest.raises(ValueError, match="must be a dict of 'mlm', 'nsp' or both, not"):
        MegatronBertPretrainer(small_backbone(num_layers=1)).test_on_batch(inputs, bad)


# === Texts ===


def test_fit_on_pairs_learns_both_and_evaluate_and_predict_take_pairs():
    pretrainer = small_pretrainer(dropout=0.0, attention_dropout=0.0, initializer_range=0.2)
    pretrainer.compile(optimizer=keras.optimizers.Adam(3e-3))
    x = tuple(column * 4 for column in PAIRS)
    history = pretrainer.fit(x, ORDER * 4, batch_size=8, epochs=15, verbose=0).history
    assert history["mlm_loss"][-1] < 0.75 * history["mlm_loss"][0]
    assert history["nsp_loss"][-1] < 0.5 * history["nsp_loss"][0]
    scores = pretrainer.evaluate(PAIRS, ORDER, batch_size=8, verbose=0, return_dict=True)
    assert scores["nsp_accuracy"] >= 0.75
    outputs = pretrainer.predict(PAIRS, batch_size=8, verbose=0)
    assert outputs["mlm"].shape == (8, 3, 40)
    assert outputs["nsp"].shape == (8, 2)
    assert (outputs["nsp"].argmax(-1) == ORDER).mean() >= 0.75


def test_pairs_without_labels_train_the_hidden_tokens_only():
    pretrainer = small_pretrainer()
    before = as_numpy(pretrainer.binary_head.kernel)
    x = tuple(column * 2 for column in PAIRS)
    history = pretrainer.fit(x, batch_size=8, verbose=0, validation_data=(PAIRS, None)).history
    assert history["loss"] == history["mlm_loss"]
    assert history["val_nsp_loss"] == [0]
    np.testing.assert_array_equal(as_numpy(pretrainer.binary_head.kernel), before)


def test_no_masks_train_the_order_only():
    pretrainer = small_pretrainer({"mask_selection_rate": 0.0})
    before = as_numpy(pretrainer.mlm_head.bias)
    history = pretrainer.fit(PAIRS, ORDER, batch_size=8, verbose=0).history
    assert history["mlm_loss"] == [0]
    assert history["nsp_loss"][0] > 0.1
    np.testing.assert_array_equal(as_numpy(pretrainer.mlm_head.bias), before)


def test_two_runs_with_a_seed_have_the_same_losses():
    def losses():
        keras.utils.set_random_seed(0)
        pretrainer = small_pretrainer(dropout=0.0, attention_dropout=0.0)
        return pretrainer.fit(PAIRS, ORDER, batch_size=4, epochs=2, verbose=0).history["loss"]

    assert losses() == pytest.approx(losses(), rel=1e-5)


@pytest.mark.parametrize(("x", "y", "message"), [
    (FIRST, [0] * 4, "takes pairs, a tuple of two lists of texts, but there are 1 columns"),
    ((FIRST, SECOND, SECOND), [0] * 4, "there are 3 columns"),
    ((FIRST, SECOND[:3]), [0] * 4, r"not \[4, 3\]"),
    ((FIRST, SECOND), [0] * 3, "there are 4 samples but 3 labels"),
    ((FIRST, SECOND), [0, 1, 2, 0], "labels must be integers from 0 to 1, but label 2 is 2"),
    ((FIRST, SECOND), [[1, 0]] * 4, "labels .* must be a class a sample"),
    ((FIRST, [*SECOND[:3], None]), None, "second text 3 must be a str, not NoneType"),
    (([], []), [], "there are no texts"),
])  # fmt: skip
def test_fit_refuses_what_are_no_pairs(x, y, message):
    with pytest.raises(ValueError, match=message):
        small_pretrainer().fit(x, y, verbose=0)


# === Preprocessor ===


@pytest.mark.backend_independent
def test_masks_are_those_of_the_masked_lm_preprocessor():
    settings = {"sequence_length": 20, "seed": 3, "whole_word_masking": True, "max_ngram": 3}
    other = MegatronBertMaskedLMPreprocessor(MegatronBertTokenizer(PIECES), **settings)
    expected, mask_ids, mask_weights = other((FIRST, SECOND))
    x, y, weights = preprocessor(**settings)((FIRST, SECOND), y=[0, 1, 1, 0])
    for name in expected:
        np.testing.assert_array_equal(x[name], expected[name])
    np.testing.assert_array_equal(y["mlm"], mask_ids)
    np.testing.assert_array_equal(weights["mlm"], mask_weights)
    assert y["nsp"].tolist() == [0, 1, 1, 0]
    assert weights["nsp"].tolist() == [1, 1, 1, 1]


@pytest.mark.backend_independent
def test_weights_of_pairs_multiply_and_single_pairs_have_no_batch_axis():
    given = np.array([1, 0.5, 0, 2], "float32")
    _, _, plain = preprocessor()((FIRST, SECOND), y=[0] * 4)
    _, _, weights = preprocessor()((FIRST, SECOND), y=[0] * 4, sample_weight=given)
    np.testing.assert_allclose(weights["mlm"], plain["mlm"] * given[:, None])
    np.testing.assert_allclose(weights["nsp"], given)
    x, y, weights = preprocessor()((FIRST[0], SECOND[0]), y=1)
    assert x["token_ids"].shape == (20,)
    assert y["mlm"].shape == weights["mlm"].shape == (3,)
    assert y["nsp"].shape == weights["nsp"].shape == ()
    _, y, weights = preprocessor()((FIRST, SECOND))
    assert set(y) == set(weights) == {"mlm"}


@pytest.mark.backend_independent
@pytest.mark.parametrize(("arguments", "message"), [
    ({"sequence_length": 2}, "sequence_length must be an integer of at least 3, not 2"),
    ({"mask_selection_rate": 1.5}, "selection_rate must be between 0 and 1, not 1.5"),
    ({"seed": -1}, "seed must be an integer of at least 0, not -1"),
])  # fmt: skip
def test_the_preprocessor_refuses_impossible_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        preprocessor(**arguments)
