"""Requests to `plain_saved_model` that a server must refuse, and part of what it says of each."""

from asking import predict_request

ROW = {"token_ids": [1, 2], "segment_ids": [0, 1], "padding_mask": [1, 1]}
COLUMNS = {name: [values] for name, values in ROW.items()}


def _tokens(values) -> dict:
    return {"instances": [ROW | {"token_ids": values}], "signature_name": "tensors"}


REST_DOCUMENTS = [
    ({"instances": [1]}, "not of expected type: string"),
    ({"instances": [None]}, "Null"),
    ({"instances": []}, "No values"),
    ({"instances": "text"}, "list/array"),
    ({"instances": ["a", ["b"]]}, "Expecting shape"),
    ({"instances": ["a", {"text": "b"}]}, "got object at item 1"),
    ({"instances": [{"txt": "a"}]}, "named input: txt"),
    ({"instances": [{"text": "a", "more": "b"}]}, "named input: more"),
    ({"instances": [{}]}, "must be equal to: text"),
    ({"instances": ["a"], "inputs": ["a"]}, "only one of"),
    ({"inputs": {}}, "Missing named input: text"),
    ({"inputs": [["a"], "b"]}, "incorrect level"),
    ({"inputs": [["a"], ["b", "c"]]}, "unexpected size: 2"),
    ({"inputs": {"b64": "a b?"}}, "base64"),
    ({"inputs": [{"b64": 1}]}, "not formatted correctly for base64"),
    ({"inputs": "a"}, "axis"),  # a scalar: the model fails
    ({}, "Missing 'inputs' or 'instances'"),
    ({"instances": ["a"], "signature_name": "none"}, "not found in signature def"),
    ({"instances": ["a"], "signature_name": 1}, "must be a string"),
    (_tokens([1.0, 2]), "1.0 Type: Number is not of expected type: int32"),
    (_tokens([True, 2]), "true Type: Bool is not of expected type: int32"),
    (_tokens([2**31, 2]), "Number is not of expected type: int32"),
    (_tokens(["1", 2]), "String is not of expected type: int32"),
    (_tokens([1, 2, 3]), "shape"),
    ({"instances": [ROW, _tokens([1])["instances"][0]], "signature_name": "tensors"}, "shape"),
    ({"instances": [[1, 2]], "signature_name": "tensors"}, "list of objects"),
    ({"inputs": [[1, 2]], "signature_name": "tensors"}, "expecting an object"),
    ({"inputs": COLUMNS | {"token_ids": [[1]] * 3}, "signature_name": "tensors"}, "shape"),
    ({"inputs": [2**24], "signature_name": "half"}, "without loss of precision"),
    ({"inputs": [1e39], "signature_name": "half"}, "without loss of precision"),
    ({"inputs": [1.0], "signature_name": "half"}, "write JSON value for tensor type: float16"),
]

NO_JSON = [
    b"",
    b"{",
    b"[]",
    b'{"instances": ["a"]} more',
    b"\xff{}",
    '{"instances": ["a"]}'.encode("utf-16"),
    b'{"instances": ["\\ud800"]}',
    b'{"instances": ["\\uDC80"]}',
    b'{"inputs": [1e400], "signature_name": "half"}',
    b'{"inputs": ' + b"[" * 300 + b"]" * 300 + b"}",
    b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
]

NOT_THERE = [
    ("POST", "/v1/models/other:predict", 404),
    ("POST", "/v1/models/model/versions/9:predict", 404),
    ("GET", "/v1/models/other", 404),
    ("GET", "/v1/models/model/versions/9/metadata", 404),
    ("POST", "/v1/models/model:classify", 400),
    ("GET", "/v1/models/model:predict", 400),
    ("PUT", "/v1/models/model", 400),
]

GRPC_REQUESTS = [
    (predict_request(text=[1]), "INVALID_ARGUMENT", "string"),
    (predict_request(), "INVALID_ARGUMENT", "Missing but required: ['text']"),
    (predict_request(txt=["a"]), "INVALID_ARGUMENT", "not found in signature: ['txt']"),
    (predict_request(text=["a"], more=["b"]), "INVALID_ARGUMENT", "Sent extra: ['more']"),
    (predict_request(text="a"), "INVALID_ARGUMENT", "axis"),
    (predict_request(text=["a"], outputs=["none"]), "INVALID_ARGUMENT", "['none']"),
    (predict_request(text=["a"], outputs=["label"] * 2), "INVALID_ARGUMENT", "duplicate"),
    (predict_request("none", text=["a"]), "FAILED_PRECONDITION", '"none" not found'),
    (predict_request(model="other", text=["a"]), "NOT_FOUND", "Latest(other)"),
]

POST = b"POST /v1/models/model:predict HTTP/1.1\r\nHost: a\r\n"
BROKEN_HTTP = [  # and what the answer has; None: the client does not wait for one
    (b"\x16\x03\x01nonsense\r\n\r\n", b"error"),
    (POST + b"Content-Length: -1\r\n\r\n", b"400"),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", b"400"),
    (POST + b"Content-Length: 100\r\n\r\n{", None),
]
