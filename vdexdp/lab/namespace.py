# SPDX-License-Identifier: GPL-2.0-or-later
"""A network namespace and the processes in it.

Commands run through ``ip netns exec``, as an operator would do it, so that /sys shows the namespace's own
devices.  Every command gets the environment variable ``MARK`` set to its lab's prefix.  Whatever the command
starts in turn inherits it, a daemon that detaches included: that is how a lab finds all that it has to end, and
nothing else.
"""

from __future__ import annotations

import ctypes
import os
import signal as signals
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vdexdp.errors import HostError

MARK = "VDEXDP_LAB"
RUN_NETNS = Path("/run/netns")
CLONE_NEWNET = 0x40000000
SLOWNESS = float(os.environ.get("VDEXDP_LAB_SLOWNESS", "1"))
"""How many times slower this machine is than one with processors of its own, for instance an emulated one: a lab waits
that many times longer for everything.
"""

_libc = ctypes.CDLL(None, use_errno=True)


def wait_until(condition: Callable[[], object], timeout: float = 5.0, what: str = "", interval: float = 0.01) -> None:
    """Poll ``condition`` until it is true.  ``timeout`` and ``interval`` in seconds.  Raises TimeoutError
    naming ``what``.
    """
    end = time.monotonic() + timeout * SLOWNESS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what or condition}: not within {timeout} s")
        time.sleep(interval)


def setns(descriptor: int) -> None:
    """Move the calling thread into the network namespace behind a descriptor.  Raises OSError."""
    if _libc.setns(descriptor, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextmanager
def inside(path: Path | str) -> Iterator[None]:
    """The calling thread works in the network namespace at ``path`` for the length of the ``with`` block."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            setns(here)
    finally:
        os.close(here)


def marked(prefix: str) -> list[int]:
    """The pids of all live processes that were started, directly or not, in the lab of this prefix."""
    wanted = f"{MARK}={prefix}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "(ended)"


class Process:
    """A command that runs in a namespace; what it prints, both outputs together, is kept in a file that has no name."""

    def __init__(self, argv: list[str], environment: Mapping[str, str], stdin: int | None, stdout: int | None) -> None:
        self.argv = argv
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self.popen = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=self._log if stdout is None else stdout,
            stderr=self._log,
            env=environment,
            process_group=0,  # a Ctrl-C at the terminal is for us; we then end our processes in order
        )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def output(self) -> str:
        """All that it has printed so far."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def poll(self) -> int | None:
        return self.popen.poll()

    def wait(self, timeout: float = 10.0) -> int:
        """The exit status, -N for signal N.  Raises subprocess.TimeoutExpired."""
        return self.popen.wait(timeout * SLOWNESS)

    def wait_output(self, text: str, timeout: float = 10.0) -> str:
        """Wait until ``text`` was printed; return all output.  Raises HostError when the process ends before,
        TimeoutError.
        """
        end = time.monotonic() + timeout * SLOWNESS
        while text not in (said := self.output()):
            if self.poll() is not None and text not in self.output():
                raise HostError(" ".join(self.argv), f"ended with status {self.poll()} before it said {text!r}: {said}")
            if time.monotonic() > end:
                raise TimeoutError(f"{' '.join(self.argv)}: did not say {text!r} within {timeout} s, but: {said}")
            time.sleep(0.005)
        return said

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def stop(self, number: int = signals.SIGTERM, timeout: float = 5.0) -> int:
        """Ask it to end, then insist; return its exit status.  A stopped process (SIGSTOP) is woken for it."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
            self.popen.send_signal(signals.SIGCONT)
            try:
                self.popen.wait(timeout * SLOWNESS)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        return self.popen.wait()

    def kill(self) -> None:
        self.stop(signals.SIGKILL)

    def close(self) -> None:
        self.kill()
        self._log.close()


class Namespace:
    """One named network namespace.  Made and deleted by its lab."""

    def __init__(self, prefix: str, name: str) -> None:
        self.prefix = prefix
        self.name = name
        self.full_name = f"{prefix}{name}"
        self.path = RUN_NETNS / self.full_name
        self.processes: list[Process] = []

    def __repr__(self) -> str:
        return f"<Namespace {self.full_name}>"

    @property
    def inode(self) -> int:
        """What names the namespace to the kernel, and to vdexdp's control socket."""
        return self.path.stat().st_ino

    def _environment(self, extra: Mapping[str, str] | None) -> dict[str, str]:
        return {**os.environ, "LC_ALL": "C", MARK: self.prefix, **(extra or {})}

    def _argv(self, command: tuple[str, ...]) -> list[str]:
        return ["ip", "netns", "exec", self.full_name, *command]

    def run(
        self,
        *command: str,
        check: bool = True,
        timeout: float = 30.0,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end.  Raises HostError with what it printed when ``check`` and its status is not 0."""
        result = subprocess.run(
            self._argv(command),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout * SLOWNESS,
            env=self._environment(env),
            check=False,
        )
        if check and result.returncode:
            raise HostError(
                f"{self.name}: {' '.join(command)}",
                f"status {result.returncode}: {(result.stdout + result.stderr).strip()}",
            )
        return result

    def spawn(
        self, *command: str, env: Mapping[str, str] | None = None, stdin: int | None = None, stdout: int | None = None
    ) -> Process:
        """Start a command; it is ended with the namespace at the latest."""
        process = Process(self._argv(command), self._environment(env), stdin, stdout)
        self.processes.append(process)
        return process

    def ip(self, arguments: str) -> str:
        """``ip -n NAMESPACE arguments``; returns what it printed.  Raises HostError."""
        command = ["ip", "-n", self.full_name, *arguments.split()]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise HostError(f"{self.name}: ip {arguments}", result.stderr.strip())
        return result.stdout

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread's sockets and devices belong to the namespace for the length of the ``with`` block."""
        with inside(self.path):
            yield

    def sysctl(self, name: str, value: str) -> None:
        """Set ``net.…`` in this namespace; dots or slashes between the parts."""
        with self.entered():
            Path("/proc/sys", *(name.split("/") if "/" in name else name.split("."))).write_text(value)

    def ifindex(self, interface: str) -> int:
        return int(self.device(interface, "ifindex"))

    def mac(self, interface: str) -> str:
        return self.device(interface, "address")

    def exists(self, interface: str) -> bool:
        result = subprocess.run(
            ["ip", "-n", self.full_name, "link", "show", "dev", interface], capture_output=True, check=False
        )
        return result.returncode == 0

    def device(self, interface: str, attribute: str) -> str:
        """An attribute of ``ip -j link`` by its name, for instance "mtu" or "address"."""
        import json

        found = json.loads(self.ip(f"-j link show dev {interface}"))[0]
        return str(found[attribute])
