# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of the checks share: a copy of the assembled tree to spoil."""

import os
import re
import shutil

from kit.common import TOP


class Copy:
    """The assembled tree, with room to break files in it: links to it but beside PATHS."""

    def __init__(self, base, name, paths):
        self.tree = os.path.join(TOP, "out", base, "tree")
        self.folder = os.path.join(TOP, "out", base, "spoilt-" + name)
        # A run that was killed leaves it; its owner holds the test's lock.
        self.remove()
        # One link for each folder or file beside a path we need; those on the way are real.
        self.link("", set(paths))

    def link(self, at, needed):
        inside = os.path.join(self.folder, at)
        os.makedirs(inside, exist_ok=True)
        for name in os.listdir(os.path.join(self.tree, at)):
            path = os.path.join(at, name)
            below = {n for n in needed if n.startswith(path + "/")}
            if below:
                self.link(path, below)
            elif not os.path.isdir(os.path.join(self.tree, path)) and at:
                shutil.copy2(os.path.join(self.tree, path), os.path.join(self.folder, path))
            else:
                os.symlink(os.path.join(self.tree, path), os.path.join(self.folder, path))

    def spoil(self, path, pattern, replacement, before=""):
        """Returns what undoes it; None if the pattern is not there."""
        full = os.path.join(self.folder, path)
        with open(full, encoding="utf-8") as f:
            good = f.read()
        bad, count = re.subn(pattern, replacement, good, count=1, flags=re.M)
        if not count or bad == good:
            return None
        # Functions that the fault needs stand before the first function.
        if before:
            bad = re.sub(r"^static ", lambda m: before + m[0], bad, count=1, flags=re.M)
        self.put(full, bad)
        return lambda: self.put(full, good)

    @staticmethod
    def put(path, text):
        with open(path + ".tmp", "w", encoding="utf-8") as f:
            f.write(text)
        os.replace(path + ".tmp", path)

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)
