# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/vm``: see its text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.vm import kernels, machine

TESTS = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=/results/junit.xml")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/vm", description="Run the tests, or a command, with another kernel.")
    parser.add_argument("--list", action="store_true", help="what kernels there are")
    parser.add_argument("--timeout", type=float, default=3600, metavar="SECONDS", help="for everything (3600)")
    parser.add_argument(
        "--memory", type=int, default=machine.MEGABYTES, metavar="MB", help="of the guest (%(default)s)"
    )
    parser.add_argument("--results", type=Path, metavar="DIRECTORY", help="where the command's /results come to")
    parser.add_argument("kernel", nargs="?", choices=list(kernels.KERNELS))
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.list:
        for one in kernels.KERNELS.values():
            there = kernels.unpacked(one)
            print(f"{one.name:8} {there.version if there else 'not fetched yet'}: {one.package}")
        return 0
    if not options.kernel:
        parser.error("which kernel? see --list")
    try:
        kernel = kernels.fetch(kernels.KERNELS[options.kernel])
        outcome = machine.run(kernel, options.command or TESTS, options.timeout, options.memory)
    except kernels.NotToBeHad as error:
        print(f"vm: {error}", file=sys.stderr)
        return 1
    if options.results:
        options.results.mkdir(parents=True, exist_ok=True)
        for name, data in outcome.files.items():
            (options.results / Path(name).name).write_bytes(data)
    print(
        f"vm: Linux {kernel.release}: {outcome.why or f'status {outcome.status}'}, {outcome.seconds:.0f} s",
        file=sys.stderr,
    )
    return 1 if outcome.status is None else outcome.status


if __name__ == "__main__":
    sys.exit(main())
