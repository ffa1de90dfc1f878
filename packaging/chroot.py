# SPDX-License-Identifier: GPL-2.0-only
"""A system of Debian's (packaging/root) to install the package in: a chroot with a layer of its own.

What is done in one layer is not seen in another; all are memory, and gone with the process.
"""

import copy
import ctypes
import glob
import lzma
import os
import re
import shutil
import signal
import subprocess
import time

from kit import bases
from kit.common import TOP, Problem, read, read_bytes, write

NAMES = [os.path.basename(place) for place in bases.modules()]
CLONE_NEWNS = 0x20000
# make, where it is not to take minutes: the modules that were built before, if the same is asked for
STAND_IN = """#!/bin/sh
for word; do
	case $word in M=*) folder=${word#M=} ;; esac
done
[ -f "$folder/Kbuild" ] || exec /usr/bin/make.debian "$@"
[ ! -e /built/fail ] || { echo "make: *** that was to be expected" >&2; exit 2; }
for set in /built/*/; do
	cmp -s "$set/SOURCE" "$folder/SOURCE" && cp -r "$set/." "$folder" && exit
done
[ ! -e /built/really ] || exec /usr/bin/make.debian "$@"
exit 1
"""
# make, with what it makes kept
KEEPING = """#!/bin/sh
for word; do
	case $word in M=*) folder=${word#M=} ;; esac
done
/usr/bin/make.debian "$@" || exit
[ ! -f "$folder/Kbuild" ] || { cd "$folder" && find . -name '*.ko' -o -name SOURCE |
	cpio -pdmu --quiet /kept; }
"""


# A program that waits where it is asked for that, in the place where it is looked for first
STOPPING = """#!/bin/sh
case "$*" in {words}) [ ! -e /stop ] || touch /stopped; while [ -e /stop ]; do sleep 0.2; done ;; esac
exec {program} "$@"
"""


def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)


class Wrong(Exception):
    """What a case has found."""


def expect(condition, what):
    if not condition:
        raise Wrong(what)


def try_case(function):
    try:
        function()
    except Wrong as wrong:
        return str(wrong)
    return ""


