import concurrent.futures
import json
import math
import pathlib
import runpy
import socket
import sys
import threading

import grpc
import malformed_requests
import numpy as np
import pytest
import requests
import tensorflow as tf
from asking import (
    SECONDS,
    grpc_error,
    grpc_predict,
    grpc_stub,
    predict_request,
    rest_post,
    rest_predict,
)
from malformed_requests import COLUMNS, ROW
from plain_saved_model import save_plain_model, write_warmup
from server_process import running_server
from tensorflow_serving.apis import get_model_metadata_pb2

pytestmark = pytest.mark.backend_independent

CLIENT = pathlib.Path(__file__).parents[2] / "examples" / "serving_client.py"
LARGE = 10 * 2**20


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory):
    """Of versions 10, with two warm-up requests, and 9, which no server could load."""
    base = tmp_path_factory.mktemp("served")
    save_plain_model(base / "10")
    write_warmup(base / "10", [predict_request(text=["warm"]), predict_request(text=["up", "!"])])
    (base / "9").mkdir()
    (base / "9" / "saved_model.pb").write_bytes(b"no model")
    with running_server(base) as server:
        yield server
    assert server.process.returncode == 0  # it ended by itself


@pytest.fixture
def server(shared_server):
    """The server, which must still answer both ways after the test."""
    yield shared_server
    assert shared_server.process.poll() is None
    (row,) = rest_predict(shared_server, instances=["alive"]).json()["predictions"]
    assert row["label"] == "ALIVE"
    assert grpc_predict(shared_server, predict_request(text=["alive"]))["label"] == [b"ALIVE"]


def test_the_highest_version_is_served_and_warmed_up(server):
    assert (server.version, server.warmup_requests) == (10, 2)
    (status,) = requests.get(server.model_url, timeout=SECONDS).json()["model_version_status"]
    ok = {"error_code": "OK", "error_message": ""}
    assert status == {"version": "10", "state": "AVAILABLE", "status": ok}


def test_metadata_over_rest(server):
    answer = requests.get(f"{server.model_url}/versions/10/metadata", timeout=SECONDS).json()
    assert answer["model_spec"] == {"name": "model", "signature_name": "", "version": "10"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert signatures["serving_default"]["inputs"] == {
        "text": {
            "dtype": "DT_STRING",
            "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
            "name": "serving_default_text:0",
        }
    }
    assert signatures["serving_default"]["method_name"] == "tensorflow/serving/predict"
    logits = signatures["tensors"]["outputs"]["logits"]
    assert logits["dtype"] == "DT_FLOAT"
    assert [dim["size"] for dim in logits["tensor_shape"]["dim"]] == ["-1", "2"]


def test_metadata_over_grpc(server):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "model"
    with grpc_stub(server) as stub:
        answer = stub.GetModelMetadata(request, timeout=SECONDS)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    assert answer.model_spec.version.value == 10
    inputs = signatures.signature_def["tensors"].inputs
    assert {name: tf.as_dtype(info.dtype).name for name, info in inputs.items()} == {
        "token_ids": "int32",
        "segment_ids": "int32",
        "padding_mask": "int32",
    }
    for fields in ([], ["size"]):
        request.metadata_field[:] = fields
        error = grpc_error(server, request, "GetModelMetadata")
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_rows_of_several_outputs_are_objects(server):
    named = rest_predict(server, signature_name="serving_default", instances=[{"text": "añb"}])
    plain = rest_predict(server, "/versions/10", instances=["añb"])
    assert named.json() == plain.json()
    (row,) = plain.json()["predictions"]
    assert row["label"] == "AñB"  # tf.strings.upper knows ASCII
    assert row["score"] == pytest.approx(math.log(4), rel=1e-6)
    assert row["scores"] == [0.25, 0.0]


def test_columns_of_several_outputs_are_an_object(server):
    for inputs in ({"text": ["a", "bcd"]}, ["a", "bcd"]):
        outputs = rest_predict(server, inputs=inputs).json()["outputs"]
        assert outputs["label"] == ["A", "BCD"]
        assert np.float32(outputs["scores"][1][0]) == np.float32(1) / np.float32(3)


def test_a_single_output_has_no_name(server):
    rows = rest_predict(server, signature_name="tensors", instances=[ROW, ROW])
    assert rows.json() == {"predictions": [[3.0, 1.0], [3.0, 1.0]]}
    columns = rest_predict(server, signature_name="tensors", inputs=COLUMNS)
    assert columns.json() == {"outputs": [[3.0, 1.0]]}


def test_numbers_are_written_as_the_real_server_does(server):
    text = rest_predict(server, instances=["", "abc", "a"]).text
    assert '"score": -Infinity' in text
    assert '"scores": [Infinity, NaN]' in text
    assert '"score": 1.09861231' in text  # nine digits where six do not give it back
    assert '"scores": [1.0, 0.0]' in text


def test_bytes_travel_as_base64(server):
    value, data = {"b64": "/wBh"}, b"\xff\0a"
    for instance in (value, {"raw": value}):
        answer = rest_predict(server, signature_name="raw", instances=[instance])
        assert answer.json() == {"predictions": [value]}
    answer = rest_predict(server, signature_name="raw", inputs={"raw": [value, "a"]})
    assert answer.json() == {"outputs": [value, {"b64": "YQ=="}]}
    assert grpc_predict(server, predict_request("raw", raw=[data])) == {"copy_bytes": [data]}


def test_grpc_answers_in_the_fields_of_the_types(server):
    with grpc_stub(server) as stub:
        request = predict_request(text=["a", "bb"], outputs=["label", "scores"])
        response = stub.Predict(request, timeout=SECONDS)
    assert set(response.outputs) == {"label", "scores"}
    assert list(response.outputs["label"].string_val) == [b"A", b"BB"]
    assert list(response.outputs["scores"].float_val) == [1.0, 0.0, 0.5, 0.0]
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("model", 10, "serving_default")
    tokens = predict_request("tensors", **COLUMNS)
    assert grpc_predict(server, tokens) == {"logits": [[3.0, 1.0]]}


def test_64_clients_at_once_get_their_own_answers(server):
    barrier = threading.Barrier(64)

    def client(number):
        barrier.wait(SECONDS)
        answers = []
        for turn in range(4):
            text = f"client {number} turn {turn}"
            if number % 2:
                answers += grpc_predict(server, predict_request(text=[text]))["label"]
            else:
                (row,) = rest_predict(server, instances=[text]).json()["predictions"]
                answers.append(row["label"].encode())
        return answers

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(client, range(64)))
    assert answers == [[b"CLIENT %d TURN %d" % (n, t) for t in range(4)] for n in range(64)]


