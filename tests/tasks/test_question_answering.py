import json

import keras
import numpy as np
import pytest
import torch
from huggingface import SMALL, largest_difference, random_inputs, random_model, torch_inputs
from models import as_numpy, encoder_inputs, randomize, small_backbone
from question_data import pieces_of, read_questions
from transformers.pipelines.document_question_answering import select_starts_ends

from keras_megatron import (
    MegatronBertMaskedLM,
    MegatronBertQuestionAnswering,
    MegatronBertQuestionAnsweringPreprocessor,
    MegatronBertTokenizer,
)

SMALL_TOLERANCE = 2e-5
QUESTIONS, CONTEXTS, ANSWERS = read_questions()
X = (QUESTIONS, CONTEXTS)
PIECES = pieces_of(QUESTIONS + CONTEXTS)


@pytest.fixture(scope="module")
def inputs():
    return encoder_inputs(random_inputs(SMALL["vocab_size"]))


@pytest.fixture
def reference(tmp_path):
    """Return transformers' model, saved in `tmp_path`."""
    model = random_model("MegatronBertForQuestionAnswering")
    model.save_pretrained(tmp_path)
    return model


def small_model(backbone: dict | None = None, **preprocessor) -> MegatronBertQuestionAnswering:
    """Return a model of 40 positions, so that the contexts take several windows."""
    return MegatronBertQuestionAnswering(
        small_backbone(**{"vocabulary_size": len(PIECES), "num_layers": 1, **(backbone or {})}),
        MegatronBertQuestionAnsweringPreprocessor(
            MegatronBertTokenizer(PIECES),
            **{"sequence_length": 40, "max_question_length": 14, "doc_stride": 8, **preprocessor},
        ),
    )


@pytest.fixture(scope="module")
def random_small():
    """Return a model with random weights, and compile it once for all who ask it."""
    keras.utils.set_random_seed(0)
    model = small_model()
    randomize(model)
    return model


def reference_outputs(model, inputs, **labels):
    with torch.no_grad():
        return model(**torch_inputs(inputs), **labels)


def reference_logits(model, inputs) -> np.ndarray:
    outputs = reference_outputs(model, inputs)
    return torch.stack([outputs.start_logits, outputs.end_logits], dim=-1).float().numpy()


# === Parity ===


@pytest.mark.parity
def test_logits_equal_hugging_face(reference, inputs, tmp_path, parity):
    model = MegatronBertQuestionAnswering.from_preset(str(tmp_path), preprocessor=None)
    expected = reference_logits(reference, inputs)
    assert np.abs(expected).max() > 0.5
    parity("question answering logits", as_numpy(model(inputs)), expected, SMALL_TOLERANCE)
    assert model.predict(inputs, verbose=0).shape == (4, 17, 2)

    # Negative controls: one segment for all, and start and end in the other order.
    one_segment = {**inputs, "segment_ids": np.zeros_like(inputs["segment_ids"])}
    assert largest_difference(as_numpy(model(one_segment)), expected) > SMALL_TOLERANCE
    model.qa_outputs.kernel.assign(as_numpy(model.qa_outputs.kernel)[:, ::-1])
    assert largest_difference(as_numpy(model(inputs)), expected) > SMALL_TOLERANCE


def test_bfloat16_is_as_close_as_hugging_faces(reference, inputs, tmp_path):
    exact = reference_logits(reference, inputs)
    model = MegatronBertQuestionAnswering.from_preset(
        str(tmp_path), preprocessor=None, dtype="bfloat16"
    )
    ours = as_numpy(keras.ops.cast(model(inputs), "float32"))
    theirs = reference_logits(reference.to(torch.bfloat16), inputs)
    assert np.sqrt(((ours - exact) ** 2).mean()) <= 3 * np.sqrt(((theirs - exact) ** 2).mean())


@pytest.mark.parametrize("labels", [
    [[1, 3], [0, 0], [5, 5], [2, 7]],
    [[1, 3], [4, 17], [17, 99], [2, 7]],  # 17 and 99 are outside: left out, each end by itself
    [[-1, 3], [4, 6], [5, 5], [2, 7]],  # transformers takes -1 for 0; arrays with it are refused
])  # fmt: skip
def test_loss_equals_hugging_faces(labels, reference, inputs, tmp_path):
    model = MegatronBertQuestionAnswering.from_preset(str(tmp_path), preprocessor=None)
    labels = np.array(labels)
    start, end = torch.from_numpy(labels.T.copy())
    outputs = reference_outputs(reference, inputs, start_positions=start, end_positions=end)
    expected = outputs.loss.item()
    loss, accuracy = model.test_on_batch(inputs, keras.ops.convert_to_tensor(labels))
    assert float(loss) == pytest.approx(expected, abs=2e-5)
    found = reference_logits(reference, inputs).argmax(axis=1)
    assert float(accuracy) == (found == labels).all(axis=1).mean()
    swapped = model.test_on_batch(inputs, keras.ops.convert_to_tensor(labels[:, ::-1].copy()))[0]
    assert abs(float(swapped) - expected) > 1e-3  # negative control


