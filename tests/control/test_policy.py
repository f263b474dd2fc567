# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy file: what a rule allows, and that a mistake is named by file, line and key.  Needs no root."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vdexdp.control.channel import Peer
from vdexdp.control.netlink import LinkInfo
from vdexdp.control.policy import Policy, group_network, load
from vdexdp.errors import RequestError
from vdexdp.plugins.base import Tunnel

ALICE = Peer(1, 70001, 70100, frozenset({70200}))


def policy(path: Path, text: str) -> Policy:
    file = path / "policy.toml"
    file.write_text(text)
    return load(file)


def vxvde(group: str, vni: int, **values: Any) -> Tunnel:
    return Tunnel(
        **{"kind": "vxvde", "group": group, "family": 6 if ":" in group else 4, "port": 14789, "vni": vni} | values
    )


def link(name: str, **values: Any) -> LinkInfo:
    values = {"kind": "veth"} | values
    return LinkInfo(
        index=7,
        name=name,
        mac=b"",
        mtu=1500,
        up=True,
        operstate="up",
        ethernet=True,
        peer_netns=None,
        driver="",
        **values,
    )


def test_who_is_meant(tmp_path: Path) -> None:
    found = policy(
        tmp_path,
        'group = "root"\n[rule.a]\nusers = [70001]\n[rule.b]\ngroups = [70200, "root"]\n[rule.c]\nusers = ["root"]',
    )
    assert found.group == 0
    assert [rule.name for rule in found.rules_for(ALICE)] == ["a", "b"], "by user, and by a supplementary group"
    assert [rule.name for rule in found.rules_for(Peer(1, 5, 70200))] == ["b"], "by the effective group"
    assert policy(tmp_path, "") == Policy(), "nobody"


def test_networks(tmp_path: Path) -> None:
    (rule,) = policy(
        tmp_path,
        """
group = 70000
[rule.a]
users = [70001]
networks = [
    "vxvde://234.0.0.1/vni=7",
    "vxvde://239.0.0.9/vni=9",
    { group = "239.0.0.0/16", vni = "1-300", port = "14789-14790", ttl = 2, uplink = "eth[12]" },
    { kind = "vxlan", group = "ff05::/16", vni = 5 },
]
""",
    ).rules

    def may(tunnel: Tunnel, uplink: str = "eth0", routed: str = "eth0") -> bool:
        return rule.allows_network(tunnel, uplink, routed, ALICE)

    assert may(vxvde("234.0.0.1", 7))
    assert not may(vxvde("234.0.0.1", 8))
    assert not may(vxvde("234.0.0.1", 7, port=14790))
    assert not may(vxvde("234.0.0.1", 7, kind="vxlan"))
    assert not may(vxvde("234.0.0.1", 7, ttl=2)), "nor further than was said"
    assert not may(vxvde("234.0.0.1", 7), uplink="eth1"), "nor through another interface than the route's"
    assert may(vxvde("239.0.1.9", 300, port=14790, ttl=2), "eth1")
    assert not may(vxvde("239.0.1.9", 300), "eth3", "eth3")
    assert not may(vxvde("239.1.0.9", 300), "eth1")
    assert not may(vxvde("239.0.0.8", 8), "eth1"), "a range has no network of a group of users"
    assert may(vxvde("239.0.0.9", 9)), "the administrator has named it"
    assert may(vxvde("ff05::1", 5, kind="vxlan", port=4789))


def test_the_network_of_the_own_group(tmp_path: Path) -> None:
    (rule,) = policy(tmp_path, 'group = 70000\n[rule.a]\ngroups = [70100]\nnetworks = ["vxvdex://"]').rules
    for family, own in ((4, "239.1.17.212"), (6, "ff05:56de::1:11d4")):
        assert group_network(70100, family) == own
        assert rule.allows_network(vxvde(own, 70100), "eth0", "eth0", ALICE)
        assert not rule.allows_network(vxvde(own, 70101), "eth0", "eth0", ALICE)
        assert not rule.allows_network(vxvde(group_network(70200, family), 70200), "eth0", "eth0", ALICE), "egid only"
        assert not rule.allows_network(vxvde(group_network(70200, family), 70100), "eth0", "eth0", ALICE)


