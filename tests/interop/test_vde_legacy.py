# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that our vde client and our nodes work with stock's: vde_switch, stock's nodes, vde_plug, vdens.

Each pair pings, runs TCP both ways, and pings again.  Needs root.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernelkit import daemon, streams, transfer
from tests.labkit import VDEXDP, require_tool, settled
from vdexdp.lab import Lab, Namespace, Process, wait_until
from vdexdp.lab.measure import iperf_server, ping

NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for switches, open to other users."""
    with tempfile.TemporaryDirectory(prefix="vdexdp-test-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


OURS = (*VDEXDP, "vde_plug")
STOCK = ("vde_plug",)


def serve(host: Namespace, server: str, path: Path, other_end: str = "null://") -> Process:
    """Start a switch of the given kind, "ours:switch" or "stock:hub" or "vde_switch", and wait for it."""
    who, _, scheme = server.partition(":")
    if who == "vde_switch":
        # It reads commands from stdin, and ends at its end.
        keeps_open, writes = os.pipe()
        process = host.spawn(require_tool("vde_switch"), "-s", str(path), stdin=keeps_open)
        os.close(keeps_open)
        process.console = writes  # type: ignore[attr-defined]
    else:
        process = host.spawn(*(OURS if who == "ours" else STOCK), other_end, f"{scheme}://{path}")
    wait_until((path / "ctl").exists, what=f"{server} at {path}")
    return process


def join(guest: Namespace, client: tuple[str, ...], path: Path | str, number: int) -> Process:
    """Plug a guest's tap into a switch."""
    process = guest.spawn(*client, f"vde://{path}", "tap://t0")
    wait_until(lambda: guest.exists("t0"), what="the tap")
    Lab.address(guest, "t0", number)
    return process


def clients_of(path: Path) -> int:
    """How many clients one of our switches has; none is in the middle of its handshake."""
    names = os.listdir(path)
    return -1 if any(name.startswith(".") for name in names) else len(names) - 1


def check(left: Namespace, right: Namespace, address: str) -> None:
    """Ping, TCP both ways, ping again."""
    wait_until(lambda: ping(left, address, count=1, timeout=0.3).received, timeout=10, what="the first ping")
    server = iperf_server(right)
    streams(left, address, 0.02)
    server.stop()
    settled(left, address)


ORDERS = [
    ("vde_switch", "ours first"),
    ("vde_switch", "stock first"),
    ("stock:switch", "ours first"),
    ("stock:hub", "stock first"),
    ("ours:switch", "ours first"),
    ("ours:switch", "stock first"),
    ("ours:hub", "stock first"),
]


@pytest.mark.parametrize(("server", "order"), ORDERS)
def test_two_clients(lab: Lab, place: Path, server: str, order: str) -> None:
    """Our client and a stock one on a switch of each kind."""
    left, right = lab.namespace("left"), lab.namespace("right")
    serve(lab.namespace("host"), server, place / "sw")
    plugs = [(left, OURS, 1), (right, STOCK, 2)]
    for guest, client, number in plugs if order == "ours first" else reversed(plugs):
        join(guest, client, place / "sw", number)
    check(left, right, "10.0.0.2")


@pytest.mark.parametrize(
    ("scheme", "client"), [("switch", STOCK), ("switch", OURS), ("hub", STOCK), ("multi", STOCK), ("bonding", STOCK)]
)
def test_the_host_and_a_client(lab: Lab, place: Path, scheme: str, client: tuple[str, ...]) -> None:
    """The other end of the node's cable reaches a client."""
    host, guest = lab.namespace("host"), lab.namespace("guest")
    daemon(host)
    serve(host, f"ours:{scheme}", place / "node", "tap://t0").wait_output("bridged into the kernel")
    lab.address(host, "t0", 1)
    join(guest, client, place / "node", 2)
    check(host, guest, "10.0.0.2")


def test_vdens(lab: Lab, place: Path) -> None:
    """A vdens on our switch talks to a stock vde_plug."""
    host, guest = lab.namespace("host"), lab.namespace("guest")
    serve(host, "ours:switch", place / "sw")
    join(guest, STOCK, place / "sw", 1)
    serve_twice = "iperf3 -s -1 --forceflush; iperf3 -s -1 --forceflush; echo all done"
    script = f"ip link set vde0 up; ip address add 10.0.0.3/24 dev vde0; {serve_twice}"
    inside = host.spawn(require_tool("vdens"), f"vde://{place}/sw", "sh", "-c", script)
    inside.wait_output("listening")
    wait_until(lambda: ping(guest, "10.0.0.3", count=1, timeout=0.3).received, timeout=10)
    assert transfer(guest, "10.0.0.3", 20)[0] > 0.02
    settled(guest, "10.0.0.3")
    wait_until(lambda: inside.output().count("listening") == 2)
    assert transfer(guest, "10.0.0.3", 20, "-R")[0] > 0.02
    inside.wait_output("all done")
    inside.stop()  # stock vdens does not always see its command's end
    wait_until(lambda: clients_of(place / "sw") == 1, what="its port to go")


