# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of a command in a virtual machine with a kernel of choice.

QEMU boots the kernel and an initrd of ours, which mounts the root (virtio disk 1; what is written to it is thrown
away) and the modules (disk 2), and continues in a script there; no systemd.  The script unpacks the checkout from disk
3, a tar, runs the command, and writes a tar with its exit status and whatever is in /results to disk 4.  The command's
output comes on the first serial port as it is printed, the kernel's on the second.

KVM is used where a guest under it gets as far as its first line within a few seconds; on some machines it hangs.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.vm import rootfs
from tests.vm.initrd import initrd
from tests.vm.kernels import CACHE, NotToBeHad, Unpacked

MEGABYTES = 3072
_RESULT_MEGABYTES = 64
_KVM_SECONDS = 10.0
_HELLO = "the guest is up"
_LAST_LINES = 30
_EMULATION = 8.0
SOFTWARE = ("-accel", "tcg,thread=multi", "-cpu", "qemu64,+rdrand")
_KVM = ("-accel", "kvm", "-cpu", "host")

_INIT = """\
b mount -t devtmpfs dev /dev
b mount -t proc proc /proc
b mount -t ext4 /dev/vda /root
b mkdir -p /root/lib/modules
b mount -t ext4 -o ro /dev/vdb /root/lib/modules
b mount -t tmpfs run /root/run
b cp /guest /root/run/guest
b mkdir -p /root/boot
b test ! -e /config || b cp /config /root/boot/config-$(b uname -r)
b umount /proc
exec /bin/busybox switch_root /root /run/guest
"""

_GUEST = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /results
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C TERM=dumb
hostname guest
ip link set lo up
modprobe -qa tun veth
tar -xf /dev/vdc -C /
cd {checkout}
ln -sfn {venv} .venv
export PATH={venv}/bin:$PATH VDEXDP_VM={kernel} VDEXDP_LAB_SLOWNESS={slowness:.0f}
exec </dev/null >/dev/ttyS0 2>&1
stty -F /dev/ttyS0 raw
sh -c {command}
echo $? >/results/status
tar -cf /dev/vdd -C /results .
sync
echo b >/proc/sysrq-trigger
sleep 60
"""


@dataclass
class Outcome:
    """``status`` is the command's, None where the machine did not come to its end; ``why`` then says so."""

    status: int | None
    seconds: float
    output: str
    why: str = ""
    files: dict[str, bytes] = field(default_factory=dict)


def accelerator() -> tuple[str, ...]:
    """QEMU's options for KVM where it works, else for emulation in software.  Tried once, remembered for this boot."""
    if not Path("/dev/kvm").exists():
        return SOFTWARE
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    remembered = CACHE / f"kvm-{boot}"
    if not remembered.exists():
        kernel = next(iter(sorted(CACHE.glob("kernels/*/version"))), None)
        if kernel is None:
            return SOFTWARE
        for old in CACHE.glob("kvm-*"):
            old.unlink()
        remembered.write_text("yes" if _kvm_works(Unpacked(kernel.parent, "")) else "no")
    return _KVM if remembered.read_text() == "yes" else SOFTWARE


def slowness() -> float:
    """How many times slower than a processor of its own the guest is (vdexdp.lab.SLOWNESS)."""
    return 1.0 if accelerator() == _KVM else _EMULATION


