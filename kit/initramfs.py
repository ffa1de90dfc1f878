# SPDX-License-Identifier: GPL-2.0-only
"""What an initramfs is made of: a newc cpio archive made without privileges, modules, ELF.

The archive is written here rather than by cpio(1) because it holds device nodes and files
owned by root, and must come out byte for byte the same from the same input.
"""

import lzma
import os
import re
import struct
import subprocess

from kit.common import Problem

BUSYBOX = "/bin/busybox"
S_IFDIR, S_IFCHR, S_IFREG, S_IFLNK = 0o040000, 0o020000, 0o100000, 0o120000


class Cpio:
    """A newc archive in memory: no times, no owners, inode numbers by order of arrival."""

    def __init__(self):
        self._chunks = []
        self._size = 0
        self._ino = 0
        self._dirs = {""}

    def _emit(self, data):
        pad = -len(data) % 4
        self._chunks.append(data + b"\0" * pad)
        self._size += len(data) + pad

    def _entry(self, name, mode, data=b"", rdev=(0, 0)):
        self._ino += 1
        raw = name.encode() + b"\0"
        fields = (self._ino, mode, 0, 0, 1, 0, len(data), 0, 0, rdev[0], rdev[1], len(raw), 0)
        self._emit(b"070701" + b"".join(b"%08x" % f for f in fields) + raw)
        self._emit(data)

    def directory(self, name):
        name = name.strip("/")
        if name in self._dirs:
            return
        self.directory(os.path.dirname(name))
        self._dirs.add(name)
        self._entry(name, S_IFDIR | 0o755)

    def data(self, name, data, mode=0o644):
        name = name.strip("/")
        self.directory(os.path.dirname(name))
        self._entry(name, S_IFREG | mode, data)

    def file(self, name, path):
        with open(path, "rb") as f:
            data = f.read()
        self.data(name, data, 0o755 if os.access(path, os.X_OK) else 0o644)

    def symlink(self, name, target):
        name = name.strip("/")
        self.directory(os.path.dirname(name))
        self._entry(name, S_IFLNK | 0o777, target.encode())

    def chardev(self, name, major, minor):
        name = name.strip("/")
        self.directory(os.path.dirname(name))
        self._entry(name, S_IFCHR | 0o600, rdev=(major, minor))

    def finish(self):
        """Close the archive, padded so that another one can follow it."""
        self._entry("TRAILER!!!", 0)
        self._chunks.append(b"\0" * (-self._size % 512))
        return b"".join(self._chunks)


def add_busybox(cpio):
    """busybox (Debian's busybox-static) and a link for each of its commands."""
    if not os.path.exists(BUSYBOX):
        raise Problem(f"{BUSYBOX} is not installed: run make setup")
    if libraries(BUSYBOX):
        raise Problem(f"{BUSYBOX} is not busybox-static: run make setup")
    cpio.file("bin/busybox", BUSYBOX)
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True)
    for applet in sorted(set(applets.stdout.split()) - {"busybox"}):
        cpio.symlink("bin/" + applet, "busybox")


# --- ELF, as far as the lab needs it -------------------------------------------------------

def elf_sections(data):
    """Yield (name, contents) of every section of a little-endian ELF64 file."""
    if data[:6] != b"\x7fELF\x02\x01":
        return
    shoff, = struct.unpack_from("<Q", data, 0x28)
    shentsize, shnum, shstrndx = struct.unpack_from("<HHH", data, 0x3a)
    heads = [struct.unpack_from("<IIQQQQ", data, shoff + i * shentsize) for i in range(shnum)]
    names = heads[shstrndx]
    for name, kind, _flags, _addr, offset, size in heads:
        start = names[4] + name
        text = data[start:data.index(b"\0", start)].decode()
        yield text, b"" if kind == 8 else data[offset:offset + size]


def build_id(data):
    """The GNU build id of an ELF file in hex, or ''."""
    for name, body in elf_sections(data):
        if name == ".note.gnu.build-id":
            namesz, descsz = struct.unpack_from("<II", body)
            start = 12 + (namesz + 3) // 4 * 4
            return body[start:start + descsz].hex()
    return ""


def modinfo(data):
    """The .modinfo section of a module as {key: value} (the last of repeated keys wins)."""
    info = {}
    for name, body in elf_sections(data):
        if name == ".modinfo":
            for item in body.split(b"\0"):
                key, _, value = item.decode(errors="replace").partition("=")
                info[key] = value
    return info


def libraries(path):
    """The shared libraries (loader included) that an ELF program needs, as host paths."""
    with open(path, "rb") as f:
        data = f.read(4)
    if data != b"\x7fELF":
        return []
    out = subprocess.run(["ldd", path], capture_output=True, text=True, check=False)
    missing = re.findall(r"^\s*(\S+) => not found", out.stdout, re.M)
    if missing:
        raise Problem(f"{path} needs {missing[0]}, which this machine does not have")
    return sorted(set(re.findall(r"(/\S+) \(0x", out.stdout)))


# --- kernel modules ------------------------------------------------------------------------

def canonical(name):
    """Module names: the kernel treats - and _ as one."""
    return re.sub(r"\.ko(\.xz)?$", "", os.path.basename(name)).replace("-", "_")


def read_module(path):
    if path.endswith(".xz"):
        with lzma.open(path) as f:
            return f.read()
    with open(path, "rb") as f:
        return f.read()


def without_signature(data):
    """A module without its appended signature (struct module_signature and a magic line)."""
    magic = b"~Module signature appended~\n"
    if not data.endswith(magic):
        return data
    length, = struct.unpack(">I", data[-len(magic) - 4:-len(magic)])
    return data[:-len(magic) - 12 - length]


class Modules:
    """The modules of one kernel, some of them perhaps replaced by others."""

    def __init__(self, top, release):
        self.release = release
        self.paths = {}
        self.builtin = set()
        for folder, _dirs, files in os.walk(top):
            for name in files:
                if name.endswith((".ko", ".ko.xz")):
                    self.paths[canonical(name)] = os.path.join(folder, name)
                elif name == "modules.builtin":
                    with open(os.path.join(folder, name), encoding="ascii") as f:
                        self.builtin |= {canonical(line.strip()) for line in f}
        self._data = {}

    def replace(self, path):
        name = canonical(path)
        self.paths[name] = path
        self._data.pop(name, None)

    def data(self, name):
        if name not in self._data:
            self._data[name] = read_module(self.paths[name])
        return self._data[name]

    def depends(self, name):
        text = modinfo(self.data(name)).get("depends", "")
        return [canonical(dep) for dep in text.split(",") if dep]

    def closure(self, wanted):
        """WANTED and all they depend on, dependencies first; what is built in is left out."""
        order = []

        def visit(name, path):
            if name in order or name in self.builtin:
                return
            if name not in self.paths:
                raise Problem(f"kernel {self.release} has no module {name}"
                               + (f", which {path[-1]} needs" if path else ""))
            if name in path:
                raise Problem(f"modules depend on each other in a circle: {' '.join(path)}")
            for dep in self.depends(name):
                visit(dep, path + [name])
            order.append(name)

        for name in wanted:
            visit(canonical(name), [])
        return order
