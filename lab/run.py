#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Boot a Debian kernel in an emulated host, run one program in it, and judge the run.

    lab/run [options] -- PROGRAM [ARGS...]

The program's output is copied to standard output. Exit status: 0 the program ended with 0, the
kernel's console is complete and shows no splat, the kernel is not tainted by a warning or a
crash, and output that is KTAP is complete, without failures and unexpected skips;
1 one of these is not so; 2 the lab itself broke (timeout, silence, panic, bad request).
Everything is kept in out/lab/NAME: console.log, result.log, cmd, emulator.log, verdict.
"""

import argparse
import base64
import contextlib
import ctypes
import fcntl
import glob
import gzip
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time

from kit import bases
from kit import initramfs
from kit import ktap
from kit.common import TOP, Problem, read_bytes, write
from lab import software

LAB = os.path.join(TOP, "lab")

# The modules of this project: with --modules ours they take the place of the stock ones.
OURS = {initramfs.canonical(place): os.path.basename(place) for place in bases.modules()}

# Loaded by PID 1, with all they depend on.
LOAD = {
    "svm": ("kvm", "kvm_amd", "vfio", "vfio_iommu_type1", "vfio_pci"),
    "vmx": ("kvm", "kvm_intel", "vfio", "vfio_iommu_type1"),
}
# Put into /lib/modules for whoever wants them, if the kernel has them.
SPARE = ("uio_pci_generic", "mdev", "nd_e820", "device_dax", "dax_pmem")


# The root bus has room for this many edu devices; more go behind root ports.
EDU_ON_ROOT_BUS = 8
EDU_MAX = 128
# By itself, edu drives 28 address bits, and drops the others.
EDU = "edu,dma_mask=0xffffffffffffffff"

# What must never be on the console of a good run. "Linux version" and END_MARK must be.
BANNER = "Linux version "
# Kernels of build/debug-kernel, which watch themselves, and what shows that they do
WATCHING = {"debug": "KernelAddressSanitizer initialized", "races": "kcsan: enabled early",
            "coverage": "version magic: 0x"}      # of gcov
RUN_INIT = "Run /init as init process"
SILENT = 120            # seconds: a kernel that boots says something more often
END_MARK = "lab: end of run"
BROKEN_MARK = "lab: BROKEN: "
SPLATS = re.compile("|".join((
    r"WARNING:", r"\bBUG:", r"\bOops\b", r": [0-9a-f]{4} \[#\d+\]", r"Call Trace",
    r"Kernel panic", r"kernel BUG at", r"general protection", r"unable to handle",
    r"KASAN:", r"KFENCE:", r"KCSAN:", r"UBSAN:", r"refcount_t", r"list_(add|del) corruption",
    r"possible circular locking", r"possible recursive locking", r"INFO: possible ",
    r"inconsistent lock state", r"possible irq lock inversion", r"bad unlock balance",
    r"held lock freed", r"lock held when returning", r"Invalid wait context",
    r"DEBUG_LOCKS_WARN", r"suspicious RCU", r"INFO: trying to register non-static key",
    r"sleeping function called from invalid", r"scheduling while atomic",
    r"unreferenced object", r"new suspected memory leaks", r"Memory allocation failure",
    r"rcu: INFO", r"detected.* stalls", r"self-detected stall", r"blocked for more than",
    r"soft lockup", r"hard LOCKUP", r"nobody cared", r"Bad page", r"Out of memory",
    r"Memory failure", r"DMAR: .*[Ff]ault", r"disagrees about version", r"Unknown symbol",
    r"lockdep has turned itself off",
)))
# A kernel that says so about every emulated CPU without new microcode.
HARMLESS = re.compile(r"(Speculative Return Stack Overflow|RETBleed|Spectre V2.*): WARNING: ")
# Where a run leaves what these kernels record
RECORDS = {"debug": "locks", "coverage": "gcov"}
# Both are asked to let allocations fail, and tell of some of them who called.
FAILED_ALLOCATION = re.compile(r"((?:vmalloc error: |page allocation failure: |alloc_cpumask_var: failed).*\n"
                               r"(?:.*(?:CPU: |Tainted: |Hardware name: ).*\n)*.*)Call Trace:")
TAINT_DIE, TAINT_WARN = 1 << 7, 1 << 9


# --- the request ---------------------------------------------------------------------------

def parse(argv):
    parser = argparse.ArgumentParser(
        prog="lab/run", description="Boot a kernel in an emulated host and run a program in it.")
    parser.add_argument("--base", choices=bases.names(), default=bases.default(),
                        help=f"kernel base (default {bases.default()})")
    parser.add_argument("--machine", choices=("svm", "vmx"), default="svm")
    parser.add_argument("--modules", default="ours", metavar="ours|stock|FOLDER",
                        help="ours are in out/BASE/modules, or in FOLDER (default ours)")
    parser.add_argument("--iommufd", action="store_true",
                        help="VFIO with iommufd and files of devices (build/iommufd), which "
                             "Debian's kernels are without; the debug kernels have them anyway")
    parser.add_argument("--kernel", choices=("debian", *WATCHING, "distribution"),
                        default="debian")
    parser.add_argument("--snoop", choices=("on", "off"), default="on",
                        help="does the IOMMU have snoop control (default on)")
    parser.add_argument("--iommu", choices=("vtd", "none"), default="vtd",
                        help="none: for a test that brings its own (the vmx machine has none)")
    parser.add_argument("--edu", type=int, default=1, metavar="N", help="edu devices (0 to 128)")
    parser.add_argument("--root-ports", action="store_true",
                        help="put each edu device behind a port of its own, which can reset it")
    parser.add_argument("--smp", type=int, default=1, metavar="N")
    parser.add_argument("--mem", type=int, default=0, metavar="MiB")
    parser.add_argument("--icount", action="store_true", help="the TSC counts instructions")
    parser.add_argument("--plugin", metavar="SO,ARGS",
                        help="TCG plugin; @DIR in it is the run's folder")
    parser.add_argument("--verify", metavar="CMD",
                        help="run CMD on this machine afterwards, with LAB_DIR (and @DIR in CMD) "
                             "the run's folder; its output follows, its status counts")
    parser.add_argument("--file", action="append", default=[], metavar="SRC[:DEST]",
                        help="put SRC (file or folder) there; DEST is relative to /lab")
    parser.add_argument("--with", action="append", default=[], dest="sets", metavar="SET",
                        choices=sorted(software.SETS), help="put more into the host: "
                        + " or ".join(sorted(software.SETS)) + " (see lab/software.py)")
    parser.add_argument("--timeout", type=float, default=300, metavar="S")
    parser.add_argument("--name", help="of the folder under out/lab")
    parser.add_argument("--skips", metavar="REGEX", help="KTAP results that may be skipped")
    parser.add_argument("--expects", metavar="REGEX", action="append", default=[],
                        help="what the kernel must complain of, and may: a run whose console "
                             "lacks it fails")
    parser.add_argument("--append", default="", help="more for the kernel command line")
    parser.add_argument("--interactive", action="store_true", help="a shell, no program")
    parser.add_argument("program", nargs="*", metavar="PROGRAM [ARGS...]")
    args = parser.parse_args(argv)
    # Where ours are
    args.iommufd = args.iommufd and args.kernel not in WATCHING
    args.folder = os.path.join(TOP, "out", args.base,
                               "modules-iommufd" if args.iommufd else "modules")
    if args.modules not in ("ours", "stock"):
        args.folder, args.modules = args.modules, "ours"
        if not os.path.isdir(args.folder):
            raise Problem(f"--modules {args.folder}: write ours, stock or a folder of modules")
    check(args)
    return args


def check(args):
    if args.iommufd and not bases.fact(args.base, "iommufd"):
        raise Problem(f"--iommufd: VFIO of Linux {args.base} has no files of devices")
    if bool(args.program) == args.interactive:
        raise Problem("lab/run needs either a program to run or --interactive")
    if not 0 <= args.edu <= EDU_MAX:
        raise Problem(f"--edu {args.edu}: the lab has room for 0 to {EDU_MAX} devices")
    if args.icount and args.smp != 1:
        raise Problem("--icount counts the instructions of one CPU: use it with --smp 1")
    if args.machine == "vmx":
        args.iommu = "none"
    if args.iommu == "none":
        args.edu = 0                     # VFIO has no use for a device without IOMMU
    if args.interactive and not os.isatty(0):
        raise Problem("--interactive needs a terminal")
    if not args.mem:
        args.mem = 2048 if args.kernel in WATCHING else 512 if args.machine == "vmx" else 1024
    if not args.name:
        what = os.path.basename(args.program[0]) if args.program else "shell"
        args.name = f"{what}-{args.base}-{args.machine}-{args.modules}"
    if not re.fullmatch(r"[\w.+-]+", args.name):
        raise Problem(f"--name {args.name}: use letters, digits and . + - _ only")


# --- kernel and modules --------------------------------------------------------------------

class Kernel:
    """The kernel image and the modules of a request."""

    def __init__(self, args):
        out = os.path.join(TOP, "out", args.base)
        top = os.path.join(out, args.kernel)
        self.release = self._release(top, args)
        self.exchanged = list(OURS)
        if args.kernel != "debian" and args.modules == "stock":
            raise Problem(f"the {args.kernel} kernel has our modules built in place: "
                           "it cannot run with --modules stock")
        if args.kernel in WATCHING:
            self.image = os.path.join(top, "bzImage")
            self.modules = initramfs.Modules(os.path.join(top, "modules"), self.release)
        else:
            root = os.path.join(top, "root")
            self.image = os.path.join(root, "boot", "vmlinuz-" + self.release)
            self.modules = initramfs.Modules(
                os.path.join(root, "lib", "modules", self.release), self.release)
            self.stock_ids = self._ids()
            if args.kernel == "debian" and args.modules == "ours":
                self._use_ours(args.folder, args.base)
            if args.iommufd:
                self._use_iommufd(args)
        if not os.path.exists(self.image):
            raise Problem(f"{self.image} is missing: {self._remedy(args)}")

    @staticmethod
    def _remedy(args):
        if args.kernel in WATCHING:
            return f"run build/debug-kernel {args.base} {args.kernel}"
        if args.kernel != "debian":
            return f"run build/{args.kernel}-kernel {args.base}"
        return f"run build/fetch {args.base}"

    def _release(self, top, args):
        try:
            with open(os.path.join(top, "release"), encoding="ascii") as f:
                return f.read().strip()
        except FileNotFoundError:
            raise Problem(f"{top}/release is missing: {self._remedy(args)}") from None

    def _ids(self):
        return {name: initramfs.build_id(self.modules.data(name))
                for name in OURS if name in self.modules.paths}

    def _use_ours(self, folder, base):
        for name, file in OURS.items():
            path = os.path.join(folder, file + ".ko")
            if not os.path.exists(path):
                raise Problem(f"{path} is missing: run make modules BASE={base}")
            self.modules.replace(path)
            data = self.modules.data(name)
            magic = initramfs.modinfo(data).get("vermagic", "").split(" ")[0]
            if magic != self.release:
                raise Problem(f"{path} is for kernel {magic}, not {self.release}: "
                               f"run make modules BASE={base}")
            if initramfs.build_id(data) == self.stock_ids[name]:
                raise Problem(f"{path} is Debian's own module, not ours")

    def _use_iommufd(self, args):
        """All that was built with it, which goes with these modules only."""
        folder = args.folder + ("-stock" if args.modules == "stock" else "")
        files = [name for name in sorted(os.listdir(folder)) if name.endswith(".ko")] \
            if os.path.isdir(folder) else []
        if "iommufd.ko" not in files:
            raise Problem(f"{folder}/iommufd.ko is missing: run build/iommufd {args.base}")
        for name in files:
            self.modules.replace(os.path.join(folder, name))
        self.exchanged += [name for name in map(initramfs.canonical, files) if name not in OURS]

    def ids_to_check(self, loaded):
        """name=build-id of the modules that Debian's were or could be exchanged for, of those
        that get loaded."""
        pairs = []
        for name in self.exchanged:
            if name not in loaded:
                continue
            found = initramfs.build_id(self.modules.data(name))
            if not found:
                raise Problem(f"{self.modules.paths[name]} has no build id to check")
            pairs.append(f"{name}={found}")
        return pairs


# --- the initramfs -------------------------------------------------------------------------

def digest(*parts):
    """A key for PARTS: strings as they are, paths of files by identity, size and time."""
    state = hashlib.sha256()
    for part in parts:
        if os.path.exists(part):
            stat = os.stat(part)
            part = f"{os.path.realpath(part)} {stat.st_size} {stat.st_mtime_ns}"
        state.update(part.encode() + b"\0")
    return state.hexdigest()[:20]


def base_archive(args, kernel):
    """busybox, PID 1 and the modules: the same for many runs, so kept."""
    order = kernel.modules.closure(LOAD[args.machine])
    spare = [name for name in SPARE if name in kernel.modules.paths]
    extra = [name for name in kernel.modules.closure(spare) if name not in order]
    init = os.path.join(LAB, "inside/init")
    key = digest(args.machine, kernel.release, initramfs.BUSYBOX, init,
                 initramfs.__file__, os.path.realpath(__file__),
                 *[kernel.modules.paths[m] for m in order + extra])
    path = os.path.join(TOP, "out", "lab", ".cache", key + ".cpio")
    if os.path.exists(path):
        os.utime(path)
    else:
        prune_cache(os.path.dirname(path))
        write(path, make_base_archive(args.machine, kernel, order + extra, init))
    return path, order


def make_base_archive(machine, kernel, modules, init):
    cpio = initramfs.Cpio()
    cpio.chardev("dev/console", 5, 1)
    cpio.chardev("dev/null", 1, 3)
    for folder in ("proc", "sys", "tmp", "root", "lab", "etc", "run", "sbin"):
        cpio.directory(folder)
    cpio.data("etc/passwd", b"root:x:0:0:root:/lab:/bin/sh\n")
    cpio.data("etc/group", b"root:x:0:\n")
    cpio.file("init", init)
    initramfs.add_busybox(cpio)
    cpio.symlink("sbin/modprobe", "/bin/busybox")   # where the kernel looks for it
    cpio.symlink("usr/bin/env", "/bin/busybox")     # where scripts look for it
    top = f"lib/modules/{kernel.release}/"
    dep = []
    for name in modules:
        data = kernel.modules.data(name)
        if machine == "vmx":            # checking one costs Bochs seconds
            data = initramfs.without_signature(data)
        cpio.data(f"{top}{name}.ko", data)
        needs = kernel.modules.closure([name])[:-1]
        dep.append(f"{name}.ko:" + "".join(f" {m}.ko" for m in reversed(needs)) + "\n")
    cpio.data(top + "modules.dep", "".join(dep).encode())
    return cpio.finish()


def prune_cache(folder, keep=12):
    """Keep the archives used last. Another run may remove them at the same time."""
    used = {}
    for path in glob.glob(os.path.join(folder, "*.cpio")):
        with contextlib.suppress(FileNotFoundError):
            used[path] = os.path.getmtime(path)
    for path in sorted(used, key=used.get, reverse=True)[keep:]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


class Payload:
    """The second archive: the program, its files and what PID 1 is to do."""

    def __init__(self):
        self.cpio = initramfs.Cpio()
        self.names = set()

    def add(self, src, dest):
        if not os.path.exists(src):
            raise Problem(f"{src} is to go into the lab but does not exist")
        if os.path.isdir(src):
            for name in sorted(os.listdir(src)):
                self.add(os.path.join(src, name), os.path.join(dest, name))
            return
        self._file(src, dest)
        for need in self._needs(src):
            self._file(need, need)

    def _file(self, src, dest):
        dest = os.path.normpath(os.path.join("/lab", dest))
        if dest not in self.names:
            self.names.add(dest)
            self.cpio.file(dest, src)

    @staticmethod
    def _needs(src):
        """Shared libraries of programs; the interpreter of scripts unless busybox has it."""
        if not os.access(src, os.X_OK):
            return []
        with open(src, "rb") as f:
            first = f.readline(200)
        if not first.startswith(b"#!"):
            return initramfs.libraries(src)
        interpreter = first[2:].decode().split()[0]
        if interpreter == "/bin/bash":
            return [interpreter] + initramfs.libraries(interpreter)
        if interpreter not in ("/bin/sh", "/usr/bin/env"):
            raise Problem(f"{src}: the lab has no {interpreter}")
        return []

    def finish(self, conf):
        lines = [f"{key}={shlex.quote(value)}\n" for key, value in conf.items()]
        self.cpio.data("lab.conf", "".join(lines).encode())
        return self.cpio.finish()


def facts(base):
    """What is so of the base, for the programs inside: they know no versions."""
    return " ".join(sorted(name for name, so in bases.base(base)["facts"].items() if so))


def payload_archive(args, kernel, order):
    payload = Payload()
    conf = {
        "LAB_BASE": args.base, "LAB_FACTS": facts(args.base), "LAB_MACHINE": args.machine, "LAB_MODULES": args.modules,
        "LAB_KERNEL": args.kernel, "LAB_SNOOP": args.snoop, "LAB_RELEASE": kernel.release,
        "LAB_IOMMU": args.iommu, "LAB_EDU_COUNT": str(args.edu), "LAB_HOSTNAME": "lab", "LAB_LOAD": " ".join(order),
        "LAB_IDS": " ".join(kernel.ids_to_check(order)),
    }
    if args.interactive:
        size = os.get_terminal_size(0)
        conf |= {"LAB_INTERACTIVE": "yes", "LAB_ROWS": str(size.lines or 24),
                 "LAB_COLUMNS": str(size.columns or 80)}
        payload.add(os.path.join(LAB, "inside/welcome"), ".welcome")
    else:
        name = os.path.basename(args.program[0])
        payload.add(args.program[0], name)
        conf["LAB_PROGRAM"] = shlex.join(["./" + name] + args.program[1:])
    for item in args.file + [f for name in args.sets for f in software.files(name, args.base)]:
        src, _, dest = item.partition(":")
        payload.add(src, dest or os.path.basename(src.rstrip("/")))
    return payload.finish(conf)


# --- the machine ---------------------------------------------------------------------------

def command_line(args):
    words = ["console=ttyS0", "ignore_loglevel", "printk.devkmsg=on", "panic=-1",
             "rdinit=/init", "net.ifnames=0",
             # On a busy machine an emulated CPU stands still for longer than the kernel's 21
             # seconds. What hangs for good ends by --timeout.
             "rcupdate.rcu_cpu_stall_timeout=300", "watchdog_thresh=60"]
    if args.machine == "svm":
        # On a busy machine the emulated timers lag behind the TSC; boot anyway. Trusting the TSC
        # (tsc=reliable) is no cure: calibrated on such a machine, it can stop all timers.
        words += ["no_timer_check"]
    if args.iommu == "vtd":
        words += ["intel_iommu=on"]
    if args.icount:
        words += ["nokaslr"]             # the same addresses, hence the same counts
    if args.kernel == "debug":
        words += ["nokaslr", "no_hash_pointers"]    # lockdep's classes are told by their addresses
    return " ".join(words + args.append.split())


def edu_devices(count, ports):
    """QEMU arguments for COUNT edu devices, each in an IOMMU group of its own.

    On the root bus that comes by itself. Behind root ports it does because a root port has ACS,
    and eight of them fit into one slot.
    """
    if count <= EDU_ON_ROOT_BUS and not ports:
        return [word for i in range(count) for word in ("-device", f"{EDU},addr={3 + i:#x}")]
    words = []
    for i in range(count):
        slot, function = 3 + i // 8, i % 8
        words += ["-device", f"pcie-root-port,id=p{i},chassis={i},addr={slot:#x}.{function},"
                             f"multifunction=on,hotplug=off,io-reserve=0,pref64-reserve=0",
                  "-device", f"{EDU},bus=p{i}"]
    return words


def accelerator(args):
    """How many threads is the host's business (see its file), but instructions are counted by one."""
    return f"tcg,thread={'single' if args.icount else bases.host()['tcg_threads']}"


