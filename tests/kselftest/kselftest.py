#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Run the kernel's own KVM selftests on our modules and on Debian's: does each end the same?

    tests/kselftest/kselftest [--base 6.1[,6.12]] [--only REGEX] [--jobs 2]

All of them that tests/kselftest/kselftest_build has built run in the lab, once with the modules of
each; --only takes some. How a test ends is its status or signal, where its assertion failed, why it
was skipped, that it was stopped, and each result that it reports itself: all that has to be the
same. That it fails with both is no difference: some cannot pass on an emulated processor.

Where they differ, these tests run again, several times with each; and once more, oftener, if that does
not tell. An end that one of the two had so much oftener is a difference, that with an equal chance
this would come about once in a hundred times: six of nine and none of nine, say.

Prints how many passed, what the other ones did, each difference, and at last

    N tests, N ended differently

Exit status 0 if none did, all ran, and the kernel complained of nothing. What the runs said is in
out/lab/kselftest-*-BASE.
"""

import argparse
import collections
import math
import os
import re

from kit import bases
from kit import children
from kit import ktap
from kit.common import TOP, Problem

SIDES = ("ours", "stock")
# As in runs.toml, but that some of those that are left out there fill 2 GiB
HOST = ["--iommu", "none", "--smp", "2", "--mem", "4608"]
# How often what differs runs again, and how often what may differ then
ROUNDS = (8, 16)
# How long a test may take, in seconds
PATIENCE = 60
# The tests that need another one. These do not end in a minute with either, as the emulator is too slow
# for what they do or its CPUs take turns: long enough to see that they begin.
PATIENT = dict.fromkeys(("hardware_disable_test", "max_guest_memory_test", "mmu_stress_test", "rseq_test"), 5)
# With less memory, fewer rounds, and memslot_perf_test with those of its parts that move a memslot, these
# do what they are for, and end.
ARGUMENTS = {
    "demand_paging_test": "-b 32M", "dirty_log_perf_test": "-b 32M -i 2 -v 1",
    "dirty_log_test": "-i 3 -I 1", "kvm_page_table_test": "-b 64M",
    "memslot_modification_stress_test": "-i 3 -b 32M", "memslot_perf_test": "-s 64 -l 1 -f 3 -e 4",
}
# What a test chooses at random and says: aperfmperf_test the CPU that it first asks for its counters
CHOSEN = re.compile(r"(?<=/dev/cpu/)\d+")
# What of the run's own end is the tests'; see lab/run.
TESTS_FAILED = "the program ended with status 1"

# What came of a test: "ok", "skip" or "not ok", why, and the results that it reported itself
End = collections.namedtuple("End", "state why results")


def say(text):
    print(text, flush=True)


def tests(base, only):
    """The names of all that are built. A program that a script is there for is run by that."""
    folder = os.path.join(TOP, "out", base, "kselftest")
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        raise Problem(f"out/{base}/kselftest is missing: run tests/kselftest/kselftest_build "
                      f"{base}.") from None
    return [name for name in names if name + ".sh" not in names and re.search(only, name)]


def ends(text):
    """[(test, End)] of a run's output, and why that is not whole or ''."""
    cases, incomplete = ktap.parse(text)
    found, results = [], []
    for line in text.replace("\r", "").splitlines():
        if re.match(r"    (not )?ok \d", line):
            results.append(line.strip())
        elif ktap.RESULT.match(line) and len(found) < len(cases):
            case = cases[len(found)]
            found.append((case.name, End(case.state, CHOSEN.sub("N", case.note), tuple(results))))
            results = []
    return found, incomplete


def run_tests(base, side, names, suffix=""):
    """Run these in one emulated host; returns [(test, End)], or why there is no result."""
    patience = {name: PATIENT.get(name, PATIENCE) for name in names}
    status, out, err = children.run(
        ["lab/run", "--base", base, "--modules", side, *HOST, "--skips", ".",
         "--timeout", str(300 + sum(patience[name] for name in names)),
         "--name", f"kselftest{suffix}-{side}-{base}", "--file", f"out/{base}/kselftest", "--",
         "tests/kselftest/kselftest_run",
         *[f"{name}:{patience[name]}" + (f":{ARGUMENTS[name]}" if name in ARGUMENTS else "") for name in names]])
    sentence = (err.strip().splitlines() or [f"lab/run ended with status {status}"])[-1]
    found, incomplete = ends(out)
    if status and not (status == 1 and TESTS_FAILED in sentence):
        return [], sentence
    if incomplete or [name for name, _ in found] != list(names):
        return [], incomplete or "it did not run what it was told to"
    return found, ""


