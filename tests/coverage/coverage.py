# SPDX-License-Identifier: GPL-2.0-only
"""Which lines of ours ran in the lab?  Prints a table and KTAP.

    tests/coverage/coverage [--goal 98] BASE

Every run with the kernel for coverage (build/debug-kernel) leaves what gcov counted in
out/lab/NAME/gcov.  gcov-tool adds the counts of all runs of one kernel up, gcov says what they mean.
Counted are the files that are ours alone, and of the kernel's own files the lines that our edits add;
those of a header where a file that is counted has them.

A line that no run reached is named, with its reason: tests/coverage/unreached.toml has

    [[unreached]]
    file = "virt/kvm/vfio.c"
    function = "kvm_vfio_create"
    text = "return -ENOMEM;"        the line; every such line of the function
    why = "..."
    sometimes = true                it may have run, by the time that something else took

Cases: as many lines ran as --goal says, in percent, those with a reason counted as not run; each
that did not run has a reason; no reason is for a line that is not there or that did run; and each
file is in the kernel, or its lines would be missing from all of these.
"""

import argparse
import collections
import fnmatch
import glob
import gzip
import json
import os
import re
import shutil
import subprocess

from kit import bases
from kit import kbuild
from kit.common import TOP, Problem, need, read, read_bytes, step
from tests import records

REASONS = os.path.join(TOP, "tests/coverage/unreached.toml")
FOLDERS = ("arch/", "drivers/", "include/", "virt/")


class Line:
    """One that gcov counts: how often it ran, and how many of its branches were taken."""

    def __init__(self, function, text):
        self.function, self.text = function, text
        self.count, self.branches, self.taken = 0, 0, 0


