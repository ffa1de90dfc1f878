#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Run a kernel on Bochs, the emulator whose CPU has VMX and EPT, until it powers off.

    lab/machines/bochs --kernel VMLINUZ --initrd CPIO --append CMDLINE
              --console FILE --result FILE --dir DIR [--mem MiB] [--smp N] [--cpu MODEL] [--exact]

lab/run --machine vmx calls this. The first UART goes to --console, the second to --result.
Exit status: 0 the kernel powered the machine off; 2 anything else, with one sentence.

Takes the Bochs that build/bochs made, if it is there, else Debian's, which takes three times as
long. --exact takes Debian's in any case: only with it the clock ticks with each instruction. The
other's ticks with a trace of them.

Bochs interprets some 70 million instructions a second, so what a boot loader and the kernel's own
decompressor do takes minutes there. Here the host unpacks the kernel and makes a disk of what is
to be in memory; a boot sector of our own (bochs_boot.S) copies it there and jumps to it.
"""

import argparse
import ctypes
import gzip
import hashlib
import os
import shutil
import signal
import struct
import subprocess
import sys

from kit import bases
from kit import kernel_image
from kit.common import TOP, Problem, write

HERE = os.path.dirname(os.path.realpath(__file__))

FAST = os.path.join(TOP, "out/bochs/bochs")
PACKAGED = "bochs-bin"
BIOS = "/usr/share/bochs/BIOS-bochs-latest"
VGABIOS = "/usr/share/vgabios/vgabios.bin"

# The newest Intel model of Bochs 2.7 whose CPUID satisfies the kernel: the ones with AVX-512 make
# it warn about XSAVE sizes. It has EPT with accessed/dirty bits, VPID and unrestricted guest.
CPU = "broadwell_ult"

# What the emulated clocks take for a second. Less than the real speed, so that the kernel's busy
# waiting stays short.
IPS = 50_000_000

# Ours come first: a later word of the caller wins (but for console=, where the first does).
#  console             at the UART's default speed each character is 50,000 instructions of waiting
#  tsc_early_khz       CPUID promises the model's real frequency, but the TSC counts instructions
#  cryptomgr.notests   750 million instructions
#  initcall_blacklist  the certificates that module signatures are checked with: 140 million
#  clearcpuid=28       hyper-threading, which contradicts the model's number of cores: 6.12 warns
#  idle=halt           not MWAIT, which misses most of the other CPUs' writes
#  mitigations=off     page table isolation, and splitting of KVM's executable huge pages
COMMAND_LINE = (f"console=ttyS0,115200 tsc_early_khz={IPS // 1000} cryptomgr.notests "
                "initcall_blacklist=load_system_certificate_list mitigations=off clearcpuid=28 "
                "idle=halt")

SECTOR = 512
CYLINDER = 16 * 63 * SECTOR             # of the geometry Bochs gives to a flat disk

# Where the boot sector is to put things; all of it is memory the kernel copies from first.
BOOT_PARAMS = 0x10000
CMDLINE = 0x11000
CMDLINE_MAX = 2048                      # x86's COMMAND_LINE_SIZE


# --- the kernel ----------------------------------------------------------------------------

def vmlinux(path, cache):
    """Unpack the kernel at PATH, or take what an earlier run unpacked."""
    with open(path, "rb") as f:
        image = f.read()
    unpacked = os.path.join(cache, "vmlinux-" + hashlib.sha256(image).hexdigest()[:20])
    try:
        with open(unpacked, "rb") as f:
            elf = f.read()
        os.utime(unpacked)
    except FileNotFoundError:
        elf = kernel_image.unpack(image, path)
        prune(cache)
        write(unpacked, elf)
    return image, elf


def prune(cache, keep=3):
    """Of the unpacked kernels keep the ones used last."""
    os.makedirs(cache, exist_ok=True)
    files = [os.path.join(cache, f) for f in os.listdir(cache) if f.startswith("vmlinux-")]
    for path in sorted(files, key=os.path.getmtime, reverse=True)[keep - 1:]:
        os.unlink(path)


def segments(elf):
    """(physical address, contents) of what the kernel's ELF file loads, and the end of it all."""
    phoff, = struct.unpack_from("<Q", elf, 32)
    phentsize, phnum = struct.unpack_from("<HH", elf, 54)
    pieces, end = [], 0
    for i in range(phnum):
        kind, _flags, offset, _vaddr, paddr, filesz, memsz, _align = struct.unpack_from(
            "<IIQQQQQQ", elf, phoff + i * phentsize)
        if kind == 1:
            # The memory of a machine just switched on is zero, so .bss need not be written.
            pieces.append((paddr, elf[offset:offset + filesz].rstrip(b"\0")))
            end = max(end, paddr + memsz)
    entry, = struct.unpack_from("<Q", elf, 24)
    return entry, pieces, end


