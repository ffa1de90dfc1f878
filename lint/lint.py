#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""lint/lint BASE: what a reviewer's tools say of the series. Prints KTAP.

One result for each check; what it found is in out/BASE/lint/CHECK.log and, the first lines of
it, above the result.  A finding that stays has a line in lint/checks/exceptions with the
reason; one there that is of no use any more is a finding, too.

  --fast         only the checks that take seconds (part of `make check`)
  --only REGEX   only the checks named like this
  --list         name the checks
  --tree DIR     look at this tree instead of out/BASE/tree (for lint_test)

Exit status 0 if nothing was found, 1 if something was, 2 if a check could not be made.
"""

import argparse
import functools
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time

from kit import bases
from kit import common
from kit import findings
from kit import kbuild
from kit.common import TOP, Problem, read, rel, step, write
from series import check_series

SHOWN = 12                      # findings below a result; the log has all
EXCEPTIONS = "lint/checks/exceptions"
DOCUMENT = "Documentation/virt/kvm/devices/vfio.rst"
# Written in OCaml, whose compiler is 300 MB. Sparse finds what the second one looks for.
NO_OCAML = re.compile(r"^\s*@\s*(script|initialize|finalize)\s*:\s*ocaml", re.M)
# One that can only make patches, as kmalloc_objs.cocci of Linux 7.3, reports nothing, but fails.
REPORTS = re.compile(r"^virtual\b.*\breport\b", re.M)


def run(command, **options):
    """The finished command with its output; Problem if it cannot be started."""
    try:
        return subprocess.run(command, stdin=options.pop("stdin", subprocess.DEVNULL)
                              if "input" not in options else None,
                              capture_output=True, text=True, errors="replace", check=False,
                              **options)
    except FileNotFoundError as error:
        raise Problem(f"{error.filename} is missing; run: build/setup build lint") from None


class Source:
    """The kernel tree looked at, and what of it is ours."""

    def __init__(self, base, tree):
        self.base = base
        self.out = os.path.join(TOP, "out", base)
        self.tree = tree or os.path.join(self.out, "tree")
        self.orig = os.path.join(self.out, "orig")
        self.log = os.path.join(self.out, "lint")
        self.series = os.path.join(self.out, "series")
        self.exported = False           # by this run
        self.nobody = False             # and in whose name
        self.ktap = {}                  # what scripts with several results have said
        with open(os.path.join(self.out, ".tree.state"), encoding="utf-8") as f:
            self.touched = sorted(json.load(f)["files"])
        there = [p for p in self.touched if os.path.isfile(self.path(p))]
        self.edited = [p for p in there if os.path.isfile(os.path.join(self.orig, p))]
        self.own = [p for p in there if p not in self.edited]
        # These take the place of a file of the base, so the base has one; they are ours, whole.
        for path in [p for p in self.edited if self.is_whole(p)]:
            self.edited.remove(path)
            self.own.append(path)
        self.own.sort()

    @staticmethod
    def is_whole(path):
        return (os.path.isfile(os.path.join(TOP, path)) and path != "MAINTAINERS"
                or path == DOCUMENT)

    def path(self, name):
        return os.path.join(self.tree, name)

    def kernel_code(self, names):
        """The kernel's own C files among the names; the tests run in user space."""
        return [n for n in names if n.endswith((".c", ".h")) and not n.startswith("tools/")]

    def relative(self, text):
        """Output with the names of files as the reader knows them."""
        for root in (self.tree, os.path.join(self.out, "stock")):
            text = text.replace(root + "/", "")
        return text


# --- what stays, and why ---------------------------------------------------------------------

