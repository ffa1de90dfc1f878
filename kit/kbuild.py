# SPDX-License-Identifier: GPL-2.0-only
"""How the kernel's makefiles are called; kbuild() of lib.sh does the same for shell."""

import os

from kit import bases


def compiler(base, cross=""):
    """The compiler of a base; CROSS is the prefix of another architecture's."""
    return cross + bases.base(base)["compiler"]


def tools(base, cross=""):
    """Which tools make is to use. A Rust compiler that happens to be here must not show in the
    configuration."""
    return [f"CROSS_COMPILE={cross}", f"CC={compiler(base, cross)}",
            f"HOSTCC={compiler(base)}", "RUSTC=false"]


def make(tree, *arguments):
    """The command for a kernel tree."""
    return ["make", "-C", tree, "--no-print-directory",
            f"-j{os.environ.get('JOBS', os.cpu_count())}", *arguments]
