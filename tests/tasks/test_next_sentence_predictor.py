import keras
import numpy as np
import pytest
import torch
from heads import SMALL_TOLERANCE, both, reference_outputs, rms
from huggingface import SMALL, largest_difference, random_inputs
from models import as_numpy, encoder_inputs, randomize, small_backbone
from small_tasks import PAIRS, PIECES, TEXTS

from keras_megatron import (
    MegatronBertNextSentencePredictor,
    MegatronBertNextSentencePredictorPreprocessor,
    MegatronBertTokenizer,
)

NAME = "MegatronBertForNextSentencePrediction"


@pytest.fixture(scope="module")
def inputs():
    return encoder_inputs(random_inputs(SMALL["vocab_size"]))


def small_predictor() -> MegatronBertNextSentencePredictor:
    preprocessor = MegatronBertNextSentencePredictorPreprocessor(
        MegatronBertTokenizer(PIECES), sequence_length=20
    )
    predictor = MegatronBertNextSentencePredictor(
        small_backbone(vocabulary_size=40, num_layers=1), preprocessor
    )
    randomize(predictor)
    return predictor


@pytest.mark.parity
def test_logits_equal_hugging_face(inputs, tmp_path, parity):
    reference, predictor = both(MegatronBertNextSentencePredictor, NAME, tmp_path)
    expected = reference_outputs(reference, inputs).logits.numpy()
    assert np.abs(expected).max() > 0.05
    parity("next-sentence logits", as_numpy(predictor(inputs)), expected, SMALL_TOLERANCE)

    # Negative control: which of the two comes first.
    swapped = {**inputs, "segment_ids": 1 - inputs["segment_ids"]}
    assert largest_difference(as_numpy(predictor(swapped)), expected) > SMALL_TOLERANCE


def test_loss_equals_hugging_faces(inputs, tmp_path):
    reference, predictor = both(MegatronBertNextSentencePredictor, NAME, tmp_path)
    labels = np.array([1, 0, 0, 1], "int32")
    expected = reference_outputs(reference, inputs, labels=torch.from_numpy(labels).long()).loss
    loss = float(predictor.test_on_batch(inputs, labels)[0])
    assert loss == pytest.approx(expected.item(), abs=2e-5)
    assert abs(float(predictor.test_on_batch(inputs, 1 - labels)[0]) - loss) > 1e-4


def test_bfloat16_is_as_close_as_hugging_faces(inputs, tmp_path):
    reference, _ = both(MegatronBertNextSentencePredictor, NAME, tmp_path)
    exact = reference_outputs(reference, inputs).logits.numpy()
    predictor = MegatronBertNextSentencePredictor.from_preset(
        str(tmp_path), preprocessor=None, dtype="bfloat16"
    )
    ours = as_numpy(keras.ops.cast(predictor(inputs), "float32"))
    theirs = reference_outputs(reference.to(torch.bfloat16), inputs).logits.float().numpy()
    assert rms(ours, exact) <= 3 * rms(theirs, exact)


def test_follows_is_the_probability_of_class_0():
    predictor = small_predictor()
    logits = predictor.predict(PAIRS, verbose=0)
    odds = np.exp(logits)
    follows = predictor.follows(*PAIRS, batch_size=3)
    np.testing.assert_allclose(follows, odds[:, 0] / odds.sum(axis=1), rtol=1e-4)
    assert predictor.follows(PAIRS[0][1], PAIRS[1][1]) == pytest.approx(follows[1], abs=1e-6)


def test_it_takes_tf_data():
    import tensorflow as tf

    predictor = small_predictor()
    dataset = tf.data.Dataset.from_tensor_slices((PAIRS, [0, 1, 1, 0])).batch(2)
    expected = predictor.evaluate(PAIRS, [0, 1, 1, 0], verbose=0)
    assert predictor.evaluate(dataset, verbose=0) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("x", "labels", "message"), [
    (PAIRS, [0, 1, 2, 0], "labels must be integers from 0 to 1, but label 2 is 2"),
    (PAIRS, [[0, 1]] * 4, r"a class a sample, but are of shape \(4, 2\)"),
    (PAIRS, ["no"] * 4, "label 0 is 'no'"),
    (TEXTS, [0] * 4, "x must be a tuple of two lists of texts, for pairs"),
    ((TEXTS, [None] * 4), [0] * 4, "second text 0 must be a str"),
])  # fmt: skip
def test_what_is_no_pair_or_label_is_refused(x, labels, message):
    with pytest.raises(ValueError, match=message):
        small_predictor().fit(x, labels, verbose=0)


def test_follows_refuses_what_is_no_pair():
    predictor = small_predictor()
    with pytest.raises(ValueError, match=r"not \[4, 2\]"):
        predictor.follows(TEXTS, TEXTS[:2])
    with pytest.raises(ValueError, match="samples must be in lists, not in a str"):
        predictor.follows(TEXTS, "it was")
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, not 0"):
        predictor.follows(*PAIRS, batch_size=0)