def test_interfaces(tmp_path: Path) -> None:
    (own,) = policy(tmp_path, "group = 70000\n[rule.a]\nusers = [70001]").rules
    tap = link("t0", kind="tun")
    assert not own.allows_interface(tap, ALICE), "a tap that anybody may open is nobody's"
    assert own.allows_interface(replace(tap, owner=70001), ALICE)
    assert own.allows_interface(replace(tap, group=70200), ALICE)
    assert not own.allows_interface(replace(tap, owner=70002), ALICE)
    assert not own.allows_interface(replace(tap, owner=70001, group=5), ALICE), "as the kernel has it"
    assert not own.allows_interface(link("eth0", kind=""), ALICE)
    (named,) = policy(
        tmp_path, 'group = 70000\n[rule.a]\nusers = [70001]\ninterfaces = ["vm-{uid}-*", "*", "eth7"]'
    ).rules
    assert named.allows_interface(link("vm-70001-0"), ALICE)
    assert not named.allows_interface(link("eth0", kind=""), ALICE), "a pattern is for no hardware"
    assert named.allows_interface(link("eth7", kind=""), ALICE)
    (named,) = policy(tmp_path, 'group = 70000\n[rule.a]\nusers = [70001]\ninterfaces = ["vm-{uid}-*"]').rules
    assert not named.allows_interface(link("vm-70002-0"), ALICE)
    assert not named.allows_interface(replace(tap, owner=70001), ALICE), '"own" is not said'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[rule.a]\nusers = [5]\n", r"policy.toml:1: group: missing; write group"),
        ("group = 5\nrules = 1\n", r"policy.toml:2: rules: unknown"),
        ('group = "no-such-group"\n', r'policy.toml:1: group: there is no group "no-such-group"'),
        ('group = 5\n[rule.a]\nusers = ["no-such-user"]\n', r"policy.toml:3: rule.a.users: there is no user"),
        ("group = 5\n[rule.a]\nnetworks = []\n", r"policy.toml:2: rule.a: it is for nobody"),
        ("group = 5\n[rule.a]\nuser = [5]\n", r"policy.toml:3: rule.a.user: unknown key; known are: users"),
        ("group = 5\n[rule.a]\nusers = [5]\nplugs = 0\n", r"policy.toml:4: rule.a.plugs: not a number"),
        ("group = 5\n[rule.a]\nusers = [true]\n", r"policy.toml:3: rule.a.users: True is no user"),
        ('group = 5\n[rule.a]\nusers = [5]\ninterfaces = "x"\n', r"policy.toml:4: rule.a.interfaces: not a list"),
        (
            'group = 5\n[rule.a]\nusers = [5]\nnetworks = ["tap://x"]\n',
            r"policy.toml:4: rule.a.networks: tap://x: not a",
        ),
        (
            'group = 5\n[rule.a]\nusers = [5]\nnetworks = ["vxvde://1.2.3.4"]\n',
            r":4: rule.a.networks: .*not a multicast",
        ),
        ('group = 5\n[rule.a]\nusers = [5]\nnetworks = ["vxvdex:///vni=3"]\n', r":4: rule.a.networks: .*caller's"),
        ("group = 5\n[rule.a]\nusers = [5]\nnetworks = [{vni = 3}]\n", r":4: rule.a.networks.group: not a range"),
        (
            'group = 5\n[rule.a]\nusers = [5]\nnetworks = [{group = "224.0.0.0/4", vni = "9-3"}]\n',
            r":4: rule.a.networks.vni: not a number up to",
        ),
        ('group = 5\n[rule.a]\nusers = [5]\nnetworks = [{group = "0.0.0.0/0"}]\n', r"networks.group: not all of it"),
        ("group = 5\n[rule.a\n", r"policy.toml:2"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        policy(tmp_path, text)
    assert re.search(said, str(caught.value))


def test_whose_file_it_is(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    with pytest.raises(RequestError, match="no such file; write it"):
        load(file)
    file.write_text("")
    file.chmod(0o666)
    with pytest.raises(RequestError, match="anybody may write it, and it says who may do what"):
        load(file)
