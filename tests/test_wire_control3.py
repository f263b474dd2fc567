# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that the control protocol is that of stock libvdeplug's client and of stock vde_switch."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import stock
from vdexdp.errors import ProtocolError
from vdexdp.wire import control3
from vdexdp.wire.control3 import Request

FRAME = b"\xff" * 6 + b"\x02" + bytes(5) + b"\x88\xb5" + bytes(46)

TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30)
REQUESTS = st.builds(
    Request,
    path=TEXTS,
    description=TEXTS,
    port=st.none() | st.integers(0, 2**24 - 1),
    version=st.just(3),
)


@given(REQUESTS)
def test_round_trip(request: Request) -> None:
    data = control3.encode_request(request)
    assert len(data) == 122 + len(os.fsencode(request.description))
    assert control3.decode_request(data) == request
    for end in range(122):
        assert control3.decode_request(data[:end]) is None


@given(REQUESTS, st.sampled_from([None, 0]))
def test_round_trip_version_1(request: Request, port: int | None) -> None:
    request = Request(request.path, request.description, port, 1)
    data = control3.encode_request(request)
    assert len(data) == 124 + len(os.fsencode(request.description))
    assert control3.decode_request(data) == request
    for end in range(124):
        assert control3.decode_request(data[:end]) is None


@given(TEXTS)
def test_reply(path: str) -> None:
    data = control3.encode_reply(path)
    assert len(data) == control3.SOCKADDR_SIZE
    assert control3.decode_reply(data) == path
    assert control3.decode_reply(data[:-1]) is None


@given(st.binary(max_size=control3.REQUEST_MAX))
def test_garbage(data: bytes) -> None:
    for head in (b"", struct.pack("=I", control3.MAGIC), struct.pack("=II", control3.MAGIC, 3)):
        try:
            request = control3.decode_request(head + data)
        except ProtocolError:
            continue
        assert request is None or len(head + data) >= 122


@pytest.mark.parametrize(
    ("head", "cause"),
    [
        (b"GET / HTTP", "magic number"),
        (struct.pack("=II", control3.MAGIC, 2), "version 2"),
        (struct.pack("=II", control3.MAGIC, 4), "version 4"),
        (struct.pack("=IIIH", control3.MAGIC, 3, 2, socket.AF_UNIX), "request type 2"),
        (struct.pack("=IIIH", control3.MAGIC, 3, 0, socket.AF_INET), "address family 2"),
    ],
)
def test_refused(head: bytes, cause: str) -> None:
    with pytest.raises(ProtocolError, match=cause):
        control3.decode_request(head + bytes(200))


def test_abstract_and_full_paths() -> None:
    abstract = "\0" + "a" * 107
    assert control3.decode_reply(control3.encode_reply(abstract)) == abstract
    assert control3.decode_reply(control3.encode_reply("/" * 107)) == "/" * 107
    for path in ("/" * 108, abstract + "a"):
        with pytest.raises(ValueError, match="too long"):
            control3.encode_reply(path)
    with pytest.raises(ValueError, match="does not fit"):
        control3.encode_request(Request("/x", port=2**24))


@pytest.mark.parametrize(
    ("options", "port"), [("", None), ("[7]", 7), ("[port=0]", 0), ("[group=root]", None)], ids=str
)
def test_stock_client(tmp_path: Path, options: str, port: int | None) -> None:
    """libvdeplug's ``vde://`` connects to a listener made of this codec, and a frame goes each way."""
    lib = stock.library("libvdeplug.so.2")
    lib.vde_open_real.restype = ctypes.c_void_p
    lib.vde_send.restype = lib.vde_recv.restype = ctypes.c_ssize_t
    opened: list[int | None] = []
    vnl = f"vde://{tmp_path}{options}".encode()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as data:
        listener.bind(str(tmp_path / "ctl"))
        listener.listen()
        client = threading.Thread(target=lambda: opened.append(lib.vde_open_real(vnl, b"hello", 1, None)), daemon=True)
        client.start()
        listener.settimeout(5)
        control, _ = listener.accept()
        with control:
            control.settimeout(5)
            request = control3.decode_request(control.recv(control3.REQUEST_MAX))
            assert request is not None
            assert (request.version, request.port) == (3, port)
            assert request.description.startswith(f"hello user={'root' if os.geteuid() == 0 else ''}")
            assert request.path.startswith(f"{tmp_path}/.{os.getpid():05d}-")
            path = str(tmp_path / "fd9")
            data.settimeout(5)
            data.connect(request.path)
            data.bind(path)
            control.sendall(control3.encode_reply(path))
            client.join(5)
            assert opened, "the stock client still waits"
            assert opened[0], "the stock client did not take the reply"
            handle = ctypes.c_void_p(opened[0])
            assert lib.vde_send(handle, FRAME, ctypes.c_size_t(len(FRAME)), 0) == len(FRAME)
            assert data.recv(65536) == FRAME
            data.send(FRAME[::-1])
            buffer = ctypes.create_string_buffer(2048)
            assert lib.vde_recv(handle, buffer, ctypes.c_size_t(2048), 0) == len(FRAME)
            assert buffer.raw[: len(FRAME)] == FRAME[::-1]
            lib.vde_close(handle)


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[Path]:
    """A stock vde_switch, made a hub so that frames need no learning."""
    directory = tmp_path / "sw"
    process = subprocess.Popen(
        ["vde_switch", "-x", "-s", str(directory)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 5
        while not (directory / "ctl").exists():
            assert time.monotonic() < deadline, "vde_switch does not start"
            time.sleep(0.02)
        yield directory
    finally:
        process.terminate()
        process.wait(5)


def join(switch: Path, request: Request) -> tuple[socket.socket, socket.socket, str]:
    """Control and data socket of a client of ``switch``, and the path in the reply."""
    control = socket.socket(socket.AF_UNIX)
    data = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    control.settimeout(5)
    data.settimeout(5)
    data.bind(request.path)
    control.connect(str(switch / "ctl"))
    control.sendall(control3.encode_request(request))
    path = control3.decode_reply(control.recv(control3.SOCKADDR_SIZE))
    assert path
    data.connect(path)
    return control, data, path


def test_stock_switch(switch: Path, tmp_path: Path) -> None:
    """Clients of both versions join vde_switch with this codec and hear one another."""
    requests = [
        Request(str(tmp_path / "a"), "first", 5),
        Request(str(tmp_path / "b"), "second"),
        Request(str(tmp_path / "c"), "third", version=1),
    ]
    clients = [join(switch, request) for request in requests]
    assert clients[0][2].startswith(f"{switch}/005."), "the port asked for"
    for number, (_, sender, _) in enumerate(clients):
        frame = FRAME + bytes((number,))
        sender.send(frame)
        for _, receiver, _ in clients:
            if receiver is not sender:
                assert receiver.recv(65536) == frame
    for control, data, _ in clients:
        control.close()
        data.close()
