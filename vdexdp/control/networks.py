# SPDX-License-Identifier: GPL-2.0-or-later
"""Declared networks: plugs that one TOML file names, each a ``vde_plug`` process.

The file says what is wanted, ``RUN_DIR/networks-<netns inode>/`` what was started: for each plug a record (its
process, told apart from later ones of the same number by its start time; its ends) and what the process has
printed.  Comparing the two is all there is to it: nothing is lost when whoever started the plugs goes away.  The plugs
outlive the daemon by themselves (:mod:`vdexdp.control.client`).

A file that has any mistake changes nothing.  A plug that is to be replaced, and whose replacement does not start, is
started again as it was.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from vdexdp.control.protocol import RUN_DIR, netns_inode
from vdexdp.control.rundir import started
from vdexdp.control.tomlfile import TomlFile
from vdexdp.errors import HostError, PrivilegeError, RequestError, VnlError
from vdexdp.plugins import registry

DEFAULT_FILE: Final = Path("/etc/vdexdp/networks.toml")
START_LIMIT: Final = 45.0
"""Seconds for a plug to stand; a daemon that has to compile is the long part, the first time."""
END_LIMIT: Final = 5.0
"""Seconds between SIGTERM and SIGKILL."""
ACCEL: Final = ("auto", "require", "off")

_MEMBER = re.compile(r"(^|\{)vde://")
_STANDS = b" -- "
"""In the line that vde_plug prints when its cable stands."""


@dataclass(frozen=True)
class Spec:
    """One plug as the file wants it: two VNLs and vde_plug's ``--accel``."""

    name: str
    ends: tuple[str, str]
    accel: str = "auto"

    @property
    def joins(self) -> bool:
        """Whether an end is a port of a node that another process serves."""
        return any(_MEMBER.search(end) or "://" not in end for end in self.ends)

    def __str__(self) -> str:
        return f"{self.ends[0]} -- {self.ends[1]}" + (f" (accel {self.accel})" if self.accel != "auto" else "")


@dataclass(frozen=True)
class Running:
    """One plug that runs.  ``started`` in clock ticks since boot."""

    spec: Spec
    pid: int
    started: int


@dataclass(frozen=True)
class Change:
    """``wanted`` is None for a plug that is not in the file, ``now`` for one that does not run."""

    name: str
    now: Spec | None
    wanted: Spec | None

    @property
    def sign(self) -> str:
        return "+" if self.now is None else "-" if self.wanted is None else "~"


# The file


def load(path: Path) -> dict[str, Spec]:
    """The plugs that a file names, all of them correct.

    Raises RequestError naming file, line and key; HostError where it can't be read.
    """
    file = TomlFile.read(path, "it names commands")
    return {name: _plug(file, name, values) for name, values in file.named_tables("plug").items()}


def _plug(file: TomlFile, name: str, values: Mapping[str, Any]) -> Spec:
    def wrong(key: str, cause: str, hint: str = "") -> RequestError:
        return file.wrong(f"plug.{name}", key, cause, hint)

    for key in values:
        if key not in ("ends", "accel"):
            raise wrong(key, "unknown key", "known are: ends, accel")
    if "ends" not in values:
        raise wrong("", 'the key "ends" is missing', 'write ends = ["VNL", "VNL"]')
    ends, accel = values["ends"], values.get("accel", "auto")
    if not isinstance(ends, list) or len(ends) != 2 or not all(isinstance(end, str) for end in ends):
        raise wrong("ends", "not two VNLs", 'write ends = ["VNL", "VNL"]')
    for end in ends:
        if end in ("", "-"):
            raise wrong("ends", "a plug that nobody started has no standard input and output")
        try:
            registry.parse(end)
        except VnlError as error:
            raise wrong("ends", f"{error.subject}: {error.cause}", error.hint) from error
    if accel not in ACCEL:
        raise wrong("accel", "not understood", f"write one of {', '.join(ACCEL)}")
    return Spec(name, (ends[0], ends[1]), accel)


# What runs


