# SPDX-License-Identifier: GPL-2.0-or-later
"""What changes on a host under living plugs is followed: the uplink's addresses and MTU, stock nodes beside us."""

from __future__ import annotations

from tests.control.rig import call, daemon, ping, plug, port, tunnel, until, wire
from tests.labkit import TwoHosts


def test_the_uplink_changes_its_address_and_mac(two_hosts: TwoHosts) -> None:
    left, right, guest = two_hosts.left, two_hosts.right, two_hosts.left_guest
    daemon(left)
    daemon(right)
    near, far = plug(left, wire("g1"), tunnel()), plug(right, wire("g2"), tunnel())
    assert ping(guest, "10.0.0.2")
    left.sysctl("net.ipv4.conf.lan0.promote_secondaries", "1")
    left.ip("address add 192.0.2.33/24 dev lan0")
    left.ip("address del 192.0.2.1/24 dev lan0")
    left.ip("link set lan0 address 02:aa:bb:cc:dd:ee")
    until(lambda: call(left, "show")["switches"][0]["local"] == "192.0.2.33", "the new address")
    assert ping(guest, "10.0.0.2", count=5)
    assert ping(two_hosts.right_guest, "10.0.0.1", count=5)
    entry = next(one for one in call(right, "fdb")["entries"] if one["mac"] == guest.mac("eth0"))
    assert entry["endpoint"][0] == "192.0.2.33"
    for host in (left, right):
        host.ip("link set lan0 mtu 1400")
    until(lambda: call(left, "show")["uplinks"][0]["mtu"] == 1400, "the new MTU")
    assert ping(guest, "10.0.0.2", size=1450), "too long for the uplink now: by the exception path"
    assert port(call(left, "show"), "vxvde")["counters"]["exceptions"]["mtu"] > 0
    near.close()
    far.close()


def test_a_stock_node_on_the_same_host(two_hosts: TwoHosts) -> None:
    left, right, guest = two_hosts.left, two_hosts.right, two_hosts.left_guest
    daemon(left)
    daemon(right)
    far = plug(right, wire("g2"), tunnel())
    near = plug(left, wire("g1"), tunnel())
    stock = left.spawn("vde_plug", "tap://stock0", "vxvde://234.0.0.1")
    until(lambda: left.exists("stock0"), "the stock node's tap")
    left.ip("link set stock0 mtu 1500")
    lab_guest = "10.0.0.3"
    left.ip(f"address add {lab_guest}/24 dev stock0")
    left.ip("link set stock0 up")
    until(lambda: call(left, "show")["switches"][0]["local_peers"] == 1, "the peer to be seen")
    assert ping(guest, lab_guest), "with the accelerated node on its own host"
    assert ping(two_hosts.right_guest, lab_guest), "with a node on another host"
    assert ping(guest, "10.0.0.2")
    entries = {one["mac"]: one for one in call(left, "fdb")["entries"]}
    assert entries[left.mac("stock0")]["local"]
    stock.stop()
    until(lambda: call(left, "show")["switches"][0]["local_peers"] == 0, "the peer's leave to be seen")
    assert ping(guest, "10.0.0.2")
    near.close()
    far.close()
