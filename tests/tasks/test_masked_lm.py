import keras
import keras_hub
import numpy as np
import pytest
import torch
from huggingface import (
    SMALL,
    largest_difference,
    random_inputs,
    random_masked_lm,
    reference_logits,
)
from models import as_numpy, randomize, small_backbone

from keras_megatron import (
    MegatronBertMaskedLM,
    MegatronBertMaskedLMPreprocessor,
    MegatronBertTokenizer,
)

SMALL_TOLERANCE = 2e-5
# Dickens, A Tale of Two Cities (1859), public domain.
TEXTS = [
    "it was the best of times, it was the worst of times,",
    "it was the age of wisdom, it was the age of foolishness,",
    "it was the epoch of belief, it was the epoch of incredulity,",
    "it was the season of light, it was the season of darkness,",
]
WORDS = sorted({word.strip(",") for text in TEXTS for word in text.split()})
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", "##s", *WORDS]


@pytest.fixture(scope="module")
def inputs():
    return random_inputs(SMALL["vocab_size"])


def small_masked_lm(preprocessor: dict | None = None, **arguments) -> MegatronBertMaskedLM:
    """Return a model on the words of TEXTS, with 40 rows for fewer pieces."""
    tokenizer = MegatronBertTokenizer(PIECES)
    backbone = small_backbone(**{"vocabulary_size": 40, "num_layers": 1, **arguments})
    return MegatronBertMaskedLM(
        backbone,
        MegatronBertMaskedLMPreprocessor(tokenizer, sequence_length=20, **(preprocessor or {})),
    )


@pytest.mark.parity
@pytest.mark.parametrize("config", [{}, {"hidden_act": "gelu_new", "layer_norm_eps": 1e-12}])
def test_logits_equal_hugging_face(config, inputs, tmp_path, parity):
    reference = random_masked_lm(**config)
    reference.save_pretrained(tmp_path)
    masked_lm = MegatronBertMaskedLM.from_preset(str(tmp_path), preprocessor=None)
    expected = reference_logits(reference, inputs)
    assert np.abs(expected).max() > 0.5
    what = f"masked-LM logits, {reference.config.hidden_act}"
    parity(what, as_numpy(masked_lm(inputs)), expected, SMALL_TOLERANCE)

    # Negative control: the head's activation is one of three settings that must be right.
    other = {"gelu": "gelu_approximate", "gelu_approximate": "gelu"}[masked_lm.head_activation]
    wrong = MegatronBertMaskedLM(masked_lm.backbone, head_activation=other)
    for target, source in zip(wrong.mlm_head.weights, masked_lm.mlm_head.weights, strict=True):
        target.assign(source)
    assert largest_difference(as_numpy(wrong(inputs)), expected) > SMALL_TOLERANCE


def test_bfloat16_is_as_close_as_hugging_faces(inputs, tmp_path):
    reference = random_masked_lm()
    reference.save_pretrained(tmp_path)
    exact = reference_logits(reference, inputs)
    masked_lm = MegatronBertMaskedLM.from_preset(str(tmp_path), preprocessor=None, dtype="bfloat16")
    ours = as_numpy(keras.ops.cast(masked_lm(inputs), "float32"))
    theirs = reference_logits(reference.to(torch.bfloat16), inputs)
    assert np.sqrt(((ours - exact) ** 2).mean()) <= 3 * np.sqrt(((theirs - exact) ** 2).mean())


