# SPDX-License-Identifier: GPL-2.0-or-later
"""Users other than root: who they are, what the policy grants them, and how they plug, by vdexdp or, hostile, by
programs of their own that speak the protocol.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.control.rig import START, call
from tests.labkit import VDEXDP
from tests.unprivileged import as_user
from vdexdp.lab import Namespace, Process

SOCKET = 70000
"""The gid of those who may talk to the daemon."""
ALICE = as_user(70001, 70100, SOCKET)
BOB = as_user(70002, 70200, SOCKET)
MALLORY = as_user(70003, 70300, SOCKET)
STRANGER = as_user(70004, 70400)

POLICY = f"""
group = {SOCKET}

[rule.tenants]
groups = [70100, 70200]
networks = ["vxvdex://"]
plugs = 4

[rule.alice]
users = [70001]
networks = ["vxvde://234.0.0.1"]
interfaces = ["own", "vm-*"]
plugs = 4
"""


def inside(host: Namespace, user: tuple[str, ...], number: int, *command: str, network: str = "vxvdex://") -> Process:
    """A user's vdens in the kernel path, with the lab's guest address of that number."""
    script = f"ip address add 10.0.0.{number}/24 dev vde0; ip link set vde0 up; echo up; {' '.join(command)}"
    vdens = (*VDEXDP, "vdens", "-v", "--accel", "require", network, "sh", "-c", script)
    process = host.spawn(*user, *vdens)
    process.wait_output("up", START)
    return process


def plugs(host: Namespace) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = call(host, "show")["plugs"]
    return found


HOSTILE = """
import json, os, socket, subprocess, sys, time
from vdexdp.control import client
from vdexdp.control.channel import Channel
from vdexdp.control.protocol import PlugRequest, request
from vdexdp.errors import VdexdpError
from vdexdp.plugins.base import Inside, Netdev, Tunnel
from vdexdp.control.protocol import Bridge
OWN = os.getegid()
def tunnel(group="239.1.17.212", vni=70100, **more):
    return Tunnel(**dict(kind="vxvde", group=group, family=6 if ":" in group else 4, port=14789, vni=vni) | more)
def ask(body, fds=()):
    channel = client.open_channel()
    try:
        reply = client.ask(channel, body, list(fds))
        reply.close()
        return reply.body
    finally:
        channel.close()
def plug(first, second, fds=(), index=(None, None)):
    found = ask(PlugRequest((first, second), ("a", "b"), fd_index=index).to_json(), fds)
    return "allowed" if found["ok"] else found["cause"]
"""
"""What a hostile program begins with."""


def hostile(host: Namespace, user: tuple[str, ...], script: str, timeout: float = 30.0) -> Any:
    """What a user's program that speaks the protocol prints, as JSON."""
    process = host.spawn(*user, sys.executable, "-c", HOSTILE + script)
    process.wait(timeout)
    try:
        return json.loads(process.output().splitlines()[-1])
    except ValueError:
        pytest.fail(process.output())
