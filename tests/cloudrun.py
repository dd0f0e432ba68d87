"""What plays Google's side in tests: the metadata server, and what stands before a service."""

import base64
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

EMAIL = "page@example.iam.gserviceaccount.com"
HEADER = "X-Serverless-Authorization"
CANNED = (
    'event: token\ndata: {"text": "Hi"}\n\nevent: done\ndata: {"reason": "stop"}\n\n',
    '{"model": "a model", "engine": "an engine"}',
)


class Metadata:
    """Gives out identity tokens as the metadata server of an instance does."""

    def __init__(self) -> None:
        self.url, self.lives_s, self.status = "", 3600.0, 200
        self.answer: bytes | None = None  # in a token's place
        self.hold = threading.Event()
        self.hold.set()
        self.tokens: dict[str, str] = {}  # and whom they are for

    def make_token(self, audience: str) -> str:
        """Return a new token, unsigned."""
        claims = {"aud": audience, "email": EMAIL, "exp": time.time() + self.lives_s}
        parts = ({"alg": "none"}, claims | {"number": len(self.tokens)}, {})
        encoded = (base64.urlsafe_b64encode(json.dumps(part).encode()) for part in parts)
        token = b".".join(encoded).decode()
        self.tokens[token] = audience
        return token

    def respond(self, caller: BaseHTTPRequestHandler) -> None:
        """Answer a request as the server's documentation says."""
        self.hold.wait(30)
        url, kind, body = urlsplit(caller.path), "application/json", b"{}"
        status = self.status if caller.headers["Metadata-Flavor"] == "Google" else 403
        if url.path.endswith("/identity"):
            [audience] = parse_qs(url.query)["audience"]
            kind = "application/text"
            body = self.make_token(audience).encode() if self.answer is None else self.answer
        elif url.path.endswith("/service-accounts/default/"):
            body = json.dumps({"email": EMAIL, "scopes": []}).encode()
        send(caller, status, body, kind)


class Door:
    """Lets a request with a token for this service pass, as Cloud Run does, and refuses others."""

    def __init__(self, metadata: Metadata, backend: str = "") -> None:
        self.metadata, self.backend, self.url = metadata, backend, ""
        self.seen: list[dict[str, str]] = []  # headers of what passed
        self.refused = 0

    def respond(self, caller: BaseHTTPRequestHandler) -> None:
        """Pass a request on and its answer back, or refuse it."""
        length = int(caller.headers["Content-Length"] or 0)
        body = caller.rfile.read(length)
        scheme, _, token = caller.headers.get(HEADER, "").partition(" ")
        if scheme != "Bearer" or self.metadata.tokens.get(token) != self.url:
            self.refused += 1
            return send(caller, 403, b"<html><h1>Error: Forbidden</h1>", "text/html")
        self.seen.append(dict(caller.headers))
        if not self.backend:
            events, ready = CANNED
            kind = "text/event-stream" if body else "application/json"
            return send(caller, 200, (events if body else ready).encode(), kind)
        at = http.client.HTTPConnection(urlsplit(self.backend).netloc, timeout=120)
        at.request(caller.command, caller.path, body or None, dict(caller.headers))
        with at.getresponse() as answer:
            caller.send_response(answer.status)
            caller.send_header("Content-Type", answer.headers["Content-Type"])
            caller.send_header("Connection", "close")
            caller.end_headers()
            while piece := answer.read1(65536):
                caller.wfile.write(piece)
        return None


def send(caller: BaseHTTPRequestHandler, status: int, body: bytes, kind: str) -> None:
    """Answer with a whole body."""
    caller.send_response(status)
    caller.send_header("Metadata-Flavor", "Google")
    caller.send_header("Content-Type", kind)
    caller.send_header("Content-Length", str(len(body)))
    caller.end_headers()
    caller.wfile.write(body)


@contextmanager
def serve(respond: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Answer requests on a free port of loopback; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            respond(self)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(30)


@contextmanager
def google(backend: str = "") -> Iterator[tuple[Metadata, Door]]:
    """Yield a metadata server, and a door in front of a backend or of canned answers."""
    metadata = Metadata()
    door = Door(metadata, backend)
    with serve(metadata.respond) as metadata.url, serve(door.respond) as door.url:
        yield metadata, door
