"""Requests to a `RunningServer`, over REST and over gRPC."""

import contextlib

import grpc
import pytest
import requests
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

SECONDS = 60


def rest_predict(server, version: str = "", **document) -> requests.Response:
    """Post a predict request; `version` is such as "/versions/1"."""
    return rest_post(server, version, json=document)


def rest_post(server, version: str = "", **body) -> requests.Response:
    """Post any body to where predict requests go."""
    return requests.post(f"{server.model_url}{version}:predict", timeout=SECONDS, **body)


def predict_request(
    signature_name: str = "", model: str = "model", outputs=(), **inputs
) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name = model
    request.model_spec.signature_name = signature_name
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    return request


@contextlib.contextmanager
def grpc_stub(server):
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.grpc, options=options) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def grpc_predict(server, request: predict_pb2.PredictRequest) -> dict[str, list]:
    """Return the outputs as nested lists; strings are bytes."""
    with grpc_stub(server) as stub:
        response = stub.Predict(request, timeout=SECONDS)
    return {name: tf.make_ndarray(value).tolist() for name, value in response.outputs.items()}


def grpc_error(server, request, method: str = "Predict") -> grpc.RpcError:
    """Return the error that the server must answer."""
    with grpc_stub(server) as stub, pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(request, timeout=SECONDS)
    return caught.value
