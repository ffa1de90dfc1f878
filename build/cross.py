#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""build/cross BASE: the series builds where the modules are not for. Prints KTAP.

Builds KVM and VFIO of the assembled tree for other architectures and configurations, with W=1,
and only the folders that we touch; with TRIM_UNUSED_KSYMS all modules, to see which exports are
left.  A warning in a file that we add or edit and that the base does
not have is a failure; the base is built for that only if there are such warnings at all.  Logs and
objects: out/BASE/cross/NAME.

  --only REGEX   only the configurations named like this
  --tree DIR     build this tree instead of out/BASE/tree, in DIR.cross (for build_test)
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import time

from kit import bases
from kit import common
from kit import findings
from kit import kbuild
from kit.common import TOP, Problem, read, rel, step, write

SHOWN = 12
CONFIG = os.path.join(TOP, "build/config")

VFIO = {"MODULES": "y", "IOMMU_SUPPORT": "y", "PCI": "y", "PCI_MSI": "y", "VIRTUALIZATION": "y",
        "EVENTFD": "y", "TRACEPOINTS": "", "VFIO": "m", "VFIO_PCI": "m"}
# An export of VFIO that no module imports
UNUSED = "vfio_file_iommu_group"
# A small PC from build/config; ftrace for the tracepoints.
PC = {"KVM": "m", "KVM_AMD": "m", "KVM_INTEL": "m"}


class Target:
    """One configuration: which, how it is made, what is built, what must be so in the end."""

    def __init__(self, name, arch, compiler, config, options, folders, **more):
        self.name = name
        self.arch = arch
        self.compiler = compiler        # prefix of the cross compiler, "" on x86
        self.config = config            # the kernel's own, or None for build/config/host*.config
        self.options = options
        self.folders = folders
        self.bare = more.get("bare", False)     # without our device, which nobody can choose
        self.objects = more.get("objects", [])  # that must have been made
        self.kept = more.get("kept", False)     # exports that must be left of the modules'
        self.iommufd = more.get("iommufd", False)       # only of bases that have it


TARGETS = [
    Target("arm64", "arm64", "aarch64-linux-gnu-", "defconfig",
           {"KVM": "y", "VFIO_PLATFORM": "m"}, ["arch/arm64/kvm/", "drivers/vfio/"],
           objects=["virt/kvm/vfio.o", "drivers/vfio/external_user.o"]),
    Target("ppc64le", "powerpc", "powerpc64le-linux-gnu-", "ppc64le_defconfig",
           {"KVM_BOOK3S_64": "m", "KVM_BOOK3S_64_HV": "m",
            "PPC_PSERIES": "y", "PPC_POWERNV": "y", "SPAPR_TCE_IOMMU": "y", "EEH": "y",
            "VFIO_IOMMU_SPAPR_TCE": "m", "KVM_VFIO": "y"},
           ["arch/powerpc/kvm/", "drivers/vfio/"],
           objects=["virt/kvm/vfio.o", "drivers/vfio/external_user.o",
                    "drivers/vfio/vfio_iommu_spapr_tce.o"]),
    Target("s390x", "s390", "s390x-linux-gnu-", "defconfig",
           {"KVM": "m", "KVM_VFIO": "y"}, ["arch/s390/kvm/", "drivers/vfio/"],
           objects=["virt/kvm/vfio.o", "drivers/vfio/external_user.o"]),
    Target("i386", "i386", "", "i386_defconfig", {**PC, "KVM_VFIO": "y"},
           ["arch/x86/kvm/", "drivers/vfio/"],
           objects=["virt/kvm/vfio.o", "drivers/vfio/external_user.o"]),
    Target("built-in", "x86_64", "", None, {"KVM": "y", "VFIO": "y", "VFIO_PCI": "y",
                                            "IOMMUFD": "y"},
           ["arch/x86/kvm/", "drivers/vfio/"], objects=["virt/kvm/vfio.o"]),
    Target("vfio-built-in", "x86_64", "", None, {**PC, "VFIO": "y", "VFIO_PCI": "y",
                                                 "IOMMUFD": "y"},
           ["arch/x86/kvm/", "drivers/vfio/"], objects=["virt/kvm/vfio.o"]),
    # What symbol_get() alone leads to
    Target("trim", "x86_64", "", None,
           {**PC, "EXPERT": "y", "COMPILE_TEST": "n", "TRIM_UNUSED_KSYMS": "y"},
           ["arch/x86/kvm/", "drivers/vfio/"], objects=["virt/kvm/vfio.o"],
           kept=True),
    Target("no-vfio", "x86_64", "", None, {**PC, "VFIO": "n", "KVM_VFIO": "y"},
           ["arch/x86/kvm/"], objects=["virt/kvm/vfio.o"]),
    Target("no-kvm", "x86_64", "", None, {"KVM": "n", "KVM_VFIO": "n"}, ["drivers/vfio/"],
           objects=["drivers/vfio/external_user.o"]),
    Target("no-kvm-vfio", "x86_64", "", None, PC, ["arch/x86/kvm/"], bare=True),
    # Device files alone, with nothing of groups; and groups that have iommufd for a container
    Target("no-group", "x86_64", "", None,
           {**PC, "VFIO_GROUP": "n", "VFIO_CONTAINER": "n", "IOMMUFD": "m"},
           ["arch/x86/kvm/", "drivers/vfio/"], iommufd=True,
           objects=["virt/kvm/vfio.o", "drivers/vfio/external_user.o"]),
    Target("no-container", "x86_64", "", None, {**PC, "VFIO_CONTAINER": "n", "IOMMUFD": "m"},
           ["drivers/vfio/"], iommufd=True,
           objects=["drivers/vfio/external_user.o", "drivers/vfio/group.o"]),
]


