#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Break the device in each way of tests/mutants/*.patch and see that the tests notice.

    tests/mutants/mutants [--base 6.1] [--only REGEX]

Each patch changes one file of the repository. Its head says which checks have to notice, each of
them, and may say which cases have to fail, as tests/orders.toml names them:

    # noticed by: vfio_dev_test-on mixed
    # fails: tests/mixed/mixed_held.c: DEL while a file is being added

A check notices by a case that fails, or by what it is told of a run as a whole, as by a kernel that
complains. That a run breaks off, or takes too long, tells of anything; it counts where the head says
why no case can tell:

    # breaks: the kernel waits for itself

If what it breaks shows itself only to a kernel that watches itself (build/debug-kernel), it says

    # kernel: debug

and the checks run with that one. The first such mutant of a base takes as long as that kernel.

NAME.6.12.patch is for Linux 6.12 and newer; of several such, the newest that is not newer than the
base counts, and one without a change ends it there.

Works on a copy of the repository, out/mutants, so that an interruption leaves nothing broken.
First the checks run on what is not broken, where they must pass. Prints KTAP: `ok` is a mutant
that the tests found. Exit status 0 if they found all of them.
"""

import argparse
import fcntl
import os
import re
import shutil
import subprocess

from kit import bases
from kit import ktap
from kit.common import TOP, Problem, read, rel
from tests import runner

HERE = os.path.join(TOP, "tests/mutants")
COPY = os.path.join(TOP, "out", "mutants")
SAID = 8                # how many cases are named that a mutant makes fail
NAME = re.compile(rf"(?P<name>[\w-]+?)(?:\.(?P<version>{bases.VERSION}))?\.patch")


class Mutant:
    """One way to break the device."""

    def __init__(self, name, path):
        self.name = name
        self.path = path
        self.text = read(path)
        noticed = re.search(r"^# noticed by: (.+)$", self.text, re.M)
        self.checks = noticed[1].split() if noticed else []
        self.fails = re.findall(r"^# fails: (.+)$", self.text, re.M)
        self.breaks = bool(re.search(r"^# breaks: .", self.text, re.M))
        kernel = re.search(r"^# kernel: (.+)$", self.text, re.M)
        self.kernel = kernel[1] if kernel else "debian"
        self.files = re.findall(r"^\+\+\+ b/(\S+)", self.text, re.M)

    def apply(self, top, *options):
        """Why it cannot be applied there, or ''."""
        done = subprocess.run(["patch", "-d", top, "-p1", "--fuzz=0", "--forward", "--silent",
                               "--no-backup-if-mismatch", "--reject-file=-", *options],
                              input=self.text, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stdout + done.stderr).strip().splitlines()
            return f"{rel(self.path)} does not apply: {said[-1] if said else 'patch says no more'}"
        return ""


def mutants(base, only):
    """The mutants of a base."""
    versions = {}
    for file in sorted(os.listdir(HERE)):
        if file.endswith(".patch"):
            m = NAME.fullmatch(file)
            versions.setdefault(m["name"], {})[m["version"] or "0.0"] = file
    for name, files in versions.items():
        version = bases.in_force(files, base)
        if version is None or not re.search(only, name):
            continue
        mutant = Mutant(name, os.path.join(HERE, files[version]))
        if mutant.files:
            yield mutant


def missing_case(name):
    """What NAME names is a file and, if it goes on, a case: its name, or TEST_F(...) of a kselftest."""
    path, _, case = name.partition(": ")
    if not os.path.isfile(os.path.join(TOP, path)):
        return f"there is no {path}"
    text = read(os.path.join(TOP, path))
    if case and f'"{case}"' not in text and not (case.startswith("TEST_F(") and case in text):
        return f"{path} has no case '{case}'"
    return ""


def is_case(name, case):
    """Is NAME, as a report has it, that case, a variant of it, or a phase that an oracle judges?"""
    if m := re.fullmatch(r"TEST_F\((\w+), (\w+)\)", case):
        return bool(re.fullmatch(rf"{m[1]}(\.\w+)?\.{m[2]}", name))
    return name == case or name.startswith(case + ": ")


def checks_in(report):
    """Of what tests/check leaves: the name of each check, its cases that failed, and its own line."""
    inner = []
    for line in report.splitlines():
        if line.startswith("    "):
            inner.append(line[4:])
        elif m := ktap.RESULT.match(line):
            cases, _ = ktap.parse("\n".join(inner))
            yield m["name"], [case.name for case in cases if case.state == "not ok"], line
            inner = []


def unnoticed(mutant, report):
    """Why a report does not show what the mutant breaks, or ''."""
    failing = []
    for check, cases, line in checks_in(report):
        failing += cases
        if "BROKEN: " in line and not (mutant.breaks or mutant.fails):
            return f"{check} broke off"
        if not line.startswith("not ok"):
            return f"{check} passes"
    for case in mutant.fails:
        if not any(is_case(name, case.partition(": ")[2]) for name in failing):
            return f"it does not fail: {case}"
    return ""


def repository_files():
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others",
                             "--exclude-standard"], cwd=TOP, check=True, capture_output=True)
    return [name for name in listed.stdout.decode().split("\0")
            if name and os.path.exists(os.path.join(TOP, name))]


def copy_repository(base):
    """The copy keeps its own out/, whose kernel tree and objects are built once."""
    wanted = set(repository_files())
    for name in wanted:
        restore(name)
    for folder, folders, files in os.walk(COPY):
        if folder == COPY:
            folders[:] = [f for f in folders if f not in (".git", "out")]
        for name in files:
            path = os.path.join(folder, name)
            if os.path.relpath(path, COPY) not in wanted:
                os.unlink(path)
    for shared in (f"{base}/debian", "bochs"):
        link = os.path.join(COPY, "out", shared)
        os.makedirs(os.path.dirname(link), exist_ok=True)
        if not os.path.lexists(link):
            os.symlink(os.path.join(TOP, "out", shared), link)


def restore(name):
    source, target = os.path.join(TOP, name), os.path.join(COPY, name)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if not os.path.exists(target) or open(source, "rb").read() != open(target, "rb").read():
        shutil.copy2(source, target)


def make(base, what, log):
    with open(log, "w", encoding="utf-8") as f:
        return subprocess.run(what, cwd=COPY, env={**os.environ, "BASE": base},
                              stdin=subprocess.DEVNULL, stdout=f, stderr=f, check=False).returncode


def what_else(checks):
    """What make has to make for some of them only."""
    if any("--iommufd" in " ".join(section.get("options", ()))
           for _, name, section in runner.entries() if name in checks):
        yield "iommufd"


def builds(base, kernel, checks):
    """What a kernel and its modules are made by."""
    if kernel == "debian":
        return [["make", "modules", "programs", *what_else(checks)]]
    return [["build/debug-kernel", base, kernel], ["make", "programs"],
            ["tests/fixtures/build", base, kernel]]


def run_checks(base, kernel, name, checks):
    """Returns (its report, what was said, with the first cases that failed or a broken run)."""
    log = os.path.join(COPY, "out", name + ".log")
    for what in builds(base, kernel, checks):
        if make(base, what, log):
            raise Problem(f"{name}: it does not build, see {os.path.relpath(log, TOP)}; "
                          "correct the mutant.")
    status = make(base, ["tests/check", "--base", base, "--kernel", kernel,
                         "--only", f"^({'|'.join(checks)})-{base}$"], log)
    with open(log, encoding="utf-8") as f:
        lines = f.read().strip().splitlines()
    counts = re.match(r"\d+ passed, (\d+) failed", lines[-1])
    if status not in (0, 1) or not counts:
        raise Problem(f"{name}: the checks did not run: {lines[-1]} "
                          f"({os.path.relpath(log, TOP)})")
    broken = [line for line in lines if re.match(r"not ok .*BROKEN", line)]
    cases = [line for line in lines if line.startswith("# not ok: ")]
    report = read(os.path.join(COPY, "out", runner.report_name(kernel)))
    return report, "; ".join([lines[-1], *broken, *(case[2:] for case in cases[:SAID])])


def run_unbroken(base, todo):
    copy_repository(base)
    for kernel in sorted({mutant.kernel for mutant in todo}):
        checks = sorted({check for mutant in todo if mutant.kernel == kernel for check in mutant.checks})
        report, said = run_checks(base, kernel, f"unbroken-{kernel}", checks)
        if any(line.startswith("not ok") for _, _, line in checks_in(report)):
            raise Problem(f"the checks fail with nothing broken: {said}; "
                          f"see out/mutants/out/unbroken-{kernel}.log.")
        print(f"# nothing broken, {kernel} kernel: {said}", flush=True)


def try_mutant(base, mutant):
    """(why it was not noticed, what was said)"""
    copy_repository(base)
    why = mutant.apply(COPY)
    if why:
        return why, ""
    try:
        report, said = run_checks(base, mutant.kernel, mutant.name, mutant.checks)
    except Problem as problem:              # the others can still be tried
        return str(problem), ""
    return unnoticed(mutant, report), said


def main():
    parser = argparse.ArgumentParser(prog="tests/mutants/mutants")
    parser.add_argument("--base", choices=bases.names(), default=bases.default())
    parser.add_argument("--only", default="", metavar="REGEX")
    args = parser.parse_args()
    todo = list(mutants(args.base, args.only))
    os.makedirs(COPY, exist_ok=True)
    lock = open(COPY + ".lock", "w", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Problem("another tests/mutants/mutants is at work; wait for its end.") from None
    print(f"KTAP version 1\n1..{len(todo)}", flush=True)
    run_unbroken(args.base, todo)
    missed = 0
    for number, mutant in enumerate(todo, 1):
        why, said = try_mutant(args.base, mutant)
        missed += bool(why)
        print(f"{'not ok' if why else 'ok'} {number} {mutant.name} # "
              f"{' '.join(mutant.checks)}: {'; '.join(filter(None, (why, said)))}", flush=True)
    copy_repository(args.base)
    return 1 if missed else 0