def qemu(args, kernel, files):
    """The emulated host with SVM and VT-d."""
    command = [
        shutil.which("qemu-system-x86_64") or "",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-accel", accelerator(args), "-machine", "q35,kernel-irqchip=off", "-cpu", "EPYC,+svm,+npt",
        "-smp", str(args.smp), "-m", str(args.mem),
        *(["-device", f"intel-iommu,intremap=on,snoop-control={args.snoop}"]
          if args.iommu == "vtd" else []),
        *edu_devices(args.edu, args.root_ports),
        "-kernel", kernel.image, "-initrd", files["initrd"], "-append", command_line(args),
        "-serial", "file:" + files["console"],
    ]
    if args.interactive:
        # Ctrl-C belongs to the guest; Ctrl-a x ends the emulator.
        command += ["-chardev", "stdio,id=terminal,mux=on,signal=off",
                    "-serial", "chardev:terminal", "-mon", "chardev=terminal"]
    else:
        command += ["-serial", "file:" + files["result"], "-monitor", "none"]
    if args.icount:
        command += ["-icount", "shift=0,sleep=off", "-rtc", "base=2024-01-01,clock=vm",
                    "-seed", "1"]
    if args.plugin:
        command += ["-plugin", args.plugin.replace("@DIR", files["dir"])]
    if not command[0]:
        raise Problem("qemu-system-x86_64 is not installed: run make setup")
    return command