def host_configs(base):
    """The fragments of the lab's host: what all bases have, and what this one has."""
    return [os.path.join(CONFIG, "host.config"), *bases.file_in_force(CONFIG, "host", "config", base)]


class Build:
    """One configuration of one tree in its own output folder."""

    def __init__(self, base, target, tree, folder):
        self.base = base
        self.target = target
        self.folders = target.folders
        if re.search(r"\bIOMMUFD\b", " ".join(self.options())):
            self.folders = self.folders + bases.project()["iommufd_folders"]
        self.tree = tree
        self.folder = folder
        self.log = os.path.join(self.folder, "build.log")
        self.output = os.path.join(self.folder, "build")
        os.makedirs(self.output, exist_ok=True)

    def make(self, log, *arguments):
        with open(log, "a", encoding="utf-8") as f:
            return subprocess.run(
                kbuild.make(self.base, self.tree, f"O={self.output}", f"ARCH={self.target.arch}",
                            *kbuild.tools(self.base, self.target.compiler),
                            "KBUILD_BUILD_USER=cross", "KBUILD_BUILD_HOST=localhost", *arguments),
                stdin=subprocess.DEVNULL, stdout=f, stderr=f, check=False).returncode

    def options(self):
        own = bases.base(self.base)["cross"]
        # With sPAPR there are no device files; that needs no line here.
        words = own["vfio"] + (own["cdev"] if self.target.name != "ppc64le" else [])
        options = {**VFIO, **dict(word.split("=") for word in words), **self.target.options}
        if not bases.fact(self.base, "iommufd"):
            options.pop("IOMMUFD", None)
        if options["VFIO"] == "n":
            options = {k: v for k, v in options.items() if not re.match("VFIO_|IOMMUFD", k)}
        return {k: v for k, v in options.items() if v}

    def configure(self):
        """Ask for the options over the kernel's own configuration, or over the lab's host."""
        options = self.options()
        # The last word on an option counts.
        lines = [f"CONFIG_{k}={v}" if v != "n" else f"# CONFIG_{k} is not set"
                 for k, v in options.items()]
        if not self.target.config:
            for path in host_configs(self.base):
                lines[:0] = [line for line in read(path).splitlines()
                             if not re.match(r"CONFIG_(%s)=" % "|".join(options), line)]
        asked = os.path.join(self.folder, "asked.config")
        text = "\n".join(lines) + "\n"
        config = os.path.join(self.output, ".config")
        if os.path.exists(asked) and read(asked) == text and os.path.exists(config):
            return
        log = os.path.join(self.folder, "config.log")
        write(log, "")
        write(asked + ".new", text)
        if self.target.config:
            status = self.make(log, self.target.config)
            if not status:
                write(config, read(config) + text)
                status = self.make(log, "olddefconfig")
        else:
            status = self.make(log, f"KCONFIG_ALLCONFIG={asked}.new", "allnoconfig")
        if status:
            raise Problem(f"cannot configure it: see {rel(log)}.")
        got = read(config)
        refused = [f"{k}={v}" for k, v in options.items()
                   if (f"\nCONFIG_{k}={v}\n" not in got if v != "n" else f"\nCONFIG_{k}=" in got)]
        if refused:
            raise Problem(f"Linux {self.base} does not keep {' '.join(refused)}; "
                          "correct TARGETS of build/cross.")
        os.replace(asked + ".new", asked)

    def bare(self):
        """The device comes with KVM, unasked: take it out of what was generated."""
        if self.make(os.path.join(self.folder, "config.log"), "prepare"):
            raise Problem("cannot prepare it: see "
                          f"{rel(os.path.join(self.folder, 'config.log'))}.")
        for name in ("include/config/auto.conf", "include/generated/autoconf.h"):
            path = os.path.join(self.output, name)
            text = read(path)
            if "CONFIG_KVM_VFIO" in text:
                write(path, re.sub(r"^.*\bCONFIG_KVM_VFIO\b.*\n", "", text, flags=re.M))

    def trim(self):
        """Which exports are left is found out by kbuild when it makes all modules."""
        log = os.path.join(self.folder, "trim.log")
        write(log, "")
        symvers = os.path.join(self.output, "modules-only.symvers")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(symvers)
        # Without vmlinux, where nothing is ours; modpost knows it as undefined.
        goals = [["KBUILD_MODPOST_WARN=1", "modules"]]
        if os.path.exists(os.path.join(self.tree, "scripts/gen_autoksyms.sh")):
            # That compiles what is needed after all once more, before modpost.
            goals.insert(0, ["autoksyms_recursive"])
        for goal in goals:
            if self.make(log, "KBUILD_BUILTIN=", *goal):
                raise Problem(f"its modules do not build: see {rel(log)}.")
        left = {line.split("\t")[1] for line in read(symvers).splitlines()}
        if UNUSED in left:
            raise Problem(f"{UNUSED} is left of the exports, which nobody uses; "
                          "correct TARGETS of build/cross.")
        missing = [name for name in bases.base(self.base)["cross"]["symbol_get"]
                   if name not in left]
        if missing:
            raise Problem(f"trimmed from the exports: {' '.join(missing)}")

    def build(self):
        """What the compiler said; all is compiled anew, so that it says all of it."""
        self.configure()
        if self.target.bare:
            self.bare()
        for folder in (*self.folders, "virt"):
            for at, _, files in os.walk(os.path.join(self.output, folder)):
                for name in files:
                    if name.endswith(".o"):
                        os.unlink(os.path.join(at, name))
        write(self.log, "")
        if self.make(self.log, "W=1", *self.folders):
            line = next((line for line in read(self.log).splitlines()
                         if re.search(r"\berror:|Error \d|No rule", line)), "")
            raise Problem(f"does not build: see {rel(self.log)}: {line.strip()}")
        for name in self.target.objects:
            if not os.path.exists(os.path.join(self.output, name)):
                raise Problem(f"{name} has not been built; correct TARGETS of build/cross.")
        if self.target.bare and os.path.exists(os.path.join(self.output, "virt/kvm/vfio.o")):
            raise Problem("has our device all the same.")
        if self.target.kept:
            self.trim()
        # Relative to the folder of the tree or to the output folder, as make has it.
        return re.sub(r"^(?:%s|(?:\.\./)+(?:tree|stock))/" % re.escape(self.tree), "",
                      read(self.log), flags=re.M)


