# SPDX-License-Identifier: GPL-2.0-only
"""Which room may use which, and with that: what decides what a check of a room says."""

import os

from kit.common import TOP

# The product, at kernel paths
KERNEL = ("Documentation", "arch", "drivers", "include", "scripts", "tools", "virt", "MAINTAINERS")

# Arrows run one way: a room uses these, and those that they use.
USES = {
    "bases": (), "hosts": (),
    "kit": ("bases", "hosts"),
    "series": ("kit", *KERNEL),
    "build": ("series",),
    "lint": ("build",),
    "lab": ("build",),
    "tests": ("lab",),
    "bench": ("tests",),
    "packaging": ("tests",),
}


def used_by(room):
    """The room and all that it uses."""
    found = [room]
    for other in USES.get(room, ()):
        found += [name for name in used_by(other) if name not in found]
    return found


def files(*folders):
    """All files below these folders of the repository."""
    for folder in folders:
        path = os.path.join(TOP, folder)
        if os.path.isfile(path):
            yield path
        for at, inner, names in os.walk(path):
            # Left out: what is made, and git's own.
            inner[:] = [name for name in inner if name not in (".git", "out", "__pycache__")]
            yield from (os.path.join(at, name) for name in names)


def room_of(path):
    return os.path.relpath(path, TOP).split(os.sep, maxsplit=1)[0]
