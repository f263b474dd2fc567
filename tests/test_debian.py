# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian package and the units on a throw-away machine with a real systemd: installed, used, upgraded, purged.

The tests are one story, in the order of this file.  No compiler is there, and no cache: the programs come with the
package.  What systemd takes away from a service (capabilities, devices, system calls, files) is really taken away.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.control.test_service import CAPABILITIES
from tests.machine import Machine
from vdexdp.lab import wait_until

NETWORK = """
ip link add lan0 type veth peer name lan1
ip address add 192.0.2.1/24 dev lan0
ip link set lan0 up mtu 1600; ip link set lan1 up mtu 1600
for n in 1 2 3; do
    ip netns add guest$n
    ip link add g$n type veth peer name eth0 netns guest$n
    ip link set g$n up
    ip -n guest$n address add 10.0.0.$n/24 dev eth0
    ip -n guest$n link set eth0 up
done
"""
DPKG_OWN = ("/var/lib/dpkg/", "/var/log/", "/var/cache/debconf/", "/var/cache/man/", "/etc/machine-id")
"""Where what was written is not of the package's doing."""


def bounding_set() -> int:
    """What this machine itself may have at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapBnd:"))


class Host(Machine):
    """The machine with an underlay and three guests."""

    deb = Path()
    before: frozenset[str] = frozenset()

    def show(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.sh("vdexdp show --json"))
        return found

    def state(self, unit: str) -> str:
        return self.run("systemctl", "is-active", unit, check=False).stdout.strip()

    def log(self) -> str:
        return self.sh("cat /run/log; systemctl --no-pager status 'vde*' || true")

    def systemctl(self, *arguments: str) -> None:
        done = self.run("systemctl", *arguments, check=False)
        assert done.returncode == 0, done.stderr + self.log()

    def pinged(self, source: int, target: int, count: int = 3) -> bool:
        """Whether all pings come back."""
        ping = f"ping -nqc{count} -i 0.1 -W 2 10.0.0.{target}"
        return self.run("ip", "netns", "exec", f"guest{source}", *ping.split(), check=False).returncode == 0


@pytest.fixture(scope="module")
def host(dist: Path) -> Iterator[Host]:
    with Host() as made:
        made.before = frozenset(made.written())
        (made.deb,) = dist.glob("*.deb")
        made.copy(made.deb, "/run/vdexdp.deb")
        made.sh(NETWORK)
        log = "[Service]\nStandardOutput=append:/run/log\nStandardError=append:/run/log\n"
        made.write("/run/systemd/system/service.d/log.conf", log)
        yield made


def test_installed_nothing_runs(host: Host) -> None:
    host.run("dpkg", "-i", "/run/vdexdp.deb")
    assert "vdexdp top" in host.sh("vdexdp --version; zcat /usr/share/man/man1/vdexdp-top.1.gz").replace("\\-", "-")
    origins = "import sys, importlib.util as u\nfor n in 'vdexdp', 'pyroute2', 'click': print(u.find_spec(n).origin)"
    assert (
        "/usr/lib/vdexdp" not in host.run("/usr/bin/python3", "-P", "-c", f"{origins} if u.find_spec(n) else 0").stdout
    )
    doctor = json.loads(host.sh("vdexdp doctor --json"))
    assert doctor["ok"], doctor
    assert [check["ok"] for check in doctor["checks"] if check["name"] == "bcc"] == [None], "no compiler is here"
    refused = host.run("vdexdp", "explain", "agno://{null://}", check=False)
    assert refused.returncode == 1
    assert 'cryptography is missing; install it with "apt-get install python3-cryptography"' in refused.stderr
    assert host.sh("systemctl list-units --plain --no-legend 'vde*'") == ""


def test_plugs_as_services(host: Host) -> None:
    """The daemon, started by its socket and under all of its unit's restrictions, plugs by tc, by XDP and a bridge."""
    host.write(
        "/etc/vdexdp/plugs/one.env", "FIRST=netdev://g1\nSECOND=vxvde://234.0.0.1/if=lan0\nOPTIONS=--accel require\n"
    )
    host.systemctl("enable", "--now", "vdexdp.socket", "vde_plug@one.service")
    assert host.state("vdexdp.service") == "active"
    networks = """
        [plug.two]
        ends = ["netdev://g2/hook=xdp", "vxvde://234.0.0.1/if=lan0"]
        accel = "require"
        [plug.bridged]
        ends = ["vde:///run/switch", "vxvde://234.0.0.1/if=lan0"]
    """
    host.sh("vde_switch -s /run/switch -d")
    host.write("/etc/vdexdp/networks.toml", networks)
    host.systemctl("enable", "--now", "vdexdp-networks.service")
    shown = host.show()
    assert [len(shown["plugs"]), len(shown["switches"])] == [3, 1], host.log()
    hooks = {port["name"]: port["hooks"] for port in shown["ports"]}
    assert (hooks["g1"][0], hooks["g2"][0]) == ("tc", "xdp"), hooks
    assert shown["worker"]["running"], "the exception path needs a tap, sockets and a process"
    assert host.sh("cat /proc/sys/net/ipv6/conf/vdxp0/disable_ipv6") == "1\n", "written by the daemon"
    assert host.pinged(1, 2)
    status = dict(line.split(":\t") for line in host.sh(f"cat /proc/{shown['pid']}/status").splitlines())
    allowed = sum(1 << number for number in CAPABILITIES.values()) & bounding_set()
    assert (int(status["CapEff"], 16), status["NoNewPrivs"], status["Seccomp"]) == (allowed, "1", "2")
    host.write(
        "/etc/vdexdp/networks.toml", networks + '[plug.three]\nends = ["netdev://g3", "vxvde://234.0.0.1/if=lan0"]\n'
    )
    host.systemctl("reload", "vdexdp-networks.service")
    wait_until(lambda: len(host.show()["plugs"]) == 4, 10, "the plug that was added")
    assert host.pinged(2, 3)