def test_ports_and_descriptions_as_vde_switch_sees_them(lab: Lab, place: Path) -> None:
    host = lab.namespace("host")
    switch = serve(host, "vde_switch", place / "sw")
    plugs = [
        host.spawn(*OURS, "-D", "mine", f"vde://{place}/sw[5]", "null://", env={"SSH_CLIENT": "192.0.2.7 1 22"}),
        host.spawn(*OURS, "--port", "7", f"{place}/sw", "null://"),
        host.spawn(*OURS, f"vde://{place}/sw[no-such-group]", "null://"),
    ]
    refused = host.spawn(*OURS, f"vde://{place}/sw[5000]", "null://")  # which it finds out by waiting
    for plug in plugs:
        plug.wait_output("in userspace")
    os.write(switch.console, b"port/allprint\n")  # type: ignore[attr-defined]
    wait_until(lambda: "1000 Success" in switch.output())
    said = switch.output()
    ports = {}
    number = ""
    for line in said.splitlines():
        if line.startswith("Port "):
            number = line.split()[1]
        if "endpoint ID" in line:
            ports[number] = line.partition(" : ")[2]
    assert sorted(ports) == ["0001", "0005", "0007"]
    assert ports["0005"].startswith("mine user=root pid=")
    assert ports["0005"].endswith(" SSH=192.0.2.7")
    assert refused.wait() == 1
    assert "vde_switch is silent where it can't give a port: 5000 may be taken or too high" in refused.output()


@pytest.mark.parametrize("client", [STOCK, OURS], ids=["stock", "ours"])
def test_who_may_connect(lab: Lab, place: Path, client: tuple[str, ...]) -> None:
    """Modes decide.  A client of another user, and root's client on a node of that user: frames pass both."""
    host, guest = lab.namespace("host"), lab.namespace("guest")
    private = serve(host, "ours:switch", place / "sw")
    refused = host.run(*NOBODY, *client, f"vde://{place}/sw", "null://", check=False, timeout=10)
    assert refused.returncode == 1
    assert "ermission" in refused.stderr
    private.stop()
    wait_until(lambda: not (place / "sw").exists())
    host.spawn(*OURS, "--accel", "off", "tap://t0", f"switch://{place}/sw[mode=0666]")
    (place / "theirs").mkdir()
    os.chown(place / "theirs", 65534, 65534)
    theirs = place / "theirs" / "hub"
    host.spawn(*NOBODY, *OURS, "null://", f"hub://{theirs}")
    wait_until(lambda: (place / "sw" / "ctl").exists() and (theirs / "ctl").exists() and host.exists("t0"))
    host.spawn(*NOBODY, *client, f"vde://{place}/sw", f"vde://{theirs}")
    lab.address(host, "t0", 1)
    join(guest, client, theirs, 2)
    wait_until(lambda: ping(host, "10.0.0.2", count=1, timeout=0.3).received, timeout=10)


def test_ends(lab: Lab, place: Path) -> None:
    """A plug ends when its switch ends, however that happens; the switch's directory is gone, or reusable at once."""
    host = lab.namespace("host")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL):
        switch = serve(host, "ours:switch", place / "sw")
        plugs = [host.spawn(*client, f"vde://{place}/sw", "null://") for client in (OURS, STOCK)]
        wait_until(lambda: clients_of(place / "sw") == 2, what="two clients")
        switch.signal(number)
        switch.wait()
        assert (place / "sw").exists() == (number == signal.SIGKILL)
        for plug in plugs:
            plug.wait()
    stock = serve(host, "vde_switch", place / "other")
    plug = host.spawn(*OURS, f"vde://{place}/other", "null://")
    plug.wait_output("in userspace")
    stock.kill()
    assert plug.wait() == 0


def test_a_dead_client_frees_its_port(lab: Lab, place: Path) -> None:
    host = lab.namespace("host")
    serve(host, "ours:switch", place / "sw")
    for client in (OURS, STOCK):
        plug = host.spawn(*client, f"vde://{place}/sw", "null://")
        wait_until(lambda: clients_of(place / "sw") == 1)
        plug.kill()
        wait_until(lambda: os.listdir(place / "sw") == ["ctl"])