def try_target(base, target, tree, folder):
    """The new warnings of one configuration, how many there were in all, and what was built."""
    out = os.path.join(TOP, "out", base)
    # W=1 says much of files that we do not touch, and can say nothing new of them but in our
    # headers: those are in the list, too.
    with open(os.path.join(out, ".tree.state"), encoding="utf-8") as f:
        touched = set(json.load(f)["files"])
    build = Build(base, target, tree, folder)
    now = findings.compiler(build.build())
    now.list = [finding for finding in now.list if finding[0] in touched]
    if not now.list:
        return [], 0, build.folders
    # The base's own device is always there.
    step(f"{target.name}: {len(now.list)} warnings; building the base for comparison")
    kept = os.path.join(out, "cross", target.name + ".base-warnings")
    key = hashlib.sha256((read(os.path.join(out, "debian/version")) + read(__file__)).encode())
    if not os.path.exists(kept) or read(kept).split("\n", 1)[0] != key.hexdigest():
        common.need("build/stock-tree", base)
        stock = Build(base, target, os.path.join(out, "stock"), folder + "-base")
        stock.target = Target(target.name, target.arch, target.compiler, target.config,
                              target.options, target.folders)
        before = findings.compiler(stock.build())
        write(kept, "\n".join([key.hexdigest(), *[line for _, _, line in before.list]]) + "\n")
        shutil.rmtree(stock.output)
    before = findings.compiler(read(kept))
    return findings.new_ones(before.list, now.list), len(now.list), build.folders