def test_frames_are_seen(host: Host) -> None:
    """What observes frames is shipped compiled, too, and the daemon may do it under its unit's restrictions."""
    ping = "ip netns exec guest1 ping -nqc80 -i 0.1 10.0.0.3 >/dev/null & P=$!"
    seen = host.sh(f"{ping}; vdexdp trace g1 --ethertype ip -c 2 --seconds 20 --json; kill $P")
    assert len([json.loads(line) for line in seen.splitlines()]) == 2
    assert host.pinged(1, 2)


def test_metrics_as_a_service(host: Host) -> None:
    host.systemctl("start", "vdexdp-metrics.service")
    read = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9617/metrics').read().decode())"

    def scraped() -> str:
        return host.run("/usr/bin/python3", "-c", read, check=False).stdout

    wait_until(scraped, 10, "a scrape")
    text = scraped()
    assert 'vdexdp_scrape_collector_success{netns="host",collector="daemon"} 1' in text
    assert (
        'vdexdp_port_receive_frames_total{netns="host",network="vxvde 234.0.0.1:14789 vni 1 via lan0",port="g1"' in text
    )


def test_restarts(host: Host) -> None:
    """Pings go on through a restart, a crash, and an upgrade of the package."""
    pinged = "ip netns exec guest1 ping -nqc50 -i 0.1 -W 2 10.0.0.3 >/run/pings & echo $!"
    pid = host.sh(pinged).strip()
    first = host.show()["pid"]
    host.systemctl("restart", "vdexdp.service")
    host.systemctl("kill", "--kill-whom=main", "-s", "KILL", "vdexdp.service")

    def back(but: int) -> bool:
        done = host.run("vdexdp", "show", "--json", check=False)
        shown: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {"pid": but}
        return shown["pid"] != but and len(shown["plugs"]) == 4

    wait_until(lambda: back(first), 15, "the plugs at the next daemon", 0.1)
    second = host.show()["pid"]
    host.run("dpkg", "-i", "/run/vdexdp.deb")
    wait_until(lambda: back(second), 15, "the plugs at the upgraded daemon", 0.1)
    wait_until(lambda: host.run("test", "-d", f"/proc/{pid}", check=False).returncode != 0, 15, "the pings to end", 0.1)
    assert " 0% packet loss" in host.sh("cat /run/pings"), host.log()
    assert host.state("vde_plug@one.service") == "active"


def test_a_plug_whose_device_comes_late(host: Host) -> None:
    host.write("/etc/vdexdp/plugs/late.env", "FIRST=netdev://late0\nSECOND=vxvde://234.0.0.1/if=lan0\n")
    assert host.run("systemctl", "start", "vde_plug@late.service", check=False).returncode != 0
    host.sh("ip link add late0 type veth peer name late1; ip link set late0 up")
    wait_until(lambda: host.state("vde_plug@late.service") == "active", 15, "the unit to try again", 0.1)


def test_removed_and_purged(host: Host) -> None:
    host.run("dpkg", "-r", "vdexdp")
    assert "vdexdp" not in host.sh("ps -eo args=")
    assert host.sh("ls /run/vdexdp 2>/dev/null || true; ip -br link show type tun") == ""
    assert host.sh("for d in g1 g2 g3 lan0; do ip -d link show $d | grep -E 'prog/|xdp' || true; done") == ""
    assert host.sh("ls /etc/vdexdp").split() == ["networks.toml", "plugs"], "configuration stays"
    host.run("dpkg", "-P", "vdexdp")
    assert host.sh("systemctl list-units --plain --no-legend 'vde*' --state=active") == ""
    left = sorted(path for path in host.written() - host.before if not path.startswith(DPKG_OWN))
    assert left == []
    assert host.run("test", "-e", "/usr/lib/vdexdp", check=False).returncode == 1