def test_loss_equals_hugging_faces(inputs, tmp_path):
    """Loss on masked positions only, averaged over all that have weight, not over the batch."""
    reference = random_masked_lm()
    reference.save_pretrained(tmp_path)
    masked_lm = MegatronBertMaskedLM.from_preset(str(tmp_path), preprocessor=None)
    rng = np.random.default_rng(0)
    labels = rng.integers(SMALL["vocab_size"], size=inputs["mask_positions"].shape)
    weights = np.ones(labels.shape, "float32")
    weights[1, 1:] = weights[2, 2:] = 0  # rows with fewer masks
    expected_labels = np.full(inputs["token_ids"].shape, -100)
    for row, column in np.argwhere(weights > 0):
        expected_labels[row, inputs["mask_positions"][row, column]] = labels[row, column]
    with torch.no_grad():
        expected = reference(
            input_ids=torch.from_numpy(inputs["token_ids"]).long(),
            token_type_ids=torch.from_numpy(inputs["segment_ids"]).long(),
            attention_mask=torch.from_numpy(inputs["padding_mask"]).long(),
            labels=torch.from_numpy(expected_labels),
        ).loss.item()
    loss = masked_lm.test_on_batch(inputs, labels, weights)[0]
    assert float(loss) == pytest.approx(expected, abs=2e-5)
    unweighted = masked_lm.test_on_batch(inputs, labels, np.ones_like(weights))[0]
    assert abs(float(unweighted) - expected) > 1e-3  # negative control


def test_fit_on_strings_learns_and_evaluate_and_predict_take_strings():
    masked_lm = small_masked_lm({"seed": 1}, dropout=0.0, attention_dropout=0.0)
    masked_lm.compile(optimizer=keras.optimizers.Adam(3e-3))
    history = masked_lm.fit(TEXTS * 8, batch_size=8, epochs=12, verbose=0).history["loss"]
    assert history[-1] < 0.75 * history[0]
    loss, accuracy = masked_lm.evaluate(TEXTS * 4, batch_size=4, verbose=0)
    assert loss < history[0]
    assert 0 <= accuracy <= 1
    assert masked_lm.predict(TEXTS, batch_size=2, verbose=0).shape == (4, 3, 40)


def test_validation_takes_texts_and_repeats():
    masked_lm = small_masked_lm({"seed": 1})
    masked_lm.compile(optimizer=keras.optimizers.SGD(0.0))
    pairs = (TEXTS * 2, TEXTS[::-1] * 2)
    for arguments in (
        {"x": TEXTS * 2, "validation_data": TEXTS},
        {"x": TEXTS * 2, "validation_data": masked_lm.preprocessor(TEXTS)},
        {"x": np.array(TEXTS * 2), "validation_split": 0.5},
        {"x": pairs, "validation_split": 0.25},
    ):
        history = masked_lm.fit(batch_size=2, epochs=2, verbose=0, **arguments).history
        assert history["val_loss"][0] == pytest.approx(history["val_loss"][1], rel=1e-5)
        assert np.isfinite(history["loss"]).all()
    with pytest.raises(ValueError, match="leaves no sample on one side of 1"):
        masked_lm.fit(TEXTS[:1], validation_split=0.5)


def test_masks_change_from_epoch_to_epoch_and_repeat_with_the_seed():
    def three_epochs(seed):
        preprocessor = small_masked_lm({"seed": seed}).preprocessor
        return [preprocessor(TEXTS)[0]["mask_positions"].tolist() for _ in range(3)]

    first = three_epochs(5)
    assert first == three_epochs(5)
    assert first != three_epochs(6)
    assert first[0] != first[1] != first[2]


def test_two_runs_with_a_seed_have_the_same_losses():
    def losses():
        keras.utils.set_random_seed(0)
        masked_lm = small_masked_lm({"seed": 1}, dropout=0.0, attention_dropout=0.0)
        different = TEXTS + TEXTS[::2] + TEXTS[1::2] + TEXTS[::-1]
        history = masked_lm.fit(different, batch_size=4, epochs=2, verbose=0)
        return history.history["loss"]

    assert losses() == pytest.approx(losses(), rel=1e-5)


