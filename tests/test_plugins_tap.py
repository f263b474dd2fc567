# SPDX-License-Identifier: GPL-2.0-or-later
"""tap:// in userspace: names, interfaces that exist, with one queue or several, busy ones, down ones, deleted ones.

Needs root.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from tests.rawframes import RawPort, frame
from vdexdp.errors import HangUp, HostError, RequestError, VnlError
from vdexdp.lab import Lab, Namespace
from vdexdp.plugins import registry
from vdexdp.plugins.base import Batch, Netdev
from vdexdp.plugins.tap import TapSpec, TapStream


@pytest.fixture
def host(lab: Lab) -> Iterator[Namespace]:
    made = lab.host("host")
    with made.entered():
        yield made


def tap(name: str) -> TapStream:
    stream = registry.parse(f"tap://{name}").open()
    assert isinstance(stream, TapStream)
    return stream


def batch_of(*frames: bytes) -> Batch:
    batch = Batch()
    for data in frames:
        batch.append(data)
    return batch


def test_names() -> None:
    assert registry.parse("tap://t0").spec == TapSpec("t0")
    assert registry.parse("tap://").spec == TapSpec("")
    assert registry.parse("tap://t0").kernel_end() == Netdev("t0", side="stack", create="tap")
    for name in ("sixteen-letters-", "a b", "a/b", "a:b", "..", "."):
        with pytest.raises(VnlError):
            registry.parse(f"tap://{name}")


def test_frames_both_ways(host: Namespace) -> None:
    stream = tap("t1")
    host.ip("link set t1 mtu 9000 up")
    port = RawPort(host, "t1")
    frames = [frame(size, size) for size in (14, 15, 60, 1514, 9014)]
    assert stream.send(batch_of(*frames)) == len(frames)
    assert port.receive(len(frames)) == frames
    for data in frames:
        port.send(data)
    batch = Batch()
    assert select.select(stream.readers(), [], [], 1)[0]
    stream.recv(batch)
    assert [
        bytes(data) for data in (batch[i] for i in range(batch.count)) if bytes(data[12:14]) == b"\x88\xb5"
    ] == frames
    assert not stream.drops
    stream.close()
    stream.close()
    assert not host.exists("t1"), "an interface that nobody had made before goes with its descriptor"


def test_the_kernel_chooses_a_name(host: Namespace) -> None:
    first, second = tap(""), tap("x%d")
    assert (first.name, second.name) == ("tap0", "x0")
    assert host.exists("tap0")
    first.close()
    second.close()


@pytest.mark.parametrize("queues", ["", "multi_queue"])
def test_an_interface_that_exists(host: Namespace, queues: str) -> None:
    host.ip(f"tuntap add mode tap name t2 {queues}")
    first = tap("t2")
    if queues:
        tap("t2").close()
    else:
        with pytest.raises(HostError, match="another process has this tap open"):
            tap("t2")
    first.close()
    assert host.exists("t2")


def test_what_is_no_tap(host: Namespace) -> None:
    host.ip("tuntap add mode tun name t3")
    for name in ("t3", "lo"):
        with pytest.raises(RequestError, match="exists and is not a tap"):
            tap(name)


def test_nothing_leaks_when_it_fails(host: Namespace) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(RequestError):
            tap("lo")
    assert len(os.listdir("/proc/self/fd")) == before


def test_down_is_counted_and_deleted_is_the_end(host: Namespace) -> None:
    stream = tap("t4")
    assert stream.send(batch_of(frame(60), frame(61))) == 2
    assert stream.drops == {"down": 2}
    assert "ip link set t4 up" in stream.fault()
    host.ip("link set t4 up")
    assert stream.send(batch_of(frame(60))) == 1
    assert stream.fault() == ""
    host.ip("link delete t4")
    with pytest.raises(HangUp, match="t4 was deleted"):
        stream.recv(Batch())
    with pytest.raises(HangUp):
        stream.send(batch_of(frame(60)))
    stream.close()