class Networks:
    """The declared plugs of this network namespace.  One user at a time: see ``locked``."""

    def __init__(self) -> None:
        self.directory = RUN_DIR / f"networks-{netns_inode()}"
        self._children: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes anything meanwhile.  Raises PrivilegeError, HostError."""
        lock = self._lock()
        try:
            yield
        finally:
            with suppress(OSError):  # of use as long as there is something in it
                self.directory.rmdir()
            os.close(lock)

    def _lock(self) -> int:
        while True:
            try:
                RUN_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
                with suppress(FileExistsError):
                    os.mkdir(self.directory, 0o700)
                lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:  # removed by another one in between
                continue
            except PermissionError as error:
                raise PrivilegeError(str(self.directory), "permission denied", "run as root") from error
            except OSError as error:
                raise HostError.from_oserror(str(self.directory), error) from error
            fcntl.flock(lock, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), os.stat(self.directory)):
                    return lock
            os.close(lock)

    def running(self) -> dict[str, Running]:
        """All plugs that were started and have not ended, by name.  Raises PrivilegeError."""
        self._children = [child for child in self._children if child.poll() is None]
        try:
            names = sorted(os.listdir(self.directory))
        except FileNotFoundError:
            return {}
        except PermissionError as error:
            raise PrivilegeError(str(self.directory), "permission denied", "run as root") from error
        found = {}
        for path in (self.directory / name for name in names if name.endswith(".json")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                record = json.loads(path.read_text())
                spec = Spec(path.stem, (str(record["ends"][0]), str(record["ends"][1])), str(record["accel"]))
                if started(record["pid"]) == record["started"] != 0:
                    found[spec.name] = Running(spec, record["pid"], record["started"])
        return found

    def changes(self, wanted: Mapping[str, Spec]) -> list[Change]:
        """What differs between the file and what runs."""
        running = self.running()
        pairs = [
            (name, running[name].spec if name in running else None, wanted.get(name))
            for name in sorted(wanted.keys() | running.keys())
        ]
        return [Change(name, now, then) for name, now, then in pairs if now != then]

    def apply(self, changes: Iterable[Change]) -> dict[str, str]:
        """Make changes; returns why, for each plug that did not start.

        Raises HostError where nothing can be recorded.
        """
        changes = list(changes)
        self.stop(change.name for change in changes if change.now is not None)
        failed = self.start(change.wanted for change in changes if change.wanted is not None)
        undo = [change.now for change in changes if change.wanted is not None and change.name in failed]
        back = [spec for spec in undo if spec is not None]
        lost = self.start(back)
        for spec in back:
            failed[spec.name] += "; it runs as before" if spec.name not in lost else "; nor does it start as before"
        return failed

    def start(self, specs: Iterable[Spec]) -> dict[str, str]:
        """Start plugs and wait until they stand; returns why, for each that does not.

        All at once, but for those that join a node: another plug may serve it.
        """
        specs = list(specs)
        failed = self._start([spec for spec in specs if not spec.joins])
        return failed | self._start([spec for spec in specs if spec.joins])

    def _start(self, specs: Iterable[Spec]) -> dict[str, str]:
        begun = [(spec, self._spawn(spec)) for spec in specs]
        self._children += [child for _, child in begun]
        end = time.monotonic() + START_LIMIT
        failed: dict[str, str] = {}
        for spec, child in begun:
            while not self._stands(spec) and child.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
            if self._stands(spec) and child.poll() is None:
                continue
            if child.poll() is None:
                failed[spec.name] = f"does not stand after {START_LIMIT:.0f} s"
                self.stop([spec.name])
                continue
            said = self._log(spec.name).read_text(errors="replace").strip().splitlines()
            failed[spec.name] = said[-1].removeprefix("vdexdp: ") if said else f"ended with status {child.returncode}"
            self._record(spec.name).unlink(missing_ok=True)
        return failed

    def stop(self, names: Iterable[str]) -> None:
        """End plugs, all at once, and wait for their end."""
        running = self.running()
        ending: dict[int, str] = {}
        for name in names:
            if name in running and (pidfd := _pidfd(running[name])) >= 0:
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                ending[pidfd] = name
        for pidfd, name in ending.items():
            if not _ended(pidfd, END_LIMIT):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                _ended(pidfd, END_LIMIT)
            os.close(pidfd)
            self._record(name).unlink(missing_ok=True)
            self._log(name).unlink(missing_ok=True)
        if not self.running():
            for path in self.directory.glob("*.*"):
                path.unlink(missing_ok=True)

    def _record(self, name: str) -> Path:
        return self.directory / f"{name}.json"

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def _stands(self, spec: Spec) -> bool:
        try:
            return _STANDS in self._log(spec.name).read_bytes()
        except OSError as error:  # somebody has emptied the run directory
            raise HostError.from_oserror(str(self._log(spec.name)), error) from error

    def _spawn(self, spec: Spec) -> subprocess.Popen[bytes]:
        package = Path(__file__).resolve().parents[2]
        # -P: the current directory may be anybody's, and must not be where a privileged plug imports from.  Whether it
        # stands is nothing to a service manager that waits for us.
        environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        argv = [sys.executable, "-P", "-m", "vdexdp", "vde_plug", "--accel", spec.accel, *spec.ends]
        try:
            with self._log(spec.name).open("wb") as log:
                child = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    cwd="/",
                    env=environment | {"PYTHONPATH": str(package)},
                    start_new_session=True,
                )
            try:
                record = {"pid": child.pid, "started": started(child.pid)} | asdict(spec)
                self._record(spec.name).write_text(json.dumps(record))
            except OSError:
                child.terminate()  # nobody would find it again
                raise
        except OSError as error:
            raise HostError.from_oserror(str(self._record(spec.name)), error) from error
        return child


def _pidfd(plug: Running) -> int:
    """A descriptor of the very process that was started, -1 where it has ended."""
    try:
        pidfd = os.pidfd_open(plug.pid)
    except ProcessLookupError:
        return -1
    if started(plug.pid) == plug.started:
        return pidfd
    os.close(pidfd)
    return -1


def _ended(pidfd: int, limit: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(limit * 1000))


class Retries:
    """When to start a plug again that keeps ending: after 1, 2, 4 … 30 seconds."""

    def __init__(self) -> None:
        self._times: dict[str, tuple[float, float]] = {}

    def due(self, changes: Iterable[Change]) -> list[Change]:
        """Those whose time has come; they are taken as tried."""
        now = time.monotonic()
        found = []
        for change in changes:
            begin, delay = self._times.get(change.name, (0.0, 0.5))
            if now < begin + delay:
                continue
            delay = 1.0 if now > begin + 60.0 + delay else min(30.0, delay * 2)
            self._times[change.name] = (now, delay)
            found.append(change)
        return found
