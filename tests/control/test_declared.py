# SPDX-License-Identifier: GPL-2.0-or-later
"""Declared networks: up starts what is missing and touches nothing else, down ends it, diff shows what differs.

Mistakes in the file are named by file, line and key, and change nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.rig import START, call, daemon, looks, ping, same, until
from tests.labkit import VDEXDP
from vdexdp.control import networks
from vdexdp.control.protocol import RUN_DIR
from vdexdp.errors import RequestError
from vdexdp.lab import Lab, Namespace

GOOD = """
[plug.first]
ends = ["netdev://g1", "vxvde://234.0.0.1"]
accel = "require"

[plug.second]
ends = ["netdev://g2", "vxvde://234.0.0.1"]
"""


def vdexdp(host: Namespace, *command: str) -> subprocess.CompletedProcess[str]:
    return host.run(*VDEXDP, *command, check=False, timeout=60)


@pytest.fixture
def host(lab: Lab) -> Iterator[Namespace]:
    made = lab.host("host")
    lab.underlay(made, lab.host("other"))
    yield made
    vdexdp(made, "down")


def pids(host: Namespace) -> dict[str, int]:
    return {" ".join(plug["vnls"]): plug["pid"] for plug in call(host, "show")["plugs"]}


def test_up_diff_down(lab: Lab, host: Namespace, tmp_path: Path) -> None:
    one, _ = lab.guest(host, "g1", 1, mtu=1400), lab.guest(host, "g2", 2, mtu=1400)
    before = looks(host)
    file = tmp_path / "networks.toml"
    file.write_text(GOOD)
    seen = vdexdp(host, "diff", "-f", str(file))
    assert (seen.returncode, [line[:8] for line in seen.stdout.splitlines()]) == (1, ["+ first:", "+ second"])
    same(host, before)

    done = vdexdp(host, "up", "-f", str(file))
    assert done.returncode == 0, done.stderr
    assert ping(one, "10.0.0.2")
    running = pids(host)
    assert len(running) == 2
    assert vdexdp(host, "diff", "-f", str(file)).returncode == 0
    again = vdexdp(host, "up", "-f", str(file))
    assert (again.returncode, again.stdout) == (0, "")
    assert pids(host) == running, "what runs is left alone"

    os.kill(call(host, "hello")["pid"], signal.SIGKILL)
    until(lambda: vdexdp(host, "show").returncode == 0 and pids(host) == running, "another daemon", START)

    file.write_text(GOOD.replace('g1", "vxvde://234.0.0.1', 'g1", "vxvde://234.0.0.1/vni=2').partition("[plug.sec")[0])
    seen = vdexdp(host, "diff", "--json", "-f", str(file))
    assert [(one["name"], one["wanted"] and one["wanted"]["accel"]) for one in json.loads(seen.stdout)] == [
        ("first", "require"),
        ("second", None),
    ]
    assert vdexdp(host, "up", "-f", str(file)).returncode == 0
    changed = pids(host)
    assert changed["netdev://g2 vxvde://234.0.0.1"] == running["netdev://g2 vxvde://234.0.0.1"]
    assert "netdev://g1 vxvde://234.0.0.1/vni=2" in changed
    pruned = vdexdp(host, "up", "--prune", "-f", str(file))
    assert pruned.stdout.startswith("- second")
    assert len(pids(host)) == 1

    unknown = vdexdp(host, "down", "second")
    assert unknown.returncode == 2
    assert "second: no such plug runs; running: first" in unknown.stderr
    assert vdexdp(host, "down").stdout.startswith("- first")
    assert not (RUN_DIR / f"networks-{host.inode}").exists()
    same(host, before)


def test_what_does_not_start_disturbs_nobody(lab: Lab, host: Namespace, tmp_path: Path) -> None:
    lab.guest(host, "g1", 1, mtu=1400)
    daemon(host)
    file = tmp_path / "networks.toml"
    file.write_text(GOOD)
    done = vdexdp(host, "up", "-f", str(file))
    assert done.returncode == 1
    assert "plug.second: netdev://g2: no such interface" in done.stderr
    running = pids(host)
    assert list(running) == ["netdev://g1 vxvde://234.0.0.1"]

    file.write_text(GOOD.replace("netdev://g1", "netdev://nothere"))
    done = vdexdp(host, "up", "-f", str(file))
    assert done.returncode == 1
    assert "plug.first: " in done.stderr
    assert "nothere: no such interface" in done.stderr
    assert "it runs as before" in done.stderr
    assert list(pids(host)) == list(running)
    running = pids(host)

    file.write_text(GOOD + "\n[plug.third]\nends = 5\n")
    for command in ("up", "diff"):
        refused = vdexdp(host, command, "-f", str(file))
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"vdexdp: {file}:10: plug.third.ends: not two VNLs"), refused.stderr
    assert pids(host) == running


def test_stay_starts_again_what_ends(lab: Lab, host: Namespace, tmp_path: Path) -> None:
    lab.guest(host, "g1", 1, mtu=1400)
    daemon(host)
    before = looks(host)
    file = tmp_path / "networks.toml"
    file.write_text(GOOD.partition("[plug.sec")[0])
    process = host.spawn(*VDEXDP, "up", "--stay", "-f", str(file))
    until(lambda: pids(host), "the plug", START)
    (first,) = pids(host).values()
    os.kill(first, signal.SIGKILL)
    until(lambda: set(pids(host).values()) - {first}, "another process", START)
    file.write_text("[plug")
    process.signal(signal.SIGHUP)
    said = process.wait_output("nothing is changed")
    assert f"{file}:1" in said
    assert len(pids(host)) == 1
    file.write_text(GOOD.partition("[plug.sec")[0].replace("netdev://g1", "netdev://nothere"))
    process.signal(signal.SIGHUP)
    process.wait_output("it runs as before", START)
    running = pids(host)
    assert list(running) == ["netdev://g1 vxvde://234.0.0.1"]
    time.sleep(2.0)
    assert pids(host) == running, "what can't be replaced is not disturbed again"
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    same(host, before)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("[plug.a]\nends = [\n", "2", "plug.a.ends: invalid value"),
        ('[plug.a]\nends = ["null://", "null://"\naccel = 1', "3", "plug.a.accel: unclosed array"),
        ("x = 1", "1", "x: unknown"),
        ('# theirs\n[plugs.a]\nends = ["null://", "null://"]', "2", "plugs: unknown"),
        ("\n\nplug = 1", "3", "plug: not a table"),
        ("[plug.a]\naccel = 'off'", "1", 'plug.a: the key "ends" is missing'),
        ('[plug.a]\nends = ["null://", "null://"]\n[plug.b]\nends = ["null://"]', "4", "plug.b.ends: not two VNLs"),
        ('[plug.a]\nends = ["null://", "nul://"]', "2", "plug.a.ends: "),
        ('[plug.a]\nends = ["null://", "-"]', "2", "plug.a.ends: "),
        ('[plug.a]\nends = ["null://", "null://"]\naccel = "on"', "3", "plug.a.accel: not understood"),
        ('[plug.a]\nends = ["null://", "null://"]\nacel = "on"', "3", "plug.a.acel: unknown key"),
        ('[plug."a/b"]\nends = ["null://", "null://"]', "1", "plug.a/b: not a name"),
    ],
)
def test_mistakes_are_named_by_file_line_and_key(text: str, line: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "networks.toml"
    file.write_text(text)
    with pytest.raises(RequestError) as caught:
        networks.load(file)
    said = str(caught.value)
    assert says in said
    assert said.startswith(f"{file}:{line}: ")


def test_files_that_can_not_be_trusted_or_read(tmp_path: Path) -> None:
    file = tmp_path / "networks.toml"
    with pytest.raises(RequestError, match="no such file; write it"):
        networks.load(file)
    file.write_bytes(b"# \n# \xff\n")
    with pytest.raises(RequestError, match=r"networks.toml:2: not UTF-8"):
        networks.load(file)
    file.write_text("")
    assert networks.load(file) == {}
    file.chmod(0o666)
    with pytest.raises(RequestError, match="anybody may write it"):
        networks.load(file)
