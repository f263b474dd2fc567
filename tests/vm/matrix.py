# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernels' matrix: the same tests on each kernel, and the page about it.

``TESTS`` are what proves the data path and the control plane against real peers.  What an emulated processor cannot
judge, how quick and how light things are, is left to the machine's own kernel and the whole suite.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.vm import kernels, machine
from tests.vm.kernels import CACHE
from tests.vm.page import NATIVE, page

CHECKOUT = CACHE.parents[1]
PAGE = CHECKOUT / "docs/kernels.md"
RESULTS = CACHE / "results"
SECONDS = 5400.0
_LINE = re.compile(r"(?P<outcome>passed|failed|skipped) (?P<id>tests/.*) (?P<seconds>\d+) s(?:: (?P<reason>.*))?")
"""What tests.vm.instant prints."""

TESTS = {
    "tests/bpf/test_port.py": (),
    "tests/bpf/test_uplink.py": (),
    "tests/bpf/test_xdp.py": (),
    "tests/control/test_plug.py": (),
    "tests/control/test_failures.py": (),
    "tests/control/test_features.py": (
        "test_traffic_without_any_of_them",
        "test_what_was_killed_without_links_goes_with_the_next_daemon",
    ),
    "tests/control/test_survival.py": (
        "test_a_killed_plug_unwinds_and_starts_again_at_once",
        "test_frames_flow_without_the_daemon_and_the_next_one_takes_over",
        "test_not_one_frame_is_lost_over_crash_and_restart",
        "test_every_kind_of_plug_comes_back",
        "test_plugs_that_wait_for_a_busy_daemon_are_not_late",
        "test_killing_everything_leaves_nothing",
        "test_an_interface_that_vanishes_ends_its_plug",
    ),
    "tests/interop/test_kernel_frames.py": (
        "test_frames_of_every_shape_from_and_to_every_kind_of_port[vxvde4]",
        "test_frames_of_every_shape_by_xdp[vxlan6]",
    ),
    "tests/interop/test_kernel_frozen.py": ("test_stopped_processes_do_not_matter",),
    "tests/interop/test_kernel_isolation.py": (
        "test_networks_never_meet",
        "test_what_is_not_ours_passes",
        "test_anything_at_all",
    ),
    "tests/interop/test_kernel_nodes.py": (),
    "tests/interop/test_kernel_stock.py": (
        "test_everybody_with_everybody",
        "test_guests_larger_than_the_uplink",
        "test_the_kernels_own_vxlan_device",
    ),
    "tests/interop/test_kernel_tcp.py": (),
    "tests/interop/test_kernel_uplinks.py": ("test_the_uplink_is_a_bridge", "test_an_endpoint_behind_a_router"),
    "tests/interop/test_kernel_vlan.py": (),
    "tests/interop/test_plug_kernel.py": ("test_a_killed_daemon_is_replaced", "test_a_stream_is_bridged"),
}
"""Files, and those of their tests that are taken, where it is not all."""


def selection(files: Iterable[str]) -> tuple[str, ...]:
    """These files' tests, as pytest takes them."""
    return tuple(f"{file}::{name}" if name else file for file in files for name in TESTS[file] or ("",))


def pytest_command(*arguments: str) -> list[str]:
    """pytest as a matrix runs it; by default the matrix's own tests."""
    options = "-q -p tests.vm.instant -p no:cacheprovider --tb=short"
    timeout = f"timeout={round(120 * machine.slowness())}"
    return ["python", "-m", "pytest", *options.split(), "-o", timeout, *(arguments or selection(TESTS))]


def _script(files: Iterable[str]) -> str:
    return f"python -m tests.vm.facts; exec {shlex.join(pytest_command(*selection(files)))}"


def run(names: list[str], *, again: bool = False) -> int:
    """Run on each of these kernels, keep what came out, write the page anew; the number of kernels with a failure.

    With ``again`` only those files are run that had a failure last time, or did not run; the others' results stay.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    bad = 0
    for name in names:
        kept = RESULTS / f"{name}.json"
        before = json.loads(kept.read_text()) if again and kept.exists() else {}
        files = [file for file in TESTS if not _passed(file, before)]
        if not files:
            continue
        print(f"vm: {name}: {len(files)} of {len(TESTS)} files", file=sys.stderr)
        try:
            made = _native(files) if name == NATIVE else _guest(name, files)
        except kernels.NotToBeHad as error:
            made = {"why": str(error)}
        made |= {"name": name, "date": time.strftime("%Y-%m-%d", time.gmtime()), "runs": 1}
        if len(files) < len(TESTS):
            made["tests"] = [test for test in before["tests"] if _file(test) not in files] + made.get("tests", [])
            made["seconds"] = before["seconds"] + made.get("seconds", 0.0)
            made["runs"] += before.get("runs", 1)
        kept.write_text(json.dumps(made, indent=1))
        failed = sorted(test["id"] for test in made.get("tests", []) if test["outcome"] == "failed")
        bad += bool(failed or made.get("why"))
        for line in [made.get("why"), *failed]:
            if line:
                print(f"vm: {name}: {line}", file=sys.stderr)
    PAGE.write_text(page([json.loads(path.read_text()) for path in RESULTS.glob("*.json")], len(TESTS)))
    return bad


def _file(test: dict[str, Any]) -> str:
    return str(test["id"]).partition("::")[0]


def _passed(file: str, result: dict[str, Any]) -> bool:
    """Whether this file was run, with no test of it failing."""
    outcomes = {test["outcome"] for test in result.get("tests", []) if _file(test) == file}
    return bool(outcomes) and "failed" not in outcomes


def _guest(name: str, files: list[str]) -> dict[str, Any]:
    kernel = kernels.fetch(kernels.KERNELS[name])
    outcome = machine.run(kernel, ["bash", "-c", _script(files)], SECONDS)
    made = {"package": kernel.version, "seconds": outcome.seconds, "emulated": machine.slowness() > 1}
    return made | read(outcome.output, outcome.why)


def _native(files: list[str]) -> dict[str, Any]:
    began = time.monotonic()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    lines = []
    with subprocess.Popen(
        ["bash", "-c", _script(files)], cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout or ():
            sys.stdout.write(line)
            lines.append(line)
    made = {"package": "this machine's", "seconds": time.monotonic() - began, "emulated": False}
    return made | read("".join(lines))


def read(output: str, why: str = "") -> dict[str, Any]:
    """What a run has printed: facts and tests.  Where it was cut short, ``why``, the last file does not count."""
    made: dict[str, Any] = {}
    tests: dict[str, dict[str, Any]] = {}
    for line in output.splitlines():
        if line.startswith('{"facts": '):
            made |= json.loads(line)["facts"]
        elif found := _LINE.fullmatch(line.rstrip()):
            one = {**found.groupdict(), "reason": found["reason"] or ""}
            if tests.get(one["id"], {}).get("outcome") != "failed":  # it may pass, and fail to clean up
                tests[one["id"]] = one
    if why or not tests:
        made["why"] = why or "pytest did not come to its end"
        last = _file(list(tests.values())[-1]) if tests else ""
        tests = {name: one for name, one in tests.items() if _file(one) != last}
    return made | {"tests": list(tests.values())}
