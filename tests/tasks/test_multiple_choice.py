import keras
import numpy as np
import pytest
import torch
from heads import SMALL_TOLERANCE, both, rms
from huggingface import SMALL, largest_difference, random_inputs, torch_inputs
from models import as_numpy, encoder_inputs, randomize, small_backbone
from small_tasks import CHOICES, PIECES, TEXTS

from keras_megatron import (
    MegatronBertMultipleChoice,
    MegatronBertMultipleChoicePreprocessor,
    MegatronBertTokenizer,
)
from keras_megatron.layers.choices import ABSENT

NAME = "MegatronBertForMultipleChoice"
ROWS = 3


def random_choices(choices: int) -> dict[str, np.ndarray]:
    """Return ids of ROWS samples with so many choices, (ROWS, choices, sequence)."""
    inputs = encoder_inputs(random_inputs(SMALL["vocab_size"], batch=ROWS * choices))
    return {name: array.reshape(ROWS, choices, -1) for name, array in inputs.items()}


def reference_logits(reference, inputs) -> np.ndarray:
    with torch.no_grad():
        return reference(**torch_inputs(inputs)).logits.float().numpy()


def small_model(sequence_length: int = 20) -> MegatronBertMultipleChoice:
    preprocessor = MegatronBertMultipleChoicePreprocessor(
        MegatronBertTokenizer(PIECES), sequence_length=sequence_length
    )
    backbone = small_backbone(vocabulary_size=40, num_layers=1)
    model = MegatronBertMultipleChoice(backbone, preprocessor)
    randomize(model)
    return model


# === Parity ===


@pytest.mark.parity
def test_logits_equal_hugging_face_for_any_number_of_choices(tmp_path, parity):
    reference, model = both(MegatronBertMultipleChoice, NAME, tmp_path)
    for choices in (4, 1, 2, 5):
        inputs = random_choices(choices)
        expected = reference_logits(reference, inputs)
        what = f"multiple-choice logits, {choices} choices"
        parity(what, as_numpy(model(inputs)), expected, SMALL_TOLERANCE)
        # Negative control: the choices in another order.
        turned = {name: np.roll(array, 1, axis=0) for name, array in inputs.items()}
        assert largest_difference(as_numpy(model(turned)), expected) > SMALL_TOLERANCE


def test_absent_choices_change_nothing(tmp_path):
    """Logits and loss of samples with fewer choices are those of the reference on each alone."""
    reference, model = both(MegatronBertMultipleChoice, NAME, tmp_path)
    inputs, counts, labels = random_choices(4), [4, 2, 3], np.array([3, 0, 2], "int32")
    losses = []
    for row, count in enumerate(counts):
        for name in inputs:
            inputs[name][row, count:] = 0
        alone = {name: array[row : row + 1, :count] for name, array in inputs.items()}
        logits = reference_logits(reference, alone)
        np.testing.assert_allclose(
            as_numpy(model(inputs))[row, :count], logits[0], atol=SMALL_TOLERANCE
        )
        target = torch.from_numpy(labels[row : row + 1]).long()
        losses.append(torch.nn.functional.cross_entropy(torch.from_numpy(logits), target).item())
    assert (as_numpy(model(inputs))[1, 2:] == ABSENT).all()
    loss = float(model.test_on_batch(inputs, labels)[0])
    assert loss == pytest.approx(np.mean(losses), abs=2e-5)
    # Negative control: were they there, they would count.
    inputs["padding_mask"][:, :, 0] = 1
    assert abs(float(model.test_on_batch(inputs, labels)[0]) - loss) > 1e-3


def test_loss_equals_hugging_faces(tmp_path):
    reference, model = both(MegatronBertMultipleChoice, NAME, tmp_path)
    inputs, labels = random_choices(4), np.array([0, 3, 2], "int32")
    with torch.no_grad():
        expected = reference(**torch_inputs(inputs), labels=torch.from_numpy(labels).long()).loss
    loss = float(model.test_on_batch(inputs, labels)[0])
    assert loss == pytest.approx(expected.item(), abs=2e-5)
    assert abs(float(model.test_on_batch(inputs, labels[::-1].copy())[0]) - loss) > 1e-4


def test_bfloat16_is_as_close_as_hugging_faces(tmp_path):
    reference, _ = both(MegatronBertMultipleChoice, NAME, tmp_path)
    inputs = random_choices(4)
    exact = reference_logits(reference, inputs)
    model = MegatronBertMultipleChoice.from_preset(
        str(tmp_path), preprocessor=None, dtype="bfloat16"
    )
    ours = as_numpy(keras.ops.cast(model(inputs), "float32"))
    theirs = reference_logits(reference.to(torch.bfloat16), inputs)
    assert rms(ours, exact) <= 3 * rms(theirs, exact)