def test_the_preprocessor_masks_pairs_and_tf_data():
    import tensorflow as tf

    preprocessor = small_masked_lm({"seed": 1}).preprocessor
    x, y, weight = preprocessor((TEXTS[:2], TEXTS[2:]))
    assert set(x["segment_ids"].ravel()) == {0, 1}
    assert x["token_ids"].shape == x["padding_mask"].shape == (2, 20)
    assert y.shape == weight.shape == x["mask_positions"].shape == (2, 3)
    assert (x["token_ids"] == 3).sum() == 4  # two [SEP] a row, never masked

    preprocessor = small_masked_lm({"seed": 1}).preprocessor
    batches = tf.data.Dataset.from_tensor_slices(TEXTS).batch(2).map(preprocessor)
    assert batches.element_spec[1].shape.as_list() == [None, 3]
    x, y, weight = next(iter(batches))
    eager_x, eager_y, _ = small_masked_lm({"seed": 1}).preprocessor(TEXTS[:2])
    np.testing.assert_array_equal(x["token_ids"], eager_x["token_ids"])
    np.testing.assert_array_equal(y, eager_y)
    one_x, one_y, _ = preprocessor(TEXTS[0])
    assert one_x["token_ids"].shape == (20,)
    assert one_y.shape == (3,)


def test_fill_mask_finds_the_best_tokens():
    masked_lm = small_masked_lm()
    randomize(masked_lm)
    texts = ["it was the [MASK] of times", "it was [MASK] age of [MASK],", "[MASK]"]
    answers = masked_lm.fill_mask(texts, top_k=4, batch_size=2)
    assert [len(masks) for masks in answers] == [1, 2, 1]
    tokenizer = masked_lm.preprocessor.tokenizer
    for text, masks in zip(texts, answers, strict=True):
        ids = tokenizer.encode([text], sequence_length=10)
        positions = np.flatnonzero(ids["token_ids"][0] == tokenizer.mask_token_id)[None]
        logits = as_numpy(masked_lm({**ids, "mask_positions": positions.astype("int32")}))[0]
        logits = logits[:, : len(PIECES)]
        for row, candidates in zip(logits, masks, strict=True):
            best = np.argsort(-row, kind="stable")[:4]
            assert [answer["token"] for answer in candidates] == best.tolist()
            assert [answer["token_str"] for answer in candidates] == [PIECES[i] for i in best]
            odds = np.exp(row - row.max())
            expected = odds[best] / odds.sum()
            np.testing.assert_allclose([a["score"] for a in candidates], expected, rtol=1e-4)
    assert masked_lm.fill_mask(texts[1], top_k=4)[1][0]["token"] == answers[1][1][0]["token"]
    filled = answers[1][1][0]
    if not filled["token_str"].startswith("##"):
        assert filled["sequence"] == f"it was [MASK] age of {filled['token_str']},"


def test_padding_rows_of_the_table_are_never_predicted():
    masked_lm = small_masked_lm()
    bias = as_numpy(masked_lm.mlm_head.bias)
    bias[len(PIECES) :] = 100.0  # the most attractive tokens, were they any
    masked_lm.mlm_head.bias.assign(bias)
    answers = masked_lm.fill_mask("it was the [MASK]", top_k=len(PIECES))[0]
    assert {answer["token"] for answer in answers} == set(range(len(PIECES)))
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("texts", "message"), [
    (["it was the [MASK]", "no mask here"], r"text 1 has no \[MASK\] to fill: 'no mask here'"),
    ([""], r"text 0 has no \[MASK\]"),
    (["it " * 60 + "[MASK]"], r"text 0 has a \[MASK\] at token 61, beyond the 40 tokens"),
    ([7], "7|int"),
])  # fmt: skip
def test_fill_mask_says_what_is_wrong(texts, message):
    with pytest.raises(ValueError, match=message):
        small_masked_lm().fill_mask(texts)


def test_fill_mask_needs_a_preprocessor_and_a_sensible_top_k():
    with pytest.raises(ValueError, match="needs a preprocessor"):
        MegatronBertMaskedLM(small_backbone()).fill_mask("[MASK]")
    with pytest.raises(ValueError, match="top_k must be an integer from 1 to"):
        small_masked_lm().fill_mask("[MASK]", top_k=0)