def bochs(args, kernel, files):
    """The emulated host with VMX and EPT; lab/machines/bochs runs it until it powers off."""
    if args.interactive:
        raise Problem("the vmx machine has no interactive shell: use --machine svm")
    return [os.path.join(LAB, "machines/bochs"), "--kernel", kernel.image, "--initrd", files["initrd"],
            "--append", command_line(args), "--console", files["console"],
            "--result", files["result"], "--dir", files["dir"],
            "--smp", str(args.smp), "--mem", str(args.mem), *(["--exact"] if args.icount else [])]


MACHINES = {"svm": qemu, "vmx": bochs}


def die_with_parent():
    """The emulator must not outlive a killed runner (prctl(PR_SET_PDEATHSIG))."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Follower:
    """Copies the program's output to standard output while it grows."""

    def __init__(self, path):
        self.path = path
        self.rest = b""
        self.offset = 0
        self.inside = False

    def poll(self):
        try:
            with open(self.path, "rb") as f:
                f.seek(self.offset)
                data = f.read()
        except FileNotFoundError:
            return
        self.offset += len(data)
        lines = (self.rest + data).replace(b"\r", b"").split(b"\n")
        self.rest = lines.pop()
        for line in lines:
            self._line(line)
        sys.stdout.buffer.flush()

    def _write(self, data):
        if self.inside:
            sys.stdout.buffer.write(data)

    def _line(self, line):
        if b"LAB-END " in line:
            self._write(line[:line.index(b"LAB-END ")])
            self.inside = False
        elif self.inside:
            self._write(line + b"\n")
        elif line == b"LAB-START":
            self.inside = True


