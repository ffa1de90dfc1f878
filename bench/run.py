#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Measure the stock modules and ours, side by side, and keep the counts.

    bench/run [--base 6.1[,6.12]] [--again [--only REGEX]] [--jobs N]

Boots each base's Debian kernel in the emulated hosts with both kinds of modules and runs
out/lab/bench (bench/bench.c) there. Writes out/bench/BASE.csv:

    base,modules,machine,groups,dma,metric,n,instructions,most,how

A run is repeated only when something that goes into it has changed: the counts would be the
same. --again does not believe that, runs all, or those whose folder in out/lab matches REGEX, and
names each count that came out differently; its exit status is 1 if there is one. What is longer
than a timer tick's period, or sleeps, is not compared: it differs by some instructions.
"""

import argparse
import concurrent.futures
import csv
import glob
import hashlib
import os
import re
import shutil
import time

from build import check_abi
from kit import bases
from kit import btf
from kit import children
from kit import initramfs
from kit import rooms
from kit.common import TOP, Problem, step, write
from lab import run as lab

MODULES = ("stock", "ours")
PROGRAM = "out/lab/bench"
FIXTURE = "out/{base}/vfio_testdev/vfio_testdev.ko"

# (name, machine, options of lab/run, arguments of the program)
RUNS = [
    ("fixture", "svm", ["--icount", "--iommu", "none", "--file", FIXTURE],
     ["--transitions", "512"]),
    ("vmx", "vmx", ["--machine", "vmx", "--icount", "--file", FIXTURE], ["--transitions", "0"]),
    ("edu-on", "svm", ["--icount", "--edu", "128", "--snoop", "on"], ["128"]),
    ("edu-off", "svm", ["--icount", "--edu", "128", "--snoop", "off"], ["128"]),
]
TIMEOUT = 3600
TICK = 4_000_000

FIELDS = ["base", "modules", "machine", "groups", "dma", "metric", "n", "instructions", "most",
          "how"]
ROW = re.compile(r"row (\S+) (\S+) (\S+) (\d+) (\d+) (\d+) (\S+)$", re.M)

# What tracks a file is allocated from the smallest of these that fits.
BUCKETS = (8, 16, 32, 64, 96, 128, 192, 256, 512)


# --- what goes into a run --------------------------------------------------------------------

def digest(command, paths):
    state = hashlib.sha256("\0".join(command).encode())
    for path in paths:
        try:
            with open(path, "rb") as f:
                state.update(hashlib.file_digest(f, "sha256").digest()
                             if hasattr(hashlib, "file_digest")
                             else hashlib.sha256(f.read()).digest())
        except FileNotFoundError:
            raise Problem(f"{os.path.relpath(path, TOP)} is missing; run: make bench") from None
    return state.hexdigest()


def emulator(command):
    """How lab/run would call the emulator."""
    args = lab.parse(command[1:])
    files = {name: name for name in ("dir", "console", "result", "initrd")}
    return lab.MACHINES[args.machine](args, lab.Kernel(args), files)


def inputs(base, modules, machine, options):
    """Everything else that could change a count."""
    paths = [os.path.join(TOP, PROGRAM), *rooms.files("lab/inside", "kit")]
    if FIXTURE in options:
        paths.append(os.path.join(TOP, FIXTURE.format(base=base)))
    paths += glob.glob(os.path.join(TOP, "out", base, "debian/root/boot/vmlinuz-*"))
    if modules == "ours":
        paths += sorted(glob.glob(os.path.join(TOP, "out", base, "modules/*.ko")))
    if machine == "vmx":
        paths += [os.path.join(TOP, "lab/machines/bochs"), shutil.which("bochs-bin") or "bochs-bin"]
    else:
        paths.append(shutil.which("qemu-system-x86_64") or "qemu-system-x86_64")
    return paths


# --- running ---------------------------------------------------------------------------------

def lab_command(base, modules, run):
    name, _machine, options, arguments = run
    return ["lab/run", *[o.format(base=base) for o in options], "--base", base,
            "--modules", modules, "--timeout", str(TIMEOUT),
            "--name", f"bench-{name}-{modules}-{base}", "--", PROGRAM, *arguments]


def measure(base, modules, run, again):
    """The rows of one run, kept or new: (rows, how many of the kept ones were different)."""
    name, machine, options, _arguments = run
    command = lab_command(base, modules, run)
    key = digest(emulator(command) + command[command.index("--"):],
                 inputs(base, modules, machine, options))
    path = os.path.join(TOP, "out/bench/rows", f"{name}-{modules}-{base}")
    kept = read_kept(path, key)
    if kept and (again is None or not re.search(again, " ".join(command))):
        return kept, 0
    start = time.monotonic()
    status, out, err = children.run(command)
    rows = [list(match) for match in ROW.findall(out)]
    if status or not rows:
        said = (err.strip().splitlines() or [f"lab/run ended with status {status}"])[-1]
        raise Problem(f"{name} with {modules} modules of {base}: {said}")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write(path, "\n".join([key, *map(" ".join, rows), ""]).encode())
    step(f"{base}, {modules} modules, {name}: {len(rows)} rows ({time.monotonic() - start:.0f} s)")
    return rows, differences(name, modules, base, kept, rows) if kept else 0


def read_kept(path, key):
    try:
        with open(path, encoding="ascii") as f:
            first, *rows = f.read().splitlines()
    except FileNotFoundError:
        return None
    return [row.split() for row in rows] if first == key else None


def differences(name, modules, base, kept, rows):
    """Name the rows whose count is another than the one before."""
    count = 0
    before = {tuple(row[:4]): row for row in kept}
    for row in rows:
        old = before.get(tuple(row[:4]))
        if old and old[4] != row[4] and row[6] == "tsc" and int(row[4]) < TICK / 2:
            count += 1
            step(f"{base}, {modules} modules, {name}: {' '.join(row[:4])} was {old[4]}, "
                 f"is {row[4]}")
    return count


# --- memory ----------------------------------------------------------------------------------

def sizes(types, wanted):
    return {name: size for name, size, _members in types.structures() if name in wanted}


def memory_rows(base):
    """Bytes for each tracked file, from the types that the modules were compiled with."""
    kernel = check_abi.Kernel(base)
    found = {"stock": {}, "ours": {}}
    wanted = {"kvm_vfio_file", "kvm_vfio_group"}
    for folder, _, files in os.walk(kernel.folder):
        for name in files:
            if re.fullmatch(r"kvm\.ko(\.xz)?", name):
                sections = dict(initramfs.elf_sections(
                    initramfs.read_module(os.path.join(folder, name))))
                found["stock"] = sizes(btf.BTF(sections[".BTF"], check_abi.kernel_btf(kernel)), wanted)
    found["ours"] = sizes(check_abi.our_btf(kernel, "arch/x86/kvm/kvm"), wanted)
    found["ours"] |= sizes(check_abi.our_btf(kernel, "drivers/vfio/vfio"), {"vfio_external_slot"})
    for modules in MODULES:
        size = found[modules].get("kvm_vfio_file") or found[modules].get("kvm_vfio_group")
        if not size:
            raise Problem(f"the {modules} kvm.ko of {base} has no type for a tracked file; "
                          "correct memory_rows() of bench/run")
        slot = found[modules].get("vfio_external_slot", 0)
        bucket = min(b for b in BUCKETS if b >= size)
        for metric, value in (("memory_struct", size), ("memory_bucket", bucket),
                              ("memory_slot", slot)):
            yield [base, modules, "-", "none", "-", metric, 0, value, value, "bytes"]


# --- putting it together ---------------------------------------------------------------------

def write_csv(base, rows):
    path = os.path.join(TOP, "out/bench", base + ".csv")
    with open(path + ".tmp", "w", encoding="ascii", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(FIELDS)
        writer.writerows(rows)
    os.replace(path + ".tmp", path)


def measure_all(wanted, args):
    """All rows by base, and how many were different."""
    todo = [(base, modules, run) for run in RUNS for base in wanted for modules in MODULES]
    rows, different = {}, 0
    with children.pool(args.jobs) as pool:
        futures = [pool.submit(measure, *item, args.only if args.again else None) for item in todo]
        for future in concurrent.futures.as_completed(futures):
            future.result()
    for (base, modules, run), future in zip(todo, futures):
        found, changed = future.result()
        different += changed
        rows.setdefault(base, []).extend([base, modules, run[1], *row] for row in found)
    return rows, different


def main():
    parser = argparse.ArgumentParser(prog="bench/run")
    parser.add_argument("--base", default=bases.default(), help="one base, or several with commas")
    parser.add_argument("--again", action="store_true", help="run all, and compare")
    parser.add_argument("--only", default="", metavar="REGEX", help="of those, with --again")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    wanted = args.base.split(",")
    for base in wanted:
        bases.base(base)                    # Problem if there is none
    step(f"measuring {len(wanted) * len(RUNS) * len(MODULES)} runs, {args.jobs} at a time; those "
         "that nothing has changed for are kept")
    rows, different = measure_all(wanted, args)
    for base in wanted:
        write_csv(base, [*rows[base], *memory_rows(base)])
    if args.again:
        step(f"{different} counts are different from the run before")
    return 1 if different else 0

