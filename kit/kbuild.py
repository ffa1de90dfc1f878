# SPDX-License-Identifier: GPL-2.0-only
"""How the kernel's makefiles are called; kbuild() of lib.sh does the same for shell."""

import os

from kit import bases
from kit.common import TOP


def compiler(base, cross=""):
    """The compiler of a base; CROSS is the prefix of another architecture's."""
    return cross + bases.base(base)["compiler"]


def tools(base, cross=""):
    """Which tools make is to use. A Rust compiler that happens to be here must not show in the
    configuration; in a root it is Debian's, but nothing that is written in Rust is needed."""
    return [f"CROSS_COMPILE={cross}", f"CC={compiler(base, cross)}",
            f"HOSTCC={compiler(base)}", "CONFIG_RUST=" if in_root(base) else "RUSTC=false"]


def in_root(base):
    """What to put before a command that builds a base: it is to run where that can be done."""
    if bases.native(base):
        return []
    return [os.path.join(TOP, "kit/in-root"), bases.base(base)["suite"]]


def make(base, tree, *arguments):
    """The command for a kernel tree."""
    return [*in_root(base), "make", "-C", tree, "--no-print-directory",
            f"-j{os.environ.get('JOBS', os.cpu_count())}", *arguments]