class Progress:
    """Elapsed time on a terminal, nothing elsewhere."""

    def __init__(self, name):
        self.name = name
        self.started = time.monotonic()
        self.shown = sys.stdout.isatty()
        self.last = 0

    def elapsed(self):
        return time.monotonic() - self.started

    def poll(self, running):
        if self.shown and not running and self.elapsed() - self.last >= 1:
            self.last = self.elapsed()
            sys.stdout.write(f"\r{self.name}: booting, {self.last:.0f} s ")
            sys.stdout.flush()

    def clear(self):
        if self.shown and self.last:
            sys.stdout.write("\r\033[K")
            sys.stdout.flush()
            self.last = 0


class Boot:
    """Does the kernel say nothing for long, without having run anything of the lab's?"""

    def __init__(self, args, console):
        # Bochs takes as long to unpack the initrd.
        self.limit = min(SILENT, args.timeout / 3) if args.machine == "svm" else float("inf")
        self.console = console
        self.size, self.since = 0, time.monotonic()

    def hangs(self):
        size = os.path.getsize(self.console) if os.path.exists(self.console) else 0
        if size != self.size:
            self.size, self.since = size, time.monotonic()
        return (size > 0 and time.monotonic() - self.since > self.limit and
                RUN_INIT not in read_text(self.console))


