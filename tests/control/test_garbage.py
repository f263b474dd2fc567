# SPDX-License-Identifier: GPL-2.0-or-later
"""Garbage, from the network and from the daemon's clients: it is refused, with its cause, and changes nothing."""

from __future__ import annotations

import os
import socket

from tests.control.rig import call, daemon, ping, plug, port, tunnel, until, wire
from tests.labkit import TwoHosts
from vdexdp.control import client
from vdexdp.control.channel import Channel
from vdexdp.lab import Lab, Namespace


def test_garbage_from_the_network(two_hosts: TwoHosts) -> None:
    left, right, guest = two_hosts.left, two_hosts.right, two_hosts.left_guest
    daemon(left)
    daemon(right)
    near, far = plug(left, wire("g1"), tunnel()), plug(right, wire("g2"), tunnel())
    assert ping(guest, "10.0.0.2")
    network = call(left, "show")["switches"][0]
    header = bytes.fromhex("0800000000000100")
    payloads = [b"", b"x", header[:-1], header + b"short", header + bytes(13), header + bytes(9000), os.urandom(60000)]
    payloads += [bytes.fromhex("0800000000000200") + bytes(60), bytes.fromhex("0c00000000000100") + bytes(60)]
    with right.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for payload in payloads * 3:
            for place in ((network["local"], network["udp_port"]), ("234.0.0.1", 14789)):
                sock.sendto(payload, place)
    with (
        left.entered(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):  # from the host itself, past the hooks
        for payload in payloads * 3:
            sock.sendto(payload, (network["local"], network["udp_port"]))
    assert ping(guest, "10.0.0.2")
    shown = call(left, "show")
    assert shown["worker"]["running"]
    assert shown["worker"]["restarts"] == 0
    assert shown["worker"]["lacs"][str(network["id"])]["drop-foreign"] > 0
    drops = port(shown, "vxvde")["counters"]["drops"]
    assert drops["bad_header"] > 0
    assert drops["runt"] > 0
    near.close()
    far.close()


def raw(host: Namespace) -> socket.socket:
    with host.entered():
        return client.open_channel().sock


def test_garbage_and_wrong_versions(lab: Lab) -> None:
    host = lab.host("host")
    lab.guest(host, "g1", 1)
    master = daemon(host)
    call(host, "hello")  # answered when the programs are loaded
    descriptors = len(os.listdir(f"/proc/{master.pid}/fd"))
    answers = []
    for data in (
        b"\xff" * 100,
        b"{}",
        b"[]",
        b'{"v":2,"op":"show"}',
        b'{"v":1,"op":"nonsense"}',
        b'{"v":1,"op":"plug"}',
    ):
        sock = raw(host)
        sock.settimeout(5)
        Channel(sock)._send(data, [0, 1, 2])
        answers.append(Channel(sock).recv())
        sock.close()
    for answer in answers:
        assert answer is not None
        assert answer.body["ok"] is False
        assert answer.body["cause"]
    assert "this daemon speaks 1" in answers[3].body["cause"]  # type: ignore[union-attr]
    silent = [raw(host) for _ in range(50)]
    oversized = raw(host)
    oversized.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    Channel(oversized)._send(b" " * 100_000, [])
    reply = Channel(oversized).recv()
    assert reply is not None
    assert "longer than" in reply.body["cause"]
    lease = {"v": 1, "op": "resume", "lease": {"plug": 7}, "fds": ["map:ports"]}
    Channel(oversized).send(lease, [0])
    reply = Channel(oversized).recv()
    assert reply is not None
    assert reply.body["ok"] is False
    for sock in (*silent, oversized):
        sock.close()
    until(lambda: len(os.listdir(f"/proc/{master.pid}/fd")) <= descriptors + 1, "descriptors to be back")
    assert call(host, "hello")["pid"] == master.pid
