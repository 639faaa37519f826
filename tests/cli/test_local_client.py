"""What a command says of a service that does not answer, or that is another program."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from blockstore.cli.local_client import LocalClient, is_answering
from blockstore.errors import BlockstoreError


@contextlib.contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """Serve one connection, whatever is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(60)


def said(url: str) -> str:
    client = LocalClient(url, "127.0.0.1", ca=None, token="secret", timeout_s=10)
    with pytest.raises(BlockstoreError) as caught:
        client("GET", "/volumes?name=x")
    assert "secret" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (b"SSH-2.0-OpenSSH\r\n", " is not blockstore: BadStatusLine"),
        (b"", "is `blockstore serve` running? (Remote end closed connection without response)"),
        (
            b"HTTP/1.0 404 Not Found\r\n\r\nno",
            " is not blockstore, or is another version. It answered 404 Not Found to GET /v3/volumes.",
        ),
        (
            b"HTTP/1.0 200 OK\r\n\r\n<html>",
            " is not blockstore, or is another version. It answered 200 OK to GET /v3/volumes.",
        ),
        (
            b"HTTP/1.0 502 Bad\r\n\r\n[]",
            " is not blockstore, or is another version. It answered 502 Bad to GET /v3/volumes.",
        ),
        (b'HTTP/1.0 409 No\r\n\r\n{"conflictingRequest": {"message": "It is so."}}', "It is so."),
    ],
)
def test_what_is_not_the_service_is_told_in_a_sentence(reply: bytes, sentence: str) -> None:
    with answering(reply) as url:
        assert sentence in said(url)


def test_nothing_there_is_told_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert is_answering(url, "0.0.0.0")
    assert not is_answering(url, "127.0.0.1")
    assert said(url).startswith(f"Nothing answers at {url}; is `blockstore serve` running?")


def test_an_address_given_to_serve_is_found_by_the_endpoint_file() -> None:
    with socket.create_server(("127.0.0.7", 0)) as listener:
        assert is_answering(f"http://127.0.0.7:{listener.getsockname()[1]}", "127.0.0.1")