# === Training ===


def test_fit_learns_and_the_answers_are_found_in_several_windows():
    model = small_model({"num_layers": 3, "dropout": 0.0, "attention_dropout": 0.0})
    model.compile(optimizer=keras.optimizers.Adam(3e-3))
    x, y = tuple(column[::6] for column in X), ANSWERS[::6]  # one question of each context
    history = model.fit(x, y, batch_size=4, epochs=60, verbose=0).history
    assert history["loss"][-1] < 0.2 * history["loss"][0]
    loss, accuracy = model.evaluate(x, y, batch_size=4, verbose=0)
    assert loss < 0.2 * history["loss"][0]
    assert accuracy == 1
    windows = len(model.preprocessor.windows(*x))
    assert windows > len(y)
    assert model.predict(x, batch_size=4, verbose=0).shape == (windows, 40, 2)
    assert [answer["answer"] for answer in model.answer(*x)] == [given[0]["text"] for given in y]


def test_validation_and_weights_are_of_examples():
    model = small_model()
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    for arguments in (
        {"validation_data": (X, ANSWERS)},
        {"validation_split": 0.5, "sample_weight": np.ones(len(QUESTIONS))},
    ):
        history = model.fit(X, ANSWERS, epochs=2, verbose=0, **arguments).history
        assert history["val_loss"][0] == pytest.approx(history["val_loss"][1], rel=1e-5)
    half = np.where(np.arange(len(QUESTIONS)) < 6, 0.0, 2.0)
    model.evaluate(X, ANSWERS, sample_weight=half, verbose=0)
    weighted = model.evaluate(X, ANSWERS, sample_weight=0.0 * half, verbose=0)[0]
    assert weighted == 0


# === Answers ===


def brute_force(model, question: str, context: str) -> tuple[list, float]:
    """Score all spans of all windows one by one: (score, first character, end), the best first.

    Then the score of no answer, the lowest that a window gives it.
    """
    preprocessor = model.preprocessor
    rows = preprocessor((question, context))
    windows = preprocessor.windows([question], [context])
    position = int(windows.context_position[0])
    _, offsets = preprocessor.tokenizer.tokenize_with_offsets(context)
    scores, null = {}, []
    all_logits = model.predict(rows, batch_size=2, verbose=0)
    for logits, first, count in zip(all_logits, windows.first, windows.count, strict=True):
        null.append(float(logits[0].sum()))
        for i in range(count):
            for j in range(i, min(count, i + preprocessor.max_answer_length)):
                score = float(logits[position + i, 0] + logits[position + j, 1])
                span = (offsets[first + i][0], offsets[first + j][1])
                scores[span] = max(scores.get(span, -np.inf), score)
    return sorted(((score, *span) for span, score in scores.items()), reverse=True), min(null)


@pytest.mark.parametrize("max_answer_length", [1, 4, 30])
def test_answers_are_those_of_a_brute_force_search(max_answer_length, random_small, monkeypatch):
    model = random_small
    monkeypatch.setattr(model.preprocessor, "max_answer_length", max_answer_length)
    questions, contexts = QUESTIONS[::6], [f"{CONTEXTS[0]} {context}" for context in CONTEXTS[::6]]
    found = model.answer(questions, contexts, top_k=5, null_threshold=float("inf"), batch_size=2)
    for question, context, ranked in zip(questions, contexts, found, strict=True):
        assert len(model.preprocessor.windows([question], [context])) > 3
        spans, null = brute_force(model, question, context)
        total = np.exp([null, *(score for score, _, _ in spans)]).sum()
        assert [(a["start"], a["end"]) for a in ranked] == [span[1:] for span in spans[:5]]
        assert [a["answer"] for a in ranked] == [context[i:j] for _, i, j in spans[:5]]
        expected = [np.exp(score) / total for score, _, _ in spans[:5]]
        np.testing.assert_allclose([a["score"] for a in ranked], expected, rtol=1e-4)
    everything = model.answer(questions[0], contexts[0], top_k=10**6)
    assert len(everything) == len(brute_force(model, questions[0], contexts[0])[0]) + 1
    assert sum(answer["score"] for answer in everything) == pytest.approx(1)


