"""Ask a model in TensorFlow Serving, over REST and over gRPC.

    pip install requests grpcio tensorflow-serving-api
    python examples/serving_client.py --rest http://localhost:8501 --grpc localhost:8500 \
        --model sentiment "A fine film." "What a bore."

sends the texts to the signature `serving_default`, whose input is `text`, and prints each answer as
a JSON line: {"api": "rest", "outputs": {"label": ["good", "bad"], ...}}. Of --rest and --grpc, one
is enough.
"""

import argparse
import json

import grpc
import numpy as np
import requests
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

SECONDS = 60


def main():
    options = parse_options()
    if options.rest:
        outputs = ask_rest(options.rest, options.model, options.texts)
        print(json.dumps({"api": "rest", "outputs": outputs}), flush=True)
    if options.grpc:
        outputs = ask_grpc(options.grpc, options.model, options.texts)
        print(json.dumps({"api": "grpc", "outputs": outputs}), flush=True)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    parser.add_argument("--rest", metavar="URL", help="such as http://localhost:8501")
    parser.add_argument("--grpc", metavar="HOST:PORT", help="such as localhost:8500")
    parser.add_argument("--model", required=True, help="the name that the server gives it")
    options = parser.parse_args()
    if not (options.rest or options.grpc):
        parser.error("give --rest, --grpc or both")
    return options


def ask_rest(url: str, model: str, texts: list[str]) -> dict[str, list] | list:
    """Ask over REST: one list for each output, a value for each text; of a single output the list.

    Raises:
        SystemExit: If the server answers with an error.
    """
    response = requests.post(
        f"{url.rstrip('/')}/v1/models/{model}:predict",
        json={"signature_name": "serving_default", "inputs": {"text": texts}},
        timeout=SECONDS,
    )
    if not response.ok:
        raise SystemExit(f"REST {response.status_code}: {response.text}")
    return response.json()["outputs"]


def ask_grpc(address: str, model: str, texts: list[str]) -> dict[str, list]:
    """Ask over gRPC: one list for each output, a value for each text.

    Raises:
        SystemExit: If the server answers with an error.
    """
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = "serving_default"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto(texts, dtype=tf.string))
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            response = stub.Predict(request, timeout=SECONDS)
        except grpc.RpcError as error:
            raise SystemExit(f"gRPC {error.code().name}: {error.details()}") from error
    return {name: as_list(tensor) for name, tensor in response.outputs.items()}


def as_list(tensor) -> list:
    """Return a tensor's values; its strings, which are bytes, as text."""
    values = tf.make_ndarray(tensor)
    if values.dtype == object:
        values = np.char.decode(values.astype(bytes), "utf-8")
    return values.tolist()


if __name__ == "__main__":
    main()