def _kvm_works(kernel: Unpacked) -> bool:
    with tempfile.TemporaryDirectory(prefix="vdexdp-vm-") as place:
        ram = Path(place) / "initrd"
        ram.write_bytes(initrd(f"b mount -t devtmpfs dev /dev\necho {_HELLO} >/dev/ttyS0\n", []))
        command = (*_qemu(), *_KVM, "-m", "256", "-kernel", str(kernel.image), "-initrd", str(ram))
        said = Path(place) / "said"
        with said.open("wb") as out:
            guest = subprocess.Popen(
                [*command, "-serial", "stdio", "-append", "console=ttyS0 panic=-1"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            try:
                guest.wait(_KVM_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            finally:
                guest.kill()
                guest.wait()
        return _HELLO in said.read_text(errors="replace")


def _qemu() -> tuple[str, ...]:
    qemu = shutil.which("qemu-system-x86_64")
    if not qemu:
        raise NotToBeHad("QEMU is missing: run scripts/setup --vm")
    return ("nice", "-n", "1", qemu, "-nodefaults", "-display", "none", "-no-reboot")


def run(
    kernel: Unpacked, command: Sequence[str], timeout: float, memory: int = MEGABYTES, root: Path | None = None
) -> Outcome:
    """Run a command in the checkout's copy inside of the guest, its output on our standard output as it comes.

    ``timeout`` in seconds for everything from the start of QEMU on; ``root`` in place of the Debian root, with bash in
    its /bin.  Raises NotToBeHad.
    """
    root, modules = root or rootfs.root_disk(), rootfs.modules_disk(kernel)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vdexdp-vm-", dir=CACHE) as name:
        place = Path(name)
        rootfs.checkout_disk(place / "checkout.tar")
        with (place / "results").open("wb") as stream:
            stream.truncate(_RESULT_MEGABYTES << 20)
        guest = _GUEST.format(
            checkout=rootfs.GUEST_CHECKOUT,
            venv=rootfs.GUEST_VENV,
            kernel=kernel.release,
            slowness=slowness(),
            command=shlex.quote(shlex.join(command)),
        )
        drivers = kernel.load_order("virtio_pci", "virtio_blk", "ext4")
        files = {"guest": guest.encode(), **({"config": kernel.config.read_bytes()} if kernel.config.exists() else {})}
        (place / "initrd").write_bytes(initrd(_INIT, drivers, files))
        disks = [(root, "snapshot=on"), (modules, "readonly=on"), (place / "checkout.tar", "readonly=on")]
        disks.append((place / "results", "cache=unsafe"))
        argv = [
            *_qemu(),
            *accelerator(),
            *("-smp", "2", "-m", str(memory), "-kernel", str(kernel.image), "-initrd", str(place / "initrd")),
            *("-append", "console=ttyS1 quiet panic=-1 random.trust_cpu=on mitigations=off"),
            *("-serial", "stdio", "-serial", f"file:{place / 'console'}"),
            *(f"-drive=if=virtio,format=raw,file={path},{option}" for path, option in disks),
        ]
        argv = [word for one in argv for word in (one.split("=", 1) if one.startswith("-drive=") else [one])]
        output, timed_out = _live(argv, timeout, place)
        seconds = time.monotonic() - began
        files = _results(place / "results")
        if "status" in files:
            return Outcome(int(files.pop("status")), seconds, output, files=files)
        console = (place / "console").read_text(errors="replace").splitlines()[-_LAST_LINES:]
        what = f"not done within {timeout:.0f} s" if timed_out else "ended before its command did"
        why = [f"the virtual machine was {what}; its kernel's last words:", *console]
        return Outcome(None, seconds, output, "\n".join(why))


def _live(argv: list[str], timeout: float, place: Path) -> tuple[str, bool]:
    """Run QEMU, copying its standard output; what that was, and True where it had to be ended."""
    said = bytearray()
    with (place / "messages").open("wb") as messages:
        guest = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": str(place)},
        )
    assert guest.stdout is not None
    timed_out = threading.Event()

    def end() -> None:
        timed_out.set()
        guest.kill()

    alarm = threading.Timer(timeout, end)
    alarm.start()
    try:
        while chunk := os.read(guest.stdout.fileno(), 1 << 16):
            said += chunk
            sys.stdout.buffer.write(chunk.replace(b"\r\n", b"\n"))
            sys.stdout.buffer.flush()
        guest.wait()
    finally:
        alarm.cancel()
        if guest.poll() is None:
            guest.kill()
            guest.wait()
    if guest.returncode and not timed_out.is_set():
        raise NotToBeHad(f"QEMU: {(place / 'messages').read_text(errors='replace').strip()}")
    return said.decode(errors="replace"), timed_out.is_set()


def _results(disk: Path) -> dict[str, bytes]:
    try:
        with tarfile.open(disk, "r:") as archive:
            files = ((member, archive.extractfile(member)) for member in archive if member.isfile())
            return {member.name.removeprefix("./"): stream.read() for member, stream in files if stream}
    except tarfile.TarError:
        return {}
