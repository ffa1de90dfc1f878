# SPDX-License-Identifier: GPL-2.0-only
"""What tests of the tools share: a folder that looks like the repository, to break things in."""

import os
import shutil

from kit import rooms
from kit.common import TOP


def copy(top, *names):
    """Copy folders and files of the repository to TOP, without the tests of tools."""
    for name in names:
        for path in rooms.files(name):
            inside = os.path.relpath(path, TOP)
            if "/selftest/" in inside and "/selftest" not in name:
                continue
            os.makedirs(os.path.dirname(os.path.join(top, inside)), exist_ok=True)
            shutil.copy2(path, os.path.join(top, inside))


def write(top, path, text, mode=0o644):
    path = os.path.join(top, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    os.chmod(path, mode)
