# SPDX-License-Identifier: GPL-2.0-only
"""Software of this machine that a run in the emulated host can ask for, in sets:

guest  Debian's QEMU, and a guest that drives an assigned edu device (run-guest starts it)
guest-backports
       the same with the QEMU of FETCHED, which build/fetch-qemu gets
tools  what an administrator watches KVM with: trace-cmd, perf, bpftrace, the kernel's kvm_stat;
       and the pages that tell how, with doc-command, which finds a command in them

files() makes what has to be made, and says what goes where in the words of lab/run's --file.
"""

import os
import subprocess
import sys

from kit import bases
from kit import initramfs
from kit.common import TOP, Problem, write

INSIDE = os.path.join(TOP, "lab/inside")
COMPILER = bases.host()["compiler"]
QEMU = "/usr/bin/qemu-system-x86_64"
FETCHED = "trixie-backports"

# The firmware a guest with -kernel and without graphics needs, where QEMU looks for it.
FIRMWARE = ("/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/kvmvapic.bin",
            "/usr/share/qemu/linuxboot_dma.bin")

# Its name for the user
FETCHED_START = """#!/bin/sh
exec /qemu/usr/lib64/ld-linux-x86-64.so.2 --library-path /qemu/usr/lib/x86_64-linux-gnu \\
	/qemu/usr/bin/qemu-system-x86_64 "$@"
"""

PYTHON = os.path.realpath("/usr/bin/python3")
TOOLS = ("/usr/bin/trace-cmd", "/usr/bin/perf", "/usr/bin/bpftrace")

# Where what is documented can be tried.
PAGES = ("ADMIN.md", "Documentation/virtual/kvm/devices/vfio.txt")


def build(folder, name, source, flags):
    """Compile SOURCE unless that was done; returns the result's path."""
    source = os.path.join(TOP, source)
    product = os.path.join(folder, name)
    if os.path.exists(product) and os.path.getmtime(product) >= os.path.getmtime(source):
        return product
    command = [COMPILER, "-O2", "-Wall", *flags, "-o", f"{product}.{os.getpid()}", source]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Problem(f"{COMPILER} is not installed: run make setup") from None
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise Problem(f"{source} does not compile: see above")
    os.rename(f"{product}.{os.getpid()}", product)
    return product


def plugin(folder, name):
    """The plugin of this name for the emulator, of this machine's version; returns its path."""
    return build(folder, name + ".so", f"lab/machines/plugin/{name}.c",
                 ["-shared", "-fPIC", f"-DPLUGIN_API={bases.host()['plugin_api']}"])


def debian_kernel(base):
    """Debian's newest kernel of the base: (its release, where it is unpacked)."""
    debian = os.path.join(TOP, "out", base, "debian")
    try:
        with open(os.path.join(debian, "release"), encoding="ascii") as f:
            return f.read().strip(), os.path.join(debian, "root")
    except FileNotFoundError:
        raise Problem(f"Debian's kernel is not there yet: run make modules BASE={base}") from None


def guest_archive(root, release, program, init=os.path.join(INSIDE, "demo-guest")):
    """The guest's initramfs: busybox, uio_pci_generic, edu_dma, and what is PID 1."""
    modules = initramfs.Modules(os.path.join(root, "lib", "modules", release), release)
    cpio = initramfs.Cpio()
    cpio.chardev("dev/console", 5, 1)
    for folder in ("proc", "sys", "tmp", "sbin"):
        cpio.directory(folder)
    initramfs.add_busybox(cpio)
    cpio.file("init", init)
    cpio.file("bin/edu_dma", program)
    for name in modules.closure(["uio_pci_generic"]):
        cpio.data(name + ".ko", modules.data(name))
    return cpio.finish()