def wait_for(child, args, files, follower):
    """Wait for the emulator's end; why it does not end by itself, or ''."""
    progress, kernel = Progress(args.name), Boot(args, files["console"])
    while True:
        try:
            child.wait(timeout=0.1)
            follower.poll()
            progress.clear()
            return ""
        except subprocess.TimeoutExpired:
            pass
        if follower.inside:
            progress.clear()
        follower.poll()
        progress.poll(follower.inside or follower.offset)
        why = ""
        if progress.elapsed() > args.timeout:
            why = f"no end after {args.timeout:.0f} s"
        elif not follower.offset and kernel.hangs():
            why = "the kernel hangs before it runs /init"
        if why:
            progress.clear()
            return why


def stop(child):
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def boot(args, command, files):
    """Run the emulator; returns a sentence and its log when the lab broke, else None."""
    with open(files["emulator"], "wb") as log:
        child = subprocess.Popen(
            command, stdout=None if args.interactive else log, stderr=log,
            stdin=None if args.interactive else subprocess.DEVNULL,
            preexec_fn=die_with_parent)
    try:
        if args.interactive:
            child.wait()
        elif why := wait_for(child, args, files, Follower(files["result"])):
            return why, files["console"]
    finally:
        stop(child)
    if child.returncode:
        return f"the emulator failed with status {child.returncode}", files["emulator"]
    return None


