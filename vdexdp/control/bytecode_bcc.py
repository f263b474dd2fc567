# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiler's child process: C source in, BPF instructions out.  The only importer of bcc.

It is a process of its own because LLVM's memory is never given back, bcc changes the working directory, and clang
writes its messages to descriptor 2.  Run as ``python -m vdexdp.control.bytecode_bcc SOURCE,… FUNCTION,… CFLAG…``; on
descriptor 1 comes a JSON object with each function's instructions in hexadecimal, on 2 clang's messages.

No kernel headers are needed: bcc is pointed to a stub tree with the few files that its own preamble includes, and with
links to the uapi headers of linux-libc-dev.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

_KCONFIG = """\
#ifndef VDEXDP_STUB_KCONFIG_H
#define VDEXDP_STUB_KCONFIG_H
/* bcc brings its own linux/bpf.h: hide the system's. */
#define __LINUX_BPF_H__
#define CONFIG_BPF_SYSCALL 1
#include <linux/types.h>
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
typedef __SIZE_TYPE__ size_t;
typedef __UINTPTR_TYPE__ uintptr_t;
#define true 1
#define false 0
#ifndef NULL
#define NULL ((void *)0)
#endif
#endif
"""


NO_BCC = 3
"""Exit status where there is no bcc to compile with; why, is the last line on descriptor 2."""


def make_tree(tree: Path) -> None:
    """Builds the stub kernel tree; idempotent.  Raises FileNotFoundError where linux-libc-dev is not installed."""
    include = tree / "include"
    files = {
        include / "linux" / "log2.h": "",
        include / "linux" / "kconfig.h": _KCONFIG,
        include / "asm" / "page.h": "#define PAGE_SIZE 4096\n",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    uapi = include / "uapi"
    uapi.mkdir(exist_ok=True)
    multiarch = Path("/usr/include") / f"{os.uname().machine}-linux-gnu"
    for name, target in (
        ("linux", Path("/usr/include/linux")),
        ("asm-generic", Path("/usr/include/asm-generic")),
        ("asm", multiarch / "asm"),
    ):
        if not target.is_dir():
            raise FileNotFoundError(str(target))
        link = uapi / name
        if not link.is_symlink():
            link.symlink_to(target)


def main(argv: list[str]) -> int:
    sources, functions, *cflags = argv
    paths = [Path(source) for source in sources.split(",")]
    out = os.dup(1)
    os.dup2(2, 1)  # whatever LLVM prints is a message
    with tempfile.TemporaryDirectory(prefix="vdexdp-compile-") as tree:
        make_tree(Path(tree))
        os.environ["BCC_KERNEL_SOURCE"] = tree
        try:
            import bcc

            bcc.BPF  # noqa: B018 - another project of that name has none
        except Exception as error:  # whatever a package or a library that does not fit raises
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return NO_BCC

        # bcc keeps only functions of the main file apart: the sources are joined, not included.
        text = "\n".join(path.read_text() for path in paths)
        try:
            bpf = bcc.BPF(text=text, cflags=["-w", "-I", str(paths[0].resolve().parent), *cflags])
            images = {function: bpf.dump_func(function).hex() for function in functions.split(",")}
        except Exception as error:  # bcc raises nothing narrower; clang's own messages went to descriptor 2
            print(f"{sources}: {error}", file=sys.stderr)
            return 1
    with os.fdopen(out, "w") as stream:
        json.dump(images, stream)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