@pytest.mark.parametrize(("texts", "arguments"), [
    (None, {}),
    (5, {}),
    ([b"it was [MASK]"], {}),
    (["[MASK]"], {"top_k": 2.5}),
    (["[MASK]"], {"batch_size": 0}),
])  # fmt: skip
def test_fill_mask_refuses_what_it_cannot_use(texts, arguments):
    with pytest.raises(ValueError, match="must be a"):
        small_masked_lm().fill_mask(texts, **arguments)


@pytest.mark.parametrize(("x", "arguments", "message"), [
    ([], {}, "there are no texts"),
    ("it was", {}, "give a list of texts"),
    (("it was", "at was"), {}, "give a list of texts"),
    ((TEXTS, TEXTS[:2]), {}, r"columns of x must be of one length, not \[4, 2\]"),
    (TEXTS, {"y": [1, 2, 3, 4]}, "give no y"),
])  # fmt: skip
def test_fit_refuses_what_are_no_texts(x, arguments, message):
    with pytest.raises(ValueError, match=message):
        small_masked_lm().fit(x, verbose=0, **arguments)


def test_fit_refuses_a_preprocessor_that_is_too_long():
    masked_lm = small_masked_lm()
    masked_lm.preprocessor.sequence_length = 41
    with pytest.raises(ValueError, match="makes 41 tokens but the model has 40 positions"):
        masked_lm.fit(TEXTS, verbose=0)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"mask_selection_length": 0}, "mask_selection_length must be an integer of at least 1"),
    ({"seed": 1.5}, "seed must be an integer of at least 0, not 1.5"),
    ({"truncate": "waterfall"}, "truncate cannot be chosen"),
])  # fmt: skip
def test_the_preprocessor_refuses_impossible_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_masked_lm(arguments)


def test_unknown_arguments_are_refused_instead_of_dropped(tmp_path):
    masked_lm = small_masked_lm()
    masked_lm.save_to_preset(tmp_path / "preset")
    with pytest.raises(ValueError, match="unknown argument 'load_weight'"):
        MegatronBertMaskedLM.from_preset(str(tmp_path / "preset"), load_weight=False)


def test_int8_answers_survive_saving(tmp_path):
    masked_lm = small_masked_lm()
    randomize(masked_lm)
    exact = masked_lm.fill_mask("it was the [MASK]", top_k=3)
    masked_lm.quantize("int8")
    rounded = masked_lm.fill_mask("it was the [MASK]", top_k=3)
    assert rounded != exact
    masked_lm.save_to_preset(tmp_path / "preset")
    loaded = MegatronBertMaskedLM.from_preset(str(tmp_path / "preset"))
    again = loaded.fill_mask("it was the [MASK]", top_k=3)
    assert [a["token"] for a in again[0]] == [a["token"] for a in rounded[0]]
    assert again[0][0]["score"] == pytest.approx(rounded[0][0]["score"], rel=1e-4)


def test_int8_trains_as_float_does():
    """The gradient goes through the tied head: after some steps of LoRA the losses are alike."""

    def losses(quantized):
        keras.utils.set_random_seed(0)
        backbone = small_backbone(dropout=0.0, attention_dropout=0.0, initializer_range=0.2)
        masked_lm = MegatronBertMaskedLM(backbone, preprocessor=None)
        if quantized:
            masked_lm.quantize("int8")
        backbone.enable_lora(4)
        masked_lm.compile(keras.optimizers.Adam(1e-2))
        x = random_inputs(backbone.vocabulary_size)
        y = np.take_along_axis(x["token_ids"], x["mask_positions"], axis=1)
        return [float(np.ravel(masked_lm.train_on_batch(x, y))[0]) for _ in range(30)]

    exact, rounded = losses(False), losses(True)
    assert exact[-1] < 0.7 * exact[0]
    assert rounded != exact
    np.testing.assert_allclose(rounded, exact, atol=0.1)


