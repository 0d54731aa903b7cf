"""SavedModels answer strings as the Keras models do, in a process without this package.

On TensorFlow every task; on the other backends two, which a process of TensorFlow's writes.
"""

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from bert_reference import HARD_TEXTS, tokenizer
from comparing import (
    as_json,
    ask,
    ask_fresh_process,
    difference,
    inputs_of,
    keras_answers,
    served_answers,
)
from models import randomize, small_backbone
from serving_models import CASES, LONG, PIECES, TEXTS, make, random_inputs

from keras_megatron import (
    MegatronBertTokenClassifier,
    MegatronBertTokenClassifierPreprocessor,
    MegatronBertTokenizer,
    serving,
)
from keras_megatron.serving.answers.endpoint import WINDOWS

BACKEND = keras.backend.backend()
NAMES = list(CASES) if BACKEND == "tensorflow" else ["TextClassifier", "TokenClassifier"]
tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason="in-process on TensorFlow")


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Export a small model of each task; ask them all in one fresh process."""
    folder = tmp_path_factory.mktemp("exports")
    models = {name: make(name) for name in NAMES}
    exported = {name: serving.export(model, folder / name) for name, model in models.items()}
    jobs = [
        {
            "folder": str(exported[name].folder),
            "signature": "serving_default",
            "inputs": inputs_of(name, CASES[name].x),
            "batch": 3,
        }
        for name in NAMES
    ]
    return models, exported, dict(zip(NAMES, ask_fresh_process(jobs), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_strings_give_the_answers_of_keras(exports, name):
    models, _, outputs = exports
    x = CASES[name].x
    served = served_answers(name, outputs[name], x)
    expected = keras_answers(name, models[name], x)
    assert len(served) == len(expected) > 3
    assert difference(served, expected) < 2e-5
    # The control: the answers to other samples.
    assert difference(served[:2], expected[2:4]) > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_tensors_give_the_logits_of_keras(exports, name):
    models, exported, _ = exports
    model = models[name]
    rng = np.random.default_rng(0)
    for rows, length in ((1, 7), (3, 20)):
        inputs = random_inputs(rng, model, rows, length)
        expected = model.logits(inputs)
        served = ask(exported[name].folder, "tensors", **inputs)
        assert list(served) == ["embedding" if name == "TextEmbedder" else "logits"]
        (served,) = served.values()
        assert served.dtype == tf.float32
        served = served.numpy()
        # What a model makes of padding is nobody's answer: Keras may leave it out.
        real = np.s_[:] if model.outputs_for != "tokens" else inputs["padding_mask"] == 1
        np.testing.assert_allclose(served[real], expected[real], atol=2e-5)
        inputs["segment_ids"] = 1 - inputs["segment_ids"]
        assert np.abs(model.logits(inputs) - served)[real].max() > 1e-3  # the control


@tensorflow_only
@pytest.mark.parametrize("name", CASES)
def test_no_samples_have_no_answers(exports, name):
    _, exported, _ = exports
    none = tf.zeros([0], tf.string)
    inputs = dict.fromkeys(exported[name].signatures["serving_default"]["inputs"], none)
    if name == "MultipleChoice":
        inputs["choices"] = tf.zeros([0, 2], tf.string)
    answer = ask(exported[name].folder, **inputs)
    assert {array.shape[0] for array in answer.values()} == {0}


@tensorflow_only
def test_samples_without_a_choice_and_choices_without_text(exports):
    models, exported, _ = exports
    choices = [["", ""], [" ", "it"], ["", "age"]]
    answer = ask(exported["MultipleChoice"].folder, context=["it"] * 3, choices=choices)
    assert decoded(answer["text"])[0] == ""
    assert decoded(answer["scores"])[::2] == [[0.0, 0.0], [0.0, 1.0]]
    expected = models["MultipleChoice"].choose(["it"], choices[1:2])[0]["scores"]
    np.testing.assert_allclose(answer["scores"][1], expected, atol=2e-5)


@tensorflow_only
def test_prompts_without_tokens_begin_with_cls(tmp_path):
    model = make("CausalLM")
    model.preprocessor.add_start_token = False
    folder = serving.export(model, tmp_path / "model", warmup=False).folder
    answer = decoded(ask(folder, prompt=["it was", "", "\u200b"])["text"])
    assert answer == model.generate(["it was", "[CLS]", "[CLS]"])
    assert answer[0] != answer[1]


@tensorflow_only
def test_a_random_sampler_goes_on_from_its_seed(tmp_path):
    model = make("CausalLM")
    model.compile(sampler=keras_hub.samplers.RandomSampler(seed=3))
    folder = serving.export(model, tmp_path / "model", warmup=False).folder
    answer = tf.saved_model.load(str(folder)).signatures["serving_default"]
    drawn = [decoded(answer(prompt=tf.constant(["it"] * 4))["text"]) for _ in range(2)]
    assert drawn == [model.generate(["it"] * 4) for _ in range(2)]
    assert drawn[0] != drawn[1]


@tensorflow_only
def test_ids_may_be_of_64_bits(tmp_path):
    model = make("MaskedLM")
    model.preprocessor.tokenizer = MegatronBertTokenizer(PIECES, dtype="int64")
    folder = serving.export(model, tmp_path / "model", warmup=False).folder
    x = CASES["MaskedLM"].x
    outputs = {name: decoded(array) for name, array in ask(folder, text=x).items()}
    served = served_answers("MaskedLM", outputs, x)
    assert difference(served, keras_answers("MaskedLM", model, x)) < 2e-5


@tensorflow_only
def test_the_pretrainer_answers_with_both_heads(tmp_path):
    model = make("Pretrainer")
    folder = serving.export(model, tmp_path / "model", top_k=2, warmup=False).folder
    first, second = ["it was the [MASK]", "[MASK] was [MASK]"], ["of times", "the [MASK]"]
    outputs = ask(folder, first=first, second=second)
    inputs = model.preprocessor.tokenizer.encode(first, second)
    rows, columns = np.nonzero(inputs["token_ids"] == model.preprocessor.tokenizer.mask_token_id)
    inputs["mask_positions"] = np.array([[columns[0], 0, 0], columns[rows == 1]], "int32")
    logits = model.logits(inputs)
    assert outputs["masks"].numpy().tolist() == [1, 3]
    probabilities = tf.nn.softmax(
        logits["mlm"][..., : len(model.preprocessor.tokenizer.vocabulary)]
    )
    best = np.sort(probabilities, axis=-1)[..., :-3:-1]
    np.testing.assert_allclose(outputs["scores"][1], best[1], atol=2e-5)
    np.testing.assert_allclose(outputs["follows"], tf.nn.softmax(logits["nsp"])[:, 0], atol=2e-5)


@tensorflow_only
@pytest.mark.parametrize("name", ["TokenClassifier", "QuestionAnswering"])
def test_texts_of_more_windows_than_are_read_at_once(name, tmp_path):
    model = make(name)
    texts = [" ".join([LONG] * 20), TEXTS[0]]
    assert len(model.preprocessor.tokenizer.tokenize(texts[0])) > 20 * WINDOWS
    x = (["the worst of times"] * 2, texts) if name == "QuestionAnswering" else texts
    folder = serving.export(model, tmp_path / "model", warmup=False).folder
    outputs = ask(folder, **inputs_of(name, x))
    outputs = {key: decoded(array) for key, array in outputs.items()}
    served, expected = served_answers(name, outputs, x), keras_answers(name, model, x)
    assert difference(served, expected) < 2e-5
    assert difference(served[:1], expected[1:]) > 1e-4  # the control


@tensorflow_only
@pytest.mark.parametrize(
    "arguments", [{"num_classes": 1}, {"num_classes": 3, "multi_label": True}, {"num_classes": 3}]
)
def test_classifiers_of_every_kind_and_pairs(tmp_path, arguments):
    case = CASES["TextClassifier"]
    model = make("TextClassifier", class_names=False, **arguments)
    exported = serving.export(model, tmp_path / "model", pairs=True, warmup=False)
    x = (case.x, case.x[::-1])
    for signature, samples in (("serving_default", x), ("texts", case.x)):
        outputs = ask(exported.folder, signature, **inputs_of("TextClassifier", samples))
        outputs = {name: decoded(array) for name, array in outputs.items()}
        served = served_answers("TextClassifier", outputs, samples)
        expected = keras_answers("TextClassifier", model, samples)
        assert difference(served, expected) < 2e-5


def decoded(tensor) -> list:
    return as_json(tensor.numpy().tolist())


@tensorflow_only
def test_hard_texts_are_tagged_as_in_python(tmp_path):
    preprocessor = MegatronBertTokenClassifierPreprocessor(
        tokenizer("cased"), sequence_length=32, class_names=["noun", "verb"]
    )
    backbone = small_backbone(vocabulary_size=29000, num_layers=1)
    model = MegatronBertTokenClassifier(backbone, 2, preprocessor)
    randomize(model)
    export = serving.export(model, tmp_path / "model", warmup=False)
    outputs = ask(export.folder, text=HARD_TEXTS)
    outputs = {name: decoded(array) for name, array in outputs.items()}
    served = served_answers("TokenClassifier", outputs, HARD_TEXTS)
    expected = keras_answers("TokenClassifier", model, HARD_TEXTS)
    assert sum(map(len, expected)) > 150
    for text, ours, theirs in zip(HARD_TEXTS, served, expected, strict=True):
        assert difference(ours, theirs) < 2e-5, text
