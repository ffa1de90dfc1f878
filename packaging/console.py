# SPDX-License-Identifier: GPL-2.0-only
"""README.md shows what commands say, in blocks: does what one really says look like that?"""

import os
import re

from kit.common import TOP, Problem, read

LEFT_OUT = "..."
# What is another on other systems, or at another time: how README.md has it, and how it may be.
RELEASE, PCI = r"\d+\.\d+\.\d+[^\s/:,)]*-amd64", r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"
VARIES = {
    r"\bVERSION\b": r"\d[^\s)]*",
    RELEASE: RELEASE,
    r"\bset [0-9a-f]{8} \d[^\s)]*": r"set [0-9a-f]{8} \d[^\s)]*",
    r"\bprocess \d+": r"process \d+",
    r"/dev/vfio/\d+": r"/dev/vfio/\d+",
    PCI: PCI,
    # What is counted
    r" \d+(?=,|$)": r" \d+",
}


def blocks(text):
    """The indented blocks of README.md's section on the package: lists of lines."""
    section = re.search(r"^## Use it\n(.*?)(?=^## )", text, re.M | re.S)
    if not section:
        raise Problem('README.md has no section "Use it".')
    return [[line[4:] for line in block.splitlines()]
            for block in re.findall(r"(?:^    .*\n)+", section[1], re.M)]


def shown(first, text=None):
    """What README.md (or TEXT) shows after the line that begins with FIRST, or from it on if no command is."""
    found = [block for block in blocks(text or read(os.path.join(TOP, "README.md")))
             if block[0].startswith(first)]
    if len(found) != 1:
        raise Problem(f"README.md has {len(found)} blocks that begin with '{first}'.")
    return found[0][1:] if first.startswith("# ") else found[0]


def pattern(line):
    """An expression for that line, as other systems may have it."""
    if line == LEFT_OUT:
        return r"(?:.*\n)*?"
    made, at = "", 0
    for found in re.finditer("|".join(f"({varies})" for varies in VARIES), line):
        made += re.escape(line[at:found.start()]) + list(VARIES.values())[found.lastindex - 1]
        at = found.end()
    return made + re.escape(line[at:]) + r"\n"


def differs(lines, said):
    """The first of these lines that is not in its place in what was SAID, or ""."""
    said = said.rstrip("\n") + "\n"
    for number, line in enumerate(lines, 1):
        if not re.match("".join(map(pattern, lines[:number])), said):
            return f"README.md's line '{line}' does not come there in what is said:\n{said[-2000:]}"
    if not re.fullmatch("".join(map(pattern, lines)), said):
        return f"README.md's lines end with '{lines[-1]}', and not what is said:\n{said[-2000:]}"
    return ""
