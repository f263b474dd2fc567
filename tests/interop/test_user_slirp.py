# SPDX-License-Identifier: GPL-2.0-or-later
"""``slirp://`` for a guest: a host with real servers on its loopback, a guest without any other way out.

Shows TCP (also under load, both ways, then ping), UDP and DNS out over IPv4 and IPv6, every kind of forward,
``restricted`` and ``disable_host_loopback``; and that all of it works for a user without privileges, through vdens.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernelkit import streams
from tests.labkit import VDEXDP, settled
from tests.unprivileged import as_nobody
from vdexdp.lab import Lab, Namespace, wait_until
from vdexdp.lab.measure import iperf_server, ping

ANSWER = bytes([192, 0, 2, 77])
"""What the test's DNS server knows."""

ASK = """
import socket, sys
family, kind, address, port, data = sys.argv[1:]
peer = socket.socket(getattr(socket, family), getattr(socket, kind))
peer.settimeout(3)
peer.connect((address, int(port)))
peer.send(bytes.fromhex(data))
sys.stdout.write(peer.recv(1000).hex())
"""


def ask(guest: Namespace, address: str, port: int, data: bytes = b"hello", kind: str = "SOCK_STREAM") -> bytes:
    """What a server answers to ``data``; b"" where it does not."""
    family = "AF_INET6" if ":" in address else "AF_INET"
    found = guest.run("python3", "-c", ASK, family, kind, address, str(port), data.hex(), check=False)
    return bytes.fromhex(found.stdout) if found.returncode == 0 else b""


class Servers:
    """Sockets in a namespace, each served by a thread until the end."""

    def __init__(self, where: Namespace) -> None:
        self._where = where
        self._sockets: list[socket.socket] = []

    def _bound(self, address: str | None, kind: socket.SocketKind, port: int = 0) -> socket.socket:
        with self._where.entered():
            if address is None or address.startswith("/"):
                made = socket.socket(socket.AF_UNIX, kind)
            else:
                made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        made.bind(address if address and address.startswith("/") else (address, port))
        self._sockets.append(made)
        return made

    def _serve(self, loop: Callable[[], None]) -> None:
        def until_closed() -> None:
            try:
                while True:
                    loop()
            except OSError:
                return

        threading.Thread(target=until_closed, daemon=True).start()

    def stream(self, address: str) -> int:
        """A server that answers in capitals; its port."""
        listener = self._bound(address, socket.SOCK_STREAM)
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.send(connection.recv(1000).upper())

        self._serve(answer)
        name = listener.getsockname()
        return 0 if isinstance(name, str) else int(name[1])

    def datagram(self, address: str, port: int = 0, answer: Callable[[bytes], bytes] = bytes.upper) -> int:
        server = self._bound(address, socket.SOCK_DGRAM, port)

        def loop() -> None:
            data, peer = server.recvfrom(1000)
            server.sendto(answer(data), peer)

        self._serve(loop)
        return int(server.getsockname()[1])

    def close(self) -> None:
        for one in self._sockets:
            one.close()


@contextmanager
def servers(where: Namespace) -> Iterator[Servers]:
    made = Servers(where)
    try:
        yield made
    finally:
        made.close()


def resolve(query: bytes) -> bytes:
    """A DNS answer: whatever was asked for has the address ANSWER."""
    return (
        query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + query[12:] + b"\xc0\x0c\0\1\0\1" + struct.pack("!IH", 60, 4) + ANSWER
    )


QUERY = b"\x12\x34\1\0\0\1\0\0\0\0\0\0\4test\7example\0\0\1\0\1"


