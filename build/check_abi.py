#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""build/check-abi BASE: do our modules fit into Debian's kernel, and Debian's into ours?

Prints KTAP. For each of our modules: its vermagic and the size of its struct module are those of
the module it replaces; each symbol it imports has Debian's version; each structure that it shares
with the kernel or with a module that imports from it is laid out as Debian's type information
says. For each of Debian's modules that imports from ours: each such symbol is there, with the
version that the module asks for, and the prototype that Debian's type information says. The only
names that may differ from Debian's are those that build/bind-set gives to our modules; each of
ours imports from the others what they export.

Symbol versions alone do not see what __GENKSYMS__ hides from them; the layouts do. Where a kernel
has no symbol versions, layouts and prototypes are all there is.
"""

import hashlib
import os
import re
import struct
import subprocess
import sys

from build import bind_set
from kit import bases
from kit import btf
from kit import initramfs
from kit import kernel_image
from kit.common import TOP, Problem, lock

# {place in the kernel: file name}, both without .ko
OURS = {place: os.path.basename(place) for place in bases.modules()}


def read(path, remedy):
    try:
        with open(path, "rb") as f:
            return f.read()
    except FileNotFoundError:
        raise Problem(f"{os.path.relpath(path, TOP)} is missing; run: {remedy}") from None


def symvers(path, remedy):
    """Module.symvers as {symbol: (crc, module, kind, namespace)}."""
    table = {}
    for line in read(path, remedy).decode().splitlines():
        crc, symbol, module, kind, namespace = (line.split("\t") + [""])[:5]
        table[symbol] = int(crc, 16), module, kind, namespace
    return table


class Module:
    """A compiled module, as far as its ABI goes."""

    def __init__(self, path, data):
        self.path = path
        self.name = re.sub(r"\.ko(\.xz)?$", "", os.path.basename(path))
        sections = dict(initramfs.elf_sections(data))
        self.info = initramfs.modinfo(data)
        self.versions = dict(self._versions(sections.get("__versions", b"")))
        self.this_module = len(sections.get(".gnu.linkonce.this_module", b""))
        self.btf = sections.get(".BTF")
        self.undefined = set(self._undefined(sections))
        self.strings = b"".join(body for name, body in sections.items()
                                if name.startswith(".rodata"))
        self.elf = bind_set.Elf(data, os.path.relpath(path, TOP))

    def exports(self):
        """{symbol: version} of what the module exports."""
        return {name: crc for table in self.elf.exports() for name, crc in table}

    def has(self, text):
        """Is TEXT a name in any of the module's sections?"""
        return re.search(rb"\0" + re.escape(text.encode()) + rb"\0", b"\0" + self.elf.data)

    def says(self, text):
        """Is TEXT among the module's strings, as an argument of symbol_get() is?"""
        return b"\0" + text.encode() + b"\0" in b"\0" + self.strings

    @staticmethod
    def _versions(body):
        for offset in range(0, len(body), 64):
            crc, = struct.unpack_from("<Q", body, offset)
            yield body[offset + 8:offset + 64].split(b"\0", 1)[0].decode(), crc

    @staticmethod
    def _undefined(sections):
        symbols, names = sections.get(".symtab", b""), sections.get(".strtab", b"")
        for offset in range(24, len(symbols), 24):
            name, _info, _other, section = struct.unpack_from("<IBBH", symbols, offset)
            if section == 0 and name:
                yield names[name:names.index(b"\0", name)].decode()


class Kernel:
    """Debian's kernel of a base, and our modules for it."""

    def __init__(self, base):
        self.base = base
        self.dir = os.path.join(TOP, "out", base)
        self.debian = os.path.join(self.dir, "debian")
        fetch = f"build/fetch {base}"
        self.build = f"make modules BASE={base}"
        self.release = read(os.path.join(self.debian, "release"), fetch).decode().strip()
        root = os.path.join(self.debian, "root")
        self.folder = os.path.join(root, "lib/modules", self.release)
        self.image = os.path.join(root, "boot", "vmlinuz-" + self.release)
        self.stock_symvers = symvers(os.path.join(
            root, f"usr/src/linux-headers-{self.release}", "Module.symvers"), fetch)
        self.our_symvers = symvers(os.path.join(self.dir, "modules/Module.symvers"), self.build)
        self.has_versions = bases.fact(base, "symbol_versions")
        self.stock, self.importers, self.strings = {}, [], {}

    def gone(self):
        """What Debian's modules export, but ours do not."""
        return sorted(s for s, (_, module, *_) in self.stock_symvers.items()
                      if module in OURS and s not in self.our_symvers)

    def ours(self, name):
        path = os.path.join(self.dir, "modules", name + ".ko")
        return Module(path, read(path, self.build))

    def scan(self, gone):
        """Read Debian's modules: those we replace, those that import from them, and those that
        name a symbol in GONE as symbol_get() would."""
        ours = {name.replace("-", "_") for name in OURS.values()}
        for folder, _, files in os.walk(self.folder):
            for file in sorted(files):
                if not file.endswith((".ko", ".ko.xz")):
                    continue
                path = os.path.join(folder, file)
                data = initramfs.read_module(path)
                place = re.sub(r"\.ko(\.xz)?$", "", os.path.relpath(path, self.folder + "/kernel"))
                if place in OURS:
                    self.stock[OURS[place]] = Module(path, data)
                    continue
                depends = re.search(rb"\0depends=([^\0]*)\0", data)
                if depends and ours & set(depends[1].decode().replace("-", "_").split(",")):
                    self.importers.append(Module(path, data))
                for symbol in gone:
                    if symbol.encode() + b"\0" in data and Module(path, data).says(symbol):
                        self.strings.setdefault(symbol, []).append(file)
        self.importers.sort(key=lambda m: m.name)