class Exceptions:
    """lint/checks/exceptions: lines 'CHECK FILE REGEX', each followed by an indented reason.

    FILE is * for any. What is excepted from checkpatch is from checkpatch-series, too.
    """

    def __init__(self, path, base, checks):
        self.rules = []
        if not os.path.exists(path):
            return
        for number, line in enumerate(read(path).splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            if line[0].isspace():
                if not self.rules:
                    raise Problem(f"{EXCEPTIONS}:{number}: a reason without an exception.")
                self.rules[-1]["reason"] = True
                continue
            fields = line.split(None, 2)
            m = re.fullmatch(r"([\w-]+)(?:([@<])(\d+\.\d+))?", fields[0])
            if len(fields) != 3 or not m:
                raise Problem(f"{EXCEPTIONS}:{number}: write 'CHECK[@BASE] FILE REGEX' and "
                              "below it, indented, the reason.")
            if m[1] not in checks:
                raise Problem(f"{EXCEPTIONS}:{number}: there is no check '{m[1]}'; "
                              "lint/lint BASE --list names them.")
            if m[3] and m[3] not in bases.names():
                raise Problem(f"{EXCEPTIONS}:{number}: there is no base {m[3]}.")
            since = not m[3] or bases.in_force([m[3]], base) is not None
            self.rules.append({"check": m[1], "here": since != (m[2] == "<"), "file": fields[1],
                               "what": re.compile(fields[2]), "used": False, "reason": False,
                               "where": f"{EXCEPTIONS}:{number}"})
        for rule in self.rules:
            if not rule["reason"]:
                raise Problem(f"{rule['where']}: has no reason; give it on an indented line.")

    def filter(self, check, found):
        """The findings that no exception of this check covers."""
        left = []
        for finding in found:
            covered = False
            for rule in self.rules:
                # What stays in a file stays in the patch that brings it.
                if (rule["here"] and rule["check"] in (check, check.removesuffix("-series"))
                        and rule["file"] in (finding[0], "*")
                        and rule["what"].search(finding[1])):
                    rule["used"] = covered = True
            if not covered:
                left.append(finding)
        return left

    def useless(self, check):
        return [(rule["where"], "nothing is found here any more; remove this exception",
                 f"{rule['where']}: nothing is found here any more; remove this exception")
                for rule in self.rules
                if rule["here"] and rule["check"] == check and not rule["used"]]


# --- checkpatch ------------------------------------------------------------------------------

CHECKPATCH_LINE = re.compile(r"^(?P<file>[^:]*):(?P<line>\d+): "
                             r"(?P<text>(?:ERROR|WARNING|CHECK):[A-Z_]+: .*)$")


def checkpatch(source, arguments, found, text=None):
    # Its messages of the second kind (no such perl module, ...) go to stderr.
    done = run(["perl", "scripts/checkpatch.pl", "--strict", "--terse", "--show-types",
                "--showfile", "--no-summary", *arguments], cwd=source.tree, input=text)
    for line in done.stdout.splitlines():
        m = CHECKPATCH_LINE.match(line)
        if m:
            found.add(m["file"], m["text"], line)
        elif line.strip():
            found.add("checkpatch", line)
    if done.returncode > 1 or (done.returncode and not done.stdout.strip()):
        raise Problem(f"checkpatch.pl failed: {done.stderr.strip() or 'it said nothing'}")


def check_checkpatch(source):
    """scripts/checkpatch.pl --strict on our files and edits"""
    found = findings.Findings()
    checkpatch(source, ["-f", *source.own], found)
    diffs = [run(["diff", "-p", "-U6", "--label", "a/" + name, "--label", "b/" + name,
                  os.path.join(source.orig, name), source.path(name)]).stdout
             for name in source.edited]
    # Only their lines: changelogs are looked at where there are any, in the series.
    checkpatch(source, ["--no-signoff", "--ignore", "COMMIT_MESSAGE", "-"], found,
               "Subject: [PATCH] all edits\n\n---\n" + "".join(diffs))
    return found


def export(source):
    """The series as it is now, once, unless the caller brought one."""
    if source.exported or source.series != os.path.join(source.out, "series"):
        return
    common.need("build/setup", "build", "series", BASE=source.base)
    source.nobody = check_series.export_now(source.base, False)
    if source.nobody:
        source.series = os.path.join(source.out, "check/series")
    source.exported = True


def check_checkpatch_series(source):
    """scripts/checkpatch.pl --strict on the exported patches"""
    folder = source.series
    # One of its own, unless the caller brought one: check-series may be looking at the other.
    if folder == os.path.join(source.out, "series"):
        folder = os.path.join(source.log, "series")
        common.need("series/export", source.base, "--nobody", "--output", folder)
    patches = sorted(glob.glob(os.path.join(folder, "0*.patch")))
    patches = [p for p in patches if not os.path.basename(p).startswith("0000-")]
    if not patches:
        raise Problem(f"there is no patch in {rel(folder)}.")
    found = findings.Findings()
    for patch in patches:
        one = findings.Findings()
        checkpatch(source, [patch], one)
        name = os.path.basename(patch)
        for file, text, line in one.list:
            # What is wrong with the patch itself has no file of the kernel.
            file = "PATCH" if os.path.basename(file) in ("", name) else file
            found.add(file, text, f"{name}: {line}")
    return found


# --- kernel-doc and ReST ---------------------------------------------------------------------

def check_kernel_doc(source):
    """scripts/kernel-doc -Werror on our files"""
    found = findings.Findings()
    for name in source.kernel_code(source.own):
        done = run(["perl", "scripts/kernel-doc", "-none", "-Werror", name], cwd=source.tree)
        for line in (done.stdout + done.stderr).splitlines():
            if re.search(r"warning:|error:", line, re.I):
                found.add(name, re.sub(r"^.*?(warning|error):\s*", "", line, flags=re.I), line)
        if done.returncode and not found.list:
            raise Problem(f"kernel-doc failed on {name}: {done.stderr.strip()}")
    return found


def check_rest(source):
    """the documentation builds as ReST and is in the index"""
    found = findings.Findings()
    if not os.path.isfile(source.path(DOCUMENT)):
        found.add(DOCUMENT, "is missing")
        return found
    done = run(["python3", "-m", "docutils", "--report=warning", "--halt=none", "--no-raw",
                "--no-file-insertion", "--exit-status=warning", source.path(DOCUMENT),
                os.devnull])
    for line in source.relative(done.stderr).splitlines():
        m = re.match(r"(?P<file>[^:]+):\d+: \((?P<text>\w+/\d\) .*)", line)
        if m:
            found.add(m["file"], m["text"], line)
    if done.returncode and not found.list:
        found.add(DOCUMENT, f"docutils ended with status {done.returncode}")
    index = os.path.join(os.path.dirname(DOCUMENT), "index.rst")
    if not re.search(r"^\.\. toctree::\n(?:[ \t]+.*\n|\n)*?[ \t]+vfio$",
                     read(source.path(index)), re.M):
        found.add(index, "its toctree does not name vfio")
    return found


# --- what user space gets ---------------------------------------------------------------------

UAPI = "include/uapi/linux/kvm.h"


def check_padding(source):
    """no structure of ours for user space has holes, whose content would be the kernel's"""
    found = findings.Findings()
    structs = re.findall(r"^struct kvm_vfio_\w+ \{\n(?:.*\n)*?\};\n", read(source.path(UAPI)), re.M)
    if not structs:
        raise Problem(f"{UAPI} has no structure of ours.")
    for struct in structs:
        # It is compiled as a program's would be.
        done = run([bases.host()["compiler"], "-x", "c", "-fsyntax-only", "-Wpadded", "-"],
                   input="#include <linux/types.h>\n" + struct, env={**os.environ, "LC_ALL": "C"})
        for text in re.findall(r"(?:warning|error): (.*)", done.stderr):
            what = f"{struct.splitlines()[0][:-2]}: {hole(text) if '[-Wpadded]' in text else text}"
            found.add(UAPI, what, f"{UAPI}: {what}")
    return found


def hole(text):
    """What gcc says of one, and what to do."""
    member = re.search(r"to align '(\w+)'", text)
    where = f"before '{member[1]}'" if member else "at the end"
    return f"padding {where}, which no code sets: put a member there, and set it to 0."


# --- our own semantic checks -----------------------------------------------------------------

REPORT = re.compile(r"^(?P<file>[^:\s]+):(?P<line>\d+):\d+(?:-\d+)?: (?P<text>.*)$")


def files_for(source, rule):
    """The files a rule wants to see: its '// look in: WORD' lines."""
    names = []
    for word in re.findall(r"^// look in: (.+)$", read(rule), re.M):
        if word == "own":
            names += source.kernel_code(source.own)
        elif word.startswith("all with "):
            done = run(["grep", "-rlwE", "--include=*.[ch]", word[len("all with "):],
                        "virt", "arch/x86", "drivers/vfio", "include"], cwd=source.tree)
            names += done.stdout.split()
        elif word.endswith("/*.c"):
            names += sorted(os.path.relpath(p, source.tree)
                            for p in glob.glob(source.path(word)))
        else:
            names.append(word)
    names = sorted({n for n in names if os.path.isfile(source.path(n))})
    if not names:
        raise Problem(f"{rel(rule)}: has no file to look in.")
    return names


def parse_reports(source, text, found, rule=""):
    for line in source.relative(text).splitlines():
        m = REPORT.match(line)
        if m:
            found.add(m["file"], m["text"], line)
        elif re.match(r"(EXN|Fatal|Python error|Traceback)|.*(?:parse error|Timeout)", line):
            found.add(rule, f"spatch: {line}")


@functools.cache
def regular_expressions():
    """The syntax of regular expressions that spatch was built with: PCRE or Str, OCaml's own."""
    said = run(["spatch", "--version"]).stdout
    m = re.search(r"^Syntax of regular expressions: (\w+)$", said, re.M)
    if not m or m[1] not in ("PCRE", "Str"):
        raise Problem("spatch --version does not say which syntax its regular expressions have.")
    return m[1]


def translated(rule):
    """A rule as spatch wants it. In Str, as Debian 13 has it, ( | ) are themselves, and a rule
    that means more by them matches nothing, in silence."""
    if regular_expressions() == "PCRE":
        return rule
    return re.sub(r'(?<=[=!]~ ")[^"]*(?=")', lambda m: re.sub(r"[()|]", r"\\\g<0>", m[0]), rule)


def make_rule_check(path):
    name = os.path.basename(path)[:-len(".cocci")]

    def check(source):
        names = files_for(source, path)
        # One after the other, but in one process: a rule may remember what it saw in another
        # file.  Named on the command line, they would be taken for one, and things missed.
        with tempfile.TemporaryDirectory() as folder:
            groups, rule = os.path.join(folder, "groups"), os.path.join(folder, name + ".cocci")
            write(groups, "\n\n".join(source.path(n) for n in names) + "\n")
            write(rule, translated(read(path)))
            done = run(["spatch", "-D", "report", "--very-quiet", "--no-show-diff",
                        "--no-includes", "--timeout", "120", "--cocci-file", rule,
                        "--file-groups", groups])
        found = findings.Findings()
        parse_reports(source, done.stdout + done.stderr, found, rel(path))
        if done.returncode and not found.list:
            raise Problem(f"spatch failed with {rel(path)}: "
                          f"{(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
        return found

    check.__doc__ = re.search(r"^/// (.*)$", read(path), re.M)[1]
    return name, check


# --- the kernel's semantic checks ------------------------------------------------------------

def coccicheck(source, root, names, scripts):
    """scripts/coccicheck over copies of the files; remembered by what they contain."""
    key = hashlib.sha256("\0".join(
        ["coccicheck 2", *[read(s) for s in scripts],
         *[n + "\0" + read(os.path.join(root, n)) for n in names]]).encode()).hexdigest()
    cache = os.path.join(source.log, "cache", key)
    if os.path.exists(cache):
        return read(cache)
    text = ""
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            os.makedirs(os.path.join(folder, os.path.dirname(name)), exist_ok=True)
            shutil.copyfile(os.path.join(root, name), os.path.join(folder, name))
        for script in scripts:
            done = run(["bash", "scripts/coccicheck"], cwd=source.tree, env={
                # It looks in the first one, from Linux 7.3 on in the second.
                **os.environ, "srctree": source.tree, "KBUILD_EXTMOD": folder, "srcroot": folder,
                "MODE": "report",
                "COCCI": script, "LINUXINCLUDE": "", "J": str(os.cpu_count()),
                "SPFLAGS": "--include-headers --timeout 120"})
            if done.returncode:
                raise Problem(f"coccicheck failed with {os.path.relpath(script, source.tree)}: "
                              f"{(done.stdout + done.stderr).strip().splitlines()[-1]}")
            text += (done.stdout + done.stderr).replace(folder + "/", "")
    write(cache, text)
    return text


def check_coccicheck(source):
    """the kernel's own semantic checks on our files, and on those we edit"""
    scripts = [s for s in sorted(glob.glob(source.path("scripts/coccinelle/**/*.cocci"),
                                           recursive=True))
               if not NO_OCAML.search(read(s)) and REPORTS.search(read(s))]
    found = findings.Findings()
    parse_reports(source, coccicheck(source, source.tree, source.kernel_code(source.own),
                                     scripts), found)
    edited = source.kernel_code(source.edited)
    before, now = findings.Findings(), findings.Findings()
    parse_reports(source, coccicheck(source, source.orig, edited, scripts), before)
    parse_reports(source, coccicheck(source, source.tree, edited, scripts), now)
    found.list += findings.new_ones(before.list, now.list)
    return found


# --- sparse ----------------------------------------------------------------------------------

# What Linux 7.3 uses and Debian's sparse does not know, and what does for it. Without the first the
# kernel does not call it (checker-valid.sh). Each use of the second, in MODULE_INFO(), is an error to it,
# and after one it gives no more warnings of a file.
UNKNOWN = ["-D__typeof_unqual__=__typeof__", "-D'__builtin_strlen(x)=(sizeof(x)-1)'"]
USES = """
static __typeof_unqual__(int) v;
_Static_assert(__builtin_strlen("abc") == 3, "");
"""


@functools.cache
def sparse_flags(source):
    """CF= for make."""
    flags = ["CF=-D__CHECK_ENDIAN__"]
    if os.path.exists(source.path("scripts/checker-valid.sh")):
        knows = run([*kbuild.in_root(source.base), "sparse", "-"], input=USES)
        flags += UNKNOWN if "error:" in knows.stderr else []
    return " ".join(flags)


def sparse_build(source, tree, name):
    """What sparse says of the modules of a tree, built in a folder of its own."""
    build = os.path.join(source.log, f"build-{name}")
    log = os.path.join(source.log, f"sparse-{name}.log")
    release = read(os.path.join(source.out, "debian/release")).strip()
    config = os.path.join(source.out, "debian/root/usr/src", f"linux-headers-{release}/.config")
    os.makedirs(build, exist_ok=True)
    make = kbuild.make(source.base, tree, f"O={build}", *kbuild.tools(source.base), f"KERNELRELEASE={release}")
    asked = os.path.join(build, "asked.config")
    wanted = read(config) + bases.iommufd_options(source.base)
    if not os.path.exists(asked) or read(asked) != wanted:
        write(os.path.join(build, ".config"), wanted)
        done = run([*make, "olddefconfig", "modules_prepare"])
        if done.returncode:
            write(log, done.stdout + done.stderr)
            raise Problem(f"cannot configure the kernel: see {rel(log)}.")
        if bases.fact(source.base, "iommufd") and "\nCONFIG_IOMMUFD=m\n" not in read(os.path.join(build, ".config")):
            raise Problem(f"IOMMUFD did not stay set in {rel(build)}/.config; "
                          "correct iommufd in bases/project.toml.")
        write(asked, wanted)
    with open(log, "w", encoding="utf-8") as f:
        status = subprocess.run([*make, "C=2", sparse_flags(source), *bases.folders(source.base)],
                                stdin=subprocess.DEVNULL, stdout=f, stderr=f, check=False)
    text = source.relative(read(log))
    if status.returncode:
        raise Problem(f"the {name} modules do not build: see {rel(log)}.")
    if "too many errors" in text or "CHECK " not in text:
        raise Problem(f"sparse gave up or saw nothing: see {rel(log)}.")
    return text


def check_sparse(source):
    """sparse finds nothing in the modules that it does not find in the base's"""
    common.need("build/setup", "build", "sparse", BASE=source.base)
    common.need("build/fetch", source.base)
    common.need("build/stock-tree", source.base)
    version = run([*kbuild.in_root(source.base), "sparse", "--version"])
    if version.returncode:
        raise Problem("sparse is missing; run: build/setup build sparse")
    with open(os.path.join(source.out, ".stock.state"), encoding="utf-8") as f:
        key = hashlib.sha256("\n".join([
            version.stdout, json.load(f)["source"], read(os.path.join(source.out, "debian/version")),
            sparse_flags(source), *bases.folders(source.base)]).encode()).hexdigest()
    cache = os.path.join(source.log, "cache", f"sparse-{key}")
    with common.lock(source.base, "sparse"):
        if not os.path.exists(cache):
            step("sparse on the base's own modules, once (4 minutes)")
            write(cache, sparse_build(source, os.path.join(source.out, "stock"), "stock"))
        step("sparse on our modules (4 minutes the first time)")
        now = findings.sparse(sparse_build(source, source.tree, "ours"))
    found = findings.Findings()
    found.list = findings.new_ones(findings.sparse(read(cache)).list, now.list)
    return found


# --- the tests, as the kernel builds them ----------------------------------------------------

TESTS = [os.path.basename(path)[:-2] for path in
         sorted(glob.glob(os.path.join(TOP, "tools/testing/selftests/kvm/vfio_*_test.c")))]
# By kbuild's name of the architecture: what selftests call it, and its compiler
TEST_ARCHES = {"x86": ("x86_64", ""), "arm64": ("aarch64", "aarch64-linux-gnu-"),
               "s390": ("s390x", "s390x-linux-gnu-")}


def test_build(source, arch, compiler, names):
    """What make says of the tests with their library and the kernel's own headers."""
    build = os.path.join(source.log, "selftests", arch)
    log = os.path.join(source.log, f"selftests-{arch}.output")
    # The library stays, the programs are made anew: or they would not warn again.
    made = os.path.join(build, "made-of")
    with open(os.path.join(source.out, ".tree.state"), encoding="utf-8") as f:
        want = source.tree + " " + json.load(f)["source"]
    if not os.path.exists(made) or read(made) != want:
        shutil.rmtree(build, ignore_errors=True)
        write(made, want)
    for path in glob.glob(os.path.join(build, "vfio_*")):
        os.unlink(path)
    # Programs need no other compiler than this machine's, whatever builds the kernel.
    cc = None if bases.native(source.base) else bases.host()["compiler"]
    make = ["make", "--no-print-directory", f"-j{os.environ.get('JOBS', os.cpu_count())}",
            f"ARCH={arch}", *kbuild.tools(source.base, compiler),
            *([f"CC={compiler}{cc}", f"HOSTCC={cc}"] if cc else [])]
    text = ""
    for command in ([*make, "-C", source.tree, f"O={build}/headers", "headers"],
                    [*make, "-C", source.path("tools/testing/selftests/kvm"), "-k",
                     f"OUTPUT={build}", f"KHDR_INCLUDES=-isystem {build}/headers/usr/include",
                     *[os.path.join(build, name) for name in names]]):
        done = run(command)
        text += done.stdout + done.stderr
        write(log, text)
        if done.returncode and "headers" in command:
            raise Problem(f"the headers for {arch} cannot be made: see {rel(log)}.")
    return done.returncode, source.relative(text), log


def check_selftests(source):
    """`make headers`, then the tests by the Makefile of KVM's selftests, no warning"""
    common.need("build/setup", "selftests", BASE=source.base)
    found = findings.Findings()
    makefile = "tools/testing/selftests/kvm/Makefile"
    # From Linux 6.14 on the programs are named in a file of their own, by kbuild's names.
    own = os.path.exists(source.path(makefile + ".kvm"))
    makefile += ".kvm" if own else ""
    with common.lock(source.base, "selftests"):
        for arch, (name, compiler) in TEST_ARCHES.items():
            name = arch if own else name
            names = re.findall(rf"^TEST_GEN_PROGS_{name} \+= (vfio_\w+)$",
                               read(source.path(makefile)), re.M)
            if arch == "x86":
                for test in set(TESTS) - set(names):
                    found.add(makefile, f"does not build {test} for {name}")
            if not names:
                continue
            step(f"the selftests for {arch}")
            status, text, log = test_build(source, arch, compiler, names)
            ours = [f for f in findings.compiler(text).list
                    if re.match(r"(?:.*/)?vfio_\w+\.[ch]$", f[0])]
            for file, what, line in ours:
                found.add("tools/testing/selftests/kvm/" + os.path.basename(file), what,
                          f"{arch}: {line}")
            if status and not ours:
                found.add(makefile, f"the tests do not build for {arch}: see {rel(log)}")
    return found


# --- what other scripts check ----------------------------------------------------------------

def ktap_of(source, script, *arguments):
    """The results of a script: name -> (is it ok, the '#' lines before it), in their order."""
    if script not in source.ktap:
        status, out, said = common.call(script, *arguments)
        log = os.path.join(source.log, os.path.basename(script) + ".output")
        write(log, out)
        results, notes = {}, []
        for line in out.splitlines():
            m = re.match(r"(not )?ok \d+ ([^#]*[^# ])", line)
            if m:
                results[m[2]] = (not m[1], notes)
                notes = []
            elif line.startswith("# "):
                notes.append(line[2:])
        plan = re.search(r"^1\.\.(\d+)$", out, re.M)
        if status not in (0, 1) or not plan or len(results) != int(plan[1]):
            raise Problem(said or f"{script} ended early: see {rel(log)}.")
        source.ktap[script] = results
    return source.ktap[script]


def make_series_check(name, what):
    def check(source):
        export(source)
        good, notes = ktap_of(source, "series/check-series", source.base,
                              *(["--nobody"] if source.nobody else []))[name]
        found = findings.Findings()
        if not good:
            for note in notes or [f"series/check-series {source.base} says no more"]:
                found.add("series", note, note)
        return found

    check.__doc__ = what
    return name, check


def whole(source, script, *arguments):
    """All results of a script as the findings of one check."""
    found = findings.Findings()
    for name, (good, notes) in ktap_of(source, script, *arguments).items():
        if not good:
            for note in notes or ["failed"]:
                found.add("series", f"{name}: {note}", f"{name}: {note}")
    return found


def check_bisect(source):
    """after each patch all of it builds, with no warning that its parent has not"""
    export(source)
    return whole(source, "build/bisect", source.base, "nobody" if source.nobody else "series")


def check_cross(source):
    """it builds for other architectures and configurations, with no new warning"""
    return whole(source, "build/cross", source.base)


# --- our scripts and texts -------------------------------------------------------------------

def texts():
    """The files of the repository; those that git ignores are not of it."""
    done = run(["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others",
                "--exclude-standard"], cwd=TOP)
    names = [n for n in done.stdout.split("\0") if os.path.isfile(os.path.join(TOP, n))]
    if done.returncode:         # a release that was unpacked without its history
        names = [os.path.relpath(os.path.join(at, n), TOP)
                 for at, _, files in os.walk(TOP) for n in files]
        names = [n for n in names if not n.startswith("out/")]
    return sorted(set(names))


def check_shellcheck(_):
    """shellcheck on all shell scripts of the repository"""
    scripts = [n for n in texts() if re.match(r"#!.*\b(?:ba|da|)sh\b",
                                              read(os.path.join(TOP, n))[:80])]
    done = run(["shellcheck", "--external-sources", "--source-path=SCRIPTDIR", "--format=gcc",
                *scripts], cwd=TOP)
    found = findings.Findings()
    for line in done.stdout.splitlines():
        m = re.match(r"(?P<file>[^:]+):\d+:\d+: (?P<text>.*)$", line)
        found.add(m["file"] if m else "shellcheck", m["text"] if m else line, line)
    if done.returncode and not found.list:
        raise Problem(f"shellcheck failed: {done.stderr.strip() or 'it said nothing'}")
    return found


def check_codespell(_):
    """no word of the repository's texts is misspelt"""
    # Neither what follows an escape in a string, nor part of an expression; and the file that
    # names the exceptions is one.
    done = run(["codespell", r"--ignore-regex=\\\w+|\[\w+\]\w*",
                *[n for n in texts() if n != EXCEPTIONS]], cwd=TOP)
    found = findings.Findings()
    for line in done.stdout.splitlines():
        m = re.match(r"(?P<file>[^:]+):\d+: (?P<text>.* ==> .*)$", line)
        if m:
            found.add(m["file"], m["text"], line)
    if done.returncode and not found.list:
        raise Problem(f"codespell failed: {done.stderr.strip() or 'it said nothing'}")
    return found


# --- putting it together ---------------------------------------------------------------------

def all_checks(base=None):
    """(name, function, is it fast); of the newest base's series, which is for the kernel's lists,
    checkpatch is told at once."""
    checks = [("checkpatch", check_checkpatch, True),
              ("kernel-doc", check_kernel_doc, True),
              ("rest", check_rest, True),
              ("shellcheck", check_shellcheck, True),
              ("codespell", check_codespell, True),
              ("padding", check_padding, True)]
    for path in sorted(glob.glob(os.path.join(TOP, "lint/checks/*.cocci"))):
        checks.append((*make_rule_check(path), True))
    checks.append(("checkpatch-series", check_checkpatch_series, base == bases.names()[-1]))
    checks += [(*make_series_check(*case), False) for case in check_series.CHECKS]
    checks += [("coccicheck", check_coccicheck, False),
               ("selftests", check_selftests, False),
               ("sparse", check_sparse, False),
               ("bisect", check_bisect, False),
               ("cross", check_cross, False)]
    return checks


def perform(name, check, source, exceptions):
    """(result line's end, its notes, broken?)"""
    start = time.monotonic()
    log = os.path.join(source.log, name + ".log")
    try:
        found = check(source)
        left = exceptions.filter(name, found.list)
        # What is a misspelling depends on the host: its dictionary is not of the kernel's source.
        if name != "codespell":
            left += exceptions.useless(name)
    except Problem as error:
        write(log, f"{error}\n")
        return f"not ok %d {name} # could not be made", [str(error)], True
    excepted = len(found.list) - sum(f in found.list for f in left)
    write(log, "".join(f"{line}\n" for _, _, line in left))
    note = f"{check.__doc__} ({time.monotonic() - start:.0f} s"
    note += f", {excepted} excepted)" if excepted else ")"
    lines = [line for _, _, line in left[:SHOWN]]
    if left:
        lines.append(f"{len(left)} findings: {rel(log)}")
    return f"{'not ok' if left else 'ok'} %d {name} # {note}", lines, False


def main():
    parser = argparse.ArgumentParser(prog="lint/lint")
    parser.add_argument("base", choices=bases.names())
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--only", default="", metavar="REGEX")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--tree", metavar="DIR")
    args = parser.parse_args()
    checks = [c for c in all_checks(args.base)
              if (c[2] or not args.fast) and re.search(args.only, c[0])]
    if args.list:
        print("\n".join(f"{name:20} {check.__doc__}" for name, check, _ in checks))
        return 0
    if not checks:
        raise Problem(f"no check is named like '{args.only}'; --list names them.")
    if not args.tree:
        common.need("build/setup", "build", "lint", BASE=args.base)
        common.need("series/assemble", args.base)
    source = Source(args.base, args.tree and os.path.abspath(args.tree))
    exceptions = Exceptions(os.path.join(TOP, EXCEPTIONS), args.base,
                            [c[0] for c in all_checks()])
    os.makedirs(source.log, exist_ok=True)
    print(f"KTAP version 1\n1..{len(checks)}", flush=True)
    failed = broken = False
    for number, (name, check, _) in enumerate(checks, 1):
        result, notes, stuck = perform(name, check, source, exceptions)
        for line in notes:
            print(f"# {line}")
        print(result % number, flush=True)
        failed |= result.startswith("not ok")
        broken |= stuck
    return 2 if broken else int(failed)