def boot_params(image, initrd, initrd_at, cmdline):
    """struct boot_params as a boot loader fills it; the boot sector adds the memory map."""
    params = bytearray(CMDLINE - BOOT_PARAMS)
    header = image[0x1f1:0x202 + image[0x201]]
    params[0x1f1:0x1f1 + len(header)] = header
    params[0x210] = 0xff                                        # type_of_loader: none known
    struct.pack_into("<II", params, 0x218, initrd_at, len(initrd))
    struct.pack_into("<I", params, 0x228, CMDLINE)
    text = cmdline.encode() + b"\0"
    if len(text) > CMDLINE_MAX:
        raise Problem(f"the kernel command line has {len(text)} bytes, {CMDLINE_MAX} is the limit")
    return bytes(params) + text


# --- the disk ------------------------------------------------------------------------------

def boot_sector(folder):
    """Assemble bochs_boot.S."""
    source = os.path.join(HERE, "bochs_boot.S")
    target = os.path.join(folder, "bochs_boot.bin")
    for command in ([bases.host()["compiler"], "-c", "-o", target + ".o", source],
                    ["ld", "-m", "elf_x86_64", "-Ttext=0x7c00", "--oformat=binary", "-e", "_start",
                     "-o", target, target + ".o"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Problem(f"{source} does not assemble: {done.stderr.strip()}")
    with open(target, "rb") as f:
        return f.read()


def make_disk(args, path):
    image, elf = vmlinux(args.kernel, os.path.join(os.path.dirname(args.dir), ".cache"))
    with open(args.initrd, "rb") as f:
        initrd = f.read()
    if initrd[:2] == b"\x1f\x8b":
        initrd = gzip.decompress(initrd)
    entry, pieces, end = segments(elf)
    # As high as it can go, below the BIOS's tables and what a 32-bit address can hold.
    initrd_at = (min(args.mem, 2048) << 20) - (1 << 20) - len(initrd) & ~0xfff
    if initrd_at < end + (64 << 20):
        raise Problem(f"{args.mem} MiB of memory are too few for this initramfs: use more --mem")
    pieces += [(BOOT_PARAMS, boot_params(image, initrd, initrd_at,
                                         f"{COMMAND_LINE} {args.append}")),
               (initrd_at, initrd)]
    write_disk(path, boot_sector(args.dir), entry, pieces)


def write_disk(path, boot, entry, pieces):
    """The layout that bochs_boot.S describes."""
    table = struct.pack("<QQ", entry, BOOT_PARAMS)
    sector, chunks = 2, []
    for address, data in pieces:
        data += bytes(-len(data) % SECTOR)
        count = len(data) // SECTOR
        table += struct.pack("<QII", address, sector, count)
        sector += count
        chunks.append(data)
    table += bytes(SECTOR - len(table))
    write(path, boot, table, *chunks, bytes(-sector * SECTOR % CYLINDER))


# --- the machine ---------------------------------------------------------------------------

def program(args):
    """Bochs, and the part of its bochsrc that differs."""
    if not args.exact and os.access(FAST, os.X_OK):
        return FAST, "display_library: nogui"
    # Debian's has devices as plugins, a sound card, and no display that shows nothing.
    return shutil.which(PACKAGED), """\
display_library: rfb, options="timeout=0"
plugin_ctrl: unmapped=1, biosdev=1, speaker=0, parallel=0, iodebug=0, gameport=0
sound: driver=dummy"""


def configuration(args, disk, own):
    """bochsrc; nobody looks at the display, but Bochs must have one.

    What the CPUs report as errors are the MSRs they lack, twice each timer tick."""
    return f"""\
config_interface: textconfig
{own}
cpu: model={args.cpu}, count={args.smp}, ips={IPS}, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest={args.mem}, host={args.mem}
romimage: file={BIOS}, options=fastboot
vgaromimage: file={VGABIOS}
vga: extension=vbe, update_freq=1
pci: enabled=1, chipset=i440fx, slot1=pcivga
ata0: enabled=1
ata0-master: type=disk, path="{disk}", mode=flat
boot: disk
clock: sync=none, time0=utc
com1: enabled=1, mode=file, dev="{args.console}"
com2: enabled=1, mode=file, dev="{args.result}"
log: "{args.dir}/bochs.log"
debug: action=ignore
info: action=ignore
error: action=report{"".join(f", cpu{i}=ignore" for i in range(args.smp))}
panic: action=fatal
"""


def in_child():
    """Alone in a network namespace if that is allowed (the display is a VNC server without a
    password), and never longer than this script."""
    libc = ctypes.CDLL(None)
    clone_newuser, clone_newnet, pr_set_pdeathsig = 0x10000000, 0x40000000, 1
    libc.unshare(clone_newuser | clone_newnet)
    libc.prctl(pr_set_pdeathsig, signal.SIGKILL)


def run(args):
    disk, log = os.path.join(args.dir, "bochs.disk"), os.path.join(args.dir, "bochs.log")
    config, debugger = os.path.join(args.dir, "bochsrc"), os.path.join(args.dir, "bochs.rc")
    bochs, own = program(args)
    command = [bochs, "-q", "-f", config]
    forget(disk, disk + ".lock", log)
    make_disk(args, disk)
    write(config, configuration(args, disk, own).encode())
    if bochs != FAST:                   # the debugger is built in: go on
        write(debugger, b"c\n")
        command += ["-rc", debugger]
    try:
        with subprocess.Popen(          # pylint: disable=subprocess-popen-preexec-fn
                command, cwd=args.dir, stdin=subprocess.DEVNULL, start_new_session=True,
                preexec_fn=in_child) as child:
            try:
                child.wait()
            finally:
                child.kill()
    finally:
        # The disk is large and made anew for each run; a killed Bochs leaves its lock.
        forget(disk, disk + ".lock")
    return verdict(child.returncode, log)


def forget(*paths):
    for path in paths:
        if os.path.exists(path):
            os.unlink(path)


def verdict(status, log):
    """Bochs ends with a panic even when all is well."""
    if status < 0:
        raise Problem(f"Bochs died of {signal.Signals(-status).name}, see {log}")
    if not os.path.exists(log):
        raise Problem("Bochs did not start; what it said is above")
    with open(log, encoding="utf-8", errors="replace") as f:
        panics = [line for line in f if ">>PANIC<<" in line]
    if not panics:
        raise Problem(f"Bochs ended without a reason, see {log}")
    if "soft power off" not in panics[0]:
        raise Problem(f"Bochs gave up: {panics[0].split('>>PANIC<<')[1].strip()} (log: {log})")
    return 0


def parse(argv):
    parser = argparse.ArgumentParser(prog="lab/machines/bochs", description="Run a kernel on Bochs.")
    for name in ("kernel", "initrd", "append", "console", "result", "dir"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--mem", type=int, default=512, metavar="MiB")
    parser.add_argument("--smp", type=int, default=1, metavar="N")
    parser.add_argument("--exact", action="store_true", help="the TSC counts instructions")
    parser.add_argument("--cpu", default=CPU, metavar="MODEL", help="see bochs --help cpu")
    args = parser.parse_args(argv)
    for name in ("console", "result", "dir"):
        setattr(args, name, os.path.abspath(getattr(args, name)))
    return args


def main():
    args = parse(sys.argv[1:])
    for path in (BIOS, VGABIOS, program(args)[0] or PACKAGED):
        if not os.path.exists(path):
            raise Problem(f"{path} is not installed: run build/setup vmx")
    os.makedirs(args.dir, exist_ok=True)
    return run(args)
