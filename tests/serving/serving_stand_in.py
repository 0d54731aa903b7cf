"""A stand-in for TensorFlow Serving, for tests only: not for production.

    python serving_stand_in.py BASE_FOLDER --name sentiment --rest-port 8501 --grpc-port 8500

Serves the highest version below BASE_FOLDER on the loopback: predictions, status and metadata over
the REST API, `Predict` and `GetModelMetadata` over gRPC. The formats are the real server's; there
is no batching, no reloading, no classify or regress. Prints one JSON line when it is ready:

    {"rest_port": 8501, "grpc_port": 8500, "name": "sentiment", "version": 1, "warmup_requests": 0}

It knows TensorFlow, TensorFlow Text and the protos of tensorflow-serving-api, not this package.
"""

import argparse
import concurrent.futures
import contextlib
import http.server
import json
import pathlib
import re
import sys
import threading
import urllib.parse

import grpc
from google.protobuf import json_format
from rest_inputs import read_request
from rest_outputs import columnar_text, row_text
from served_model import ServedModel, ServingError, invalid
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    prediction_service_pb2_grpc,
)

PREDICT = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?:predict", re.IGNORECASE)
STATUS = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?(/metadata)?", re.IGNORECASE)
HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
}
GRPC_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a port that is taken is an error
    ("grpc.max_receive_message_length", -1),  # as in the real server
    ("grpc.max_send_message_length", -1),
)


class _RestServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # many clients connect at once

    def __init__(self, port: int, model: ServedModel):
        super().__init__(("127.0.0.1", port), _RestHandler)
        self.model = model

    def handle_error(self, request, client_address):
        """Say nothing when a client goes away."""


class _RestHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: the second would wait for the client

    def _reply(self):
        status = 200
        try:
            text = self._answer(self._body())
        except ServingError as error:
            status = HTTP_STATUS.get(error.code, 500)
            text = json.dumps({"error": error.message})
        except RecursionError:
            status, text = 400, json.dumps({"error": "JSON Parse error: nested too deeply"})
        except Exception as error:  # the server lives on
            status, text = 500, json.dumps({"error": f"{type(error).__name__}: {error}"[:1000]})
        self._send(status, text)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _reply

    def handle_expect_100(self):
        super().handle_expect_100()
        self.wfile.flush()  # the client waits for it before it sends the body
        return True

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # where the next request begins is unknown
            raise invalid("a request needs a Content-Length")
        return self.rfile.read(int(length))

    def _answer(self, body: bytes) -> str:
        path, model = urllib.parse.urlsplit(self.path).path, self.server.model
        if self.command == "POST" and (match := PREDICT.fullmatch(path)):
            self._check_name(match)
            signature_name, inputs, rows = read_request(model, body)
            outputs = model.run(signature_name, inputs)
            return row_text(outputs) if rows else columnar_text(outputs)
        if self.command == "GET" and (match := STATUS.fullmatch(path)):
            self._check_name(match)
            return _metadata_text(model) if match[3] else _status_text(model)
        raise invalid(f"Malformed request: {self.command} {path}")

    def _check_name(self, match: re.Match) -> None:
        version = int(match[2]) if match[2] else None
        self.server.model.check_name(urllib.parse.unquote(match[1]), version)

    def _send(self, status: int, text: str) -> None:
        body = text.encode("utf-8", "surrogateescape")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code, message=None, explain=None):
        """Answer what is no HTTP in JSON too."""
        self.close_connection = True
        self._send(code, json.dumps({"error": message or "malformed HTTP"}))

    def log_message(self, *arguments):
        pass


def _as_dict(message) -> dict:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _status_text(model: ServedModel) -> str:
    response = get_model_status_pb2.GetModelStatusResponse()
    available = get_model_status_pb2.ModelVersionStatus.State.AVAILABLE
    response.model_version_status.add(version=model.version, state=available).status.error_code = 0
    return json.dumps(_as_dict(response), indent=1)


def _metadata_text(model: ServedModel) -> str:
    spec = {"name": model.name, "signature_name": "", "version": str(model.version)}
    signatures = {"signature_def": _as_dict(_signature_map(model))}
    return json.dumps({"model_spec": spec, "metadata": signatures}, indent=1)


def _signature_map(model: ServedModel) -> get_model_metadata_pb2.SignatureDefMap:
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in model.signature_defs.items():
        signatures.signature_def[name].CopyFrom(definition)
    return signatures


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, model: ServedModel):
        self._model = model

    def Predict(self, request, context):
        with _grpc_errors(context):
            self._model.check_spec(request.model_spec)
            return self._model.predict(request)

    def GetModelMetadata(self, request, context):
        with _grpc_errors(context):
            if not request.HasField("model_spec"):
                raise invalid("Missing ModelSpec")
            if not request.metadata_field:
                raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
            if unknown := set(request.metadata_field) - {"signature_def"}:
                raise invalid(f"Metadata field {sorted(unknown)} is not supported")
            self._model.check_spec(request.model_spec)
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.model_spec.name = self._model.name
            response.model_spec.version.value = self._model.version
            response.metadata["signature_def"].Pack(_signature_map(self._model))
            return response


@contextlib.contextmanager
def _grpc_errors(context: grpc.ServicerContext):
    try:
        yield
    except ServingError as error:
        context.abort(error.code, error.message)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base_folder", type=pathlib.Path)
    parser.add_argument("--name", default="model")
    parser.add_argument("--rest-port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--grpc-port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--stop-with-stdin", action="store_true", help="end when the input ends")
    options = parser.parse_args()
    try:
        model = ServedModel(options.base_folder, options.name)
        replayed = model.warm_up()
    except (ServingError, OSError) as error:
        sys.exit(f"cannot serve {options.base_folder}: {error}")
    rest = _RestServer(options.rest_port, model)
    threading.Thread(target=rest.serve_forever, daemon=True).start()
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=16)
    service = grpc.server(pool, options=GRPC_OPTIONS)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        _PredictionService(model), service
    )
    grpc_port = service.add_insecure_port(f"127.0.0.1:{options.grpc_port}")
    service.start()
    ready = {"rest_port": rest.server_port, "grpc_port": grpc_port, "name": model.name,
             "version": model.version, "warmup_requests": replayed}  # fmt: skip
    print(json.dumps(ready), flush=True)
    if options.stop_with_stdin:
        sys.stdin.read()
        service.stop(grace=None)
    else:
        service.wait_for_termination()


if __name__ == "__main__":
    main()
