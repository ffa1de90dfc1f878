#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Break the device in each way of tests/mutants/*.patch and see that the tests notice.

    tests/mutants/mutants [--base 6.1] [--only REGEX]

Each patch changes one file of the repository. Its head says which checks have to notice:

    # noticed by: vfio_dev_test-on mixed

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
from kit.common import TOP, Problem, read, rel
from tests import runner

HERE = os.path.join(TOP, "tests/mutants")
COPY = os.path.join(TOP, "out", "mutants")
NAME = re.compile(rf"(?P<name>[\w-]+?)(?:\.(?P<version>{bases.VERSION}))?\.patch")


class Mutant:
    """One way to break the device."""

    def __init__(self, name, path):
        self.name = name
        self.path = path
        self.text = read(path)
        noticed = re.search(r"^# noticed by: (.+)$", self.text, re.M)
        self.checks = noticed[1].split() if noticed else []
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
    """Returns (how many cases failed, what was said, with the first such case or broken run)."""
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
    return int(counts[1]), "; ".join([lines[-1], *broken, *(case[2:] for case in cases[:1])])


def run_unbroken(base, todo):
    copy_repository(base)
    for kernel in sorted({mutant.kernel for mutant in todo}):
        checks = sorted({check for mutant in todo if mutant.kernel == kernel for check in mutant.checks})
        failed, said = run_checks(base, kernel, f"unbroken-{kernel}", checks)
        if failed:
            raise Problem(f"the checks fail with nothing broken: {said}; "
                          f"see out/mutants/out/unbroken-{kernel}.log.")
        print(f"# nothing broken, {kernel} kernel: {said}", flush=True)


def try_mutant(base, mutant):
    """(how many cases failed, what was said)"""
    copy_repository(base)
    why = mutant.apply(COPY)
    if why:
        return 0, why
    try:
        return run_checks(base, mutant.kernel, mutant.name, mutant.checks)
    except Problem as problem:              # the others can still be tried
        return 0, str(problem)


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
        failed, said = try_mutant(args.base, mutant)
        missed += not failed
        print(f"{'ok' if failed else 'not ok'} {number} {mutant.name} # "
              f"{' '.join(mutant.checks)}: {said}", flush=True)
    copy_repository(args.base)
    return 1 if missed else 0
