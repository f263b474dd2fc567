# SPDX-License-Identifier: GPL-2.0-or-later
"""Measurements between two namespaces: ping, iperf3, the machine's CPU time, a process's memory."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdexdp.errors import HostError
from vdexdp.lab.namespace import Namespace, Process

IPERF_PORT = 5201


@dataclass(frozen=True)
class Ping:
    """What ``ping`` saw; round-trip times in milliseconds, in order of arrival."""

    sent: int
    received: int
    times: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.times) if self.times else float("nan")


def ping(
    source: Namespace,
    address: str,
    count: int = 3,
    interval: float = 0.01,
    size: int | None = None,
    timeout: float = 2.0,
    options: tuple[str, ...] = (),
) -> Ping:
    """Echo requests, ``interval`` seconds apart; ``size`` in bytes of ICMP payload; ``timeout`` seconds to wait for the
    last answer.  No answer is a result, not an error.
    """
    command = ["ping", "-n", "-c", str(count), "-i", str(interval), "-W", str(timeout), *options]
    if size is not None:
        command += ["-s", str(size)]
    result = source.run(*command, address, check=False, timeout=count * max(interval, 0.05) + timeout + 20)
    totals = re.search(r"(\d+) packets transmitted, (\d+) received", result.stdout)
    if not totals:
        raise HostError(f"{source.name}: ping {address}", (result.stdout + result.stderr).strip())
    times = tuple(float(found) for found in re.findall(r"time=([\d.]+) ms", result.stdout))
    return Ping(int(totals[1]), int(totals[2]), times)


@dataclass(frozen=True)
class Tcp:
    """One iperf3 run: bit/s as the receiver counted, retransmitted segments, CPU seconds of the whole machine
    per second.
    """

    bits_per_second: float
    retransmits: int
    cpu: float


def iperf_server(server: Namespace, port: int = IPERF_PORT, address: str = "") -> Process:
    """An iperf3 server that stays until it is stopped, ready for clients."""
    bind = ("-B", address) if address else ()
    process = server.spawn("iperf3", "-s", "-p", str(port), "--forceflush", *bind)
    process.wait_output("listening")
    return process


def tcp(
    client: Namespace,
    address: str,
    seconds: int = 2,
    reverse: bool = False,
    port: int = IPERF_PORT,
    options: tuple[str, ...] = (),
) -> Tcp:
    """One TCP stream, whole ``seconds`` long, to the iperf3 server at ``address``, from it with ``reverse``.
    Raises HostError when it fails.
    """
    command = ["iperf3", "-J", "-c", address, "-p", str(port), "-t", str(seconds), "--connect-timeout", "5000"]
    busy = busy_seconds()
    try:
        result = client.run(*command, *(["-R"] if reverse else []), *options, check=False, timeout=seconds + 15)
    except subprocess.TimeoutExpired:
        raise HostError(f"{client.name}: iperf3 {address}", "connected, then made no progress") from None
    busy = busy_seconds() - busy
    try:
        report: dict[str, Any] = json.loads(result.stdout)
    except ValueError:
        raise HostError(f"{client.name}: iperf3 {address}", (result.stdout + result.stderr).strip()) from None
    if "error" in report:
        raise HostError(f"{client.name}: iperf3 {address}", str(report["error"]))
    total = report["end"]["sum_received"]
    if not total["bytes"]:
        raise HostError(f"{client.name}: iperf3 {address}", "connected, but no data arrived")
    retransmits = int(report["end"]["sum_sent"].get("retransmits", 0))
    return Tcp(float(total["bits_per_second"]), retransmits, busy / seconds)


def busy_seconds() -> float:
    """CPU seconds that all processors of this machine have worked since its start."""
    user, nice, system, _idle, _wait, irq, soft, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """CPU seconds, user and system, that a process has used, ended threads included.  Raises OSError when it is gone.

    By its clock, as clock_getcpuclockid(3) makes it: /proc/PID/stat counts in ticks of 10 ms.
    """
    return time.clock_gettime(~pid << 3 | 2)


def pss_bytes(pid: int) -> int:
    """The process's proportional share of memory in bytes: shared pages are divided among those that share them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise HostError(f"process {pid}", "its memory map names no Pss")
