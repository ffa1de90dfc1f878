#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Run the checks of one base or several, two at a time, and sum them up.

    tests/check [--base 6.1[,6.12]] [--quick 7.3] [--kernel KERNEL] [--group GROUP]
                [--only REGEX] [--jobs N] [--again]

The checks are found by folder.  ROOM/runs.toml and ROOM/FOLDER/runs.toml have a section each:

    [ept]
    options = ["--machine vmx", ...]    of lab/run
    program = "out/lab/ept_test"        and its arguments
    oracle = "..."                      what looks at the run afterwards, and adds its own cases
    stock = true                        ept-stock is the same with Debian's own modules; "alone"
                                        is without plugin and oracle, which know ours
    needs = ["iommufd"]                 facts of a base (bases/*.toml); other bases go without
    groups = ["quick"]                  what --group takes; "quick": the bases of --quick have
                                        these alone; "races": the kernel that looks for data
                                        races has these
    seconds = 300                       about how long it takes, if that is long
    debug = false                       of no use with the debug kernel; "only": with no other

or, in the place of options and program, command = "..." for a check on this machine. In all of
them @BASE is the base, @DIR the run's folder. ROOM/selftest/* are the tests of a room's tools. One
whose head says "# each base" takes a base; "# apart: WHY" is for another make target.

A stock run may fail cases that ours passes, and the summary lists them. The report of a run is the
KTAP that program and oracle print; a skip that --skips does not name is a failure.

Prints the list of cases that the stock modules fail and ours pass, a KTAP report with a line for
each check, what the failing ones said, and the line

    N passed, N failed, N skipped

Exit status 0 only if nothing failed and every run gave the result it promised: a run that says
nothing, says less than its plan, or skips what it should not has failed. The report is kept in
out/check.ktap (out/check-KERNEL.ktap), what each run said in out/lab/NAME.

The longest runs first: how long each took the last time is in out/lab/times.json.

What a check said is kept (out/lab/kept) until something that goes into it changes. That is told by
folder: for a run in the lab kit/, lab/, tests/kit/ and the folder of the test, with what is made of
them and the modules; for a check on this machine its room and all rooms that it uses (kit/rooms.py).
A package of this machine counts as well. What did not pass is kept of the stock modules only, and
what skips of runs in the lab only.
--again runs all of them all the same.
"""

import argparse
import concurrent.futures
import functools
import glob
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time

from kit import bases
from kit import children
from kit import ktap
from kit import rooms
from kit.common import TOP, Problem, rel, write

# So many lines of what a failing check or case said are repeated in the report.
SAID = 12
# Kernels of build/debug-kernel, and how much slower they are under emulation: one that watches
# itself, one that looks for data races, and one that counts which lines run
DEBUG_KERNELS = {"debug": 6, "races": 6, "coverage": 2}
# Why a case is skipped that is not with these kernels
CONFIGURED = ("no fault injection", "no kcov", "no file without an IOMMU")
# What a section of runs.toml may say.
KEYS = {"options", "program", "oracle", "stock", "needs", "groups", "seconds", "debug", "command"}
# What a run in the lab depends on, beside the folder that it is in.
LAB_FOLDERS = ("bases", "hosts", "kit", "lab", "tests/kit")
TIMES = os.path.join(TOP, "out/lab/times.json")


class Check:
    """One entry: what it runs, and then what came of it."""

    def __init__(self, name, commands, home, stock=False, folder=None, groups=(), seconds=0):
        self.name = name
        self.commands = commands        # one after the other; each one's KTAP counts
        self.home = home                # the folder that it is in
        self.stock = stock
        self.folder = folder            # of a run in the lab
        self.groups = groups
        self.usual = seconds            # how long it takes
        self.cases = []
        self.broken = ""                # why there is no (whole) result
        self.failed = ""                # lab/run's or the oracle's sentence
        self.end = []                   # the last lines of one that broke or failed
        self.seconds = 0
        self.kept = False               # from an earlier run


# --- what there is -----------------------------------------------------------------------------

def entries():
    """(folder, name, section) of all runs.toml."""
    seen = {}
    for path in sorted(glob.glob(os.path.join(TOP, "*/runs.toml")) +
                       glob.glob(os.path.join(TOP, "*/*/runs.toml"))):
        home = rel(os.path.dirname(path))
        for name, section in bases.toml(path).items():
            where = f"{rel(path)}: [{name}]"
            if not re.fullmatch(r"[\w.+-]+", name) or not isinstance(section, dict):
                raise Problem(f"{where} is no name of a run, with a section below it.")
            if unknown := sorted(set(section) - KEYS):
                raise Problem(f"{where} says '{unknown[0]}'; it may say {', '.join(sorted(KEYS))}.")
            if ("program" in section) == ("command" in section):
                raise Problem(f"{where} has to have either a program or a command.")
            if name in seen:
                raise Problem(f"{where} is in {seen[name]}, too.")
            seen[name] = rel(path)
            yield home, name, section


