"""Metrics next to independent implementations of them."""

import numpy as np
import pytest

from keras_megatron.finetuning.metrics import (
    classification_scores,
    regression_scores,
    tag_scores,
)
from keras_megatron.finetuning.squad_metrics import normalize_answer, squad_scores
from keras_megatron.tasks.tagging import marks_spans

pytestmark = pytest.mark.backend_independent

# Answers to the same question as people, and models, phrase them.
ANSWERS = [
    ("the Norman Conquest", ["Norman Conquest", "The Norman conquest of England"]),
    ("a saint", ["saint Bernadette Soubirous"]),
    ("1,066", ["1066", "in 1066"]),
    ("an", ["a"]),
    ("Café  de Flore!", ["café de flore"]),
    ("northern", ["southern France", "the south"]),
    ("the the dog dog", ["dog the cat dog cat"]),
    ("", ["something"]),
    ("U.S.", ["us", "United States"]),
]


def test_squad_scores_equal_torchmetrics():
    from torchmetrics.text import SQuAD

    for case in [[pair] for pair in ANSWERS] + [ANSWERS]:
        reference = SQuAD()
        for index, (prediction, right) in enumerate(case):
            # The official script takes a question whose answers normalize to nothing for one
            # without an answer; its port compares with "" then.
            right = [text for text in right if normalize_answer(text)] or [""]
            reference.update(
                [{"prediction_text": prediction, "id": str(index)}],
                [{"answers": {"text": right, "answer_start": [0] * len(right)}, "id": str(index)}],
            )
        expected = {name: float(value) / 100 for name, value in reference.compute().items()}
        scores = squad_scores(*zip(*case, strict=True))
        assert scores["exact_match"] == pytest.approx(expected["exact_match"])
        assert scores["f1"] == pytest.approx(expected["f1"])
    # Negative control: articles make a difference.
    assert squad_scores(["the saint"], [["saint"]])["exact_match"] == 1
    assert squad_scores(["their saint"], [["saint"]])["exact_match"] == 0


def test_questions_without_an_answer():
    scores = squad_scores(["", "x", "b c", ""], [[], [], ["b"], ["b"]])
    assert scores == {
        "exact_match": 0.25,
        "f1": pytest.approx((1 + 0 + 2 / 3 + 0) / 4),
        "unanswered_accuracy": 0.5,
        "answered_f1": pytest.approx(1 / 3),
    }
    assert "answered_f1" not in squad_scores([""], [[]])
    with pytest.raises(ValueError, match="1 predictions for 2 questions"):
        squad_scores(["a"], [["a"], ["b"]])


def test_classification_scores_equal_torchmetrics():
    import torch
    from torchmetrics.functional import classification as reference

    rng = np.random.default_rng(0)
    for classes in (2, 5):
        labels = rng.integers(classes, size=200)
        guesses = np.where(rng.random(200) < 0.6, labels, rng.integers(classes, size=200))
        scores = classification_scores(labels.tolist(), guesses.tolist(), classes)
        pair = torch.from_numpy(guesses), torch.from_numpy(labels)
        count = {"num_classes": classes}
        expected = {
            "accuracy": reference.multiclass_accuracy(*pair, **count, average="micro"),
            "f1": reference.binary_f1_score(*pair)
            if classes == 2
            else reference.multiclass_f1_score(*pair, **count, average="macro"),
            "matthews": reference.multiclass_matthews_corrcoef(*pair, **count),
        }
        assert scores == pytest.approx({name: float(value) for name, value in expected.items()})


def test_f1_means_the_same_whichever_classes_occur():
    labels, guesses = [0, 0, 0, 1], [0, 0, 1, 1]
    assert classification_scores(labels, guesses, 2)["f1"] == pytest.approx(2 / 3)  # of class 1
    assert classification_scores(labels, guesses, 3)["f1"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_regression_scores_equal_torchmetrics():
    import torch
    from torchmetrics.functional import (
        mean_squared_error,
        pearson_corrcoef,
        spearman_corrcoef,
    )

    rng = np.random.default_rng(0)
    labels = rng.standard_normal(50)
    guesses = labels + rng.standard_normal(50)
    pair = torch.from_numpy(guesses), torch.from_numpy(labels)
    assert regression_scores(labels, guesses) == pytest.approx(
        {
            "pearson": float(pearson_corrcoef(*pair)),
            "spearman": float(spearman_corrcoef(*pair)),
            "mean_squared_error": float(mean_squared_error(*pair)),
        }
    )
    assert regression_scores([1.0, 2.0], [3.0, 3.0])["pearson"] == 0
    assert regression_scores([1.0], [3.0])["spearman"] == 0


def test_spans_count_with_both_ends_and_their_type():
    tags = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "O"]]
    guesses = [["B-PER", "I-PER", "O", "B-ORG"], ["B-ORG", "I-ORG"]]
    scores = tag_scores(tags, guesses, spans=True)
    assert scores == {
        "accuracy": pytest.approx(4 / 6),
        **dict.fromkeys(("f1", "precision", "recall"), pytest.approx(1 / 3)),
    }
    assert tag_scores(tags, tags, spans=True)["f1"] == 1
    assert tag_scores([["O"]], [["O"]], spans=True)["f1"] == 0  # there is no span to find
    assert tag_scores([["nn", "vb"]], [["nn", "nn"]], spans=False) == {"accuracy": 0.5}
    assert marks_spans(["O", "B-PER", "I-PER"])
    assert not marks_spans(["O", "nn", "vb"])
