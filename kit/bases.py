# SPDX-License-Identifier: GPL-2.0-only
"""The kernels that the series is for: bases/*.toml, the one place that knows them.

What belongs to some bases only says from which one on it holds: FILE.6.12.patch, a count
"6.1=1,6.12=2", a patch "NAME: 6.12".  Of several, the newest that is not newer than the base
counts (in_force()), so a new base takes what the last one had.
"""

import functools
import os
import re
import subprocess
import tomllib

from kit.common import TOP, Problem, read

FOLDER = os.path.join(TOP, "bases")
VERSION = r"\d+\.\d+"


def order(version):
    """To sort versions by: 6.12 is newer than 6.1."""
    return tuple(int(part) for part in version.split("."))


@functools.cache
def names():
    """All bases, the oldest first."""
    found = [name[:-len(".toml")] for name in os.listdir(FOLDER)
             if re.fullmatch(VERSION + r"\.toml", name)]
    return sorted(found, key=order)


@functools.cache
def toml(path):
    try:
        return tomllib.loads(read(path))
    except tomllib.TOMLDecodeError as error:
        raise Problem(f"{os.path.relpath(path, TOP)}: {error}.") from None


@functools.cache
def host():
    """What is known of this machine's distribution: hosts/*.toml."""
    done = subprocess.run([os.path.join(TOP, "kit/get"), "--host"], capture_output=True,
                          text=True, check=False)
    if done.returncode:
        raise Problem(done.stderr.strip().removeprefix("kit/get: "))
    return toml(os.path.join(TOP, done.stdout.strip() + ".toml"))


def default():
    """The base whose kernel this machine itself runs."""
    return host()["base"]


def known(name, here, asked=None):
    """All that is known of a base on a machine that HERE are the suites of.

    ASKED is another suite to take it of, if that has it.  What the section for its suite says goes
    first; "folder" is where in out/ all of it is.  The same rules as in kit/get."""
    if name not in names():
        raise Problem(f"there is no base {name}, only {' and '.join(names())}.")
    found = dict(toml(os.path.join(FOLDER, name + ".toml")))
    usual = next((suite for suite in found["suite"] if suite in here), found["suite"][0])
    suite = asked if asked in found["suite"] else usual
    return {**found, **found.get(suite, {}), "suite": suite,
            "folder": name if suite == usual else f"{name}-{suite}"}


@functools.cache
def base(name, suite=None):
    """All that is known of a base on this machine, of the suite that SUITE of the environment asks
    for unless one is named."""
    return known(name, host()["suites"], suite or os.environ.get("SUITE"))


def variant(name):
    """What a base of this machine's suite is called on any machine: NAME, or NAME-SUITE where that is
    not the first suite that has it."""
    suite = base(name)["suite"]
    return name if suite == suites(name)[0] else f"{name}-{suite}"


def suites(name):
    """The suites of Debian that have this base."""
    return toml(os.path.join(FOLDER, name + ".toml"))["suite"]


def native(name):
    """Does this machine build it?  If not, a root of the base's own suite of Debian does."""
    return base(name)["suite"] in host()["suites"]


def checked():
    """The bases of which `make check` runs all unless it is told others."""
    return [name for name in names() if base(name)["check"] is True]


def fact(name, what):
    """A fact of a base, by which tools and tests decide instead of by its number."""
    facts = base(name)["facts"]
    if what not in facts:
        raise Problem(f"bases/{name}.toml says nothing of '{what}'.")
    return facts[what]


def in_force(versions, name):
    """Of VERSIONS, the newest that is not newer than base NAME; None if all are."""
    old = [version for version in versions if order(version) <= order(name)]
    return max(old, key=order, default=None)


def file_in_force(folder, prefix, suffix, name):
    """Of FOLDER/PREFIX-X.Y.SUFFIX the one in force for a base: a list of it, or of nothing."""
    versions = [version for version in names()
                if os.path.exists(os.path.join(folder, f"{prefix}-{version}.{suffix}"))]
    version = in_force(versions, name)
    return [os.path.join(folder, f"{prefix}-{version}.{suffix}")] if version else []


@functools.cache
def project():
    """What the project changes in every kernel."""
    return toml(os.path.join(FOLDER, "project.toml"))


def modules():
    """Our modules by their place in the kernel, without .ko."""
    return project()["modules"]


def folders(name):
    """The folders of the kernel that a base's modules, those of iommufd and more are built in."""
    return project()["folders"] + (project()["iommufd_folders"] if fact(name, "iommufd") else [])


def iommufd_options(name):
    """Lines for .config: what Debian leaves out of a base that has iommufd."""
    return "".join(f"CONFIG_{option}\n" for option in project()["iommufd"]) if fact(name, "iommufd") else ""