# --- versions ------------------------------------------------------------------------------

def wanted_of_ours(kernel, module):
    """The symbols that this stock module imports from those that we replace."""
    return sorted(symbol for symbol in set(module.versions) | module.undefined
                  if kernel.stock_symvers.get(symbol, (0, ""))[1] in OURS)


def check_importer(kernel, module):
    """What this stock module misses in ours."""
    for symbol in wanted_of_ours(kernel, module):
        stock = kernel.stock_symvers[symbol]
        ours = kernel.our_symvers.get(symbol)
        if not ours or ours[1] not in OURS:
            yield f"{symbol} is not exported any more"
        elif ours[0] != module.versions.get(symbol, stock[0]):
            yield (f"{symbol} has version {ours[0]:#010x}, "
                   f"the module asks for {module.versions[symbol]:#010x}")
        elif ours[2:] != stock[2:]:
            yield f"{symbol} is {' '.join(ours[2:])}, was {' '.join(stock[2:])}"


def check_prototypes(kernel, module, stock, ours):
    """Which functions this stock module would call in another way than ours are called, and how
    many could be compared."""
    wrong, compared = [], 0
    for symbol in wanted_of_ours(kernel, module):
        was, now = stock.get(symbol, set()), ours.get(symbol, set())
        if was and now:
            compared += 1
            if not was & now:
                wrong.append(f"{symbol} is {min(now)}, {min(was)} in Debian's")
    return wrong, compared


def check_vermagic(stock, ours):
    for key in ("vermagic", "name", "intree", "retpoline"):
        if ours.info.get(key) != stock.info.get(key):
            yield f"{key} is '{ours.info.get(key)}', Debian's '{stock.info.get(key)}'"
    if ours.this_module != stock.this_module:
        yield (f"struct module has {ours.this_module} bytes, Debian's {stock.this_module}: "
               "the configuration differs")
    # What ours needs must be there wherever stock's can be loaded.
    extra = set(ours.info["depends"].split(",")) - set(stock.info["depends"].split(","))
    if extra - {""}:
        yield f"depends on {', '.join(sorted(extra))}, which Debian's does not"


def check_imports(kernel, ours):
    if bool(ours.versions) != kernel.has_versions:
        yield f"has {len(ours.versions)} symbol versions, which Debian's kernel is built " + (
            "with" if kernel.has_versions else "without")
    for symbol in sorted(ours.undefined - set(ours.versions)):
        if (kernel.has_versions and not symbol.startswith("__SCK__")
                and symbol in kernel.stock_symvers):
            yield f"{symbol} is imported without a version"
        elif symbol not in kernel.stock_symvers and symbol not in kernel.our_symvers:
            yield f"{symbol} is exported by nobody"
    for symbol, crc in sorted(ours.versions.items()):
        table = kernel.our_symvers
        if symbol not in table or table[symbol][1] not in OURS:
            table = kernel.stock_symvers
        if symbol not in table:
            yield f"{symbol} is exported by nobody"
        elif table[symbol][0] != crc:
            yield f"{symbol} has version {crc:#010x}, Debian's is {table[symbol][0]:#010x}"


# --- the set -------------------------------------------------------------------------------

# Which of ours exports a name of build/bind-set, and which of them need it
BINDS = {
    "kvm_x86_vendor_init": ("kvm", ("kvm-amd", "kvm-intel")),
    "vfio_register_iommu_driver": ("vfio", ("vfio_iommu_type1",)),
    "vfio_external_user_api": ("vfio", ("kvm",)),
}