class Out:
    """A guest whose only neighbour is slirp, run in ``host``."""

    def __init__(self, lab: Lab, path: Path, options: str = "", nameservers: tuple[str, ...] = ()) -> None:
        self.host, self.guest = lab.host("host"), lab.host("guest")
        resolv = path / "resolv.conf"
        resolv.write_text("".join(f"nameserver {address}\n" for address in nameservers))
        ptp = f"ptp://{path}/ptp"
        # Its own mounts, for a resolv.conf of its own.
        script = 'mount --bind "$1" /etc/resolv.conf; shift; exec "$@"'
        vdexdp = (*VDEXDP, "vde_plug", ptp, f"slirp:///{options}")
        self.plug = self.host.spawn("unshare", "-m", "sh", "-c", script, "sh", str(resolv), *vdexdp)
        self.plug.wait_output("in userspace")
        self.guest.spawn(*VDEXDP, "vde_plug", "tap://t0", ptp)
        wait_until(lambda: self.guest.exists("t0"), what="t0")
        for command in (
            "address add 10.0.2.15/24 dev t0",
            "address add fd00::15/64 dev t0 nodad",
            "link set t0 up",
            "route add default via 10.0.2.2",
        ):
            self.guest.ip(command)
        wait_until(lambda: ping(self.guest, "10.0.2.2", count=1, timeout=0.3).received, what="slirp")
        wait_until(lambda: self.guest.ip("-6 route show default"), what="a router advertisement")


def test_outwards(lab: Lab, tmp_path: Path) -> None:
    out = Out(lab, tmp_path, nameservers=("127.0.0.1", "::1"))
    with servers(out.host) as there:
        for inner, outer in (("10.0.2.2", "127.0.0.1"), ("fd00::2", "::1")):
            assert ask(out.guest, inner, there.stream(outer)) == b"HELLO", inner
            assert ask(out.guest, inner, there.datagram(outer), kind="SOCK_DGRAM") == b"HELLO", inner
            there.datagram(outer, 53, resolve)
        for nameserver in ("10.0.2.3", "fd00::3"):
            assert ask(out.guest, nameserver, 53, QUERY, "SOCK_DGRAM")[-4:] == ANSWER, nameserver
    iperf_server(out.host)
    streams(out.guest, "10.0.2.2", 0.0)
    settled(out.guest, "10.0.2.2")
    settled(out.guest, "fd00::2")


def test_forwards(lab: Lab, tmp_path: Path) -> None:
    unix = f"{tmp_path}/unix"
    out = Out(
        lab,
        tmp_path,
        "tcpfwd=127.0.0.1:8001:10.0.2.15:9001,8002::9001/udpfwd=8003:10.0.2.15:9003"
        f"/unixfwd=9004:'{unix}'/cmdfwd=10.0.2.77:9005:'tr a-z A-Z',9006:cat",
    )
    with servers(out.guest) as inside, servers(out.host) as outside:
        server = inside._bound("10.0.2.15", socket.SOCK_STREAM, 9001)
        server.listen()
        inside.datagram("10.0.2.15", 9003)
        outside.stream(unix)

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.send(connection.recv(1000).upper())

        inside._serve(greet)
        assert ask(out.host, "127.0.0.1", 8001) == b"HELLO"
        assert ask(out.host, "127.0.0.1", 8003, kind="SOCK_DGRAM") == b"HELLO"
        assert ask(out.guest, "10.0.2.4", 9004) == b"HELLO"
        assert ask(out.guest, "10.0.2.4", 9006) == b"hello"


@pytest.mark.parametrize("option", ["restricted", "disable_host_loopback"])
def test_closed(lab: Lab, tmp_path: Path, option: str) -> None:
    """Neither lets the guest reach the host's loopback; ``cmdfwd`` remains a way out of a restricted network."""
    out = Out(lab, tmp_path, f"{option}/cmdfwd=10.0.2.77:9005:cat")
    with servers(out.host) as there:
        assert ask(out.guest, "10.0.2.2", there.stream("127.0.0.1")) == b""
    assert ask(out.guest, "10.0.2.77", 9005) == b"hello"


def test_without_privileges(lab: Lab, tmp_path: Path) -> None:
    """User nobody reaches a server of the host through vdens."""
    host = lab.host("host")
    inside = """
        ip address add 10.0.2.15/24 dev vde0 && ip link set vde0 up && ip route add default via 10.0.2.2 || exit 1
        exec python3 -c "$@"
    """
    with servers(host) as there:
        port = str(there.stream("127.0.0.1"))
        question = (ASK, "AF_INET", "SOCK_STREAM", "10.0.2.2", port, b"hello".hex())
        found = host.run(*as_nobody(tmp_path, *VDEXDP, "vdens", "slirp://", "sh", "-c", inside, "sh", *question))
    assert bytes.fromhex(found.stdout) == b"HELLO"
