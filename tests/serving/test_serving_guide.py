"""The requests of docs/serving.md, and many clients at once, at a model that was exported."""

import concurrent.futures
import pathlib
import re

import keras
import numpy as np
import pytest
import requests
from asking import grpc_predict, rest_post, rest_predict
from google.protobuf import text_format
from server_process import running_server
from serving_models import CASES, make
from tensorflow_serving.apis import predict_pb2

from keras_megatron import serving

GUIDE = (pathlib.Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
TEXTS = CASES["TextClassifier"].x
CLIENTS = 64

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="in-process on TensorFlow"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "sentiment"
    model = make("TextClassifier")
    serving.export(model, folder)
    with running_server(folder, name="sentiment") as server:
        yield model, server
        assert server.process.poll() is None, "the server has died"


def test_the_json_of_the_guide(served):
    model, server = served
    expected = model.classify(["A fine film.", "What a bore."])
    columns, rows = blocks("json")
    answer = rest_post(server, data=columns).json()["outputs"]
    assert answer["label"] == [row["label"] for row in expected]
    np.testing.assert_allclose(answer["score"], [row["score"] for row in expected], atol=2e-5)
    predictions = rest_post(server, data=rows).json()["predictions"]
    assert [row["label"] for row in predictions] == answer["label"]
    assert predictions[0]["scores"] == answer["scores"][0]


def test_the_proto_of_the_guide(served):
    model, server = served
    (proto,) = blocks("proto")
    answer = grpc_predict(server, text_format.Parse(proto, predict_pb2.PredictRequest()))
    expected = model.classify(["A fine film.", "What a bore."])
    np.testing.assert_allclose(answer["score"], [row["score"] for row in expected], atol=2e-5)


def test_the_table_of_the_guide_names_what_is_there(served):
    _, server = served

    metadata = requests.get(f"{server.model_url}/metadata").json()["metadata"]
    signature = metadata["signature_def"]["signature_def"]["serving_default"]
    row = next(line for line in GUIDE.splitlines() if line.startswith("| text classifier"))
    names = set(re.findall(r"`(\w+)`", row))
    assert set(signature["inputs"]) | set(signature["outputs"]) == names


def test_many_clients_at_once_get_their_own_answers(served):
    model, server = served
    texts = [f"{TEXTS[index % 5]} {'was ' * (index % 7)}" for index in range(CLIENTS)]
    expected = [answer["score"] for answer in model.classify(texts)]
    assert len({round(score, 5) for score in expected}) > CLIENTS / 4  # so that they differ
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda text: rest_predict(server, inputs={"text": [text]}), texts))
    scores = [answer.json()["outputs"]["score"][0] for answer in answers]
    np.testing.assert_allclose(scores, expected, atol=2e-5)


@pytest.mark.parametrize(
    "document",
    [
        {"inputs": {"text": [1]}},
        {"inputs": {"word": ["it"]}},
        {"instances": []},
        {"signature_name": "other", "inputs": {"text": ["it"]}},
        {"signature_name": "tensors", "inputs": {"token_ids": [[1, 2]]}},
        {
            "signature_name": "tensors",
            "inputs": {
                "token_ids": [[2, 10_000_000, 3]],
                "segment_ids": [[0, 0, 0]],
                "padding_mask": [[1, 1, 1]],
            },
        },
    ],
)
def test_malformed_requests_get_an_error_and_the_server_lives(served, document):
    _, server = served
    answer = rest_predict(server, **document)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert rest_predict(server, inputs={"text": ["it was"]}).ok


def test_long_and_broken_texts_are_answered(served):
    model, server = served
    long = "it was the best of times " * 400_000  # 10 MB
    answer = rest_predict(server, inputs={"text": [long]})
    expected = model.classify(long)["score"]
    np.testing.assert_allclose(answer.json()["outputs"]["score"], [expected], atol=2e-5)
    broken = b'{"inputs": {"text": ["it \xff\xfe was"]}}'
    assert rest_post(server, data=broken).json()["outputs"]["label"]