class Host:
    """The system with a layer of its own, on those of other hosts."""

    work = None
    system = None
    count = 0
    network = True                      # is there one for what is run in it?
    environment = {}                    # what that finds in its environment beside the usual

    def __init__(self, below=()):
        Host.count += 1
        at = os.path.join(self.work, str(Host.count))
        self.layer, self.root = at + "/upper", at + "/root"
        self.layers = [self.layer, *below]
        for folder in (self.layer, at + "/work", self.root):
            os.makedirs(folder)
        lower = ":".join([*below, self.system])
        mount("-t", "overlay", "overlay", "-o",
              f"lowerdir={lower},upperdir={self.layer},workdir={at}/work", self.root)
        mount("-t", "proc", "proc", self.root + "/proc")
        mount("-t", "tmpfs", "tmpfs", self.root + "/sys")
        mount("-t", "tmpfs", "tmpfs", self.root + "/run")
        mount("--rbind", "/dev", self.root + "/dev")
        self.write("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
        self.look_at(next(name for name in sorted(os.listdir(self.root + "/lib/modules"))
                          if os.path.isdir(f"{self.root}/lib/modules/{name}/kernel")))

    def look_at(self, kernel):
        """The kernel that all else here is about."""
        self.kernel = kernel
        # Only its headers tell what it is made from.
        self.version = re.search(r'" Debian (\S+)"', self.read(os.path.relpath(
            self.package_h(), self.root)))[1] if self.has_headers() else ""
        # A newer kernel is in several; the hooks are called by the first of them.
        self.packages = [name for part in ("image", "binary", "modules") if os.path.exists(self.path(
            f"var/lib/dpkg/info/{(name := f'linux-{part}-{kernel}')}.list"))]

    def with_kernel(self, kernel):
        """The same system, another kernel of it."""
        other = copy.copy(self)
        other.look_at(kernel)
        return other

    def leave(self):
        """No more commands: its files only."""
        for folder in ("proc", "sys", "run", "dev"):
            subprocess.run(["umount", "-R", self.path(folder)], check=True)

    @classmethod
    def drop(cls):
        """All that there were: their layers are memory."""
        for number in os.listdir(cls.work):
            if os.path.ismount(os.path.join(cls.work, number, "root")):
                subprocess.run(["umount", "-R", os.path.join(cls.work, number, "root")], check=True)
            shutil.rmtree(os.path.join(cls.work, number))

    def has_headers(self):
        return os.path.lexists(self.path(f"usr/lib/modules/{self.kernel}/build"))

    def package_h(self):
        modules = f"/usr/lib/modules/{self.kernel}"
        folder = os.path.join(modules, os.readlink(f"{self.root}{modules}/build"))
        return f"{self.root}{os.path.normpath(folder)}/include/generated/package.h"

    def stock(self, name, suffix):
        """Where Debian's module of the set is, or belongs."""
        place = next(place for place in bases.modules() if os.path.basename(place) == name)
        return self.path(f"lib/modules/{self.kernel}/kernel/{place}.{suffix}")

    def path(self, inside):
        return os.path.join(self.root, inside)

    def read(self, inside):
        return read(self.path(inside))

    def write(self, inside, text, mode=0o644):
        write(self.path(inside), text, mode=mode)

    def started(self, *words, **more):
        """How to run it."""
        alone = [] if self.network else ["unshare", "--net"]
        return {"args": [*alone, "chroot", self.root, *words], "stdin": subprocess.DEVNULL,
                "stderr": subprocess.STDOUT, **more,
                "env": {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                        "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", "HOME": "/root",
                        **self.environment}}

    def run(self, *words):
        """Exit status and all that it says."""
        done = subprocess.run(**self.started(*words, stdout=subprocess.PIPE), text=True, errors="replace",
                              check=False)
        log = f"out/host/install-{os.path.basename(self.system)}.log"
        with open(os.path.join(TOP, log), "a", encoding="utf-8") as log:
            log.write(f"## host {Host.count}: {' '.join(words)} -> {done.returncode}\n{done.stdout}\n")
        return done.returncode, done.stdout

    def must(self, *words):
        status, said = self.run(*words)
        if status:
            raise Wrong(f"{' '.join(words)} failed:\n" + "\n".join(said.splitlines()[-15:]))
        return said

    def kill_at(self, program, arguments, *words, alone=False):
        """Kill what WORDS start, with all of its children unless ALONE, when it has come to PROGRAM with such
        ARGUMENTS (a pattern of the shell's)."""
        self.write(f"usr/local/sbin/{os.path.basename(program)}",
                   STOPPING.format(words=arguments, program=program), 0o755)
        self.write("stop", "")
        # Not a pipe, which its children would write to when it is gone.
        with subprocess.Popen(**self.started(*words, stdout=subprocess.DEVNULL),
                              start_new_session=True) as child:
            while not os.path.exists(self.path("stopped")) and child.poll() is None:
                time.sleep(0.2)
            if child.returncode is None:
                (os.kill if alone else os.killpg)(child.pid, signal.SIGKILL)
        expect(child.returncode == -signal.SIGKILL,
               f"{' '.join(words)} ended with {child.returncode} and never came to {program}")

    def apt(self, *words):
        return self.must("apt-get", "-y", "--no-install-recommends", *words)

    def from_archive(self, *packages, recommends="false"):
        """Of Debian's archive; what comes from there is kept in out/host/debs for the next time. What apt
        says."""
        kept, cache = os.path.join(TOP, "out/host/debs"), self.path("var/cache/apt/archives")
        shutil.copytree(kept, cache, dirs_exist_ok=True) if os.path.isdir(kept) else os.makedirs(kept)
        self.must("apt-get", "-q", "update")
        said = self.must("apt-get", "-y", "-o", "APT::Keep-Downloaded-Packages=true",
                         "-o", "APT::Install-Recommends=" + recommends, "install", *packages)
        for path in glob.glob(cache + "/*.deb"):
            if not os.path.exists(os.path.join(kept, os.path.basename(path))):
                shutil.copy(path, kept)
        return said

    def hook(self, which="postinst.d"):
        """What a kernel's own scripts run."""
        return self.must("run-parts", "--exit-on-error", f"--arg={self.kernel}",
                         f"--arg=/boot/vmlinuz-{self.kernel}", f"/etc/kernel/{which}")

    def debs(self, pattern):
        """Packages that are there to be installed, as the system names them."""
        found = glob.glob(self.path("srv/debs/" + pattern))
        expect(found, f"there is no {pattern} in /srv/debs: remove out/host/BASE to make it anew")
        return ["/" + os.path.relpath(path, self.root) for path in found]

    def debs_of(self, *packages):
        return [deb for package in packages for deb in self.debs(package + "_*.deb")]

    def install_kernel(self):
        return self.must("dpkg", "-i", *self.debs_of(*self.packages))

    def replace_make(self, script):
        """dkms looks for it in /usr/bin only."""
        if not os.path.exists(self.path("usr/bin/make.debian")):
            os.rename(self.path("usr/bin/make"), self.path("usr/bin/make.debian"))
        self.write("usr/bin/make", script, 0o755)

    def use_stand_in(self, built):
        shutil.copytree(built, self.path("built/" + os.path.basename(built)), dirs_exist_ok=True)
        self.replace_make(STAND_IN)

    def say_source(self, version):
        """Let the kernel be made from another source."""
        path = self.package_h()
        write(path, f'#define LINUX_PACKAGE_ID " Debian {version}"\n')
        # The image's package says so, too, and apt is none the wiser.
        query = self.path("usr/bin/dpkg-query")
        if not os.path.exists(query + ".real"):
            os.rename(query, query + ".real")
        write(query, f"#!/bin/sh\nfor package; do :; done\n[ \"$package\" != linux-image-{self.kernel} ] || "
              f"{{ echo 'installed {version}'; exit; }}\nexec /usr/bin/dpkg-query.real \"$@\"\n", mode=0o755)


class Package:
    """A package, and what dkms makes of its set for a host."""

    def __init__(self, deb, built=""):
        self.deb = deb
        self.built = built              # where what make made is kept

    def use_all_built(self, host):
        """What was ever made of its sets; the others are really built."""
        done = subprocess.run(["dpkg-deb", "-c", self.deb], check=True, capture_output=True, text=True)
        for version in re.findall(r"/sets/(\S+)\.tar\.xz$", done.stdout, re.M):
            built = os.path.join(TOP, "out/host/built", self.set_id(version))
            if os.path.isdir(built):
                host.use_stand_in(built)
        host.write("built/really", "")

    def set_id(self, version):
        """Of the set that it has for a kernel's source."""
        done = subprocess.run(
            f"dpkg-deb --fsys-tarfile '{self.deb}' | tar -xO "
            f"'./usr/share/kvm-vfio/sets/{version}.tar.xz' | tar -xJO SOURCE",
            shell=True, capture_output=True, text=True, check=False)
        expect(done.returncode == 0, f"the package has no set for {version}: {done.stderr}")
        return done.stdout.split()[1]

    def version(self):
        return subprocess.run(["dpkg-deb", "-f", self.deb, "Version"], check=True,
                              capture_output=True, text=True).stdout.strip()

    def copy(self, host):
        shutil.copy(self.deb, host.path("kvm-vfio.deb"))

    def ready(self, host, version):
        """DKMS really builds the set for that source, unless it has built it before."""
        self.copy(host)
        self.built = os.path.join(TOP, "out/host/built", self.set_id(version))
        if os.path.isdir(self.built):
            host.use_stand_in(self.built)
            return
        host.replace_make(KEEPING)
        shutil.rmtree(host.path("kept"), ignore_errors=True)
        os.makedirs(host.path("kept"))

    def keep(self, host, said):
        """What was really built."""
        if os.path.isdir(self.built):
            return
        made = glob.glob(host.path("kept/**/*.ko"), recursive=True)
        expect(len(made) == len(NAMES), "make has not made all of the set:\n" + said[-1500:])
        shutil.copytree(host.path("kept"), self.built)

    def install(self, host):
        """By apt; what that says."""
        self.ready(host, host.version)
        said = host.apt("install", "/kvm-vfio.deb")
        self.keep(host, said)
        return said


def enter(folder):
    """A mount namespace of our own, and room for the layers on the system out/host/FOLDER."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise Problem("no mount namespace of its own: " + os.strerror(ctypes.get_errno()))
    mount("--make-rprivate", "/")
    Host.system = os.path.join(TOP, "out/host", folder)
    Host.work = os.path.join(TOP, "out/host/work")
    os.makedirs(Host.work, exist_ok=True)
    mount("-t", "tmpfs", "tmpfs", Host.work)
    write(os.path.join(TOP, f"out/host/install-{folder}.log"), "")


# --- what must be so -----------------------------------------------------------------------------

def where(host, name):
    status, said = host.run("modinfo", "-k", host.kernel, "-F", "filename", name)
    return said.strip() if not status else ""


def set_of(host, path):
    return host.run("modinfo", "-F", "kvm_vfio", path)[1].strip()


def module(path):
    """A module's bytes; initramfs-tools unpacks those that the kernel has compressed."""
    data = read_bytes(path)
    return lzma.decompress(data) if path.endswith(".xz") else data


def must_be_ours(host):
    marks = set()
    for name in NAMES:
        path = where(host, name)
        expect(f"/{host.kernel}/updates/dkms/{name}.ko" in path, f"modprobe takes {path or 'no ' + name}")
        marks.add(set_of(host, path))
    expect(len(marks) == 1 and marks != {""}, f"the modules are of the sets {marks}")
    expect(marks.pop().endswith(" " + host.version), "the set is not for this kernel's source")


def must_be_stock(host):
    for name in NAMES:
        path = where(host, name)
        expect(f"/{host.kernel}/kernel/" in path, f"modprobe takes {path or 'no ' + name}")
    left = glob.glob(f"{host.root}/lib/modules/{host.kernel}/updates/**/*.ko*", recursive=True)
    expect(not left, f"there is still {left}")
    # Documentation is left out of this system.
    changed = [line for line in host.run("dpkg", "-V", *host.packages)[1].splitlines()
               if " /usr/share/doc/" not in line]
    expect(not changed, f"files of {host.packages} are missing or changed: {changed}")


def initrd_modules(host):
    """The set's modules in the initrd, by name: path and content."""
    folder = host.path("tmp/initrd")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    initrd = f"/boot/initrd.img-{host.kernel}"
    if os.path.exists(host.path("usr/bin/unmkinitramfs")):
        host.must("unmkinitramfs", initrd, "/tmp/initrd")
    else:
        host.must("sh", "-c", f"cd /tmp/initrd && lsinitrd --unpack {initrd}")
    found = {}
    for path in glob.glob(folder + "/**/*.ko*", recursive=True):
        name = os.path.basename(path).partition(".ko")[0]
        if name in NAMES:
            found[name] = path
    return found


def initrd_must_fit(host):
    found = initrd_modules(host)
    expect({"vfio", "kvm"} <= set(found), f"the initrd holds only {sorted(found)}")
    for name, path in found.items():
        same = module(path) == module(host.path(where(host, name).lstrip("/")))
        expect(same, f"the initrd's {name} is not the one on the disk")


def must_say(said, text, times=1):
    lines = [line for line in said.splitlines() if line.startswith("kvm-vfio: ") and text in line]
    expect(len(lines) == times, f"'{text}' is said {len(lines)} times:\n" + said[-1500:])
