#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Run torture_test in many emulated hosts, each with a seed of its own, and sum it up.

    tests/torture/torture [--base 6.1[,6.12]] [--steps 200000] [--seed 1] [--jobs 2] [--kernel KERNEL]

So many steps are done on debug kernels (build/debug-kernel), and as many on Debian's; with
--kernel on one of them alone. Those of all cases count that have a model. They are shared out
between the bases, and there between the fixture's devices and real ones behind an IOMMU with and
without snoop control; another seed makes other walks. Prints how far each run is, a line for each
one when it has ended, what failed, and at last

    N steps in N runs, N failed

Exit status 0 if nothing failed, and all steps were done. What a run said is in
out/lab/torture-N-BASE.
"""

import argparse
import collections
import math
import os
import re
import subprocess
import threading
import time

from kit import bases
from kit import children
from kit.common import TOP, Problem

# Options of lab/run, words for the kernel's command line, and whether with memtypes.ko
Host = collections.namedtuple("Host", "options append memtypes", defaults=[(), False])
FIXTURE = Host(["--iommu", "none"])
# With memtypes each change tears down what is mapped for a guest, as with EPT.
MEMTYPES = FIXTURE._replace(memtypes=True)
# Where a base has it; elsewhere it is the fixture without.
IOMMUFD = Host(["--iommu", "none", "--iommufd"])
# runs.toml says why they have the host's domain.
SNOOP_OFF = Host(["--edu", "4", "--snoop", "off"], ["iommu=pt"], memtypes=True)
SNOOP_ON = Host(["--edu", "4", "--snoop", "on"], ["iommu=pt"])
# To record who allocated what takes half the time of a step, and a leak is one of a path, not of a long
# walk: a base's two other hosts look for it, each in so many steps at the most.
LEAK_STEPS = 25000


def without_leaks(host):
    """It with a debug kernel that does not look for leaks"""
    return host._replace(append=[*host.append, "kmemleak=off"], memtypes=True)


# Which host gets which part of a base's steps, and how many steps a second are to be expected. The
# debug kernel has iommufd, and is the first: what it finds is worth more than what comes after it.
HOSTS = {
    "debug": ((FIXTURE, 4, 15), (without_leaks(MEMTYPES), 8, 30), (SNOOP_OFF, 3, 10)),
    "debian": ((FIXTURE, 20, 300), (MEMTYPES, 20, 300), (IOMMUFD, 20, 300), (SNOOP_OFF, 15, 100),
               (SNOOP_ON, 10, 100)),
}
# How many steps the cases of a run do for one of the walk: a quarter that compares results alone, and with
# a debug kernel a tenth with faults, and half of it to new places
COUNTED = {"debug": 1.85, "debian": 1.25}
# How much longer than the walk all cases take
BESIDE = 2.0

print_lock = threading.Lock()


def say(text):
    with print_lock:
        print(text, flush=True)


class Run:
    """One emulated host."""

    def __init__(self, number, base, kernel, host, steps, seed, speed):
        self.name = f"torture-{number}-{base}"
        self.steps = steps
        self.about = steps / speed      # seconds, at the most
        self.done = 0
        self.said = []
        self.status = None
        if host is IOMMUFD and not bases.fact(base, "iommufd"):
            host = FIXTURE
        folder = "vfio_testdev.debug" if kernel == "debug" else \
            "vfio_testdev.iommufd" if host is IOMMUFD else "vfio_testdev"
        walk = math.ceil(steps / COUNTED[kernel])
        words = [*host.options, *host.append, *["--memtypes"] * host.memtypes]
        self.what = f"{base}, {kernel} kernel, {' '.join(words).replace('--', '')}, seed {seed}"
        self.command = ["lab/run", "--base", base, "--kernel", kernel, "--smp", "2", *host.options,
                        "--append", " ".join(host.append),
                        "--name", self.name, "--timeout", str(600 + int(BESIDE * walk / speed))]
        self.command += ["--skips", "no fault injection|no kcov" if kernel == "debian" else
                         "the same without memory types"]
        for module in ("vfio_testdev", "memtypes", "fail_calls"):
            self.command += ["--file", f"out/{base}/{folder}/{module}.ko"]
        # Whatever was executed, seen from outside
        self.command += ["--plugin", "out/lab/wbinvd.so,out=@DIR/wbinvd.counts",
                         "--verify", "tests/kit/wbinvd_compare"]
        self.command += ["--", "out/lab/torture_test", "--seed", str(seed), "--steps", str(walk),
                         *["--memtypes"] * host.memtypes]

    def hear(self, line):
        self.said.append(line)
        if m := re.match(r"# (?:seed \d+, )?(\d+) (of \d+ )?steps", line):
            if m[2]:
                say(f"==> {self.name}: {line[2:]}")
            else:
                self.done += int(m[1])

    def go(self):
        start = time.monotonic()
        with children.started(self.command, stderr=subprocess.STDOUT) as child:
            for line in child.stdout:
                self.hear(line.rstrip("\n"))
        self.status = child.returncode
        say(f"{'ok' if self.good() else 'not ok'} {self.name} # {self.what}: {self.done} steps, "
            f"{time.monotonic() - start:.0f} s")
        return self

    def good(self):
        return self.status == 0 and self.done >= self.steps


def shares(kernel, steps):
    """Of a base: (host, steps, steps a second)"""
    parts = sum(part for _, part, _ in HOSTS[kernel])
    for host, part, speed in HOSTS[kernel]:
        share = math.ceil(steps * part / parts)
        leaks = kernel == "debug" and "kmemleak=off" not in host.append
        most = min(share, LEAK_STEPS) if leaks else share
        yield host, most, speed
        if share > most:
            yield without_leaks(host), share - most, 2 * speed


def plan(args):
    wanted, seed, number = args.base.split(","), args.seed, 0
    for kernel in [args.kernel] if args.kernel else HOSTS:
        for base in wanted:
            bases.base(base)                # Problem if there is none
            if kernel == "debug" and not os.path.exists(os.path.join(TOP, "out", base, "debug/bzImage")):
                raise Problem(f"there is no debug kernel of {base}; run: build/debug-kernel {base}")
            for host, steps, speed in shares(kernel, math.ceil(args.steps / len(wanted))):
                number += 1
                yield Run(number, base, kernel, host, steps, seed, speed)
                # The walks of a run have the seeds from its own one on.
                seed += 1 + steps // 100


def parse():
    parser = argparse.ArgumentParser(prog="tests/torture/torture")
    parser.add_argument("--base", default=bases.default(), help="one base, or several with commas")
    parser.add_argument("--steps", type=int, default=200000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kernel", choices=list(HOSTS), default="", help="on this one alone")
    return parser.parse_args()


def main():
    args = parse()
    runs = list(plan(args))
    if not runs:
        raise Problem("there is nothing to run.")
    with children.pool(args.jobs) as pool:
        # The longest first: no core is without work before the end.
        for future in [pool.submit(run.go) for run in sorted(runs, key=lambda run: -run.about)]:
            future.result()
    failed = [run for run in runs if not run.good()]
    for run in failed:
        say("\n".join([f"# {run.name} ({run.what}):", *run.said[-120:]]))
    say(f"{sum(run.done for run in runs)} steps in {len(runs)} runs, {len(failed)} failed")
    return 1 if failed else 0