def with_terminal_restored(function, *args):
    """Whatever happens, leave the terminal as it was."""
    if not os.isatty(0):
        return function(*args)
    saved = termios.tcgetattr(0)
    try:
        return function(*args)
    finally:
        # A background process may not touch the terminal without this.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        termios.tcsetattr(0, termios.TCSADRAIN, saved)


# --- the verdict ---------------------------------------------------------------------------

def read_text(path):
    try:
        with open(path, "rb") as f:
            return f.read().decode(errors="replace").replace("\r", "")
    except FileNotFoundError:
        return ""


def complaint(text, expects=()):
    """The first line in which the kernel complains, None if there is none."""
    return next((line for line in text.splitlines()
                 if SPLATS.search(line) and not HARMLESS.search(line)
                 and not any(re.search(regex, line) for regex in expects)), None)


def fell_before_init(text):
    """Did the kernel complain, or end, before it ran anything of the lab's?"""
    before, ran, _ = text.partition(RUN_INIT)
    return BANNER in before and bool(complaint(before) or not ran)


def judge_console(text, kernel="debian", expects=()):
    """Why the console shows that the lab broke (2) or the kernel failed (1), or (0, '').

    Lines that match one of EXPECTS are no complaint, and each must be there.
    """
    if not text:
        return 2, "the console stayed silent"
    if BROKEN_MARK in text:
        return 2, text.split(BROKEN_MARK, 1)[1].split("\n", 1)[0]
    if kernel in RECORDS:
        text = FAILED_ALLOCATION.sub(r"\1", text)
    splat = complaint(text, expects)
    ended = END_MARK in text
    if splat:
        return (1 if ended else 2), "the kernel complained: " + splat.strip()
    if BANNER not in text:
        return 2, "the console shows no kernel"
    if kernel in WATCHING and WATCHING[kernel] not in text:
        return 2, f"this {kernel} kernel has not said '{WATCHING[kernel]}'"
    if not ended:
        return 2, "the console ends before the run does"
    for regex in expects:
        if not re.search(regex, text):
            return 1, f"the kernel did not complain of '{regex}'"
    return 0, ""


