# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that the laboratory builds what it says, measures real traffic, and leaves nothing behind, even when
its owner is killed.  Needs root.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.labkit import TwoHosts
from vdexdp.errors import HostError
from vdexdp.lab import UNDERLAY, Lab, alive, marked, wait_until
from vdexdp.lab.lab import PREFIX
from vdexdp.lab.measure import cpu_seconds, iperf_server, ping, pss_bytes, tcp
from vdexdp.lab.namespace import RUN_NETNS


def test_two_hosts_hear_each_other(two_hosts: TwoHosts) -> None:
    for address in Lab.underlay_addresses(2):
        assert ping(two_hosts.left, address, 2).received == 2
    assert ping(two_hosts.left_guest, "10.0.0.2", 1, timeout=0.2).received == 0, "guests are not plugged yet"


def test_three_hosts_share_a_lan(lab: Lab) -> None:
    hosts = [lab.host(f"h{number}") for number in (1, 2, 3)]
    lab.underlay(*hosts)
    for address in Lab.underlay_addresses(3):
        assert ping(hosts[0], address, 1).received == 1


def test_second_underlay_has_its_own_network(lab: Lab) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right)
    lab.underlay(left, right, device="lan1")
    assert ping(left, Lab.underlay_addresses(2, 1)[0], 1).received == 1
    assert UNDERLAY in left.ip("route show 224.0.0.0/4")


def test_guests_over_a_bridge(lab: Lab) -> None:
    host = lab.host("host")
    first, second = lab.guest(host, "g1", 1), lab.guest(host, "g2", 2)
    lab.bridge(host, "br0", "g1", "g2")
    server = iperf_server(second)
    assert ping(first, "fd00::2", 2).received == 2
    assert tcp(first, "10.0.0.2", 1).bits_per_second > 1e8
    assert tcp(first, "10.0.0.2", 1, reverse=True).bits_per_second > 1e8
    assert cpu_seconds(server.pid) > 0
    assert pss_bytes(server.pid) > 100_000


def test_failed_command_names_itself(lab: Lab) -> None:
    host = lab.host("host")
    with pytest.raises(HostError, match=r"host: ip link set dev nowhere up: .*nowhere"):
        host.ip("link set dev nowhere up")
    with pytest.raises(HostError, match="host: false: status 1"):
        host.run("false")
    with pytest.raises(HostError, match="iperf3"):
        tcp(host, "127.0.0.1", 1)


def test_orphans_are_reported_and_ended(lab: Lab) -> None:
    inner = Lab()
    host = inner.host("host")
    host.run("sh", "-c", "sleep 60 >/dev/null 2>&1 &")
    frozen = host.spawn("sleep", "61")
    frozen.signal(signal.SIGSTOP)
    (orphan,) = set(marked(inner.prefix)) - {frozen.pid}
    assert inner.close() == [f"{orphan}: sleep 60"]
    assert not alive(orphan)
    assert not alive(frozen.pid)
    assert not host.path.exists()


def test_next_lab_sweeps_after_a_killed_one(lab: Lab) -> None:
    code = (
        "import os, signal\nfrom vdexdp.lab import Lab\n"
        "lab = Lab().__enter__()\nlab.host('h').spawn('sleep', '60')\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code])
    assert owner.wait(20) == -signal.SIGKILL
    prefix = f"{PREFIX}{owner.pid}-"
    left = [name for name in os.listdir(RUN_NETNS) if name.startswith(prefix)]
    assert left == [f"{prefix}1-h"]
    wait_until(lambda: len(marked(f"{prefix}1-")) == 1)
    with Lab():
        assert not (RUN_NETNS / left[0]).exists()
        assert not marked(f"{prefix}1-")