# === Samples ===


def test_choices_are_pairs_with_their_context():
    preprocessor = small_model().preprocessor
    contexts, choices = CHOICES
    x, y = preprocessor(CHOICES, [0, 2, 1, 1])
    assert x["token_ids"].shape == (4, 3, 20)
    assert y.tolist() == [0, 2, 1, 1]
    for row, (context, texts) in enumerate(zip(contexts, choices, strict=True)):
        for column, text in enumerate(texts):
            expected = preprocessor.tokenizer.encode(context, text, 20)
            for name, array in expected.items():
                np.testing.assert_array_equal(x[name][row, column], array)
        assert not x["padding_mask"][row, len(texts) :].any()
    one, label = preprocessor((contexts[1], choices[1]), 2)
    np.testing.assert_array_equal(one["token_ids"], x["token_ids"][1])
    assert label == 2


def test_batches_have_room_for_the_most_choices_of_all():
    model = small_model()
    logits = model.predict(CHOICES, batch_size=1, verbose=0)
    assert logits.shape == (4, 3)
    assert (logits == ABSENT).tolist() == [[False, False, n == 2] for n in map(len, CHOICES[1])]
    together = model.predict(CHOICES, batch_size=4, verbose=0)
    np.testing.assert_allclose(logits, together, atol=1e-5)


def test_choose_gives_the_best_of_the_choices_that_are_there():
    model = small_model()
    logits = model.predict(CHOICES, verbose=0)
    answers = model.choose(*CHOICES, batch_size=3)
    for answer, row, texts in zip(answers, logits, CHOICES[1], strict=True):
        odds = np.exp(row[: len(texts)])
        np.testing.assert_allclose(answer["scores"], odds / odds.sum(), rtol=1e-4)
        assert answer["text"] == texts[answer["choice"]]
        assert answer["choice"] == int(odds.argmax())
    single = model.choose(CHOICES[0][1], CHOICES[1][1])
    assert single["scores"] == pytest.approx(answers[1]["scores"], abs=1e-6)


# === Bad input ===


@pytest.mark.parametrize(("choices", "message"), [
    ([["a", "b"], ["it"], ["a", "b"], ["a", "b"]], r"choices 1 must be at least two, not \['it'\]"),
    ([["a", "b"], ["a", "b"], [], ["a", "b"]], r"choices 2 must be at least two, not \[\]"),
    ([["a", "b"], ["a", "b"], "it was", ["a", "b"]], "choices 2 must be a list of str"),
    ([["a", "b"], ["a", 3], ["a", "b"], ["a", "b"]], "choices 1: choice 1 must be a str, not int"),
    ([["a", "b"]] * 3, r"not \[4, 3\]"),
])  # fmt: skip
def test_choices_that_are_none_are_refused(choices, message):
    model = small_model()
    with pytest.raises(ValueError, match=message):
        model.fit((TEXTS, choices), [0] * 4, verbose=0)
    with pytest.raises(ValueError, match=message):
        model.predict((TEXTS, choices), verbose=0)
    with pytest.raises(ValueError, match=message):
        model.choose(TEXTS, choices)


@pytest.mark.parametrize(("labels", "message"), [
    ([0, 2, 1, 2], "label 3 must be an integer from 0 to 1, the last of its choices, not 2"),
    ([0, -1, 1, 1], "label 1 must be an integer from 0 to 2"),
    ([0.5, 0, 1, 1], "label 0 must be an integer from 0 to 1"),
    (["wisdom", "age", "was", "of"], "label 0 is 'wisdom'"),
    ([0, 1], "4 samples but 2 labels"),
])  # fmt: skip
def test_labels_that_are_no_choice_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        small_model().fit(CHOICES, labels, verbose=0)


def test_other_mistakes_are_explained():
    model = small_model()
    with pytest.raises(ValueError, match=r"x must be a tuple \(contexts, choices\), not of 1"):
        model.predict(TEXTS, verbose=0)
    with pytest.raises(ValueError, match="token_ids must be from 0 to 39, but there is 40"):
        model({name: np.full((1, 2, 5), 40) for name in model.input})
    with pytest.raises(ValueError, match="at least 3"):
        small_model(sequence_length=2)