def judge_result(text, skips):
    lines = text.splitlines()
    if lines.count("LAB-START") != 1:
        return 2, "no program was started"
    # The program's last line may lack its newline.
    match = re.search(r"LAB-END status=(\d+) tainted=([0-9a-f]+)$", lines[-1])
    if not match or text.count("LAB-END ") != 1:
        return 2, "the program's result is missing"
    status, taint = int(match[1]), int(match[2], 16)
    if taint & (TAINT_WARN | TAINT_DIE):
        return 1, f"the kernel is tainted ({taint:#x}) by a warning or a crash"
    if status:
        return 1, f"the program ended with status {status}"
    return judge_ktap(text, skips)


def judge_ktap(text, skips):
    """If the output claims to be KTAP, it must be complete, without failures and skips."""
    if not ktap.claimed(text):
        return 0, ""
    cases, incomplete = ktap.parse(text)
    if incomplete:
        return 1, incomplete
    for case in cases:
        if case.state == "not ok":
            return 1, case.result()
        if case.state == "skip" and not (skips and re.search(skips, case.note)):
            return 1, f"unexpected skip: {case.result()}"
    return 0, ""


def take_records(base, kernel, files):
    """Moves what such a kernel recorded from the result to a folder beside it, and which kernel it was:
    what gcov counted to gcov, NAME.gcda below its folder in the kernel's build, lockdep's graph to locks.
    A result with none or half of it loses its LAB-END."""
    shutil.rmtree(os.path.join(files["dir"], RECORDS[kernel]), ignore_errors=True)
    lines = read_bytes(files["result"]).replace(b"\r", b"").splitlines(keepends=True)
    ends = [i for i, line in enumerate(lines) if b"LAB-END " in line]
    if not ends:
        return
    kept, after = lines[:ends[-1] + 1], lines[ends[-1] + 1:]
    if not after or after[-1].rstrip() != b"LAB-FILES-END":
        write(files["result"], *kept[:-1])
        return
    fingerprint = read_bytes(os.path.join(TOP, "out", base, kernel, ".fingerprint"))
    for line in after[:-1]:
        _, path, data = line.decode().split()
        name = path.partition(f"/{kernel}/build/")[2]
        folder = os.path.join(files["dir"], RECORDS[kernel])
        write(os.path.join(folder, name or os.path.basename(path)), gzip.decompress(base64.b64decode(data)))
        write(os.path.join(folder, "kernel"), fingerprint)
    write(files["result"], *kept)