@pytest.mark.parametrize(("document", "part"), malformed_requests.REST_DOCUMENTS)
def test_a_wrong_rest_request_is_a_400(server, document, part):
    response = rest_predict(server, **document)
    assert response.status_code == 400
    assert part in response.json()["error"]


@pytest.mark.parametrize(
    "body", malformed_requests.NO_JSON, ids=range(len(malformed_requests.NO_JSON))
)
def test_what_is_no_json_is_a_400(server, body):
    response = rest_post(server, data=body)
    assert response.status_code == 400
    assert response.json()["error"]


@pytest.mark.parametrize(("method", "path", "status"), malformed_requests.NOT_THERE)
def test_what_is_not_there(server, method, path, status):
    body = json.dumps({"instances": ["a"]})
    response = requests.request(method, server.rest + path, data=body, timeout=SECONDS)
    assert response.status_code == status
    assert response.json()["error"]


@pytest.mark.parametrize(("asked", "code", "part"), malformed_requests.GRPC_REQUESTS)
def test_a_wrong_grpc_request(server, asked, code, part):
    error = grpc_error(server, asked)
    assert error.code().name == code
    assert part in error.details()


def test_grpc_requests_that_are_broken(server):
    request = predict_request(text=["a"])
    request.model_spec.version.value = 9
    assert grpc_error(server, request).code() is grpc.StatusCode.NOT_FOUND
    request = predict_request("tensors", **COLUMNS)
    request.inputs["token_ids"].tensor_content = b"odd"
    assert grpc_error(server, request).code() is grpc.StatusCode.INVALID_ARGUMENT
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff no message", timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.INTERNAL


def test_requests_that_look_wrong_and_are_fine(server):
    empty = rest_predict(server, inputs={"text": [], "passed over": 1}).json()
    assert empty == {"outputs": {"label": [], "score": [], "scores": []}}
    nothing = predict_request(text=tf.constant([], tf.string))
    assert grpc_predict(server, nothing) == {"label": [], "score": [], "scores": []}
    body = b'{"instances": ["\xff"], "other": 1}'  # the real server checks no UTF-8 in strings
    assert b'"label": "\xff"' in rest_post(server, data=body).content


def test_a_string_of_10_megabytes(server):
    (row,) = rest_predict(server, instances=["a" * LARGE]).json()["predictions"]
    assert row["label"] == "A" * LARGE
    answer = grpc_predict(server, predict_request(text=["a" * LARGE]))
    assert answer["label"] == [b"A" * LARGE]
    for name in ("half", "a" * LARGE):  # wrong, and what the server says of it stays short
        wrong = rest_predict(server, signature_name=name, instances=["a" * LARGE])
        assert wrong.status_code == 400
        assert len(wrong.content) < 2000
    error = grpc_error(server, predict_request("a" * LARGE, text=["a"]))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_clients_that_speak_no_http_or_go_away(server):
    address = ("127.0.0.1", int(server.rest.rpartition(":")[2]))
    for data, answer in malformed_requests.BROKEN_HTTP:
        with socket.create_connection(address, timeout=SECONDS) as connection:
            connection.sendall(data)
            if answer is not None:
                assert answer in b"".join(iter(lambda c=connection: c.recv(4096), b""))


def test_the_example_client(server, monkeypatch, capsys):
    command = [str(CLIENT), "--rest", server.rest, "--grpc", server.grpc, "--model", "model"]
    monkeypatch.setattr(sys, "argv", [*command, "A fine film.", "Dull."])
    runpy.run_path(str(CLIENT), run_name="__main__")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["api"] for line in lines] == ["rest", "grpc"]
    for line in lines:
        assert line["outputs"]["label"] == ["A FINE FILM.", "DULL."]
        assert line["outputs"]["score"] == pytest.approx([math.log(12), math.log(5)], rel=1e-6)
    monkeypatch.setattr(sys, "argv", [*command[:5], "--model", "other", "A fine film."])
    with pytest.raises(SystemExit, match=r"REST 404.*Servable not found"):
        runpy.run_path(str(CLIENT), run_name="__main__")