class Comparison:
    """All ends of each test of a base, with both sides."""

    def __init__(self, base, names):
        self.base = base
        self.names = names
        self.ends = {side: collections.defaultdict(list) for side in SIDES}
        self.broken = []

    def start(self, pool, names, suffix=""):
        """Have these run with both; returns what note() takes."""
        return {side: pool.submit(run_tests, self.base, side, names, suffix) for side in SIDES}

    def note(self, futures):
        for side, future in futures.items():
            found, why = future.result()
            if why:
                self.broken.append(f"{self.base}, {side}: {why}")
            for name, end in found:
                self.ends[side][name].append(end)

    def differs(self, name):
        ours, stock = (collections.Counter(self.ends[side][name]) for side in SIDES)
        rounds = len(self.ends["ours"][name])
        return any(chance(ours[end], stock[end], rounds) < 0.01 for end in {*ours, *stock})

    def may_differ(self, name):
        """Are there ends that one side alone had, and not just once in many times?"""
        ours, stock = (collections.Counter(self.ends[side][name]) for side in SIDES)
        often = 1 if len(self.ends["ours"][name]) == 1 else 2
        return any(max(ours[end], stock[end]) >= often for end in set(ours) ^ set(stock))

    def again(self, pool):
        """Let those that differ run often enough to tell."""
        for rounds in ROUNDS:
            if self.broken:
                return
            names = [name for name in self.names if self.may_differ(name) and not self.differs(name)]
            if names:
                say(f"# {self.base}: again, {rounds} times with each: {' '.join(names)}")
                self.note(self.start(pool, [name for name in names for _ in range(rounds)], ".again"))

    def report(self):
        """What there is to know; returns how many ended differently."""
        for why in self.broken:
            say(f"# BROKEN: {why}")
        if self.broken:
            return 0
        states = collections.Counter(self.ends["ours"][name][0].state for name in self.names)
        say(f"# {self.base}: {len(self.names)} tests: {states['ok']} pass, {states['skip']} are "
            f"skipped, {states['not ok']} fail")
        return sum(self.report_test(name) for name in self.names)

    def report_test(self, name):
        """Whether it ended differently. Nothing is said of one that passed at once with both."""
        wrong, twice = self.differs(name), len(self.ends["ours"][name]) > 1
        for side in SIDES if twice else SIDES[:1]:
            for end, times in collections.Counter(self.ends[side][name]).items():
                if twice:
                    say(f"#   {name}, {side}, {times} times: {told(end)}")
                elif end.state != "ok":
                    say(f"#   {name}: {told(end)}")
        if wrong:
            say(f"not ok {name}-{self.base} # it does not end as with stock")
        return wrong


def chance(one, other, rounds):
    """How likely an end that came so often to one and to the other, in as many rounds, is shared out as
    unevenly as that, if it is as likely with both (Fisher's exact test)."""
    both = one + other
    uneven = sum(math.comb(rounds, k) * math.comb(rounds, both - k)
                 for k in range(max(one, other), min(both, rounds) + 1))
    return min(1, 2 * uneven / math.comb(2 * rounds, both))


def told(end):
    """An end in words; of the results that the test itself reports, those that did not pass."""
    bad = [result for result in end.results if not re.match(r"ok \d+ [^#]*$", result)]
    return "; ".join(filter(None, [f"{end.state} {end.why}".rstrip(), *bad]))


def parse():
    parser = argparse.ArgumentParser(prog="tests/kselftest/kselftest")
    parser.add_argument("--base", default=bases.default(), help="one base, or several with commas")
    parser.add_argument("--only", default="", metavar="REGEX", help="tests to run")
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args()


def main():
    args = parse()
    comparisons = []
    for base in args.base.split(","):
        bases.base(base)                    # Problem if there is none
        comparisons.append(Comparison(base, tests(base, args.only)))
    if not all(comparison.names for comparison in comparisons):
        raise Problem(f"no test is named like '{args.only}'.")
    with children.pool(args.jobs) as pool:
        started = [(comparison, comparison.start(pool, comparison.names))
                   for comparison in comparisons]
        for comparison, futures in started:
            comparison.note(futures)
        for comparison in comparisons:
            comparison.again(pool)
    different = sum(comparison.report() for comparison in comparisons)
    broken = any(comparison.broken for comparison in comparisons)
    say(f"{sum(len(comparison.names) for comparison in comparisons)} tests, "
        f"{different} ended differently" + (", not all ran" if broken else ""))
    return 1 if different or broken else 0
