# SPDX-License-Identifier: GPL-2.0-or-later
"""Users other than root: what the policy grants them, with the daemon, without it, and when the policy changes."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
from pathlib import Path

from tests.control.guestkit import ALICE, BOB, POLICY, hostile, inside, plugs
from tests.control.rig import START, call, daemon, kill, links_held, looks, ping, same, until
from tests.labkit import VDEXDP, TwoHosts
from tests.unprivileged import with_tun
from vdexdp.control.protocol import RUN_DIR
from vdexdp.lab import Lab, Namespace
from vdexdp.lab.namespace import command_line, marked


def test_root_only_by_default(host: Namespace) -> None:
    daemon(host)
    path = RUN_DIR / f"{host.inode}.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    process = host.spawn(*ALICE, *VDEXDP, "vde_plug", "null://", "vxvde://234.0.0.1")
    said = process.wait_output("in userspace", START)
    assert "you may not talk to the daemon; run as root, or ask root for a policy" in said


def test_two_groups_of_users(two_hosts: TwoHosts, policy: Path) -> None:
    left, right = two_hosts.left, two_hosts.right
    for one in (left, right):
        daemon(one, "--policy", str(policy))
        assert stat.S_IMODE((RUN_DIR / f"{one.inode}.sock").stat().st_mode) == 0o660
    far = inside(right, ALICE, 2, "exec sleep 60")
    also = inside(left, BOB, 3, "exec ping -i 0.05 10.0.0.9 >/dev/null")
    near = inside(
        left,
        ALICE,
        1,
        "ping -c 3 -i 0.1 -w 5 10.0.0.2 && ! ping -c 2 -i 0.2 -w 1 10.0.0.3",
        "&& cat /proc/net/dev && echo well; exec sleep 60",
    )
    near.wait_output("well")
    bytes_in = next(line.split()[1] for line in near.output().splitlines() if line.strip().startswith("vde0:"))
    assert int(bytes_in) < 1500, "nothing of Bob's broadcasts"
    names = {one["name"].partition(" via")[0]: one["fdb"] for one in call(left, "show")["switches"]}
    assert set(names) == {"vxvde 239.1.17.212:14789 vni 70100", "vxvde 239.1.18.56:14789 vni 70200"}
    root = left.run(
        *VDEXDP,
        "vdens",
        "vxvde:///grp=70100",
        "sh",
        "-c",
        "ip link set vde0 up; ip address add 10.0.0.4/24 dev vde0; ping -c 3 -i 0.1 -w 5 10.0.0.2",
        check=False,
    )
    assert root.returncode == 0, "an administrator joins"
    shown = json.loads(left.run(*BOB, *VDEXDP, "show", "--json").stdout)
    assert [one["user"] for one in shown["plugs"]] == ["70002"]
    assert [one["name"].split()[-3] for one in shown["switches"]] == ["70200"]
    assert {one["plug"] for one in shown["ports"]} == {shown["plugs"][0]["id"], None}
    assert left.run(*BOB, *VDEXDP, "fdb", "--json").stdout.count('"mac"') == 1, "his own"
    refused = left.run(*BOB, *VDEXDP, "fdb", "flush", check=False)
    assert refused.returncode == 1
    assert "user 70002 may not ask it for that" in refused.stderr
    told = left.run(*BOB, *VDEXDP, "doctor", check=False).stdout
    assert "rule tenants; networks vxvdex://; interfaces own; 4 plugs, 1 in use" in " ".join(told.split())
    explained = left.run(*BOB, *VDEXDP, "explain", "null://", "vxvdex://").stdout
    assert "The daemon's policy grants it to you: rule tenants." in explained
    explained = left.run(*BOB, *VDEXDP, "explain", "--json", "null://", "vxvde://234.0.0.1").stdout
    assert json.loads(explained)["why"].endswith("the policy does not grant you this network")
    for process in (near, far, also):
        process.stop()


def test_without_the_daemon(host: Namespace, policy: Path, lab: Lab) -> None:
    """Frames flow although their users hold nothing of it, the next daemon gets everything back, and who dies meanwhile
    leaves nothing.
    """
    before = looks(host)
    first = daemon(host, "--policy", str(policy))
    idle = looks(host)
    flow = inside(host, ALICE, 1, "exec ping -i 0.02 -W 1 10.0.0.2")
    target = inside(host, ALICE, 2, "exec sleep 60")
    bridged = host.spawn(*ALICE, *VDEXDP, "vde_plug", "cmd://sleep 60", "vxvde://234.0.0.1")
    bridged.wait_output("bridged into the kernel", START)
    pid = next(one["pid"] for one in plugs(host) if one["rule"] == "alice")
    held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert any("tun" in one for one in held), held
    assert not any("bpf" in one for one in held), held
    tap = next(one["name"] for one in call(host, "show")["ports"] if one["bridge"])
    assert host.run("sysctl", "-n", f"net.ipv4.conf.{tap}.rp_filter").stdout.strip() == "1"
    flow.wait_output("icmp_seq=10 ")
    kill(first)
    count = flow.output().count("icmp_seq")
    until(lambda: flow.output().count("icmp_seq") > count + 20, "frames without a daemon")
    second = daemon(host, "--policy", str(policy))
    until(lambda: len(plugs(host)) == 3, "all plugs with the new daemon", START)
    pids = {one["pid"] for one in plugs(host)}
    assert len(pids) == 3
    until(lambda: second.output().count("claimed by its user") == 3, "their users")
    assert {one["rule"] for one in plugs(host)} == {"tenants", "alice"}
    numbers = [int(line.split("icmp_seq=")[1].split()[0]) for line in flow.output().splitlines() if "icmp_seq=" in line]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "none lost"
    kill(bridged)
    until(lambda: len(plugs(host)) == 2, "the end of a killed plug")
    kill(second)
    kill(target)
    flow.stop()
    same(host, before)
    for pid in marked(lab.prefix):
        if command_line(pid) == "sleep 60":  # what ran in the killed ones
            os.kill(pid, signal.SIGTERM)
    third = daemon(host, "--policy", str(policy))
    until(lambda: not plugs(host), "nothing left")
    same(host, idle)
    third.stop()


def test_the_end_of_the_keeper(host: Namespace, policy: Path) -> None:
    """Alone it is started again; with the daemon, the next daemon cleans up."""
    first = daemon(host, "--policy", str(policy))
    held = inside(host, ALICE, 1, "exec sleep 60")
    for _ in range(2):
        (keeper,) = [pid for pid in children(host) if links_held(pid)]
        os.kill(keeper, signal.SIGKILL)
        until(lambda gone=keeper: any(pid != gone and links_held(pid) for pid in children(host)), "another keeper")  # type: ignore[misc]
    (keeper,) = [pid for pid in children(host) if links_held(pid)]
    first.signal(signal.SIGSTOP)
    os.kill(keeper, signal.SIGKILL)
    kill(first)
    assert "vdxv0" in host.ip("link"), "nobody could remove it"
    daemon(host, "--policy", str(policy))
    until(lambda: "vdxv0" not in host.ip("link"), "the new daemon to do it")
    held.wait_output("vde0 is gone")
    assert host.run("ip", "link", "show", "type", "veth").stdout.count("lan0"), "and nothing else"
    also = inside(host, ALICE, 1, "exec sleep 60")
    call(host, "stop")
    also.wait_output("the daemon was stopped; vde0 is gone")
    until(lambda: not {"vdxp0", "vdxv0"} & set(re.split(r"[\s:@]+", host.ip("link"))), "the end of what it had made")
    held.stop()
    also.stop()


def children(host: Namespace) -> list[int]:
    """The processes that the daemon has forked, its own children."""
    pid = call(host, "hello")["pid"]
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_interfaces(host: Namespace, lab: Lab, policy: Path, tmp_path: Path) -> None:
    daemon(host, "--policy", str(policy))
    guest = lab.guest(host, "vm-1", 1, mtu=1400)
    host.ip("tuntap add mode tap name t0 user 70001")
    host.ip("tuntap add mode tap name t1 user 70002")
    lab.address(host, "t0", 2)
    network = "vxvde://234.0.0.1"
    refused = {
        ("netdev://lan0", network): "the policy does not grant you lan0",
        ("netdev://t1", network): "the policy does not grant you t1",
        ("netdev://t0", network): "the host uses t0 itself",
        ("netdev://vm-1/hook=xdp", network): "hook=xdp is root's to say",
        ("netdev://vm-1", "vxvde://234.0.0.2"): "the policy does not grant you this network",
        ("netdev://vm-1", f"{network}/if=lo"): "the policy does not grant you this network",
        ("netdev://vm-1", f"{network}/ttl=9"): "the policy does not grant you this network",
        ("netdev://vm-1", f"{network}/rcvbuf=1G"): "rcvbuf= is for all of the network, and root's to say",
        ("netdev://vm-1", "vxvde://239.1.18.56/vni=70200"): "the policy does not grant you this network",
    }
    script = f"""