def test_no_text_gives_no_answer():
    assert small_masked_lm().fill_mask([]) == []


@pytest.mark.parametrize(("name", "value", "message"), [
    ("token_ids", 131, "token_ids must be from 0 to 130, but there is 131"),
    ("token_ids", -1, "token_ids must be from 0 to 130, but there is -1"),
    ("segment_ids", 2, "segment_ids must be from 0 to 1, but there is 2"),
    ("mask_positions", 17, "mask_positions must be from 0 to 16, but there is 17"),
])  # fmt: skip
def test_ids_without_an_embedding_are_refused(name, value, message, inputs):
    masked_lm = MegatronBertMaskedLM(small_backbone())
    bad = {**inputs, name: inputs[name].copy()}
    bad[name][0, 0] = value
    with pytest.raises(ValueError, match=message):
        masked_lm.predict(bad, verbose=0)
    with pytest.raises(ValueError, match=message):
        masked_lm(bad)
    labels = np.zeros(inputs["mask_positions"].shape, "int32")
    for validation in ({"validation_data": (bad, labels)}, {}):
        x = inputs if validation else bad
        with pytest.raises(ValueError, match=message):
            masked_lm.fit(x, labels, verbose=0, **validation)
    with pytest.raises(ValueError, match=message):
        masked_lm.train_on_batch(bad, labels)


def test_long_and_empty_texts_are_truncated_and_padded():
    preprocessor = small_masked_lm().preprocessor
    x, _, weights = preprocessor(["it was " * 100, ""])
    assert x["token_ids"].shape == (2, 20)
    assert x["padding_mask"].sum(axis=1).tolist() == [20, 2]
    assert weights.sum(axis=1).tolist() == [3, 0]


@pytest.mark.parametrize("bad", [[1, 2], [None], ["it", 3.5]])
def test_what_is_not_text_is_refused(bad):
    with pytest.raises(ValueError, match=r"str|text"):
        small_masked_lm().preprocessor(bad)


def test_a_vocabulary_larger_than_the_table_is_refused():
    tokenizer = MegatronBertTokenizer(PIECES)
    preprocessor = MegatronBertMaskedLMPreprocessor(tokenizer)
    with pytest.raises(ValueError, match=f"has {len(PIECES)} pieces but .* only 10 rows"):
        MegatronBertMaskedLM(small_backbone(vocabulary_size=10), preprocessor)


def test_strings_given_to_the_model_itself_are_explained():
    with pytest.raises(ValueError, match="does not apply preprocessing"):
        small_masked_lm()(TEXTS)


def test_preset_and_keras_file_round_trip(tmp_path):
    masked_lm = small_masked_lm({"whole_word_masking": True, "max_ngram": 3, "seed": 4})
    randomize(masked_lm)
    masked_lm.save_to_preset(tmp_path / "preset")
    masked_lm.save(tmp_path / "model.keras")
    expected = masked_lm.fill_mask("it was the [MASK]")
    for loaded in (
        MegatronBertMaskedLM.from_preset(str(tmp_path / "preset")),
        keras_hub.models.MaskedLM.from_preset(str(tmp_path / "preset")),
        keras.saving.load_model(tmp_path / "model.keras"),
    ):
        assert type(loaded) is MegatronBertMaskedLM
        assert loaded.fill_mask("it was the [MASK]") == expected
        assert loaded.preprocessor.get_config() == masked_lm.preprocessor.get_config()
        assert loaded.get_config()["head_activation"] == "gelu"


def test_the_head_is_tied_to_the_word_embeddings():
    masked_lm = small_masked_lm()
    assert sum(v.path.endswith("token_embedding/embeddings") for v in masked_lm.weights) == 1
    masked_lm.backbone.enable_lora(2)
    assert masked_lm.mlm_head.token_embedding is masked_lm.backbone.token_embedding
