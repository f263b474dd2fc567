# SPDX-License-Identifier: GPL-2.0-or-later
"""vagrant/: the machines' description, how they are provisioned, and the LAC between two of them.

Shows: Vagrant takes the Vagrantfile, and would not with a misspelt key; the provisioning script writes the commands
that its documentation names, and routes the group to the private network; ``lac check`` and ``lac peers``, the scripts
that the two machines run, make a LAC between two network namespaces, and tell a missing peer.

The scripts run as they are.  Of this machine they see all but /usr/local/bin, which is an empty one of theirs, and the
network, which is the lab's.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.labkit import lacking, require_tool
from vdexdp import __version__
from vdexdp.lab import Lab, Namespace, wait_until

ROOT = Path(__file__).parent.parent.parent
VAGRANT = ROOT / "vagrant"
SUBNET = "192.0.2.0/24"


def validate(place: Path, text: str) -> subprocess.CompletedProcess[str]:
    (place / "Vagrantfile").write_text(text)
    environment = {"PATH": os.environ["PATH"], "HOME": str(place), "VAGRANT_HOME": str(place / "home"), "LC_ALL": "C"}
    return subprocess.run(
        [require_tool("vagrant"), "validate"], cwd=place, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("wrong", ["", "libvirt.cpus", "machine.vm.hostname"])
def test_the_machines_are_well_described(tmp_path: Path, wrong: str) -> None:
    text = (VAGRANT / "Vagrantfile").read_text()
    if not wrong:
        result = validate(tmp_path, text)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "validated successfully" in result.stdout
        return
    assert wrong in text
    result = validate(tmp_path, text.replace(wrong, f"{wrong}s"))
    assert result.returncode != 0
    assert f"The following settings shouldn't exist: {wrong.rpartition('.')[2]}s" in result.stderr


def machine(host: Namespace, commands: Path) -> tuple[str, ...]:
    """The start of a command line that runs as on a machine of its own."""
    return (
        *("nsenter", f"--net={host.path}", "unshare", "--mount", "sh", "-c"),
        'mount --bind "$0" /usr/local/bin && exec "$@"',
        str(commands),
    )


def test_a_machine_is_provisioned(lab: Lab, tmp_path: Path) -> None:
    """One on which nothing is missing any more; for a bare machine see vagrant/README.md."""
    if "VDEXDP_VM" in os.environ:
        lacking("an environment that scripts/setup made", "", known=False)
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    host.ip("route delete 224.0.0.0/4")
    run, provision = machine(host, tmp_path), str(VAGRANT / "provision")
    host.run(*run, provision, "--underlay", SUBNET)
    assert "224.0.0.0/4 dev lan0" in host.ip("route")
    result = host.run(*run, provision, "--underlay", "203.0.113.0/24", check=False)
    assert result.returncode == 1
    assert "203.0.113.0/24: no interface has an address in it" in result.stderr
    assert "usage" in host.run(*run, provision, "--nonsense", check=False).stderr
    said = host.run(*run, provision, timeout=100).stderr
    assert f"provision: Linux {os.uname().release}: vdexdp {__version__}" in said
    assert host.run(*run, "vdexdp", "--version").stdout.strip() == f"vdexdp {__version__}"
    assert host.run(*run, "in-vdexdp", "pwd").stdout.strip() == str(ROOT)


def test_a_lac_between_two_machines(lab: Lab) -> None:
    one, other = lab.host("one"), lab.host("other")
    lab.underlay(one, other)
    lac = str(VAGRANT / "lac")
    alone = one.run(lac, "check", check=False, env={"LAC_PATIENCE": "2"}, timeout=60)
    assert alone.returncode == 1
    assert 'stock peer: no answer from 10.9.1.2; does "lac peers" run on the other host?' in alone.stderr

    peers = other.spawn(lac, "peers")
    peers.wait_output("peers are up", 40)
    result = one.run(lac, "check", env={"LAC_SECONDS": "1"}, timeout=100)
    assert "the LAC works" in result.stdout
    for kind in ("stock", "vdexdp"):
        line = rf"^{kind} +peer: 0% packet loss,ping [\d.]+ ms; TCP to [\d.]+, from [\d.]+ Gbit/s$"
        assert re.search(line, result.stdout, re.MULTILINE), result.stdout
    peers.stop()
    wait_until(lambda: not other.exists("lac1") and not other.exists("lac2"), 10, "its taps' end")
    assert not one.exists("lac1")