def bound_as(name, exporter):
    """What NAME is called in EXPORTER, or None."""
    pattern = re.compile(bind_set.NAMES[name] % "[0-9a-f]{8}")
    return next((symbol for symbol in exporter.exports() if pattern.fullmatch(symbol)), None)


def check_binding(name, modules):
    """Does NAME bind those that it should, under one new name that nobody else has?"""
    exporter, users = BINDS[name]
    new = bound_as(name, modules[exporter])
    if not new:
        yield f"{exporter} does not export it under a name of the set"
    for who, module in modules.items():
        if module.has(name):
            yield f"{who} still has the old name"
        if new and who in users and new not in module.undefined and not module.says(new):
            yield f"{who} does not need {new}"
        if new and who not in (exporter, *users) and module.has(new):
            yield f"{who} needs {new} too"


def check_ids(kernel, modules):
    made_from = read(os.path.join(kernel.dir, "modules/.fingerprint"), kernel.build).decode()
    ids = {bound_as(name, modules[exporter])[-8:] for name, (exporter, _) in BINDS.items()
           if bound_as(name, modules[exporter])}
    if len(ids) != 1:
        yield f"the set has {len(ids)} ids: {' '.join(sorted(ids)) or 'none'}"
    for set_id in ids - {made_from[:8]}:
        yield f"the id is {set_id}, what the set was made from gives {made_from[:8]}"


def check_within(name, modules, symvers_of_set):
    """What one of ours misses in the others, as they are installed."""
    for symbol, crc in sorted(modules[name].versions.items()):
        listed = symvers_of_set.get(symbol)
        if not listed or listed[1] not in OURS:
            continue
        exported = modules[OURS[listed[1]]].exports()
        if symbol not in exported:
            yield f"{symbol} is not exported by {OURS[listed[1]]}"
        elif not exported[symbol] == listed[0] == crc:
            yield f"{symbol} has not the version that is asked for"
    mine = modules[name].exports()
    for symbol, (_, place, *_) in symvers_of_set.items():
        if OURS.get(place) == name and symbol not in mine:
            yield f"{symbol} is in Module.symvers, but not exported"


# --- layouts -------------------------------------------------------------------------------

def kernel_btf(kernel):
    """The type information inside Debian's kernel image."""
    elf = kernel_image.unpack(read(kernel.image, "build/fetch"), kernel.image)
    return btf.BTF(dict(initramfs.elf_sections(elf))[".BTF"])


def our_btf_data(kernel, place):
    """Type information of one of our modules, made from its debug information. Its test asks, too, and
    may do so now."""
    with lock(kernel.base, "check-abi"):
        return read_or_make_btf(kernel, place)


def read_or_make_btf(kernel, place):
    source = os.path.join(kernel.dir, "build", place + ".ko")
    data = read(source, kernel.build)
    cache = os.path.join(kernel.dir, "abi")
    os.makedirs(cache, exist_ok=True)
    path = os.path.join(cache, f"{OURS[place]}-{hashlib.sha256(data).hexdigest()[:20]}.btf")
    if not os.path.exists(path):
        for old in os.listdir(cache):
            if re.fullmatch(re.escape(OURS[place]) + r"-[0-9a-f]{20}\.btf", old):
                os.unlink(os.path.join(cache, old))
        done = subprocess.run(["pahole", "-J", f"--btf_encode_detached={path}.tmp", source],
                              capture_output=True, text=True, check=False)
        if done.returncode or not os.path.exists(path + ".tmp"):
            raise Problem(f"pahole cannot read the types of {os.path.relpath(source, TOP)}: "
                          f"{done.stderr.strip() or 'no output'}; run: {kernel.build}")
        os.replace(path + ".tmp", path)
    return read(path, kernel.build)


def our_btf(kernel, place):
    return btf.BTF(our_btf_data(kernel, place))


def stock_layouts(kernel, base, wanted):
    """Name -> all layouts that Debian's kernel and the importers know under that name."""
    known = {}
    sources = [("the kernel", base)]
    sources += [(m.name, btf.BTF(m.btf, base)) for m in kernel.importers if m.btf]
    for who, types in sources:
        for name, size, members in types.structures():
            if name in wanted:
                known.setdefault(name, []).append((who, size, members))
    return known


def difference(ours, stock, may_grow):
    """Why these two layouts do not fit, or ''."""
    if ours[0] < stock[0] or ours[0] > stock[0] and not may_grow:
        return f"has {ours[0]} bytes, {stock[0]} in Debian's"
    for member in stock[1].keys() - ours[1].keys() if may_grow else ():
        return f"has no '{member}'"
    for member, where in ours[1].items():
        if stock[1].get(member, where) != where:
            return (f"has '{member}' at {where / 8:g}, "
                    f"at {stock[1][member] / 8:g} in Debian's")
    return ""