def fingerprint(base, target):
    state = hashlib.sha256()
    out = os.path.join(TOP, "out", base)
    for path in (os.path.join(out, "tree.stamp"), __file__, findings.__file__, kbuild.__file__,
                 os.path.join(bases.FOLDER, base + ".toml"), *host_configs(base)):
        state.update(read(path).encode())
    compiler = kbuild.compiler(base, target.compiler)
    version = subprocess.run([*kbuild.in_root(base), compiler, "--version"],
                             capture_output=True, text=True, check=False)
    if version.returncode:
        raise Problem(f"{compiler} is missing; run: BASE={base} build/setup build cross")
    state.update(version.stdout.encode())
    return state.hexdigest()


def perform(base, target, tree):
    """(result line's end, its notes)"""
    start = time.monotonic()
    out = os.path.join(TOP, "out", base)
    folder = os.path.join(tree + ".cross" if tree else os.path.join(out, "cross"), target.name)
    os.makedirs(folder, exist_ok=True)
    done = os.path.join(folder, "passed")
    # What another tree holds is not known.
    mark = fingerprint(base, target) if not tree else ""
    if mark and os.path.exists(done) and read(done).split("\n", 1)[0] == mark:
        return f"ok %d {target.name} # unchanged; {read(done).split(chr(10))[1]}", []
    if os.path.exists(done):
        os.unlink(done)
    try:
        new, all_, folders = try_target(base, target, tree or os.path.join(out, "tree"), folder)
    except Problem as problem:
        return f"not ok %d {target.name}", [str(problem)]
    note = f"{', '.join(folders)}: {all_ - len(new)} warnings of the base's"
    seconds = f"{time.monotonic() - start:.0f} s"
    if new:
        notes = [line for _, _, line in new[:SHOWN]]
        notes.append(f"{len(new)} new warnings: {rel(folder)}/build.log")
        return f"not ok %d {target.name} # {note}, {len(new)} new ({seconds})", notes
    write(done, f"{mark}\n{note}\n")
    return f"ok %d {target.name} # {note} ({seconds})", []


def main():
    parser = argparse.ArgumentParser(prog="build/cross")
    parser.add_argument("base", choices=bases.names())
    parser.add_argument("--only", default="", metavar="REGEX")
    parser.add_argument("--tree", metavar="DIR")
    args = parser.parse_args()
    iommufd = bases.fact(args.base, "iommufd")
    targets = [t for t in TARGETS if iommufd >= t.iommufd and re.search(args.only, t.name)]
    if not targets:
        raise Problem(f"no configuration is named like '{args.only}', only "
                      f"{', '.join(t.name for t in TARGETS)}.")
    common.need("build/setup", "build", "cross", BASE=args.base)
    if not args.tree:
        common.need("build/fetch", args.base)
        common.need("series/assemble", args.base)
    # Another tree's objects are in a folder of its own.
    with contextlib.nullcontext() if args.tree else common.lock(args.base, "cross"):
        return perform_all(args, targets)


def perform_all(args, targets):
    print(f"KTAP version 1\n1..{len(targets)}", flush=True)
    failed = False
    for number, target in enumerate(targets, 1):
        step(f"Linux {args.base} for {target.name}")
        result, notes = perform(args.base, target, args.tree and os.path.abspath(args.tree))
        for line in notes:
            print(f"# {line}")
        print(result % number, flush=True)
        failed |= result.startswith("not ok")
    return int(failed)