def option(words, name, default=""):
    """The value of --NAME VALUE or --NAME=VALUE among the words."""
    for i, word in enumerate(words):
        if word == name and i + 1 < len(words):
            return words[i + 1]
        if word.startswith(name + "="):
            return word[len(name) + 1:]
    return default


def for_debug(words, kernel):
    """Can this run under the debug kernel?

    It has our modules only, no BPF and one kind of preemption, and is too slow for counting and for
    two QEMUs; for Bochs, too, unless it counts lines and does nothing else. Nothing of Debian's can be
    mixed with it (--expects). It has iommufd.
    """
    return (not {"--icount", "tools", "guest-backports", "preempt=full", "--expects",
                 "no /dev/iommu"}.intersection(words)
            and (kernel == "coverage" or option(words, "--machine", "svm") == "svm"))


def lab_check(home, name, section, base, kernel, stock):
    """One run in the lab, or None if this kernel cannot have it."""
    name += "-stock" if stock else ""
    words = shlex.split(" ".join(section.get("options", [])))
    debug = section.get("debug", True)
    if debug == "only" and kernel != "debug":
        return None
    if kernel in DEBUG_KERNELS and (stock or not debug or debug != "only" and not for_debug(words, kernel)):
        return None
    # Where several threads work on one thing
    if kernel == "races" and "races" not in section.get("groups", ()):
        return None
    full = f"{name}-{base}" + (f"-{kernel}" if kernel in DEBUG_KERNELS else "")
    folder = os.path.join("out", "lab", full)

    def fill(text):
        if kernel in DEBUG_KERNELS:         # whose fixtures are others
            text = re.sub(r"/vfio_testdev(\.iommufd)?/", f"/vfio_testdev.{kernel}/", text)
        return text.replace("@DIR", folder).replace("@BASE", base)
    command = ["lab/run", *map(fill, words), *(["--modules", "stock"] if stock else []),
               "--base", base, "--name", full]
    # What Debian's kernel was not configured to show, this one was.
    if kernel in ("debug", "coverage") and "--skips" in words:
        i = command.index("--skips")
        command[i + 1] = "|".join(why for why in command[i + 1].split("|") if why not in CONFIGURED)
        if not command[i + 1]:
            del command[i:i + 2]
    if kernel in DEBUG_KERNELS:
        timeout = float(option(words, "--timeout", "300")) * DEBUG_KERNELS[kernel]
        command += ["--kernel", kernel, "--timeout", str(timeout)]
    alone = stock and section["stock"] == "alone"
    if alone and "--plugin" in command:
        i = command.index("--plugin")
        del command[i:i + 2]
    commands = [command + ["--"] + [fill(w) for w in shlex.split(section["program"])]]
    if "oracle" in section and not alone:
        commands.append([fill(w) for w in shlex.split(section["oracle"])])
    return Check(f"{name}-{base}", commands, home, stock, folder, section.get("groups", ()),
                 section.get("seconds", 0))


def listed_checks(base, args):
    for home, name, section in entries():
        if not all(bases.fact(base, need) for need in section.get("needs", ())):
            continue
        if "command" in section:
            if args.kernel == "debian":
                words = shlex.split(section["command"].replace("@BASE", base))
                yield Check(f"{name}-{base}", [words], home, groups=section.get("groups", ()),
                            seconds=section.get("seconds", 0))
            continue
        for stock in (False, True) if section.get("stock") else (False,):
            if check := lab_check(home, name, section, base, args.kernel, stock):
                yield check


