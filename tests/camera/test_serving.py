from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from edgeattn.camera.sinks.serving import Answer, Server, parse_address
from edgeattn.errors import EdgeAttnError, UsageError


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), {"/": lambda: Answer("text/plain", b"here")})
    yield server
    server.close()


def port_of(server: Server) -> int:
    return int(server.url.split(":")[2].partition("/")[0])


def get(server: Server, path: str = "/", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=5)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    connection.close()
    return found


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":8080", ("127.0.0.1", 8080)),
        ("8080", ("127.0.0.1", 8080)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:9100", ("::1", 9100)),
        ("camera.local:0", ("camera.local", 0)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", ":", "here", "here:", ":65536", "::1:80", ":-1", ":8_0", ":٣"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not an address"):
        parse_address(text)


def test_this_machine_sees_the_page_by_its_own_names_only(server: Server) -> None:
    port = port_of(server)
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "LOCALHOST"):
        assert get(server, Host=host)[:2] == (200, b"here")
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "127.0.0.1.evil.example", "[", ""):
        assert get(server, Host=host)[0] == 403


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "//etc/passwd", "/%2e%2e/x", "/stats.json/..", "/\x00", "/" + "a" * 5000, "*"]
)
def test_there_are_no_other_paths(path: str, server: Server) -> None:
    with socket.create_connection(("127.0.0.1", port_of(server)), 5) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert client.makefile("rb").readline().split()[1] in (b"404", b"400")


def test_only_get_is_answered(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", port_of(server)), 5) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        assert client.makefile("rb").readline().split()[1] == b"501"


def test_pages_cannot_be_framed_sniffed_or_kept(server: Server) -> None:
    headers = get(server)[2]
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "Python" not in headers["Server"]


def test_other_machines_need_the_token() -> None:
    server = Server(("0.0.0.0", 0), {"/": lambda: Answer("text/plain", b"here")}, "")
    try:
        token = server.url.partition("token=")[2]
        assert len(token) >= 20
        assert get(server)[0] == 401
        assert get(server, f"/?token={token[:-1]}")[0] == 401
        assert get(server, "/?token=%ff%00")[0] == 401
        assert get(server, Authorization=f"Bearer {token}", Host="anything")[:2] == (200, b"here")
        status, _, headers = get(server, f"/?token={token}")
        assert (status, headers["Location"]) == (303, "/")
        assert "HttpOnly" in headers["Set-Cookie"]
        assert get(server, Cookie=headers["Set-Cookie"].partition(";")[0])[:2] == (200, b"here")
        assert get(server, Cookie=f"edgeattn=x{token}")[0] == 401
        assert get(server, Cookie='edgeattn="; [')[0] == 401
    finally:
        server.close()


def test_a_token_that_was_given_is_needed_on_this_machine_too() -> None:
    server = Server(("127.0.0.1", 0), {"/": lambda: Answer("text/plain", b"here")}, "my-secret.1")
    try:
        assert get(server)[0] == 401
        assert get(server, Authorization="Bearer my-secret.1")[0] == 200
    finally:
        server.close()


@pytest.mark.parametrize("token", ["my secret", "a;b", "a&b", "é", "a\r\nX: y"])
def test_a_token_that_an_address_or_a_cookie_would_change_is_refused(token: str) -> None:
    with pytest.raises(UsageError, match="make it of letters"):
        Server(("127.0.0.1", 0), {}, token)


def test_an_address_that_is_taken_is_an_error_in_words(server: Server) -> None:
    with pytest.raises(EdgeAttnError, match=f"cannot serve at 127.0.0.1:{port_of(server)}: Address already in use"):
        Server(("127.0.0.1", port_of(server)), {})
    with pytest.raises(EdgeAttnError, match=r"cannot serve at no\.such\.host\.invalid:80"):
        Server(("no.such.host.invalid", 80), {})


def test_many_idle_connections_keep_nobody_out_for_long(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.camera.sinks.serving._Handler.timeout", 0.5)
    idle = [socket.create_connection(("127.0.0.1", port_of(server)), 5) for _ in range(80)]
    time.sleep(0.2)
    assert threading.active_count() < 75  # the others were hung up on
    time.sleep(0.8)
    assert get(server)[:2] == (200, b"here")
    for client in idle:
        client.close()


def test_a_request_that_never_ends_is_hung_up_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.camera.sinks.serving._Handler.timeout", 0.3)
    with socket.create_connection(("127.0.0.1", port_of(server)), 5) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        began = time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() - began < 3:
                slow.sendall(b"x")
                time.sleep(0.02)
        assert time.monotonic() - began < 3
    with (
        socket.create_connection(("127.0.0.1", port_of(server)), 5) as large,
        suppress(BrokenPipeError, ConnectionResetError),
    ):
        large.sendall(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 2**14)
        assert large.recv(1) == b""


def test_what_is_no_address_is_a_bad_request_and_nobody_is_told(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("127.0.0.1", port_of(server)), 5) as client:
        client.sendall(b"GET http://[/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.makefile("rb").readline().split()[1] == b"400"
    assert capsys.readouterr().err == ""


def test_closing_frees_the_address() -> None:
    for _ in range(3):
        server = Server(("127.0.0.1", 0), {"/": lambda: Answer("text/plain", b"here")})
        port = port_of(server)
        assert get(server)[0] == 200
        server.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)