def guest_itself(base):
    """The guest, what drives its device, and what starts it; all but QEMU."""
    folder = os.path.join(TOP, "out", base, "demo")
    os.makedirs(folder, exist_ok=True)
    release, root = debian_kernel(base)
    initrd = os.path.join(folder, "initrd")
    # Static, since the guest has no libraries.
    edu_dma = build(folder, "edu_dma", "lab/inside/edu_dma.c", ["-static"])
    mark = build(folder, "wbinvd_mark", "lab/inside/wbinvd_mark.c", ["-static"])
    write(initrd, guest_archive(root, release, edu_dma))
    return [(os.path.join(root, "boot", "vmlinuz-" + release), "/demo/vmlinuz"),
            (initrd, "/demo/initrd"), (mark, "/bin/wbinvd_mark"),
            (os.path.join(INSIDE, "run-guest"), "/bin/run-guest")]


def guest(base):
    return [*guest_itself(base), (QEMU, QEMU), *((path, path) for path in FIRMWARE)]


def guest_backports(base):
    """A QEMU of another suite needs that suite's libraries, and these their loader.

    All that stays below /qemu, apart from the libraries of this machine's programs.
    """
    root = os.path.join(TOP, "out", "qemu", FETCHED, "root")
    found = [os.path.relpath(os.path.join(folder, name), root)
             for folder, _, names in os.walk(root) for name in names]
    if not found:
        raise Problem(f"the QEMU of {FETCHED} is not there yet: run build/fetch-qemu {FETCHED}")
    start = os.path.join(TOP, "out", "qemu", FETCHED, "start")
    write(start, FETCHED_START, mode=0o755)
    return [*guest_itself(base), (start, "/bin/qemu-system-x86_64"),
            *((os.path.join(root, name), "/qemu/" + name) for name in sorted(found)
              if not name.startswith("usr/share/")),
            *((os.path.join(root, name), "/" + name) for name in sorted(found)
              if name.startswith("usr/share/"))]


def python_modules(program):
    """What PROGRAM imports, compiled where it can be, and the libraries of that.

    A compiled module belongs to a source of one time, and an initramfs has no times; so it goes
    where Python looks for one without a source.
    """
    script = ("import runpy, sys\n"
              "runpy.run_path(sys.argv[1])\n"
              "for m in list(sys.modules.values()):\n"
              "    print(getattr(m, '__file__', None), getattr(m, '__cached__', None))\n")
    out = subprocess.run([PYTHON, "-B", "-c", script, program],
                         capture_output=True, text=True, check=False)
    if out.returncode:
        raise Problem(f"{program} cannot be imported: {out.stderr.strip().splitlines()[-1]}")
    found = set()
    for path, cached in (line.split(" ", 1) for line in out.stdout.splitlines()):
        if not path.startswith("/usr/lib/python3"):
            continue
        if os.path.exists(cached):
            found.add((cached, path + "c"))
        else:
            found.add((path, path))
        if path.endswith(".so"):
            found |= {(need, need) for need in initramfs.libraries(path)}
    return sorted(found)


def tools(base):
    kvm_stat = os.path.join(TOP, "out", base, "tree", "tools", "kvm", "kvm_stat", "kvm_stat")
    if not os.path.exists(kvm_stat):
        raise Problem(f"{kvm_stat} is missing: run make modules BASE={base}")
    return [*((path, path) for path in TOOLS), (PYTHON, "/usr/bin/python3"),
            (kvm_stat, "/bin/kvm_stat"), *python_modules(kvm_stat),
            (os.path.join(TOP, "kit/doc-command"), "/bin/doc-command"),
            (os.path.join(INSIDE, "welcome"), ".welcome"),
            *((os.path.join(TOP, page), "/doc/" + os.path.basename(page)) for page in PAGES)]


SETS = {"guest": guest, "guest-backports": guest_backports, "tools": tools}


def files(name, base):
    """What set NAME consists of: SRC:DEST, SRC:DEST..."""
    found = SETS[name](base)
    for path, _dest in found:
        if not os.path.exists(path):
            raise Problem(f"{path} is missing: run build/setup lab tools")
    return [f"{src}:{dest}" for src, dest in found]
