# SPDX-License-Identifier: GPL-2.0-only
"""Packages made of those that there are, for packaging/selftest/install_test: one that is spoilt, a
kernel of another release, a newer package of ours."""

import glob
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile

from kit.common import read, read_bytes, write


def repack(deb, to, edit):
    """The package TO: DEB after EDIT of the folder that it is unpacked to."""
    with tempfile.TemporaryDirectory(dir=os.path.dirname(to)) as folder:
        inside = os.path.join(folder, "package")
        subprocess.run(["dpkg-deb", "-R", deb, inside], check=True)
        edit(inside)
        subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", inside, to], check=True,
                       stdout=subprocess.DEVNULL)
    return to


def substitute(path, pattern, replacement):
    """In a file, whose mode stays."""
    mode = os.stat(path).st_mode & 0o777
    text = read(path)
    changed = re.sub(pattern, lambda _: replacement, text, flags=re.M)
    if changed != text:
        write(path, changed, mode=mode)
    return changed != text


def rename(inside, old, new):
    """In all paths, links and scripts of an unpacked package."""
    for path in glob.glob(inside + "/DEBIAN/*"):
        substitute(path, re.escape(old), new)
    for at, folders, names in os.walk(inside, topdown=False):
        for name in (*folders, *names):
            path = os.path.join(at, name)
            if os.path.islink(path) and old in os.readlink(path):
                target = os.readlink(path).replace(old, new)
                os.unlink(path)
                os.symlink(target, path)
            if old in name:
                os.rename(path, os.path.join(at, name.replace(old, new)))


# Of a kernel's drivers, what its initrd and the set's modules need
DRIVERS = ("block", "char", "crypto", "pci", "vfio", "virtio")


def prune(inside):
    """Most of a kernel is drivers that nobody here asks for."""
    for path in glob.glob(inside + "/**/kernel/drivers/*", recursive=True):
        if os.path.basename(path) not in DRIVERS:
            shutil.rmtree(path)
    for name in ("net", "sound"):
        for path in glob.glob(f"{inside}/**/kernel/{name}", recursive=True):
            shutil.rmtree(path)
    sums = inside + "/DEBIAN/md5sums"
    write(sums, "".join(line for line in read(sums).splitlines(True)
                        if os.path.exists(os.path.join(inside, line.split(maxsplit=1)[1].strip()))))


def change_module(inside, path, change):
    """One of an unpacked package, and its sum."""
    data = read_bytes(path)
    before = hashlib.md5(data).hexdigest()
    if path.endswith(".xz"):
        data = lzma.compress(replaced(lzma.decompress(data), change), check=lzma.CHECK_CRC32, preset=0)
    else:
        data = replaced(data, change)
    write(path, data)
    substitute(inside + "/DEBIAN/md5sums", before, hashlib.md5(data).hexdigest())


def other_kernel(debs, folder, old, new, version, change=()):
    """The packages of kernel OLD as those of NEW, which say that they are made from source VERSION. KVM's
    module has CHANGE."""
    def edit(inside):
        prune(inside)
        rename(inside, old, new)
        control = inside + "/DEBIAN/control"
        substitute(control, r"^Version: .*$", "Version: " + version)
        # What both kernels share stays of the older version.
        substitute(control, r" \(= [^)]*\)", "")
        for path in glob.glob(inside + "/usr/src/*/include/generated/package.h"):
            write(path, f'#define LINUX_PACKAGE_ID " Debian {version}"\n')
        for path in change and glob.glob(inside + "/**/kvm/kvm.ko*", recursive=True):
            change_module(inside, path, change)
    os.makedirs(folder)
    return [repack(deb, os.path.join(folder, os.path.basename(deb).replace(old, new)), edit)
            for deb in debs]


def newer_package(deb, to, version, archive, change):
    """Our package in a later version: of its set for source VERSION it has also, or instead, ARCHIVE,
    which is that with CHANGE, pairs of bytes of the same length."""
    before = subprocess.run(["dpkg-deb", "-f", deb, "Version"], check=True, capture_output=True,
                            text=True).stdout.strip()
    after = before + "+newer"

    def edit(inside):
        rename(inside, before, after)
        source, = glob.glob(inside + "/usr/src/kvm-vfio-*")
        for path in (inside + "/usr/share/kvm-vfio/version", source + "/dkms.conf"):
            substitute(path, re.escape(before), after)
        sets = inside + "/usr/share/kvm-vfio/sets/"
        data = lzma.decompress(read_bytes(f"{sets}{version}.tar.xz"))
        write(f"{sets}{archive}.tar.xz", lzma.compress(replaced(data, change), check=lzma.CHECK_CRC32,
                                                       preset=0))
    return repack(deb, to, edit)


def replaced(data, change):
    for old, new in change:
        data = data.replace(old.encode(), new.encode())
    return data


def other_set(built, to, change):
    """What is built of a set, with the same CHANGE."""
    shutil.copytree(built, to)
    for path in glob.glob(to + "/**", recursive=True):
        if os.path.isfile(path):
            write(path, replaced(read_bytes(path), change))