def test_the_best_span_of_a_window_is_that_of_transformers(random_small, monkeypatch):
    """Its pipelines rank products of probabilities, which in one window is the order of ours."""
    model = random_small
    monkeypatch.setattr(model.preprocessor, "max_answer_length", 3)
    question, context = "Who is it?", "Cold in his grave lies the old king of Thule, they say."
    rows = model.preprocessor((question, context))
    logits = model.predict(rows, verbose=0)
    assert len(logits) == 1
    outside = 1 - rows["segment_ids"]
    last = rows["padding_mask"].sum() - 1
    outside[0, last] = 1  # [SEP]
    starts, ends, _, _ = select_starts_ends(
        logits[..., 0], logits[..., 1], outside, rows["padding_mask"], top_k=4, max_answer_len=3
    )
    _, offsets = model.preprocessor.tokenizer.tokenize_with_offsets(context)
    begin = int(np.flatnonzero(outside[0] == 0)[0])
    expected = [
        (offsets[i - begin][0], offsets[j - begin][1]) for i, j in zip(starts, ends, strict=True)
    ]
    found = model.answer(question, context, top_k=4, null_threshold=float("inf"))
    assert [(answer["start"], answer["end"]) for answer in found] == expected


def test_no_answer_wins_by_the_threshold(random_small):
    model = random_small
    question, context = QUESTIONS[0], CONTEXTS[0]
    spans, null = brute_force(model, question, context)
    difference = null - spans[0][0]
    best = {"answer": context[spans[0][1] : spans[0][2]], "start": spans[0][1], "end": spans[0][2]}
    nothing = {"answer": "", "start": 0, "end": 0}
    for threshold, expected in ((difference + 0.01, best), (difference - 0.01, nothing)):
        found = model.answer(question, context, null_threshold=threshold)
        assert 0 < found.pop("score") < 1
        assert found == expected
    first, second = model.answer(question, context, top_k=2, null_threshold=-float("inf"))
    assert (first["answer"], second["answer"]) == ("", best["answer"])


def test_answer_takes_one_question_or_many(random_small):
    model = random_small
    many = model.answer(QUESTIONS, CONTEXTS, batch_size=3)
    one = model.answer(QUESTIONS[7], CONTEXTS[7])
    assert one.keys() == many[7].keys()
    assert one["score"] == pytest.approx(many[7]["score"], rel=1e-4)
    assert len(many) == len(QUESTIONS)
    assert len(model.answer(QUESTIONS[:1], CONTEXTS[:1], top_k=3)[0]) == 3
    assert model.answer([], []) == []
    repeated = [CONTEXTS[7]] * 2
    assert model.answer(QUESTIONS[6:8], CONTEXTS[7]) == model.answer(QUESTIONS[6:8], repeated)
    empty = {"answer": "", "start": 0, "end": 0, "score": 1.0}
    assert model.answer("Who?", " ", null_threshold=float("inf")) == empty
    json.dumps(many)  # nothing of NumPy in it


@pytest.mark.parametrize(("questions", "contexts", "arguments", "message"), [
    ("", "text", {}, "question 0 is empty"),
    (["who", "  "], ["text"] * 2, {}, "question 1 is empty"),
    (["who"], ["text"] * 2, {}, "there are 1 questions but 2 contexts"),
    (["who"], None, {}, "contexts must be a list of str, as the other is"),
    ("who", None, {}, "questions must be a list of str"),
    (["who"], [b"text"], {}, "context 0 must be a str, not bytes"),
    ("who", "text", {"top_k": 0}, "top_k must be an integer of at least 1, not 0"),
    ("who", "text", {"batch_size": 2.0}, "batch_size must be an integer of at least 1, not 2.0"),
    ("who", "text", {"null_threshold": float("nan")}, "null_threshold must be a number, not nan"),
])  # fmt: skip
def test_answer_refuses_what_it_cannot_use(questions, contexts, arguments, message):
    with pytest.raises(ValueError, match=message):
        small_model().answer(questions, contexts, **arguments)


def test_answer_needs_a_preprocessor_that_fits():
    with pytest.raises(ValueError, match="needs a preprocessor"):
        MegatronBertQuestionAnswering(small_backbone()).answer("who", "text")
    with pytest.raises(ValueError, match="makes 48 tokens but the model has 40 positions"):
        small_model(sequence_length=48).answer("who", "text")


