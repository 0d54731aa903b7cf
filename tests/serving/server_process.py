"""Runs `serving_stand_in.py` as a process for as long as a test needs it."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

STAND_IN = pathlib.Path(__file__).with_name("serving_stand_in.py")
SECONDS_TO_STOP = 20


@dataclasses.dataclass(frozen=True)
class RunningServer:
    """Where a server answers.

    Attributes:
        rest: The base URL of the REST API, such as "http://127.0.0.1:8501".
        grpc: The address of the gRPC API, such as "127.0.0.1:8500".
        name: The model's name.
        version: The version that is served.
        warmup_requests: How many recorded requests were replayed at the start.
        process: The server.
    """

    rest: str
    grpc: str
    name: str
    version: int
    warmup_requests: int
    process: subprocess.Popen

    @property
    def model_url(self) -> str:
        return f"{self.rest}/v1/models/{self.name}"


@contextlib.contextmanager
def running_server(base_folder: str | os.PathLike, name: str = "model"):
    """Serve the highest version below a folder; the server ends with the `with` block.

    Yields:
        A `RunningServer`.

    Raises:
        RuntimeError: If the server does not start; it has what the server said last.
    """
    command = [sys.executable, str(STAND_IN), os.fspath(base_folder), "--name", name]
    command += ["--rest-port", "0", "--grpc-port", "0", "--stop-with-stdin"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            line = process.stdout.readline()
            if not line:
                process.wait()
                log.seek(0)
                last = log.read().decode("utf-8", "replace").strip()[-2000:]
                raise RuntimeError(f"the server did not start: {last}")
            yield _running(json.loads(line), process)
        finally:
            _stop(process)


def _running(ready: dict, process: subprocess.Popen) -> RunningServer:
    return RunningServer(
        rest=f"http://127.0.0.1:{ready['rest_port']}",
        grpc=f"127.0.0.1:{ready['grpc_port']}",
        name=ready["name"],
        version=ready["version"],
        warmup_requests=ready["warmup_requests"],
        process=process,
    )


def _stop(process: subprocess.Popen) -> None:
    with contextlib.suppress(OSError):  # it may have ended
        process.stdin.close()
    try:
        process.wait(SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
