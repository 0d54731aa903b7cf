"""ONNX and OpenVINO exports answer as the Keras model does, with what lies beside them."""

import json

import numpy as np
import onnxruntime
import openvino
import pytest
import tokenizers
from serving_models import CASES, LONG, PIECES, make

from keras_megatron import MegatronBertTokenizer, serving
from keras_megatron.cli import main

TEXTS = CASES["TextClassifier"].x


def run(folder, inputs: dict) -> np.ndarray:
    if (folder / "model.onnx").exists():
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        return session.run(["logits"], inputs)[0]
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(folder / "model.xml", "CPU", hint)
    return model(inputs)["logits"]


def rows_of(folder, texts) -> dict[str, np.ndarray]:
    rows = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(texts)
    arrays = {
        "token_ids": [row.ids for row in rows],
        "segment_ids": [row.type_ids for row in rows],
        "padding_mask": [row.attention_mask for row in rows],
    }
    return {name: np.array(array, "int32") for name, array in arrays.items()}


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_the_folder_answers_without_keras(tmp_path, format):
    model = make("TextClassifier")
    exported = serving.export(model, tmp_path / "model", format=format)
    assert exported.folder == tmp_path / "model"
    logits = run(exported.folder, rows_of(exported.folder, TEXTS))
    np.testing.assert_allclose(logits, model.predict(TEXTS, verbose=0), atol=2e-5)
    assert np.abs(logits[:1] - logits[1:2]).max() > 1e-3  # the control
    facts = json.loads((exported.folder / "model.json").read_text())
    assert facts["task"] == "MegatronBertTextClassifier"
    assert facts["class_names"] == ["bad", "good"]
    assert facts["sequence_length"] == 20


@pytest.mark.backend_independent
def test_the_tokenizer_makes_the_rows_of_encode():
    ours = MegatronBertTokenizer(PIECES)
    theirs = ours.to_tokenizers(sequence_length=12)
    pairs = [(first, second) for first in TEXTS for second in (*TEXTS[::-1], LONG)]
    for samples in (TEXTS, pairs):
        rows = theirs.encode_batch(samples)
        columns = list(zip(*samples, strict=True)) if samples is pairs else [samples]
        arrays = ours.encode(*columns, sequence_length=12, pad_to_longest=True)
        assert [row.ids for row in rows] == arrays["token_ids"].tolist()
        assert [row.type_ids for row in rows] == arrays["segment_ids"].tolist()
        assert [row.attention_mask for row in rows] == arrays["padding_mask"].tolist()


@pytest.mark.backend_independent
def test_the_command_and_its_errors(tmp_path, capsys):
    make("TextClassifier").save_to_preset(tmp_path / "preset")
    command = ["export", "--preset", str(tmp_path / "preset"), "--format", "onnx"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, str(tmp_path / "model"), "--precision", "int8"])
    assert stopped.value.code == 0
    assert json.loads((tmp_path / "model" / "model.json").read_text())["precision"] == "int8"
    for arguments, message in (
        ([str(tmp_path / "model")], "exists already"),
        ([str(tmp_path / "other"), "--precision", "bfloat16"], "bfloat16"),
        ([str(tmp_path / "other"), "--precision", "int2"], "not 'int2'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*command, *arguments])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