from vdexdp.plugins import registry
print(json.dumps([plug(*(registry.parse(vnl).kernel_end() for vnl in pair)) for pair in {list(refused)!r}]))
"""
    assert hostile(host, ALICE, script) == list(refused.values())
    done = host.run(*ALICE, *VDEXDP, "vde_plug", "--accel", "require", "netdev://lan0", network, check=False)
    assert (done.returncode, "does not grant you lan0" in done.stderr) == (1, True), done.stderr
    processes = []
    for name in ("netdev://vm-1", "tap://t0"):
        words = (*VDEXDP, "vde_plug", "--accel", "require", name, "vxvde://234.0.0.1")
        process = host.spawn(*with_tun(tmp_path), *ALICE, *words)
        process.wait_output("in the kernel", START)
        processes.append(process)
    assert ping(guest, "10.0.0.2")
    for process in processes:
        kill(process)
    until(lambda: not plugs(host), "the end of both")


def test_a_node_of_roots(host: Namespace, lab: Lab, policy: Path, public_path: Path) -> None:
    """A user who may be its client joins it as one; what he brings along, the policy judges."""
    daemon(host, "--policy", str(policy))
    guests = [lab.guest(host, name, number, mtu=1400) for number, name in enumerate(("g1", "g2"), 1)]
    network = "vxvde://234.0.0.1"
    options = "mode=0666/dirmode=0777"
    serving = host.spawn(*VDEXDP, "vde_plug", f"switch://{public_path}/sw[{options}]", "netdev://g1")
    serving.wait_output("bridged into the kernel", START)
    host.spawn(*VDEXDP, "vde_plug", "netdev://g2", network).wait_output("in the kernel", START)
    told = {f"{network}/vni=9": "in userspace", network: "bridged into the kernel"}
    for asked, way in told.items():
        joining = host.spawn(*ALICE, *VDEXDP, "vde_plug", f"vde://{public_path}/sw", asked)
        joining.wait_output(way, START)
        if asked == network:
            assert "only root joins a node in the kernel" in joining.output()
            assert ping(guests[0], "10.0.0.2")
        assert not [one for one in call(host, "show")["ports"] if one["kind"] == "patch"]
        joining.stop()
    root = host.spawn(*VDEXDP, "vde_plug", f"vde://{public_path}/sw", network)
    root.wait_output(": in the kernel", START)
    assert ping(guests[0], "10.0.0.2")
    root.stop()
    serving.stop()


def test_the_policy_changes(host: Namespace, policy: Path) -> None:
    process = daemon(host, "--policy", str(policy))
    held = inside(host, ALICE, 1, "exec sleep 60", network="vxvde://234.0.0.1")
    stays = inside(host, BOB, 1, "exec sleep 60")
    policy.write_text(POLICY + "\n[rule.carol]\nusers = [true]\n")
    process.signal(signal.SIGHUP)
    process.wait_output("policy.toml:16: rule.carol.users: True is no user")
    assert len(plugs(host)) == 2
    assert call(host, "policy")["broken"]
    policy.write_text(POLICY.partition("[rule.alice]")[0])
    process.signal(signal.SIGHUP)
    held.wait_output("does not grant you this network; vde0 is gone")
    assert [one["user"] for one in plugs(host)] == ["70002"]
    stays.stop()
