# SPDX-License-Identifier: GPL-2.0-or-later
"""A pytest plugin that names each test with its seconds, and shows a failure, as soon as it is known.

An emulated machine takes long to come to its summary, and may not get there: the matrix reads what this prints.
"""

from __future__ import annotations

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        lines = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext).splitlines()
        why = f": {lines[-1].removeprefix('Skipped: ')}" if lines and not report.passed else ""
        print(f"\n{report.outcome} {report.nodeid} {report.duration:.0f} s{why}", flush=True)
    if report.failed:
        print(report.longreprtext, flush=True)
