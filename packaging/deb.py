# SPDX-License-Identifier: GPL-2.0-only
"""packaging/deb [BASE...]: make the Debian package of the modules, out/deb/kvm-vfio-dkms_VERSION_all.deb.

It has a set (packaging/sets.py) for the kernel of each BASE, of all unless some are named, in each
suite of Debian that has it, and the diff that a set is made by, for `kvm-vfio add-kernel`.  The
version is the newest that the archive has, if it can be asked.  For a suite that is not this machine's,
only the source is fetched: that is all that a set is made from.

The version is 1.0~gitDATE.HASH of the commit; what is not committed makes it HASH.changed.  The same
commit on the same kernels gives the same bytes on one release of Debian; debhelper decides where
the unit of systemd goes, which differs.
"""

import email.utils
import glob
import os
import shutil
import subprocess
import sys

from kit import bases
from kit import common
from kit.common import TOP, Problem, rel, step
from packaging import sets
from series import assemble

OUT = os.path.join(TOP, "out/deb")
# Of this machine's own suites, for as long as it takes: the archive is asked once for all bases.
LISTS = os.path.join(OUT, "apt")
HERE = os.path.join(TOP, "packaging")
MAINTAINER = "kvm-vfio maintainers <kvm@vger.kernel.org>"
# In the diff for add-kernel, in the place of what only the finished set has
NO_ID, NO_VERSION = "00000000", "@VERSION@"
# dkms takes a folder of one file for an empty one.
SOURCES = """The sources are in /usr/share/kvm-vfio/sets, an archive for each kernel;
/usr/libexec/kvm-vfio/kernel unpacks the right one where dkms builds.
"""


def git(*arguments):
    # The repository may be another user's: root builds, too.
    done = subprocess.run(["git", "-c", "safe.directory=*", "-C", TOP, *arguments],
                          capture_output=True, text=True, check=False,
                          env={**os.environ, "TZ": "UTC"})
    if done.returncode:
        raise Problem(f"the version is that of a commit, and git says: {done.stderr.strip()}.")
    return done.stdout.strip()


def version():
    """The package's version, which grows from commit to commit, and the commit's time."""
    day, when, commit = git("log", "-1", "--date=format-local:%Y%m%d%H%M%S",
                            "--format=%cd %ct %h", "--abbrev=7").split()
    changed = ".changed" if git("status", "--porcelain", "--untracked-files=no") else ""
    return f"1.0~git{day}.{commit}{changed}", int(when)


def put(path, text, mode=0o644):
    common.write(os.path.join(OUT, "source", path), text, mode=mode)


def copy_debian(values):
    """packaging/debian with @NAMES@ filled in."""
    for folder in ("debian", "installed"):
        # Without their times: those before the commit's would stay in the package.
        shutil.copytree(os.path.join(HERE, folder), os.path.join(OUT, "source", folder),
                        copy_function=shutil.copy)
    for path in ("debian/control", "debian/copyright", "installed/kvm-vfio.8",
                 "debian/kvm-vfio-dkms.README.Debian"):
        text = common.read(os.path.join(OUT, "source", path))
        for name, value in values.items():
            text = text.replace(f"@{name}@", value)
        put(path, text)


def add_base(base, suite, when):
    """The set of one base of one suite and its diff; what the description says of its kernel."""
    common.need("build/fetch", base, "--source", "--newest", SUITE=suite, APT_LISTS=LISTS)
    common.need("series/assemble", base, SUITE=suite)
    folder = bases.base(base, suite)["folder"]
    source = common.read(os.path.join(TOP, "out", folder, "debian/version")).strip()
    state = assemble.Base(base, "tree", folder)
    identity, files = sets.make(state.tree, state.state["files"], source)
    step(f"set {identity} for Linux {source}")
    sets.pack(os.path.join(OUT, "source/made/sets", f"{source}.tar.xz"), files, when)
    _, blank = sets.make(state.tree, state.state["files"], NO_VERSION, NO_ID)
    if suite == bases.base(base)["suite"]:
        put(f"made/patches/{base}.patch", sets.diff(state.pristine, blank, state.state["files"]))
    return f"  * {source}"


def build(name, when):
    done = subprocess.run(
        ["dpkg-buildpackage", "-b", "-us", "-uc", "-d"], cwd=os.path.join(OUT, "source"),
        env={**os.environ, "SOURCE_DATE_EPOCH": str(when), "DEB_BUILD_OPTIONS": "nocheck",
             "LC_ALL": "C"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    common.write(os.path.join(OUT, "log"), done.stdout)
    path = os.path.join(OUT, f"kvm-vfio-dkms_{name}_all.deb")
    if done.returncode or not os.path.exists(path):
        raise Problem(f"the package does not build: see {rel(OUT)}/log.")
    return path


def make_source(name, when, kernels):
    """All of the source package but the sets, which are there already."""
    date = email.utils.formatdate(when)
    copy_debian({"MAINTAINER": MAINTAINER, "KERNELS": "\n".join(kernels), "VERSION": name,
                 "SOURCES": ", ".join(kernel.split()[-1] for kernel in kernels)})
    put("debian/changelog", f"kvm-vfio ({name}) unstable; urgency=medium\n\n"
        f"  * As of commit {git('rev-parse', 'HEAD')}.\n\n -- {MAINTAINER}  {date}\n\n"
        + common.read(os.path.join(HERE, "debian/changelog.first")))
    put("made/version", name + "\n")
    put("made/modules", "".join(f"{module}\n" for module in bases.modules()))
    put("made/force/kvm-vfio", "kvm-vfio_version-override\n")
    for hook in ("postinst.d", "header_postinst.d"):
        put(f"made/kernel-hooks/{hook}/dkms-kvm-vfio",
            common.read(os.path.join(HERE, "hooks", hook)), 0o755)
    put("made/source/SOURCES", SOURCES)
    conf = common.read(os.path.join(HERE, "installed/dkms.conf"))
    for number, module in enumerate(os.path.basename(module) for module in bases.modules()):
        conf += (f'BUILT_MODULE_NAME[{number}]="{module}"\n'
                 f'DEST_MODULE_LOCATION[{number}]="/updates/dkms"\n')
    put("made/dkms.conf", conf)


def leave_tests(name, when, kernels):
    """For autopkgtest: of a source tree it needs debian/ alone where it is given the package."""
    source = os.path.join(OUT, "source")
    shutil.rmtree(source, ignore_errors=True)
    make_source(name, when, kernels)
    for folder in ("made", "installed"):
        shutil.rmtree(os.path.join(source, folder))


def main():
    wanted = sys.argv[1:] or bases.names()
    if unknown := [base for base in wanted if base not in bases.names()]:
        raise Problem(f"there is no base {unknown[0]}, only {' and '.join(bases.names())}.")
    name, when = version()
    for folder in (os.path.join(OUT, "source"), LISTS):
        shutil.rmtree(folder, ignore_errors=True)
    for old in glob.glob(os.path.join(OUT, "kvm-vfio*")):
        os.unlink(old)
    kernels = [add_base(base, suite, when) for base in wanted for suite in bases.suites(base)]
    make_source(name, when, kernels)
    step("building the package")
    path = build(name, when)
    leave_tests(name, when, kernels)
    shutil.rmtree(LISTS, ignore_errors=True)
    print(rel(path))
