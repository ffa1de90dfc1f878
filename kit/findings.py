# SPDX-License-Identifier: GPL-2.0-only
"""Warnings of compilers and checkers: what is new against what the base has."""

import collections
import os
import re

LINE = re.compile(r"^(?P<file>[^:\s]+):(?P<line>\d+):(?:\d+:)? (?P<text>(?:warning|error): .*)$")
# gcc's own warnings end in the name of their option.
OPTION = re.compile(r"\[-W[\w=+-]+\]$")


class Findings:
    """What a check has found: (file, text, the line as the log has it)."""

    def __init__(self):
        self.list = []

    def add(self, file, text, line=None):
        self.list.append((file, text, line or f"{file}: {text}"))


def normal(text):
    """A message without the numbers that any edit above it changes."""
    return re.sub(r"\b\d+\b", "N", text)


def new_ones(before, now):
    """The findings that there were fewer of before; where they stand does not count."""
    left = collections.Counter((file, normal(text)) for file, text, _ in before)
    new = []
    for file, text, line in now:
        if left[file, normal(text)] > 0:
            left[file, normal(text)] -= 1
        else:
            new.append((file, text, line))
    return new


def parse(text, wanted):
    """The lines of a log that WANTED(message) says are of interest.

    Each place counts once: a header is seen in every file that includes it.
    """
    found, seen = Findings(), set()
    for line in text.splitlines():
        m = LINE.match(line)
        if m and wanted(m["text"]) and line not in seen:
            seen.add(line)
            found.add(os.path.normpath(m["file"]), m["text"], line)
    return found


def sparse(text):
    return parse(text, lambda message: not OPTION.search(message))


def compiler(text):
    return parse(text, lambda message: True)
