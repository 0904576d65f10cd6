"""A small web server for the preview and the metrics: read only, on this machine unless it is told otherwise.

Who may look: on a loopback address, whoever is on this machine, by a name of this machine (so that no page from
elsewhere can reach it by a name that it points here). On other addresses, whoever knows the token.
"""

from __future__ import annotations

import hmac
import io
import ipaddress
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from edgeattn.errors import EdgeAttnError, UsageError, one_line

COOKIE = "edgeattn"
_MOST_CONNECTIONS = 64
_PATIENCE = 10.0  # seconds for a request to arrive, and for a part of an answer to leave
_ON_THE_WAY = 2**17  # bytes
_LONGEST_HEAD = 2**14  # bytes of a request
_TOKEN = re.compile(r"[A-Za-z0-9._~-]*")  # what addresses and cookies hold as it is
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Answer:
    """What a page is: its bytes, or `send`, which writes them as they come."""

    kind: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    send: Callable[[Callable[[bytes], object]], None] | None = None
    status: HTTPStatus = HTTPStatus.OK


def parse_address(text: str) -> tuple[str, int]:
    """Read `:8080` (this machine only), `8080`, `0.0.0.0:8080` or `[::]:8080` as (host, port).

    Raises:
        UsageError: it is none of these.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not (port.isascii() and port.isdecimal() and int(port) < 2**16) or (":" in host and not text.startswith("[")):
        raise UsageError(f"not an address: {text!r}; expected for example :8080, or 0.0.0.0:8080 for other machines")
    return host or "127.0.0.1", int(port)


class Server:
    """Serves `pages`, functions by path, at an address (host, port) until it is closed; port 0 takes a free one.

    Args:
        address: see `parse_address`.
        pages: by their path, `/` among them; what is not there is not found.
        token: what viewers have to know; where it is empty, those from other machines have to know a new one. None:
            nobody has to.

    Raises:
        UsageError: the token does not fit into an address.
        EdgeAttnError: the address is taken, or not this machine's.
    """

    def __init__(
        self, address: tuple[str, int], pages: Mapping[str, Callable[[], Answer]], token: str | None = None
    ) -> None:
        host = address[0]
        local = _is_loopback(host)
        if not _TOKEN.fullmatch(token or ""):
            raise UsageError("a token is part of an address: make it of letters, digits and - . _ ~ alone")
        self._made_up = not local and token == ""
        self.token = secrets.token_urlsafe(16) if self._made_up else token or ""
        self.names = _LOCAL_NAMES if local and not self.token else ()
        try:
            self._server = _Threaded(address, self, pages)
        except OSError as err:
            raise EdgeAttnError(
                f"cannot serve at {_named(*address)}: {err.strerror or err}; name another address"
            ) from err
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it is found, see `url_of`."""
        return self.url_of("/")

    def url_of(self, path: str) -> str:
        """Where a page is found, with the token if it was made up here: one that was given is no news, but a secret."""
        host, port = self._server.server_address[:2]
        host = str(host)
        if ipaddress.ip_address(host).is_unspecified:
            host = socket.gethostname()
        return f"http://{_named(host, int(port))}{path}" + (f"?token={self.token}" if self._made_up else "")

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Threaded(ThreadingHTTPServer):
    """A thread for each connection, and not too many of them."""

    daemon_threads = True
    request_queue_size = _MOST_CONNECTIONS
    block_on_close = False

    def __init__(self, address: tuple[str, int], owner: Server, pages: Mapping[str, Callable[[], Answer]]) -> None:
        self.owner, self.pages = owner, pages
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """As it is, without asking a name server for this machine's name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: object, client_address: object) -> None:
        """Take a connection, or hang up where there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)  # type: ignore[arg-type]
        else:
            self.shutdown_request(request)  # type: ignore[arg-type]

    def process_request_thread(self, request: object, client_address: object) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """A viewer that went away is no news; anything else is."""
        err = sys.exc_info()[1]
        if err is not None and not isinstance(err, OSError):
            print(f"edgeattn: a page cannot be served: {type(err).__name__}: {one_line(err)}", file=sys.stderr)


class _Handler(BaseHTTPRequestHandler):
    server: _Threaded
    server_version = "edgeattn"
    sys_version = ""
    timeout = _PATIENCE

    def setup(self) -> None:
        """Keep little on its way: what waits in the kernel for a slow viewer is old when it arrives."""
        super().setup()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ON_THE_WAY)
        self.rfile.close()
        self.rfile = io.BytesIO(self._head())

    def _head(self) -> bytes:
        """The request, or nothing where it is long, or slow: whoever sends a byte now and then holds a thread."""
        head, end = b"", time.monotonic() + self.timeout
        part: bytes
        with suppress(OSError):
            while len(head) < _LONGEST_HEAD and (left := end - time.monotonic()) > 0:
                self.connection.settimeout(left)
                part = self.connection.recv(_LONGEST_HEAD)
                head += part
                if not part or re.search(rb"\n\r?\n", head):
                    self.connection.settimeout(self.timeout)
                    return head
        return b""

    def do_GET(self) -> None:
        """Answer, or say why not."""
        try:
            asked = urlsplit(self.path)
        except ValueError:
            self._refuse(HTTPStatus.BAD_REQUEST, "that is no address")
            return
        owner = self.server.owner
        given = parse_qs(asked.query).get("token", [""])[0]
        if owner.names and self._host() not in owner.names:
            self._refuse(HTTPStatus.FORBIDDEN, "ask for this by a name of this machine, such as localhost")
        elif owner.token and not self._knows(owner.token, given):
            self._refuse(HTTPStatus.UNAUTHORIZED, "add ?token=... to the address, as the camera says or was told")
        elif (page := self.server.pages.get(asked.path)) is None:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        elif given and owner.token and asked.path == "/":  # from now on as a cookie, and not in the address
            cookie = f"{COOKIE}={owner.token}; HttpOnly; SameSite=Strict; Path=/"
            self._give(Answer("text/plain", b"", {"Location": "/", "Set-Cookie": cookie}, status=HTTPStatus.SEE_OTHER))
        else:
            self._give(page())

    def _host(self) -> str:
        """The name by which the server was asked for."""
        host = self.headers.get("Host", "")
        try:
            return urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return ""

    def _knows(self, token: str, given: str) -> bool:
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        offers = (given, cookie.value if cookie else "", bearer)
        return any(hmac.compare_digest(offer.encode(), token.encode()) for offer in offers)

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._give(Answer("text/plain; charset=utf-8", f"{why}\n".encode(), status=status))

    def _give(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in {"Content-Type": answer.kind, **_HEADERS, **answer.headers}.items():
            self.send_header(name, value)
        if answer.send is None:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if answer.send is not None:
            answer.send(self.wfile.write)
        else:
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: stderr is the camera's, and addresses may hold the token."""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _named(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