@pytest.mark.parametrize(("x", "y", "message"), [
    (X, ANSWERS[1:], "there are 18 samples but 17 labels"),
    (X, [{"text": ["a"], "answer_start": 4}, *ANSWERS[1:]], "answer 0 must have a text and an an"),
    (X, [*ANSWERS[1:], None], "answer 5, 'landslide', is not in its context at answer_start=31"),
    ((QUESTIONS, CONTEXTS[1:]), ANSWERS, r"\[18, 17\]"),
    (QUESTIONS, ANSWERS, "give a tuple of questions and contexts"),
])  # fmt: skip
def test_fit_refuses_what_are_no_samples(x, y, message):
    with pytest.raises(ValueError, match=message):
        small_model().fit(x, y, verbose=0)


# === Saving, adapters, precision ===


def test_preset_and_keras_file_round_trip(tmp_path):
    model = small_model(max_answer_length=4)
    randomize(model)
    model.save_to_preset(tmp_path / "preset")
    model.save(tmp_path / "model.keras")
    expected = model.answer(QUESTIONS[:2], CONTEXTS[:2], top_k=2)
    for loaded in (
        MegatronBertQuestionAnswering.from_preset(str(tmp_path / "preset")),
        keras.saving.load_model(tmp_path / "model.keras"),
    ):
        assert type(loaded) is MegatronBertQuestionAnswering
        found = loaded.answer(QUESTIONS[:2], CONTEXTS[:2], top_k=2)
        assert [[a["answer"] for a in ranked] for ranked in found] == [
            [a["answer"] for a in ranked] for ranked in expected
        ]
        assert found[0][0]["score"] == pytest.approx(expected[0][0]["score"], rel=1e-5)
        assert loaded.preprocessor.get_config() == model.preprocessor.get_config()
        assert np.isfinite(loaded.evaluate(X, ANSWERS, verbose=0)[0])


def test_a_preset_of_another_task_gives_its_encoder(tmp_path):
    masked_lm = MegatronBertMaskedLM(small_backbone())
    randomize(masked_lm)
    masked_lm.save_to_preset(tmp_path / "preset")
    model = MegatronBertQuestionAnswering.from_preset(str(tmp_path / "preset"), preprocessor=None)
    for ours, theirs in zip(model.backbone.weights, masked_lm.backbone.weights, strict=True):
        np.testing.assert_array_equal(as_numpy(ours), as_numpy(theirs))
    assert as_numpy(model.qa_outputs.bias).tolist() == [0, 0]


def test_lora_trains_the_adapters_and_the_head_only():
    model = small_model()
    model.backbone.enable_lora(2)
    model.compile(optimizer=keras.optimizers.Adam(1e-2))
    before = {weight.path: as_numpy(weight) for weight in model.weights}
    model.fit(X, ANSWERS, epochs=1, verbose=0)
    changed = {w.path for w in model.weights if (as_numpy(w) != before[w.path]).any()}
    assert any("lora_kernel" in path for path in changed)
    # Keras leaves the biases of layers with adapters trainable.
    assert all(path.endswith("/kernel") is path.startswith("qa_outputs/k") for path in changed)
    assert all("/query/" in path or "/value/" in path or "qa_outputs" in path for path in changed)


def test_int8_answers_survive_saving(tmp_path):
    model = small_model()
    randomize(model)
    exact = as_numpy(model(model.preprocessor(X)))
    model.quantize("int8")
    rounded = as_numpy(model(model.preprocessor(X)))
    assert 0 < np.abs(rounded - exact).max() < 0.1 * np.abs(exact).max()
    expected = model.answer(QUESTIONS[:4], CONTEXTS[:4])
    model.save_to_preset(tmp_path / "preset")
    loaded = MegatronBertQuestionAnswering.from_preset(str(tmp_path / "preset"))
    found = loaded.answer(QUESTIONS[:4], CONTEXTS[:4])
    assert [answer["answer"] for answer in found] == [answer["answer"] for answer in expected]
    assert found[0]["score"] == pytest.approx(expected[0]["score"], rel=1e-4)


def test_mixed_precision_trains():
    model = small_model({"dtype": "mixed_bfloat16"})
    assert model.qa_outputs.compute_dtype == "bfloat16"
    history = model.fit(X, ANSWERS, epochs=1, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert 0 < model.answer(QUESTIONS[0], CONTEXTS[0])["score"] < 1
