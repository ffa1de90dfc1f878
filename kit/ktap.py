# SPDX-License-Identifier: GPL-2.0-only
"""The one judge of KTAP: what the top level of some output says, and is it whole?"""

import re

HEAD = re.compile(r"(K?TAP) version \d+$")
PLAN = re.compile(r"1\.\.(\d+)\b")
RESULT = re.compile(r"(?P<not>not )?ok (?P<number>\d+)\b(?: -)?(?: (?P<name>[^#]*?))?"
                    r"\s*(?:#\s*(?P<directive>SKIP|TODO|XFAIL)?\b\s*(?P<reason>.*))?$", re.I)


class Case:
    """One result."""

    def __init__(self, name, state, note="", said=(), line=""):
        self.name = name
        self.state = state              # "ok", "not ok" or "skip"
        self.note = note
        self.said = said                # the comments before it
        self.line = line

    def result(self):
        """The line that it was."""
        return self.line

    def renumbered(self, number):
        """Its line in a report of more than one run."""
        if self.state == "skip":
            return f"ok {number} {self.name} # SKIP {self.note}".rstrip()
        return f"{self.state} {number} {self.name}" + (f" # {self.note}" if self.note else "")


def claimed(text):
    """Does the output say that it is KTAP?"""
    return any(HEAD.match(line) for line in text.replace("\r", "").splitlines())


def parse(text):
    """The cases, and why they are not whole or ""."""
    lines = text.replace("\r", "").splitlines()
    if not claimed(text):
        return [], "it printed no KTAP"
    plans = [int(m[1]) for m in map(PLAN.match, lines) if m]
    cases, numbers, said = [], [], []
    for line in lines:
        m = RESULT.match(line)
        if not m:
            if line.startswith("# "):
                said.append(line)
            continue
        numbers.append(int(m["number"]))
        cases.append(Case(m["name"] or f"case {m['number']}", state(m), m["reason"] or "", said,
                          line))
        said = []
    if len(plans) != 1:
        return cases, "it printed no plan"
    if numbers != list(range(1, plans[0] + 1)):
        return cases, f"it planned {plans[0]} cases and reported {len(numbers)}"
    if not cases:
        return cases, "it ran no case"
    return cases, ""


def state(match):
    directive = (match["directive"] or "").upper()
    # A skip is one whether the test calls it ok or not.
    if directive == "SKIP":
        return "skip"
    # A failure that the test itself expects is none.
    return "not ok" if match["not"] and not directive else "ok"


class Report:
    """A line for each case, with why it failed before it."""

    def __init__(self, plan):
        self.number = 0
        self.failed = False
        print(f"KTAP version 1\n1..{plan}", flush=True)

    def line(self, name, why):
        self.number += 1
        self.failed |= bool(why)
        for text in why.splitlines():
            print(f"# {text}")
        print(f"{'not ok' if why else 'ok'} {self.number} {name}", flush=True)
