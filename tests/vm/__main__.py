# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/vm``: see its text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.vm import kernels, machine, matrix, page


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/vm",
        usage="scripts/vm [OPTION…] KERNEL [COMMAND…] | --matrix [--again] [KERNEL…] | --list",
        description="Run the matrix's tests, or a command, with another kernel.",
    )
    parser.add_argument("--list", action="store_true", help="what kernels there are")
    parser.add_argument(
        "--matrix", action="store_true", help="run all of them and this machine's own, and write docs/kernels.md"
    )
    parser.add_argument(
        "--again", action="store_true", help="with --matrix: only the files that failed, or were not run, last time"
    )
    parser.add_argument("--all", action="store_true", help="all tests, not only the matrix's")
    parser.add_argument(
        "--timeout", type=float, default=matrix.SECONDS, metavar="SECONDS", help="for all (%(default).0f)"
    )
    parser.add_argument(
        "--memory", type=int, default=machine.MEGABYTES, metavar="MB", help="of the guest (%(default)s)"
    )
    parser.add_argument("--results", type=Path, metavar="DIRECTORY", help="where the command's /results come to")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="KERNEL [COMMAND…]")
    options = parser.parse_args()
    if options.list:
        for one in kernels.KERNELS.values():
            there = kernels.unpacked(one)
            print(f"{one.name:8} {there.version if there else 'not fetched yet'}: {one.package}")
        return 0
    known = [*kernels.KERNELS, *([page.NATIVE] if options.matrix else [])]
    asked = options.words if options.matrix else options.words[:1]
    if wrong := [name for name in asked if name not in known]:
        parser.error(f"no kernel {wrong[0]}; there are {', '.join(known)}")
    if options.matrix:
        return 1 if matrix.run(asked or known, again=options.again) else 0
    if not asked:
        parser.error(f"which kernel? There are {', '.join(known)}")
    command = options.words[1:] or matrix.pytest_command(*(["tests"] if options.all else []))
    try:
        kernel = kernels.fetch(kernels.KERNELS[asked[0]])
        outcome = machine.run(kernel, command, options.timeout, options.memory)
    except kernels.NotToBeHad as error:
        print(f"vm: {error}", file=sys.stderr)
        return 1
    if options.results:
        options.results.mkdir(parents=True, exist_ok=True)
        for name, data in outcome.files.items():
            (options.results / Path(name).name).write_bytes(data)
    result = outcome.why or f"status {outcome.status}"
    print(f"vm: Linux {kernel.release}: {result}, {outcome.seconds:.0f} s", file=sys.stderr)
    return 1 if outcome.status is None else outcome.status


if __name__ == "__main__":
    sys.exit(main())
