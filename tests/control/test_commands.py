# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands that look: show, fdb, explain and doctor, as a user runs them."""

from __future__ import annotations

import json

from tests.control.rig import daemon, looks, ping, plug, same, tunnel, wire
from tests.labkit import VDEXDP, TwoHosts
from vdexdp.lab import Lab
from vdexdp.plugins.base import Netdev


def test_show_and_fdb(two_hosts: TwoHosts) -> None:
    left, right = two_hosts.left, two_hosts.right
    daemon(left)
    daemon(right)
    assert "Nothing is plugged" in left.run(*VDEXDP, "show").stdout
    near, far = plug(left, wire("g1"), tunnel()), plug(right, wire("g2"), tunnel())
    assert ping(two_hosts.left_guest, "10.0.0.2")
    said = left.run(*VDEXDP, "show").stdout
    for word in (
        "Plugs",
        "vxvde 234.0.0.1:14789 vni 1 via lan0",
        "g1",
        "tc",
        "192.0.2.1",
        "root",
        "Exception path: vdxp0",
    ):
        assert word in said, word
    assert "rx_frames" in left.run(*VDEXDP, "show", "--ports").stdout
    shown = json.loads(left.run(*VDEXDP, "show", "--json").stdout)
    assert shown["switches"][0]["fdb"] == 2
    port = next(one["index"] for one in shown["ports"] if one["name"] == "g1")

    mac = "02:00:00:00:00:55"
    left.run(*VDEXDP, "fdb", "add", mac, "--port", str(port))
    left.run(*VDEXDP, "fdb", "add", "02:00:00:00:00:56", "--endpoint", "192.0.2.2:5555", "--vlan", "7")
    said = left.run(*VDEXDP, "fdb").stdout
    assert mac in said
    assert "192.0.2.2 port 5555" in said
    left.run(*VDEXDP, "fdb", "delete", mac)
    left.run(*VDEXDP, "fdb", "flush")
    entries = json.loads(left.run(*VDEXDP, "fdb", "list", "--json").stdout)
    keys = ("switch", "vlan", "mac")
    again = json.loads(left.run(*VDEXDP, "fdb", "--json", "list").stdout)
    assert [[one[key] for key in keys] for one in again] == [[one[key] for key in keys] for one in entries]
    assert [(one["mac"], one["static"]) for one in entries if one["static"]] == [("02:00:00:00:00:56", True)]
    wrong = left.run(*VDEXDP, "fdb", "add", "nonsense", "--port", str(port), check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("vdexdp: nonsense: not a MAC address; ")
    near.close()
    far.close()
    left.run(*VDEXDP, "daemon", "--stop")


def test_without_a_daemon(lab: Lab) -> None:
    host = lab.host("host")
    result = host.run(*VDEXDP, "show", check=False)
    assert result.returncode == 1
    assert "no vdexdp daemon runs in this network namespace" in result.stderr


def test_explain_touches_nothing(lab: Lab) -> None:
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    lab.guest(host, "g1", 1)
    before = looks(host)

    def explain(*vnls: str, status: int = 0) -> dict[str, object]:
        result = host.run(*VDEXDP, "explain", "--json", *vnls, check=False)
        assert result.returncode == status, result.stderr
        found: dict[str, object] = json.loads(result.stdout)
        return found

    both = explain("netdev://g1", "vxvde://234.0.0.1")
    assert both["way"] == "kernel"
    text = json.dumps(both)
    for words in ("uplink lan0 (192.0.2.1)", "veth: tc keeps super-packets whole", "its MTU 1500 is over 1450"):
        assert words in text, words
    assert "a port would cut off" in json.dumps(explain("netdev://lan0", "vxvde://234.0.0.1", status=1))
    made = explain("tap://new0", "vxvde://ff05::77")
    assert "the interface would be made" in json.dumps(made)
    assert explain("null://", "vxvde://234.0.0.1")["way"] == "bridge"
    assert explain("null://", "netdev://g1")["way"] == "user"
    assert explain("netdev://g1", "vxvde://234.0.0.1/if=lo")["way"] == "user"
    assert host.run(*VDEXDP, "explain", "netdev://nope", check=False).returncode == 2
    assert host.run(*VDEXDP, "explain", "nonsense://x", check=False).returncode == 2
    said = host.run(*VDEXDP, "explain", "netdev://g1", "vxvde://234.0.0.1").stdout
    assert "No frame touches a process." in said
    same(host, before)
    host.ip("link set lan0 down")
    assert "the uplink is down" in json.dumps(explain("netdev://g1", "vxvde://234.0.0.1/if=lan0", status=1))


def test_doctor(lab: Lab) -> None:
    host = lab.host("host")
    before = looks(host)
    found = json.loads(host.run(*VDEXDP, "doctor", "--json").stdout)
    assert found["ok"]
    names = {check["name"]: check["ok"] for check in found["checks"]}
    assert all(names[f"program {point}"] for point in ("port_ingress", "port_egress", "uplink_ingress"))
    assert "The kernel path can run here." in host.run(*VDEXDP, "doctor").stdout
    host.ip("tuntap add mode tap name vdxp9")
    leftovers = json.loads(host.run(*VDEXDP, "doctor", "--json").stdout)["checks"]
    assert any("vdxp9" in check["detail"] for check in leftovers if check["name"] == "leftovers")
    host.ip("link delete vdxp9")
    same(host, before)


def test_doctor_and_explain_without_privilege(lab: Lab) -> None:
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    found = host.run(*nobody, *VDEXDP, "doctor", "--json", check=False, env={"HOME": "/nonexistent"})
    assert found.returncode == 1
    assert "not probed" in found.stdout
    said = json.loads(host.run(*nobody, *VDEXDP, "explain", "--json", "tap://t0", "vxvde://").stdout)
    assert said["needs"] == "a running daemon, or root to start one"
    daemon(host)
    refused = host.run(*nobody, *VDEXDP, "show", check=False)
    assert refused.returncode == 1
    assert "you may not talk to the daemon" in refused.stderr


def test_a_port_by_xdp(two_hosts: TwoHosts) -> None:
    left, right = two_hosts.left, two_hosts.right
    daemon(left)
    daemon(right)
    near, far = plug(left, Netdev("g1", "wire", hook="xdp"), tunnel()), plug(right, wire("g2"), tunnel())
    assert near.reply.paths[0].path == "xdp"
    assert any("turns off segmentation offload" in note for note in near.reply.notes)
    assert ping(two_hosts.left_guest, "10.0.0.2")
    near.close()
    far.close()
