# SPDX-License-Identifier: GPL-2.0-or-later
"""A throw-away machine with a real systemd, up in half a second: this system once more, in namespaces.

Its root is an overlay over ours whose upper layer is a tmpfs: what was written there is seen exactly
(:meth:`Machine.written`), and gone afterwards.  PID, network, mount, cgroup, UTS and IPC namespaces are its own;
process 1 is systemd, which takes itself to be in a container.  It dies with us, and everything in it with that.

No journal, udev or D-Bus runs there: they take longer than all the rest, and no unit of ours needs one.  There is
neither bcc nor a cache of compiled programs, /usr/local is empty, and packages may start and stop services.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.labkit import cgroup2, require
from vdexdp.lab import wait_until

BUILD = r"""
MASKED="
systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service
systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket
systemd-journal-flush.service systemd-logind.service dbus.service dbus.socket systemd-timesyncd.service
systemd-tmpfiles-setup.service systemd-tmpfiles-setup-dev.service systemd-sysctl.service systemd-modules-load.service
systemd-random-seed.service systemd-remount-fs.service systemd-sysusers.service systemd-update-utmp.service
systemd-binfmt.service proc-sys-fs-binfmt_misc.automount modprobe@.service ldconfig.service
local-fs.target remote-fs.target swap.target timers.target paths.target
systemd-ask-password-console.path systemd-ask-password-wall.path
dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount
sys-fs-fuse-connections.mount
"
set -e
d=$1
mount -t tmpfs -o mode=755 none "$d"
mkdir "$d/upper" "$d/work" "$d/root"
r=$d/root
mount -t overlay -o "lowerdir=/,upperdir=$d/upper,workdir=$d/work" overlay "$r"
mount -t proc proc "$r/proc"
mount -t sysfs sysfs "$r/sys"
mount -t cgroup2 cgroup2 "$r/sys/fs/cgroup"
mount -t tmpfs -o mode=755 none "$r/dev"
for node in null zero full random urandom tty; do
    touch "$r/dev/$node"; mount --bind "/dev/$node" "$r/dev/$node"
done
mkdir "$r/dev/pts" "$r/dev/shm" "$r/dev/net"
mknod -m 666 "$r/dev/net/tun" c 10 200
mount -t devpts -o newinstance,ptmxmode=666 devpts "$r/dev/pts"
ln -s pts/ptmx "$r/dev/ptmx"
ln -s /proc/self/fd "$r/dev/fd"
mount -t tmpfs none "$r/dev/shm"
mount -t tmpfs -o mode=755 none "$r/run"
mount -t tmpfs -o mode=1777 none "$r/tmp"
mkdir -p "$r/run/upper" "$r/run/systemd/system" "$r/run/bin"
mount --bind "$d/upper" "$r/run/upper"
mount --bind "$r/run/bin" "$r/usr/local"
rm -rf "$r/var/cache/vdexdp" "$r"/usr/lib/python3/dist-packages/{bcc,cryptography}
rm -f "$r/usr/sbin/policy-rc.d" "$r/var/lib/man-db/auto-update"
for unit in $MASKED; do ln -s /dev/null "$r/run/systemd/system/$unit"; done
printf '[Unit]\nDefaultDependencies=no\nWants=basic.target\nAfter=basic.target\n' >"$r/run/systemd/system/up.target"
exec env -i container=vdexdp PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    chroot "$r" /lib/systemd/systemd --system --unit=up.target
"""


class Machine:
    """``with Machine() as machine``; ``run`` commands in it."""

    def __init__(self) -> None:
        for feature in ("cgroup2", "overlay"):
            require(feature)
        self._cgroup = Path(cgroup2()) / f"vdexdp-machine-{os.getpid()}"
        self._place = Path(tempfile.mkdtemp(prefix="vdexdp-machine-"))
        self._init = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _boot(self) -> None:
        self._cgroup.mkdir()
        self._process = process = subprocess.Popen(
            [
                *("sh", "-c", f'echo $$ >{self._cgroup}/cgroup.procs; exec "$@"', "sh"),
                *(
                    "unshare",
                    "-m",
                    "-p",
                    "-n",
                    "-C",
                    "-u",
                    "-i",
                    "--fork",
                    "--kill-child=KILL",
                    "--propagation=private",
                ),
                *("bash", "-c", BUILD, "bash", str(self._place)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

        def child() -> bool:
            assert process.poll() is None, process.stderr and process.stderr.read().decode(errors="replace")
            found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            self._init = int(found[0]) if found else 0
            return bool(found) and Path(f"/proc/{found[0]}/comm").read_text() == "systemd\n"

        wait_until(child, 10, "systemd to be started")
        wait_until(lambda: self.run("systemctl", "is-active", "up.target", check=False).returncode == 0, 20, "systemd")

    def close(self) -> None:
        """End everything in it; idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

        def gone() -> bool:
            for path, _, _ in os.walk(self._cgroup, topdown=False):
                with suppress(OSError):
                    os.rmdir(path)
            return not self._cgroup.exists()

        wait_until(gone, 10, "the machine's processes to end")
        shutil.rmtree(self._place)

    def run(self, *command: str, check: bool = True, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command as root in the machine, at most a minute."""
        enter = ["nsenter", f"--target={self._init}", "-m", "-p", "-n", "-C", "-u", "-i", "-r", "-w"]
        names = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [*enter, *command],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=60,
            env=names,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def sh(self, script: str) -> str:
        """What a shell script prints; it has to succeed."""
        return self.run("sh", "-ec", script).stdout

    def write(self, path: str, text: str) -> None:
        """A file of the machine, directories included."""
        self.run("sh", "-ec", 'mkdir -p "$(dirname "$1")"; cat >"$1"', "sh", path, input=text)

    def copy(self, source: Path, path: str) -> None:
        """A file of ours, for the machine."""
        self.run("sh", "-ec", 'base64 -d >"$1"', "sh", path, input=base64.b64encode(source.read_bytes()).decode())

    def written(self) -> set[str]:
        """The files, not directories, that were made or changed outside /run, /tmp and /dev."""
        return {line[len("/run/upper") :] for line in self.sh("find /run/upper ! -type d").splitlines()}
