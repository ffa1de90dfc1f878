# SPDX-License-Identifier: GPL-2.0-only
"""The sets of a package: what builds our modules on a user's machine, for exactly one kernel.

A set is a few folders of a kernel that series/assemble has put our changes into: the sources of
the modules in bases/project.toml and the headers that we change, at their places in the kernel.
It builds with nothing but that kernel's headers package:

    make -C /lib/modules/KERNEL/build M=FOLDER

and gives all modules or none. What is not as in the tree:

 - ./Kbuild and a Kbuild in each module's folder put the set's headers before the kernel's and
   build the modules of the set only,
 - the names that bind the set (build/bind_set.py) carry its id already,
 - each module says in `modinfo -F kvm_vfio` which set it is of, and for which source.
"""

import hashlib
import io
import lzma
import os
import re
import subprocess
import tarfile
import tempfile

from build import bind_set
from kit import bases
from kit import common
from kit.common import Problem

# Headers of ours that a module includes; those in its own folder come with that.
HEADERS = ("include/", "arch/x86/include/")
SOURCE = re.compile(r".*\.[chS]|Makefile.*|Kbuild")
LICENSE = re.compile(rb"^MODULE_LICENSE\(.*\);\n", re.M)

TOP_KBUILD = """\
# SPDX-License-Identifier: GPL-2.0-only
obj-m := {folders}
"""
KBUILD = """\
# SPDX-License-Identifier: GPL-2.0-only
# Of the kernel's own Makefile the modules of this set only, with the headers of this set.
kvm_vfio_set := $(src)/{up}
LINUXINCLUDE := -I$(kvm_vfio_set)/arch/x86/include -I$(kvm_vfio_set)/include \\
	-I$(kvm_vfio_set)/include/uapi $(LINUXINCLUDE)
include $(src)/Makefile
obj-m := $(filter {objects},$(obj-m) $(obj-y))
obj-y :=
"""


def folders():
    """The folders of the modules, with the objects that are to be made of each."""
    found = {}
    for module in bases.modules():
        found.setdefault(os.path.dirname(module), []).append(os.path.basename(module) + ".o")
    return found


def sources(tree, folder):
    """The files of a folder, without those below it that have makefiles of their own."""
    for at, inner, names in os.walk(os.path.join(tree, folder)):
        inner[:] = sorted(name for name in inner if not {"Makefile", "Kbuild"}.intersection(
            os.listdir(os.path.join(at, name))))
        for name in sorted(names):
            if SOURCE.fullmatch(name):
                yield os.path.relpath(os.path.join(at, name), tree)


def collect(tree, changed):
    """The files of a set, path -> bytes, of an assembled tree in which CHANGED differ."""
    paths = {path for folder in [*folders(), *bases.project()["sources"]]
             for path in sources(tree, folder)}
    paths |= {path for path in changed
              if path.startswith(HEADERS) and os.path.isfile(os.path.join(tree, path))}
    missing = [module for module in bases.modules() if os.path.dirname(module) + "/Makefile"
               not in paths]
    if missing:
        raise Problem(f"{tree} has no folder of {missing[0]}.")
    return {path: common.read_bytes(os.path.join(tree, path)) for path in paths}


def set_id(files):
    """8 hexadecimal digits made of all that the set is made from."""
    digest = hashlib.sha256()
    for path, data in sorted(files.items()):
        digest.update(b"%s %d\n" % (path.encode(), len(data)) + data)
    return digest.hexdigest()[:8]


def bind(files, identity):
    """Rename what binds the set; each name has to be in two of its folders' files or more."""
    for name in bind_set.NAMES:
        pattern = re.compile(rb"\b%s\b" % name.encode())
        found = 0
        for path, data in files.items():
            files[path], count = pattern.subn(bind_set.bound(name, identity).encode(), data)
            found += bool(count)
        if found < 2:
            raise Problem(f"{name} binds nothing: it is in {found} files of the set.")


def mark(files, text):
    """Let each module tell which set it is of: once, where it tells its license."""
    for path, data in files.items():
        if path.endswith(".c"):
            files[path] = LICENSE.sub(
                lambda m: m[0] + b'MODULE_INFO(kvm_vfio, "%s");\n' % text.encode(), data)


def make(tree, changed, version, identity=None):
    """The set of an assembled tree for the kernel of source VERSION: its id and its files."""
    files = collect(tree, changed)
    identity = identity or set_id({**files, "version": version.encode()})
    bind(files, identity)
    mark(files, f"{identity} {version}")
    for folder, objects in folders().items():
        up = "/".join(".." for _ in folder.split("/"))
        files[f"{folder}/Makefile"] = re.sub(
            rb"\$\(srctree\)/(?=arch/x86/kvm|virt/kvm)", b"$(kvm_vfio_set)/",
            files[f"{folder}/Makefile"])
        files[f"{folder}/Kbuild"] = KBUILD.format(up=up, objects=" ".join(objects)).encode()
    files["Kbuild"] = TOP_KBUILD.format(
        folders=" ".join(f"{folder}/" for folder in folders())).encode()
    files["SOURCE"] = f"{version} {identity}\n".encode()
    return identity, files


def pack(path, files, when):
    """An archive that is the same whenever and wherever it is made."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(content), 0o644, when
            archive.addfile(member, io.BytesIO(content))
    common.write(path, lzma.compress(data.getvalue(), check=lzma.CHECK_CRC32,
                                     preset=9 | lzma.PRESET_EXTREME))


def diff(original, files, changed):
    """The diff from a kernel's own folders to a set; ORIGINAL gives the base's content of a path. What
    is CHANGED and not in the set any more is removed."""
    gone = [path for path in changed if path not in files and SOURCE.fullmatch(os.path.basename(path))
            and os.path.dirname(path) in (*folders(), *bases.project()["sources"])]
    with tempfile.TemporaryDirectory() as work:
        for path in (*files, *gone):
            if path in files:
                common.write(os.path.join(work, "b", path), files[path])
            pristine = original(path)
            if pristine is not None:
                common.write(os.path.join(work, "a", path), pristine)
        done = subprocess.run(["diff", "-ruN", "a", "b"], cwd=work, capture_output=True, check=False)
    if done.returncode != 1:
        raise Problem(f"diff finds no difference: {done.stderr.decode()}")
    # Without the times of files that were made just now
    text = re.sub(rb"^((?:---|\+\+\+) [^\t\n]+)\t.*$", rb"\1", done.stdout, flags=re.M)
    for path in gone:
        text = text.replace(b"+++ b/%s\n" % path.encode(), b"+++ /dev/null\n")
    return re.sub(rb"^diff .*\n", b"", text, flags=re.M)
