#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""build/bind-set ID FOLDER: make the modules in FOLDER load beside each other only.

Our modules are one set (bases/modules). Debian's kvm-amd asks for symbol versions that our
kvm.ko has, because what we add to struct kvm and struct kvm_vcpu is hidden from those versions.
Yet it embeds both structures and allocates them by their size, which is not ours: it loads beside
our kvm.ko, and the first KVM_RUN crashes the host. A kernel without symbol versions
(CONFIG_MODVERSIONS) would not even notice the rest.

So each member refuses what is not of its set: the symbols that every pair of members needs are
renamed in the linked modules, to names that carry ID, 8 hexadecimal digits made from all that the
set was made from. The kernel then refuses Debian's module beside ours, ours beside Debian's, and
one of another version of ours, with "Unknown symbol", with or without symbol versions.

 kvm_x86_vendor_init         kvm         to kvm-amd and kvm-intel, and to nobody else
 vfio_register_iommu_driver  vfio        to vfio_iommu_type1, and to nobody else
 vfio_external_user_api      vfio        to kvm, which looks it up with symbol_get()

A new name is as long as the old one, so nothing in the file moves, and it has the old one's place
in the alphabet among what its module exports: the kernel looks for a symbol by bisection. Names
that are longer by something before or after it (__ksymtab_X, X.cold) change with it.
"""

import os
import re
import struct
import sys

from kit.common import Problem

# Each symbol, and what it becomes.
NAMES = {
    "kvm_x86_vendor_init": "kvm_x86_vi_%s",
    "vfio_register_iommu_driver": "vfio_register_iom_%s",
    "vfio_external_user_api": "vfio_external_%s",
}
ID = re.compile(r"[0-9a-f]{8}")
# Where a symbol's name is a name: of symbols, exports, versions, arguments of symbol_get().
SECTIONS = re.compile(rb"\.strtab|__ksymtab_strings|__versions|__version_ext_names|\.rodata.*")


def bound(name, set_id):
    """What NAME is called in the set SET_ID."""
    new = NAMES[name] % set_id
    assert len(new) == len(name), name
    return new


class Elf:
    """The sections of a module."""

    def __init__(self, data, path):
        self.data, self.path = data, path
        if bytes(data[:6]) != b"\x7fELF\x02\x01":
            raise Problem(f"{path} is not a module.")
        offset, = struct.unpack_from("<Q", data, 0x28)
        size, count, strings = struct.unpack_from("<HHH", data, 0x3a)
        # name, type, flags, address, offset, size, link, info, alignment, entry size
        self.heads = [struct.unpack_from("<IIQQQQIIQQ", data, offset + i * size)
                      for i in range(count)]
        self.names = [self.string(strings, head[0]) for head in self.heads]

    def string(self, section, at):
        start = self.heads[section][4] + at
        return bytes(self.data[start:self.data.index(b"\0", start)])

    def places(self):
        """(name, start, end) of each section that has bytes in the file."""
        for name, head in zip(self.names, self.heads):
            if head[1] not in (0, 8):
                yield name, head[4], head[4] + head[5]

    def symbol(self, table, index):
        """(section, value) of a symbol."""
        head = self.heads[table]
        _, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", self.data, head[4] + 24 * index)
        return section, value

    def exports(self):
        """Yield for each table of exports what it holds, in its order: (symbol, version)."""
        for number, name in enumerate(self.names):
            if not re.fullmatch(rb"__ksymtab(_gpl)?", name):
                continue
            relocations = next((h for h in self.heads if h[1] == 4 and h[7] == number), None)
            if not relocations:
                raise Problem(f"{self.path}: {name.decode()} is not to be relocated.")
            at = {}
            for place in range(relocations[4], relocations[4] + relocations[5], 24):
                where, info, addend = struct.unpack_from("<QQq", self.data, place)
                at[where] = info >> 32, addend
            versions = name.replace(b"__ksymtab", b"__kcrctab")
            versions = self.heads[self.names.index(versions)][4] if versions in self.names else 0
            found = []
            # struct kernel_symbol: offsets of the value, the name and the namespace
            for entry in range(0, self.heads[number][5], 12):
                symbol, addend = at[entry + 4]
                section, value = self.symbol(relocations[6], symbol)
                version = None
                if versions:
                    version, = struct.unpack_from("<I", self.data, versions + entry // 3)
                found.append((self.string(section, value + addend).decode(), version))
            yield found


def bind(data, set_id, path):
    """The module with its names bound to SET_ID, and which of NAMES it had."""
    # A set that is bound already is bound again: to stand for another version.
    patterns = {name: re.compile(rb"(?:%s|%s)(?=[\0.])" % (
        name.encode(), (NAMES[name] % "@").encode().replace(b"@", rb"[0-9a-f]{8}")))
                for name in NAMES}
    data, found = bytearray(data), []
    elf = Elf(data, path)
    for section, start, end in elf.places():
        for name, pattern in patterns.items():
            old = bytes(data[start:end])
            new, count = pattern.subn(bound(name, set_id).encode(), old)
            if not count:
                continue
            if not SECTIONS.fullmatch(section):
                raise Problem(f"{path} has {name} in its section {section.decode()}, "
                              "where its renaming is not thought of.")
            data[start:end] = new
            found.append(name)
    for table in Elf(data, path).exports():
        names = [name for name, _ in table]
        if names != sorted(names):
            raise Problem(f"{path}: the new names are not in the old ones' place in the alphabet "
                          "among its exports; choose others.")
    return bytes(data), sorted(set(found))


def bind_symvers(text, set_id):
    """The same for the lines of a Module.symvers."""
    lines = []
    for line in text.splitlines():
        fields = line.split("\t")
        for name in NAMES:
            if re.fullmatch(f"{name}|{NAMES[name] % '[0-9a-f]{8}'}", fields[1]):
                fields[1] = bound(name, set_id)
        lines.append("\t".join(fields) + "\n")
    return "".join(lines)


def replace(path, data):
    """Whole or not at all."""
    with open(path + ".tmp", "wb") as f:
        f.write(data)
    os.replace(path + ".tmp", path)


def main():
    if len(sys.argv) != 3:
        raise Problem("write build/bind-set ID FOLDER.")
    set_id, folder = sys.argv[1:]
    if not ID.fullmatch(set_id):
        raise Problem(f"'{set_id}' is no id of a set: write 8 hexadecimal digits.")
    had, results = {}, {}
    for file in sorted(os.listdir(folder)):
        path = os.path.join(folder, file)
        if file.endswith(".ko"):
            with open(path, "rb") as f:
                results[path], names = bind(f.read(), set_id, path)
            for name in names:
                had.setdefault(name, []).append(file)
            if not names:
                raise Problem(f"{path} has none of the names that bind the set.")
        elif file == "Module.symvers":
            with open(path, encoding="ascii") as f:
                results[path] = bind_symvers(f.read(), set_id).encode()
    for name in NAMES:
        if len(had.get(name, [])) < 2:
            raise Problem(f"{name} binds nothing in {folder}: it is in "
                          f"{' and '.join(had.get(name, [])) or 'none'} of the modules.")
    for path, data in results.items():
        replace(path, data)
