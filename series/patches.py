# SPDX-License-Identifier: GPL-2.0-only
"""series/series: which patches there are, in their order, for which bases, and what each brings."""

import collections
import os
import re

from kit import bases
from kit.common import TOP, Problem, read, rel

SERIES = "series/series"
# Of a patch that fixes something by itself, and can be taken without the others
ALONE = "alone"


def lines_of(path):
    """The lines that are neither empty nor comments, with their numbers."""
    for number, line in enumerate(read(path).splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            yield f"{rel(path)}:{number}", line


class Patch:
    """One patch: its name, and what it brings: file -> words of parts, or None.

    Where it says from which base on it is there ("6.12"), or up to which one ("before 7.3"),
    it is left out for others.  One that is "alone" needs none of the others.
    """

    def __init__(self, line, where):
        self.name, _colon, when = (part.strip() for part in line.partition(":"))
        words = [word.strip() for word in when.split(",")]
        self.alone = ALONE in words
        when = ", ".join(word for word in words if word != ALONE)
        self.last, self.first = when.startswith("before "), when.removeprefix("before ").strip()
        if self.first and self.first not in bases.names():
            raise Problem(f"{where}: there is no base {self.first}.")
        self.where = where
        self.units = {}

    def due(self, base):
        """Is it for this base?"""
        return not self.first or self.last != bool(bases.in_force([self.first], base))


def parse_series():
    """The patches of series/series, in their order."""
    patches = []
    for where, line in lines_of(os.path.join(TOP, SERIES)):
        if not line[0].isspace():
            patches.append(Patch(line.strip(), where))
            if not re.fullmatch(r"[a-z0-9-]+", patches[-1].name):
                raise Problem(f"{where}: '{line.strip()}' is not a name of a patch; "
                              "indent what a patch brings.")
            continue
        if not patches:
            raise Problem(f"{where}: names no patch before '{line.strip()}'.")
        name, colon, parts = line.strip().partition(":")
        if colon and not parts.split():
            raise Problem(f"{where}: '{name}:' names no part; drop the colon for all of them.")
        if name in patches[-1].units:
            raise Problem(f"{where}: {name} is there twice; put its parts on one line.")
        patches[-1].units[name] = parts.split() or None
    names = [p.name for p in patches]
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise Problem(f"{SERIES}: there are {count} patches '{name}'.")
    for before, patch in zip(patches, patches[1:]):
        if patch.alone and not before.alone:
            raise Problem(f"{patch.where}: patch '{patch.name}' stands alone, so that it can be "
                          f"taken alone; put it before '{before.name}'.")
    return patches


def of_other_bases(base):
    """What belongs, whole, to patches that are not for this base."""
    if not os.path.exists(os.path.join(TOP, SERIES)):
        return set()
    return {name for patch in parse_series() if not patch.due(base)
            for name, parts in patch.units.items() if not parts}