def selftests(base, args):
    """The tests of the rooms' tools."""
    first = base == args.base.split(",", maxsplit=1)[0]
    for path in sorted(glob.glob(os.path.join(TOP, "*/selftest/*")) +
                       glob.glob(os.path.join(TOP, "*/*/selftest/*"))):
        if args.kernel != "debian" or not os.access(path, os.X_OK) or os.path.isdir(path):
            continue
        with open(path, encoding="utf-8") as f:
            head = f.read(2000)
        if re.search(r"^# apart: ", head, re.M):
            continue
        name, home = os.path.basename(path), rel(os.path.dirname(path))
        seconds = re.search(r"^# (\d+) seconds$", head, re.M)
        about = {"seconds": int(seconds[1]) if seconds else 0,
                 "groups": () if seconds else ("quick",)}
        if re.search(r"^# each base$", head, re.M):
            yield Check(f"{name}-{base}", [[rel(path), base]], home, **about)
        elif first:
            yield Check(name, [[rel(path)]], home, **about)     # the same for every base


# --- running ---------------------------------------------------------------------------------

def made(pattern):
    return glob.glob(os.path.join(TOP, "out", pattern))


def inputs(check):
    """The files that decide what a check says."""
    if not check.folder:
        room = check.home.split("/", maxsplit=1)[0]
        # What looks at the texts, or at how rooms use each other, looks at all of them; what others say is
        # compared with the README, too.
        folders = ["."] if room in ("lint", "kit") else rooms.used_by(room)
        top = filter(os.path.isfile, (os.path.join(TOP, name) for name in os.listdir(TOP)))
        return {*rooms.files(*folders), *top, *made("*/tree.stamp"), *made("*/modules/*.ko")}
    base = option(check.commands[0], "--base")
    words = {part for command in check.commands for word in command for part in re.split("[,:]", word)}
    paths = {os.path.join(TOP, word) for word in words}
    paths |= {os.path.join(at, name) for path in paths if path.startswith(os.path.join(TOP, "out/"))
              for at, _, names in os.walk(path) for name in names}
    paths |= {path for path in rooms.files(*LAB_FOLDERS, check.home)
              if "/selftest/" not in path or check.home.endswith("/selftest")}
    # Software for the lab brings the pages that it is for.
    if "--with" in words:
        paths |= {os.path.join(TOP, "ADMIN.md"), *rooms.files("Documentation"),
                  *made("qemu/*/version")}
    # An emulator need not be of a package.
    paths |= {*filter(None, map(shutil.which, ("qemu-system-x86_64", "bochs-bin"))),
              *made("bochs/bochs"), *made(f"{base}/debian/root/boot/vmlinuz-*")}
    if "--iommufd" in words:
        paths |= {*made(f"{base}/modules-iommufd{'-stock' * check.stock}/*.ko")}
    elif not check.stock:
        paths |= {*made(f"{base}/modules/*.ko")}
    return filter(os.path.isfile, paths)