def judge(args, files, broken):
    """The worst of all that is known: (status, sentence, log)."""
    text = read_text(files["console"])
    status, sentence = judge_console(text, args.kernel, args.expects)
    if broken:
        return 2, "; ".join(filter(None, (broken[0], sentence))), broken[1]
    if args.interactive and status == 2 and BANNER in text and BROKEN_MARK not in text:
        return 0, "", files["console"]   # left with Ctrl-a x
    if status or args.interactive:
        return status, sentence, files["console"]
    return *judge_result(read_text(files["result"]), args.skips), files["result"]


def verify(args, files):
    """Let --verify look at the record of the run; its output is the run's."""
    command = [word.replace("@DIR", files["dir"]) for word in shlex.split(args.verify)]
    try:
        done = subprocess.run(command, env={**os.environ, "LAB_DIR": files["dir"]},
                              stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        return 2, f"{command[0]} cannot be run: {error.strerror}", files["result"]
    if done.returncode in (0, 1):
        sentence = f"{args.verify} found a difference" if done.returncode else ""
        return done.returncode, sentence, files["result"]
    return 2, f"{args.verify} ended with status {done.returncode}", files["result"]


# --- putting it together -------------------------------------------------------------------

def prepare(args):
    """Make everything the emulator needs; returns (command, files)."""
    kernel = Kernel(args)
    folder = os.path.join(TOP, "out", "lab", args.name)
    files = {"dir": folder}
    for key, name in (("console", "console.log"), ("result", "result.log"),
                      ("emulator", "emulator.log"), ("cmd", "cmd"), ("verdict", "verdict"),
                      ("initrd", "initrd")):
        files[key] = os.path.join(folder, name)
    for key in ("console", "result", "verdict"):
        if os.path.exists(files[key]):
            os.unlink(files[key])
    base, order = base_archive(args, kernel)
    with open(base, "rb") as f:
        write(files["initrd"], f.read(), payload_archive(args, kernel, order))
    command = MACHINES[args.machine](args, kernel, files)
    write(files["cmd"], (shlex.join(command) + "\n").encode())
    return command, files


def only_one(name):
    """Two runs of one name would write the same logs."""
    folder = os.path.join(TOP, "out", "lab", name)
    os.makedirs(folder, exist_ok=True)
    lock = open(os.path.join(folder, ".lock"), "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Problem(f"another lab named {name} is running: wait or use --name") from None
    return lock


def run(argv):
    args = parse(argv)
    lock = only_one(args.name)
    command, files = prepare(args)
    broken = with_terminal_restored(boot, args, command, files)
    # Debian's own kernel, with nothing of ours yet: the emulator, once in some thousand boots. Not twice.
    if args.kernel == "debian" and not args.interactive and fell_before_init(read_text(files["console"])):
        os.rename(files["console"], files["console"] + ".before-init")
        print(f"lab/run: {args.name}: Debian's kernel failed before it ran /init, once more "
              f"({os.path.relpath(files['console'])}.before-init)", file=sys.stderr)
        command, files = prepare(args)
        broken = with_terminal_restored(boot, args, command, files)
    if args.kernel in RECORDS and not args.interactive and not broken:
        take_records(args.base, args.kernel, files)
    verdict = judge(args, files, broken)
    if args.verify and verdict[0] != 2:
        verdict = max(verdict, verify(args, files), key=lambda v: v[0])
    status, sentence, log = verdict
    write(files["verdict"], f"{status} {sentence or 'ok'}\n".encode())
    lock.close()
    if not status and "tools" in args.sets:
        os.unlink(files["initrd"])       # hundreds of megabytes
    if status:
        print(f"lab/run: {args.name}: {sentence} (log: {os.path.relpath(log)})",
              file=sys.stderr)
    return status


def main():
    return run(sys.argv[1:])
