"""A small HTTP server on the loopback that knows ranges, and fails as servers fail."""

import contextlib
import dataclasses
import http.server
import threading


@dataclasses.dataclass
class Fault:
    """How one answer goes wrong.

    Attributes:
        status: Answer this status and no body.
        location: Redirect to this address.
        retry_after: With the status, when to ask again.
        cut_after: Break the connection after so many bytes of the body.
        stall_after: Fall silent after so many bytes, until `go_on` is set or the server stops.
        ignore_range: Send the whole file whatever was asked.
        promise: Add this to the true Content-Length.
        chunked: Send chunks and no Content-Length.
    """

    status: int | None = None
    location: str | None = None
    retry_after: str | None = None
    cut_after: int | None = None
    stall_after: int | None = None
    ignore_range: bool = False
    promise: int = 0
    chunked: bool = False


class FileServer(http.server.ThreadingHTTPServer):
    """Serves one body at every path.

    Attributes:
        body: The file.
        headers: Of each good answer; by default a strong ETag.
        faults: One for each of the next requests; then all goes well.
        requests: Path and Range header of each request so far.
        bodies: Of each answer with a body, the index of its first byte and how many were sent.
    """

    daemon_threads = True

    def __init__(self, body: bytes):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body = body
        self.headers = {"ETag": '"first"'}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str | None]] = []
        self.bodies: list[list[int]] = []
        self.go_on = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Say nothing when a client goes away: tests kill some."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append((self.path, asked))
        fault = server.faults.pop(0) if server.faults else Fault()
        if fault.status or fault.location:
            self.send_response(fault.status or 302)
            if fault.location:
                self.send_header("Location", fault.location)
            if fault.retry_after:
                self.send_header("Retry-After", fault.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        begin = self._begin(asked) if asked and not fault.ignore_range else 0
        if begin >= len(server.body):
            self.send_error(416)
            return
        self._send(begin, bool(asked) and begin > 0, fault)

    def _begin(self, asked: str) -> int:
        condition = self.headers.get("If-Range")
        if condition and condition not in self.server.headers.values():
            return 0
        return int(asked.removeprefix("bytes=").rstrip("-"))

    def _send(self, begin: int, partial: bool, fault: Fault) -> None:
        body = self.server.body[begin:]
        self.send_response(206 if partial else 200)
        if partial:
            whole = len(self.server.body)
            self.send_header("Content-Range", f"bytes {begin}-{whole - 1}/{whole}")
        if fault.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        else:
            self.send_header("Content-Length", str(len(body) + fault.promise))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.server.bodies.append([begin, 0])
        end = next((n for n in (fault.cut_after, fault.stall_after) if n is not None), len(body))
        self.wfile.write(body[:end])
        self.wfile.flush()
        self.server.bodies[-1][1] = min(end, len(body))
        if fault.stall_after is not None and self.server.go_on.wait(120):
            with contextlib.suppress(OSError):  # the client may have gone
                self.wfile.write(body[end:])
        self.close_connection = fault.cut_after is not None or fault.promise != 0

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(body: bytes):
    """Run a `FileServer` in a thread."""
    server = FileServer(body)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
