# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes docs/kernels.md from what the runs of the matrix found."""

from __future__ import annotations

import re
from typing import Any

from vdexdp.control.features import TABLE

NATIVE = "native"
"""What the machine's own kernel is called."""

INTRODUCTION = """\
# Kernels

<!-- Written by scripts/vm --matrix; edit tests/vm/page.py instead. -->

vdexdp finds out what a kernel has by trying it, and uses what it finds: a missing feature costs speed, never
frames. Here is what a run of the same tests found on each kernel: programs under BPF_PROG_TEST_RUN, plugs,
failures, daemons that are killed and replaced; then, against real peers, frames of every shape from and to ports of
every kind, TCP with all offloads in both directions, stock `vde_plug` and the kernel's vxlan device, stopped
processes, networks that must not meet.

`sudo scripts/vm --matrix` makes this page. It needs nothing but Debian 12 and a network: QEMU, the kernels (from
Debian's packages: 5.10, 6.1, 6.12 and the newest of backports, sid and experimental), and a root file system are
fetched and kept in `.cache/vm`. One kernel alone, with the tests or with a command of your own:

```
sudo scripts/vm --list
sudo scripts/vm 5.10
sudo scripts/vm 6.1 python -m pytest -q tests/bpf
sudo scripts/vm 5.10 vdexdp doctor
sudo scripts/vm --all 6.12                                    # every test there is
sudo scripts/vm --matrix --again                              # what failed, or is missing, in the last matrix
```

KVM is used where it is found to work, else QEMU emulates the processor; labs are then given eight times the time,
and what only measures speed or weight is left out.

A run that is cut short counts with the files that it finished. What failed is run again, and then the last result
counts; the column "run" tells.

Continuous integration runs the whole suite on its own kernel, and boots one machine whose root is busybox alone, so
that this machinery stays whole (`tests/test_vm.py`, 9 s). A kernel of the matrix does not fit in there: the suite may
take 15 minutes on two cores and takes 12; the root file system alone takes 60 s to make from packages, and 260 tests
of the programs with three of plugs took 200 s on an emulated 6.1.
"""

FALLBACKS = """
What is done instead is shown with frames: clsact by every test on 5.10 and 6.1, floods by clones on every kernel. Every
kernel of the matrix has links for XDP; XDP by netlink is shown where they are taken away: two tests of
`tests/control/test_features.py` answer vdexdp's bpf(2) as a kernel without any of these features would, and check
traffic between every kind of port, captures, and what a killed daemon leaves.
"""

VERIFIER = """
## The verifier

Instructions of each program, and how many the verifier of each kernel walks through before it accepts the program; its
limit is 1,000,000.

"""


def page(results: list[dict[str, Any]], files: int) -> str:
    """docs/kernels.md; ``files`` of tests belong to a whole run."""
    found = sorted(results, key=lambda one: [int(part) for part in re.findall(r"\d+", one.get("release", "0"))[:3]])
    return INTRODUCTION + _summary(found, files) + _features(found) + _programs(found) + _exceptions(found)


def _title(one: dict[str, Any]) -> str:
    found = re.match(r"\d+\.\d+", one.get("release", ""))
    return (found[0] if found else one["name"]) + (" (native)" if one["name"] == NATIVE else "")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _counts(tests: list[dict[str, Any]], folder: str = "tests/") -> str:
    mine = [test["outcome"] for test in tests if test["id"].startswith(folder)]
    words = [f"{mine.count(what)} {what}" for what in ("failed", "passed", "skipped") if mine.count(what)]
    return ", ".join(words) or "none"


def _summary(found: list[dict[str, Any]], files: int) -> str:
    rows = []
    for one in found:
        tests = one.get("tests", [])
        ran = len({test["id"].partition("::")[0] for test in tests})
        part = f"; {ran} of {files} test files" if ran < files else ""
        part += f"; in {one['runs']} runs" if one.get("runs", 1) > 1 else ""
        how = "emulated" if one.get("emulated") else "KVM" if one["name"] != NATIVE else "native"
        rows.append(
            [
                *(_title(one), one.get("package", "?"), _path(one)),
                *(_counts(tests, f"tests/{folder}/") for folder in ("bpf", "control", "interop")),
                f"{one.get('seconds', 0) / 60:.0f} min, {how}, {one['date']}{part}",
            ]
        )
    head = ["kernel", "package", "path", "programs", "control", "interoperation", "run"]
    return "\n## Tests\n\n" + _table(head, rows)


def _path(one: dict[str, Any]) -> str:
    features = one.get("features", {})
    if not features:
        return str(one.get("why", "?")).splitlines()[0]
    hooks = ["tcx" if features["tcx"] else "clsact", "XDP link" if features["xdp_link"] else "XDP by netlink"]
    return ", ".join(hooks)


def _features(found: list[dict[str, Any]]) -> str:
    with_features = [one for one in found if one.get("features")]
    rows = []
    for name, row in TABLE.items():
        has = ["yes" if one["features"].get(name) else "–" for one in with_features]
        rows.append([row.title, *has, row.instead])
    head = ["", *map(_title, with_features), "where it is missing"]
    return "\n## Features\n\nAs probed.\n\n" + _table(head, rows) + FALLBACKS


def _programs(found: list[dict[str, Any]]) -> str:
    with_programs = [one for one in found if one.get("programs")]
    names = list(dict.fromkeys(name for one in with_programs for name in one["programs"]))
    rows = []
    for name in names:
        facts = [one["programs"].get(name, {}) for one in with_programs]
        length = next((fact["instructions"] for fact in facts if fact), 0)
        rows.append([f"`{name}`", f"{length:,}", *(_verified(fact) for fact in facts)])
    return VERIFIER + _table(["program", "length", *map(_title, with_programs)], rows)


def _verified(fact: dict[str, Any]) -> str:
    if "refused" in fact:
        return f"refused: {fact['refused']}"
    return f"{fact['verified']:,}" if fact else "?"


def _exceptions(found: list[dict[str, Any]]) -> str:
    lines = []
    for one in found:
        groups: dict[tuple[str, str], int] = {}
        for test in one.get("tests", []):
            if test["outcome"] != "passed":
                what = f"{test['id'].partition('[')[0]}"
                first = (test["reason"].splitlines() or ["?"])[0][:160]
                key = what, f"{test['outcome']}: {first}"
                groups[key] = groups.get(key, 0) + 1
        for (what, why), count in groups.items():
            times = f" ({count} times)" if count > 1 else ""
            lines.append(f"- {_title(one)}: `{what}`{times}, {why}\n")
    return "\n## Skipped and failed\n\n" + ("".join(lines) or "Nothing.\n")


def rows_of(text: str) -> list[str]:
    """The kernels' lines of a page."""
    return text.partition("## Tests\n")[2].partition("\n## ")[0].strip().splitlines()[2:]