@functools.cache
def packages():
    """What is installed on this machine, in which version."""
    try:
        return subprocess.run(["dpkg-query", "-W"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return os.urandom(32)           # nobody knows: nothing is kept


@functools.cache
def content_at(path, _modified, _size):
    """A digest of the file, which most checks share."""
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def content(path):
    status = os.stat(path)
    return content_at(path, status.st_mtime_ns, status.st_size)


def key_of(check):
    state = hashlib.sha256(json.dumps(check.commands).encode())
    state.update(packages())
    for path in sorted(inputs(check)):
        state.update(f"{os.path.relpath(path, TOP)} {content(path)}\n".encode())
    return state.hexdigest()


def kept_path(check):
    return os.path.join(TOP, "out/lab/kept", check.name + ".json")


def read_kept(check, key):
    """What each command of an earlier run said, if all that went into it is still the same."""
    try:
        with open(kept_path(check), encoding="utf-8") as f:
            kept = json.load(f)
    except (FileNotFoundError, ValueError):
        return None
    return kept["said"] if kept["key"] == key else None


def keep(check, key, said):
    path = kept_path(check)
    write(path, json.dumps({"key": key, "said": said}))


def last_said(name, base):
    """What a run in the lab has printed, if nothing that went into it has changed since, or None."""
    for check in listed_checks(base, argparse.Namespace(kernel="debian")):
        if check.name == f"{name}-{base}" and check.folder:
            said = read_kept(check, key_of(check))
            return said and "\n".join(out for _, out, *_ in said)
    raise Problem(f"no run is named {name}-{base}.")


def run_check(check, again=False):
    start = time.monotonic()
    # A debug kernel is for what shows itself once in many runs.
    key = "" if DEBUG_KERNELS.keys() & set(check.commands[0]) else key_of(check)
    kept = read_kept(check, key) if key and not again else None
    check.kept = kept is not None
    said = []
    environment = {"LAB_DIR": check.folder} if check.folder else {}
    for number, command in enumerate(check.commands):
        try:
            status, out, err = kept[number] if kept else children.run(command, **environment)
        except OSError as error:
            check.broken = f"{command[0]} cannot be run: {error.strerror}"
            break
        said.append((status, out, err))
        sentence = (err.strip().splitlines() or [f"{command[0]} ended with status {status}"])[-1]
        cases, incomplete = ktap.parse(out)
        check.cases += cases
        if children.stopping.is_set():
            check.broken = "interrupted"
        elif status not in (0, 1):
            check.broken = sentence
        elif incomplete:
            check.broken = f"{incomplete}" + (f"; {sentence}" if status else "")
        elif status == 1:
            check.failed = sentence
        if check.broken or check.failed:
            check.end = [*out.splitlines()[-SAID:], *err.splitlines()[-SAID:]]
        if check.broken:
            break
    good = not check.broken and (check.stock or not check.failed and not failing(check))
    # A tool's test that skips may find tomorrow what it wants; a run in the lab may not skip that.
    good = good and (check.folder or all(case.state != "skip" for case in check.cases))
    # What changed meanwhile went into all of the run, or not.
    if key and good and not check.kept and key_of(check) == key:
        keep(check, key, said)
    check.seconds = time.monotonic() - start
    return check


# --- judging ---------------------------------------------------------------------------------

def failing(check):
    return [case.name for case in check.cases if case.state == "not ok"]


def judge(check, by_name):
    """Why this check failed, or ''."""
    if check.broken:
        return f"BROKEN: {check.broken}"
    if check.stock:
        ours = by_name.get(re.sub(r"-?stock", "", check.name, count=1))
        if not ours:
            return "there is no entry for our modules to compare with"
        names = {case.name for case in ours.cases}
        unknown = [name for name in failing(check) if names and name not in names]
        return f"our run has no case '{unknown[0]}'" if unknown else ""
    if failing(check):
        return f"{len(failing(check))} of {len(check.cases)} cases failed"
    return check.failed


def result_line(check, number, why):
    note = "kept from an earlier run" if check.kept else f"{check.seconds:.0f} s"
    if check.folder:
        note += f", {check.folder}"
    return f"{'not ok' if why else 'ok'} {number} {check.name} # {note}" + (f": {why}" if why else "")


def report(check, number, why):
    """The lines of one check in the report, all its cases."""
    lines = [f"# Subtest: {check.name}", "    KTAP version 1", f"    1..{len(check.cases)}"]
    lines += ["    " + case.renumbered(i) for i, case in enumerate(check.cases, 1)]
    if check.failed:
        lines.append(f"    # {check.failed}")
    return [*lines, result_line(check, number, why)]


def details(check, why):
    """What there is to know about a check that failed, for who sees no more than this."""
    lines = [f"# {check.name}: {why}"]
    bad = [] if check.stock else [case for case in check.cases if case.state == "not ok"]
    for case in bad:
        lines += [*case.said[-SAID:], f"# not ok: {case.name}"]
    # A failing case has said why, unless there is none.
    if check.broken or not bad:
        lines += ["# " + line for line in check.end]
    return lines


def stock_list(checks, by_name):
    """What stock fails and ours passes: the reasons to install ours."""
    lines = []
    for check in checks:
        ours = by_name.get(re.sub(r"-?stock", "", check.name, count=1))
        if not check.stock or check.broken or not ours:
            continue
        if ours.broken:
            lines.append(f"# stock cannot be compared, our run broke ({ours.name})")
            continue
        passed = {case.name for case in ours.cases if case.state == "ok"}
        better = [name for name in failing(check) if name in passed]
        if better:
            lines.append(f"# stock fails, ours passes ({ours.name}, {len(better)} of "
                         f"{len(check.cases)} cases):")
            lines += [f"#   {name}" for name in better]
        else:
            lines.append(f"# stock passes all that ours passes ({ours.name})")
    return lines


def count(checks, verdicts):
    """Passed, failed, skipped: cases of ours; a stock run counts as one."""
    passed = failed = skipped = 0
    for check in checks:
        if check.stock:
            passed += not verdicts[check.name]
            failed += bool(verdicts[check.name])
            continue
        bad = len(failing(check))
        passed += sum(case.state == "ok" for case in check.cases)
        skipped += sum(case.state == "skip" for case in check.cases)
        # A run that failed without a failing case (a splat, silence) is a failure of its own.
        failed += bad or bool(verdicts[check.name])
    return passed, failed, skipped


def report_name(kernel):
    return f"check-{kernel}.ktap" if kernel in DEBUG_KERNELS else "check.ktap"


def summary(checks, args):
    by_name = {check.name: check for check in checks}
    verdicts = {check.name: judge(check, by_name) for check in checks}
    head = ["KTAP version 1", f"1..{len(checks)}"]
    whole, short, wrong = list(head), list(head), []
    for number, check in enumerate(checks, 1):
        why = verdicts[check.name]
        whole += report(check, number, why)
        short.append(result_line(check, number, why))
        wrong += details(check, why) if why else []
    stock = stock_list(checks, by_name)
    passed, failed, skipped = count(checks, verdicts)
    name = report_name(args.kernel)
    path = os.path.join(TOP, "out", name)
    write(path, "\n".join([*whole, *stock]) + "\n")
    print("\n".join([*stock, *short, *wrong, f"# every case: out/{name}"]))
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return failed == 0 and passed > 0


# --- putting it together ---------------------------------------------------------------------

def times():
    """How long each check took the last time."""
    try:
        with open(TIMES, encoding="utf-8") as f:
            return json.load(f)
    except (FileNotFoundError, ValueError):
        return {}


def timed(check):
    """What it is called there: with a debug kernel a run is another one."""
    return os.path.basename(check.folder) if check.folder else check.name


def run_all(checks, jobs, again):
    """Run them, the longest first, saying so."""
    done, took = 0, times()
    order = sorted(checks, key=lambda check: -took.get(timed(check), check.usual))
    with children.pool(jobs) as pool:
        futures = [pool.submit(run_check, check, again) for check in order]
        for future in concurrent.futures.as_completed(futures):
            check = future.result()
            done += 1
            what = check.broken or f"{len(check.cases)} cases, {len(failing(check))} failed"
            spent = "kept" if check.kept else f"{check.seconds:.0f} s"
            print(f"==> {done}/{len(checks)} {check.name}: {what} ({spent})",
                  file=sys.stderr, flush=True)
            if not check.kept and not check.broken:
                took[timed(check)] = round(check.seconds)
    write(TIMES, json.dumps(took, indent=1, sort_keys=True) + "\n")


def parse():
    parser = argparse.ArgumentParser(prog="tests/check")
    parser.add_argument("--base", default=bases.default(),
                        help="one base, or several with commas")
    parser.add_argument("--quick", default="", metavar="BASE",
                        help="bases of which only the group quick runs")
    parser.add_argument("--kernel", choices=("debian", *DEBUG_KERNELS), default="debian")
    parser.add_argument("--group", default="", help="only entries of this group (quick)")
    parser.add_argument("--only", default="", metavar="REGEX", help="entries to run")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="run what is kept, too")
    return parser.parse_args()


def wanted_checks(args):
    wanted = [(base, args.group) for base in args.base.split(",")]
    wanted += [(base, "quick") for base in args.quick.split(",") if base]
    for base, _ in wanted:
        bases.base(base)                    # Problem if there is none
    checks = [check for base, group in wanted
              for check in (*selftests(base, args), *listed_checks(base, args))
              if re.search(args.only, check.name) and (not group or group in check.groups)]
    if not checks:
        raise Problem(f"no check is named like '{args.only or args.group}'.")
    return checks


def main():
    args = parse()
    try:
        checks = wanted_checks(args)
        run_all(checks, args.jobs, args.again)
        return 0 if summary(checks, args) else 1
    except (Problem, OSError) as problem:
        print(f"tests/check: {problem}", file=sys.stderr)
        print("0 passed, 1 failed, 0 skipped")
        return 2