def private_structures():
    """Structures that may differ although somebody else's type information names them: those that
    may in any way, and those that may only grow at the end."""
    lines = read(os.path.join(TOP, "build/abi-private"), "git checkout build").decode()
    names = {line.split()[0] for line in lines.splitlines() if re.match(r"\w", line)}
    growing = {name.rstrip("+") for name in names if name.endswith("+")}
    return names - {name + "+" for name in growing}, growing


def check_layout(mine, known):
    """What of our structures is laid out otherwise, and how many could be compared."""
    wrong, compared, (private, growing) = [], 0, private_structures()
    for name, layouts in mine.items():
        if name not in known or name in private:
            continue
        compared += 1
        # Unrelated structures may share a name: one fitting layout is enough.
        reasons = [[difference(ours, (size, members), name in growing)
                    for _, size, members in known[name]]
                   for ours in layouts]
        for found in reasons:
            if all(found):
                wrong.append(f"struct {name} {found[0]} ({known[name][0][0]})")
                break
    return wrong, compared


def all_functions(sources):
    """The prototypes of all functions in these."""
    found = {}
    for types in sources:
        for name, prototypes in types.functions().items():
            found.setdefault(name, set()).update(prototypes)
    return found


def collect(types):
    found = {}
    for name, size, members in types.structures():
        found.setdefault(name, []).append((size, members))
    return found


# --- the report ----------------------------------------------------------------------------

class Report:
    def __init__(self):
        self.lines = []
        self.failed = 0

    def case(self, name, problems, note=""):
        problems = list(problems)
        self.failed += bool(problems)
        for problem in problems[:20]:
            self.lines.append(f"# {name}: {problem}")
        self.lines.append(f"{'not ok' if problems else 'ok'} "
                          f"{sum('ok ' in l[:7] for l in self.lines) + 1} {name}"
                          + (f" # {note}" if note else ""))

    def note(self, text):
        self.lines.append("# " + text)

    def print(self):
        cases = sum(l.startswith(("ok ", "not ok ")) for l in self.lines)
        print("KTAP version 1", f"1..{cases}", *self.lines, sep="\n")


def debian(base):
    """Debian's kernel, with what there is to compare with, and the types of its image."""
    kernel = Kernel(base)
    kernel.scan(kernel.gone())
    if sorted(kernel.stock) != sorted(OURS.values()) or not kernel.importers:
        raise Problem(f"Debian's modules are not all in {os.path.relpath(kernel.folder, TOP)}; "
                      f"remove out/{base}/debian and run: build/fetch {base}")
    return kernel, kernel_btf(kernel)


def compare(kernel, base_types, types):
    """The report on our modules, whose TYPES by their places in the kernel are these."""
    report = Report()
    mine = {place: collect(of) for place, of in types.items()}
    known = stock_layouts(kernel, base_types, set().union(*mine.values()))
    ours = all_functions(types.values())
    stock = all_functions(btf.BTF(m.btf, base_types) for m in kernel.stock.values())
    modules = {name: kernel.ours(name) for name in OURS.values()}
    for name in bind_set.NAMES:
        report.case(f"bound {name}", check_binding(name, modules))
    report.case("bound alike", check_ids(kernel, modules))
    for place, name in OURS.items():
        module = modules[name]
        report.case(f"vermagic {name}", check_vermagic(kernel.stock[name], module))
        report.case(f"imports {name}", check_imports(kernel, module),
                    f"{len(module.versions or module.undefined)} symbols")
        report.case(f"within {name}", check_within(name, modules, kernel.our_symvers))
        wrong, compared = check_layout(mine[place], known)
        if not compared:
            wrong = ["there was nothing to compare"]
        report.case(f"layouts {name}", wrong, f"{compared} structures")
    for symbol in kernel.gone():
        report.case(f"removed {symbol}",
                    [f"{who} names it" for who in kernel.strings.get(symbol, [])])
    for module in kernel.importers:
        wrong, compared = check_prototypes(kernel, module, stock, ours)
        report.case(f"importer {module.name}", [*check_importer(kernel, module), *wrong],
                    f"{compared} prototypes")
    return report


def check(base):
    kernel, base_types = debian(base)
    report = compare(kernel, base_types, {place: our_btf(kernel, place) for place in OURS})
    report.print()
    return 1 if report.failed else 0


def main():
    if len(sys.argv) != 2 or sys.argv[1] not in bases.names():
        raise Problem(f"needs a base, one of: {' '.join(bases.names())}.")
    return check(sys.argv[1])