def run(base, *words):
    done = subprocess.run([*kbuild.in_root(base), *words], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    if done.returncode:
        raise Problem(f"'{' '.join(words)}' ended with status {done.returncode}: {done.stdout.strip()[-400:]}")


def tool(base, name):
    """gcov or gcov-tool of the compiler that built the kernel"""
    return kbuild.compiler(base).replace("gcc", name)


def add_up(base, folders, work):
    """All counts in WORK/sum, with what the compiler wrote beside them."""
    total = os.path.join(work, "sum")
    for folder in folders:
        if not glob.glob(os.path.join(folder, "**/*.gcda"), recursive=True):
            continue                    # gcov-tool does not take it
        step(f"adding {os.path.basename(os.path.dirname(folder))}")
        if not os.path.exists(total):
            shutil.copytree(folder, total)
            continue
        os.rename(total, total + ".old")
        run(base, tool(base, "gcov-tool"), "merge", folder, total + ".old", "-o", total)
        shutil.rmtree(total + ".old")
    return total


def counted(base, names):
    """Of what differs from the base, {file: numbers of the lines that are ours, None for all of them}"""
    found = {}
    for name in names:
        tree = os.path.join(TOP, "out", base, "tree", name)
        # What is removed differs, too.
        if name.endswith((".c", ".h")) and name.startswith(FOLDERS) and os.path.exists(tree):
            ours = os.path.exists(os.path.join(TOP, name))
            found[name] = None if ours else added(os.path.join(TOP, "out", base, "orig", name), tree)
    return found


def added(before, after):
    """Numbers of the lines that AFTER has and BEFORE has not. Of several ways to see it git takes the one
    that keeps blocks whole, and no line of the kernel's for one of ours."""
    done = subprocess.run(["git", "diff", "--no-index", "--no-ext-diff", "--indent-heuristic", "-U0",
                           before, after], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode not in (0, 1):
        raise Problem(f"'git diff' of {after} ended with status {done.returncode}: {done.stderr.strip()[-400:]}")
    found = set()
    for start, size in re.findall(r"^@@ -\S+ \+(\d+)(?:,(\d+))? @@", done.stdout, re.M):
        found.update(range(int(start), int(start) + int(size or 1)))
    return found


def notes(base, name):
    """Where the compiler wrote what gcov needs of this file"""
    return os.path.join(TOP, "out", base, "coverage/build", name[:-len("c")] + "gcno")


def absent(base, wanted):
    """Files that this kernel was built without"""
    return sorted(name for name in wanted if name.endswith(".c") and not os.path.exists(notes(base, name)))


def explain(base, total, wanted):
    """{file: {number: Line}} of those wanted. What no run has loaded has no counts, and no line ran."""
    tree = os.path.join(TOP, "out", base, "tree")
    build = os.path.join(TOP, "out", base, "coverage/build")
    found = collections.defaultdict(dict)
    for name in sorted(name for name in wanted if name.endswith(".c")):
        note = notes(base, name)
        if not os.path.exists(note):    # see absent()
            continue
        at = os.path.join(total, os.path.dirname(name))
        os.makedirs(at, exist_ok=True)
        shutil.copy(note, at)
        run(base, "sh", "-c", f"cd {at} && exec {tool(base, 'gcov')} --json-format "
            f"--branch-probabilities {os.path.basename(note)}")
        for report in glob.glob(os.path.join(at, "*.gcov.json.gz")):
            for file in json.loads(gzip.decompress(read_bytes(report)))["files"]:
                path = os.path.relpath(os.path.realpath(os.path.join(build, file["file"])),
                                       os.path.realpath(tree))
                if path == name or path in wanted and path.endswith(".h"):
                    add_file(found[path], file["lines"], wanted[path],
                             read(os.path.join(tree, path)).splitlines())
            os.unlink(report)
    return {name: lines for name, lines in found.items() if lines}


def add_file(found, lines, numbers, text):
    for line in lines:
        number = line["line_number"]
        if numbers is not None and number not in numbers:
            continue
        here = found.setdefault(number, Line(line.get("function_name", ""), text[number - 1].strip()))
        # A function that is inlined or specialised has its lines several times.
        here.count += line["count"]
        branches = [branch for branch in line["branches"] if not branch["throw"]]
        here.branches = max(here.branches, len(branches))
        here.taken = max(here.taken, sum(1 for branch in branches if branch["count"]))


def table(found, wanted):
    yield f"# {'file':44} {'lines':>11} {'branches':>11}"
    for name, lines in sorted(found.items(), key=lambda item: (wanted[item[0]] is not None, item[0])):
        ran = sum(1 for line in lines.values() if line.count)
        branches = sum(line.branches for line in lines.values())
        taken = sum(line.taken for line in lines.values())
        what = name + ("" if wanted[name] is None else " (our lines)")
        yield f"# {what:44} {ran:4} of {len(lines):4} {taken:4} of {branches:4}"


def reasons():
    """{(file, function, text): may it have run?}"""
    found = collections.OrderedDict()
    for entry in bases.toml(REASONS).get("unreached", []):
        if set(entry) - {"sometimes"} != {"file", "function", "text", "why"}:
            raise Problem("tests/coverage/unreached.toml: an entry has file, function, text and why.")
        found[entry["file"], entry["function"], entry["text"]] = bool(entry.get("sometimes"))
    return found


def judge(found, goal, why):
    """(what, is it so, what to say of it) for each case"""
    lines = [(name, number, line) for name, in_file in found.items() for number, line in in_file.items()]
    ran = [line for _, _, line in lines if line.count]
    share = 100 * len(ran) / max(1, len(lines))
    yield (f"lines that ran: {len(ran)} of {len(lines)}, {share:.1f} %", share >= goal,
           [f"the goal is {goal} %"])
    missed = [(name, number, line) for name, number, line in sorted(lines, key=lambda l: l[:2])
              if not line.count]
    used, unexplained = set(), []
    for name, number, line in missed:
        fitting = [key for key in why if key[0] == name and
                   fnmatch.fnmatchcase(line.function, key[1]) and
                   (key[2] in ("*", line.text))]
        used.update(fitting)
        if not fitting:
            unexplained.append(f"{name}:{number}: {line.function}: {line.text}")
    yield "each line that did not run has a reason", not unexplained, unexplained
    # A base need not have all files; what it has, it has as the reason says.
    stale = [" ".join(key) for key, sometimes in why.items()
             if key[0] in found and key not in used and not sometimes]
    yield "each reason is for a line that did not run", not stale, stale


def main():
    parser = argparse.ArgumentParser(prog="tests/coverage/coverage", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", metavar="BASE")
    parser.add_argument("--goal", type=float, default=98)
    args = parser.parse_args()
    bases.base(args.base)
    folders = records.runs(args.base, "coverage", "gcov")
    if not folders:
        raise Problem(f"no run of this kernel left counts: run tests/check --base {args.base} --kernel coverage first.")
    work = os.path.join(TOP, "out", args.base, "covered")
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work)
    wanted = counted(args.base, need("series/assemble", args.base, "--list").split())
    found = explain(args.base, add_up(args.base, folders, work), wanted)
    missing = absent(args.base, wanted)
    return records.report(os.path.join(work, "report"), table(found, wanted),
                          [*judge(found, args.goal, reasons()),
                           ("each file is in this kernel", not missing, missing)])
