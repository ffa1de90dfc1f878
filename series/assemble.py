#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""series/assemble BASE: make out/BASE/tree, the kernel source with our device.

out/BASE/tree is Debian's linux-source-BASE, in which
  1. series/strip/files and series/strip/deletions take the KVM-VFIO device
     of the base out,
  2. every file of the repository at a kernel path is copied to its place, unless
     series/series has it in a patch that is for other bases,
  3. FILE.cocci and FILE.patch edit the kernel's own FILE; FILE.6.12.patch does so
     from Linux 6.12 on, after the general one: of several such, the newest that
     is not newer than the base.  One of comments alone ends it at its version,
  4. series/symbol-versions/FILE.cocci and .patch edit FILE after all that, our
     own files, too: what keeps Debian's symbol versions, where there are any,
     and nothing else.

Every deletion, rule and hunk must take effect exactly as often as stated, or
nothing is changed and one sentence names the culprit.  Only files whose
content differs are written, so what did not change is not built again.

out/BASE/orig keeps the base's own copy of each file that we touch, so that a
file removed from the repository gives the base's back.

  --strip-only   leave out our files and edits (out/BASE/stripped instead)
  --list         print the paths that differ from the base and stop
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile

from kit import bases
from kit import common
from kit.common import TOP, Problem, step
from series import patches

# Where Debian's linux-source packages put their tarballs, and where build/fetch puts them.
SOURCES = os.environ.get("LINUX_SOURCES", "/usr/src")
FETCHED = "out/{folder}/debian/root/usr/src"
# The folders of the repository that are a corner of a kernel tree.
KERNEL_FOLDERS = ("Documentation", "arch", "drivers", "include", "scripts", "tools", "virt")
# Edits that come last, by the paths of what they edit: the series' last patch.
LAST = "series/symbol-versions/"
# Files whose place in the kernel has moved since the path was chosen.
RENAMED = {
    "Documentation/virtual/kvm/devices/vfio.txt":
        "Documentation/virt/kvm/devices/vfio.rst",
}
EDIT = re.compile(r"^(?P<file>.+?)(?:\.(?P<base>\d+\.\d+))?\.(?P<kind>cocci|patch)$")
# What editors, patch and compilers leave beside a source file.
LEFTOVER = re.compile(r"(~|\.orig|\.rej|\.sw.|\.o|\.tmp)$|(^|/)(\.(?!gitignore\.)|#)")


def read(path):
    return common.read_bytes(path)


def read_text(path):
    return read(path).decode("utf-8")


def write(path, data, mode=0o644):
    """Write whole or not at all; leave an equal file, and its date, alone."""
    if os.path.isfile(path) and not os.path.islink(path) and read(path) == data:
        return False
    common.write(path, data, mode=mode)
    return True


def sha(*parts):
    digest = hashlib.sha256()
    for part in parts:
        part = part if isinstance(part, bytes) else part.encode()
        digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest()


def for_base(text, base, where):
    """"3" or "6.1=3,6.12=5" (from 6.1 on 3, from 6.12 on 5) to the count for this base."""
    counts = {}
    for item in text.split(","):
        name, eq, number = item.rpartition("=")
        if not number.isdigit() or (eq and not re.fullmatch(bases.VERSION, name)):
            raise Problem(f"{where}: '{text}' is not a count (3, or 6.1=3,6.12=5).")
        counts[name] = int(number)
    version = bases.in_force(counts.keys() - {""}, base)
    if version is None and "" not in counts:
        raise Problem(f"{where}: '{text}' says nothing of Linux {base}.")
    return counts[version or ""]


# ---------------------------------------------------------------- the base

class Base:
    """The unpacked kernel source, and the base's own copy of what we touched."""

    def __init__(self, base, name, folder=None):
        self.base = base
        folder = folder or bases.base(base)["folder"]
        self.dir = os.path.join(TOP, "out", folder)
        self.tree = os.path.join(self.dir, name)
        self.orig = os.path.join(self.dir, f"orig-{name}" if name != "tree" else "orig")
        self.state_file = os.path.join(self.dir, f".{name}.state")
        self.stamp_file = os.path.join(self.dir, f"{name}.stamp")
        self.package = bases.base(base)["source"]
        sources = SOURCES if bases.native(base) else FETCHED.format(folder=folder)
        self.tarball = os.path.join(TOP, sources, self.package + ".tar.xz")
        self.state = {"source": None, "files": {}}
        if os.path.exists(self.state_file):
            self.state = json.loads(read_text(self.state_file))

    def source_id(self):
        """What changes when Debian's source package does."""
        try:
            st = os.stat(self.tarball)
        except FileNotFoundError:
            if os.path.isdir(self.tree) and self.state["source"]:
                return self.state["source"]
            raise Problem(f"{self.tarball} is missing; run: "
                          f"BASE={self.base} build/setup build") from None
        return f"{st.st_size}-{int(st.st_mtime)}"

    def unpack(self):
        source = self.source_id()
        if os.path.isdir(self.tree) and self.state["source"] == source:
            return
        step(f"unpacking the source of Linux {self.base} ({os.path.basename(self.tarball)})")
        for path in (self.state_file, self.stamp_file):
            if os.path.exists(path):
                os.unlink(path)
        for path in (self.tree, self.tree + ".tmp", self.orig):
            shutil.rmtree(path, ignore_errors=True)
        os.makedirs(self.tree + ".tmp")
        try:
            subprocess.run(["tar", "-x", "-f", self.tarball, "--strip-components=1",
                            "-C", self.tree + ".tmp"], check=True)
        except subprocess.CalledProcessError:
            raise Problem(f"cannot unpack {self.tarball} into out/{self.base}: "
                          "the disk may be full or the package damaged; make room or "
                          f"reinstall {self.package}, and run it again.") from None
        os.replace(self.tree + ".tmp", self.tree)
        self.state = {"source": source, "files": {}}
        self.save()

    def save(self):
        write(self.state_file, json.dumps(self.state, indent=1, sort_keys=True).encode())

    def pristine_file(self, path):
        """Where the base's own file of that path is, None if it has no such file."""
        for root in (self.orig, None if path in self.state["files"] else self.tree):
            if root and os.path.isfile(os.path.join(root, path)):
                return os.path.join(root, path)
        return None

    def pristine(self, path):
        """The base's own content of path, None if it has no such file."""
        file = self.pristine_file(path)
        return read(file) if file else None

    def apply(self, wanted):
        """Bring the tree to WANTED: path -> (bytes or None for deleted, mode)."""
        for path in wanted:
            inside = os.path.join(self.tree, path)
            if path not in self.state["files"] and os.path.isfile(inside):
                write(os.path.join(self.orig, path), read(inside),
                      os.stat(inside).st_mode & 0o777)
        gone = set(self.state["files"]) - set(wanted)
        # Interrupted from here on, the next run still knows every file we touched.
        for path in wanted:
            self.state["files"].setdefault(path, "")
        self.save()

        changed = []
        for path in sorted(gone):
            content, mode = None, 0o644
            if os.path.isfile(os.path.join(self.orig, path)):
                content = read(os.path.join(self.orig, path))
                mode = os.stat(os.path.join(self.orig, path)).st_mode & 0o777
            if self.put(path, content, mode):
                changed.append(path)
        for path, (content, mode) in sorted(wanted.items()):
            if self.put(path, content, mode):
                changed.append(path)
        # Last, or an interruption would take our content for the base's own.
        for path in gone:
            if os.path.isfile(os.path.join(self.orig, path)):
                os.unlink(os.path.join(self.orig, path))
        self.state["files"] = {path: sha(content) if content is not None else "deleted"
                               for path, (content, _) in wanted.items()}
        self.save()
        write(self.stamp_file, (sha(json.dumps(self.state, sort_keys=True)) + "\n").encode())
        return changed

    def put(self, path, content, mode):
        inside = os.path.join(self.tree, path)
        if content is not None:
            return write(inside, content, mode)
        if not os.path.isfile(inside):
            return False
        os.unlink(inside)
        # A folder of ours that is now empty would not be in the base.
        folder = os.path.dirname(inside)
        while folder != self.tree and not os.listdir(folder):
            os.rmdir(folder)
            folder = os.path.dirname(folder)
        return True


# ------------------------------------------------------------------- strip

def strip(base, content, result, chosen=None, kernel=None):
    """Take the base's device out: fill RESULT with path -> content or None.

    CHOSEN has the paths to take it out of, if not of all; KERNEL is what to call what it is
    taken out of.
    """
    folder = os.path.join(TOP, "series/strip")
    kernel = kernel or f"Linux {base}"
    for where, path in patches.lines_of(os.path.join(folder, "files")):
        if chosen is not None and path not in chosen:
            continue
        if content(path) is None:
            raise Problem(f"{where}: {kernel} has no {path}; correct the list.")
        result[path] = None
    path = None
    for where, line in patches.lines_of(os.path.join(folder, "deletions")):
        if not line.startswith("\t"):
            path = line.strip()
        if chosen is not None and path not in chosen:
            continue
        if not line.startswith("\t"):
            if content(path) is None:
                raise Problem(f"{where}: {kernel} has no {path}; correct the list.")
            result[path] = content(path)
            continue
        count, pattern = line.strip().split(None, 1)
        count = for_base(count, base, where)
        text, found = re.subn(pattern, "", result[path].decode("utf-8"), flags=re.M)
        if found != count:
            raise Problem(f"{where}: the deletion /{pattern}/ matched {found} times in "
                          f"{path} of {kernel}, {count} expected; correct it.")
        result[path] = text.encode()


def stripped():
    """The paths that the base's device is taken out of."""
    folder = os.path.join(TOP, "series/strip")
    return [line.strip() for name in ("files", "deletions")
            for _, line in patches.lines_of(os.path.join(folder, name)) if not line.startswith("\t")]


# ------------------------------------------------------------------- cocci

class Rule:
    def __init__(self, name, line):
        self.name = name
        self.line = line
        self.changes = False


def parse_cocci(text, where):
    """The rules of a semantic patch, with the line after each one's end."""
    rules, lines = [], text.splitlines()
    part = "body"                      # of the file's head, then of a rule
    for number, line in enumerate(lines):
        if part == "body" and line.startswith("@"):
            m = re.match(r"^@\s*(\w+)", line)
            if not m or line.startswith("@@"):
                raise Problem(f"{where}:{number + 1}: the rule has no name; write "
                              "'@name@' so that its effect can be checked.")
            if ":" in line.split("@")[1]:
                raise Problem(f"{where}:{number + 1}: script rules are not supported.")
            rules.append(Rule(m[1], number))
            closed = line.count("@")
            part = "body" if closed >= 4 else "meta"
            if closed < 2:
                part = "header"
        elif part == "header":
            part = "meta" if "@" in line else "header"
        elif part == "meta":
            part = "body" if line.rstrip().endswith("@@") else "meta"
        elif rules and re.match(r"^[-+]", line):
            rules[-1].changes = True
    if part != "body" or not rules:
        raise Problem(f"{where}: not a semantic patch: no complete '@name@ ... @@' rule.")
    return rules, lines


def expectations(lines, rules, base, where):
    """"// expect[ FROM]: RULE COUNT" to rule -> count, for this base.

    A rule that newer bases only are to have must change nothing on this one.
    """
    counts = {}
    for number, line in enumerate(lines, 1):
        if not re.match(r"^//\s*expect", line):
            continue
        m = re.match(rf"^//\s*expect(?:\s+({bases.VERSION}))?:\s*(\w+)\s+(\d+)\s*$", line)
        if not m:
            raise Problem(f"{where}:{number}: write '// expect: RULE COUNT' or "
                          "'// expect BASE: RULE COUNT' for that base and newer ones.")
        if m[2] not in [r.name for r in rules]:
            raise Problem(f"{where}:{number}: there is no rule '{m[2]}' in this file.")
        counts.setdefault(m[2], {})[m[1] or "0.0"] = int(m[3])
    for rule in rules:
        if rule.changes and rule.name not in counts:
            raise Problem(f"{where}:{rule.line + 1}: rule '{rule.name}' has no "
                          f"'// expect: {rule.name} COUNT' line.")
    return {rule: of.get(bases.in_force(of, base), 0) for rule, of in counts.items()}


def only_rules(rules, lines, names):
    """As parse_cocci(), without the rules that change something and are not in NAMES."""
    gone = {rule.name for rule in rules if rule.changes and rule.name not in names}
    kept = []
    for line in lines[:rules[0].line]:
        m = re.match(r"^//\s*expect[^:]*:\s*(\w+)", line)
        if not m or m[1] not in gone:
            kept.append(line)
    ends = [rule.line for rule in rules[1:]] + [len(lines)]
    left = []
    for rule, end in zip(rules, ends):
        if rule.name in gone:
            continue
        left.append(Rule(rule.name, len(kept)))
        left[-1].changes = rule.changes
        kept += lines[rule.line:end]
    return left, kept


def parse_diff(diff):
    """A unified diff's head and its hunks."""
    starts = [m.start() for m in re.finditer(rb"^@@ ", diff, re.M)] + [len(diff)]
    return diff[:starts[0]], [diff[a:b] for a, b in zip(starts, starts[1:])]


class Editor:
    """Applies semantic patches and diffs, remembering earlier results."""

    def __init__(self, base, cache, kernel=None):
        self.base = base
        self.kernel = kernel or f"Linux {base}"
        self.cache = cache
        self.used = set()
        self.version = None
        # What edits have come to: after most of a series' patches they are as they were before.
        self.edited = {}

    def edit(self, kind, source, path, name, parts=None):
        """Apply an edit of that kind, or PARTS of it."""
        key = (source, path, name, None if parts is None else frozenset(parts))
        if key not in self.edited:
            self.edited[key] = getattr(self, kind)(source, path, name, parts)
        return self.edited[key]

    def cached(self, key, make):
        path = os.path.join(self.cache, key)
        self.used.add(key)
        if not os.path.exists(path):
            # The same file of the same base in another suite of Debian gave the same.
            known = os.path.join(TOP, "out", self.base, "cache", key)
            write(path, read(known) if os.path.exists(known) else make())
        return read(path)

    def prune(self):
        if os.path.isdir(self.cache):
            for name in set(os.listdir(self.cache)) - self.used:
                os.unlink(os.path.join(self.cache, name))

    def spatch(self, source, rules_text, name, where):
        if self.version is None:
            try:
                self.version = subprocess.run(["spatch", "--version"], check=True,
                                              capture_output=True, text=True).stdout
            except FileNotFoundError:
                raise Problem("spatch is missing; run: build/setup build") from None
        # What is expected of rules says nothing to spatch, and is less where there are fewer of them.
        rules = re.sub(r"^//\s*expect.*\n", "", rules_text, flags=re.M)
        key = sha("spatch 2", self.version, source, rules, name)
        return self.cached(key, lambda: self.run_spatch(source, rules_text, name, where))

    @staticmethod
    def run_spatch(source, rules_text, name, where):
        with tempfile.TemporaryDirectory() as tmp:
            # spatch looks at the name to tell a header from a C file.
            before = os.path.join(tmp, os.path.basename(name))
            after = os.path.join(tmp, "after-" + os.path.basename(name))
            write(before, source)
            write(os.path.join(tmp, "rules.cocci"), rules_text.encode())
            run = subprocess.run(
                ["spatch", "--very-quiet", "--no-includes", "--no-show-diff",
                 "--timeout", "120", "--sp-file", os.path.join(tmp, "rules.cocci"),
                 before, "-o", after],
                stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if "there are no modified files" in run.stderr:
                return source          # an error to spatch; cocci() counts
            if run.returncode != 0:
                log = os.path.join(TOP, "out", "spatch.log")
                write(log, (run.stdout + run.stderr).encode())
                raise Problem(f"{where}: spatch cannot apply it to {name}: "
                              "see out/spatch.log and correct the rule.")
            return read(after) if os.path.exists(after) else source

    @staticmethod
    def places(before, after):
        """How many separate places differ."""
        if before == after:
            return 0
        with tempfile.TemporaryDirectory() as tmp:
            write(os.path.join(tmp, "a"), before)
            write(os.path.join(tmp, "b"), after)
            out = subprocess.run(["diff", "-a", "-U0", os.path.join(tmp, "a"),
                                  os.path.join(tmp, "b")], capture_output=True).stdout
        return sum(line.startswith(b"@@") for line in out.split(b"\n"))

    def cocci(self, source, path, edit, parts=None):
        """Apply a semantic patch, rule after rule; of PARTS, the rules named there.

        The effect of a rule is what changes when the rules up to and with it
        are applied instead of the rules before it: so a rule may use the
        metavariables of an earlier one, and one that matches nothing is seen.
        """
        rules, lines = parse_cocci(read_text(os.path.join(TOP, edit)), edit)
        if parts is not None:
            rules, lines = only_rules(rules, lines, parts)
        counts = expectations(lines, rules, self.base, edit)
        now = source
        for i, rule in enumerate(rules):
            if not rule.changes:
                continue
            end = rules[i + 1].line if i + 1 < len(rules) else len(lines)
            after = self.spatch(source, "\n".join(lines[:end]) + "\n", path, edit)
            found = self.places(now, after)
            if found != counts[rule.name]:
                raise Problem(f"{edit}:{rule.line + 1}: rule '{rule.name}' changed {found} "
                              f"places in {path} of {self.kernel}, "
                              f"{counts[rule.name]} expected; correct the rule or its count.")
            now = after
        return now

    def patch(self, source, path, edit, parts=None):
        """Apply a unified diff with no fuzz, and every hunk of it (of PARTS, these)."""
        diff = read(os.path.join(TOP, edit))
        names = re.findall(rb"^\+\+\+ (?:b/)?([^\t\n]+)", diff, re.M)
        if [n.decode() for n in names] != [path]:
            raise Problem(f"{edit}: must have one line '+++ b/{path}'.")
        head, hunks = parse_diff(diff)
        if not hunks:
            raise Problem(f"{edit}: holds no hunk; remove it or fill it.")
        numbers = [n for n in range(1, len(hunks) + 1) if parts is None or n in parts]
        if parts is not None:
            diff = head + b"".join(hunks[n - 1] for n in numbers)
        return self.cached(sha("patch 1", source, diff),
                           lambda: self.run_patch(source, diff, numbers, path, edit))

    def run_patch(self, source, diff, numbers, path, edit):
        with tempfile.TemporaryDirectory() as tmp:
            before, after = os.path.join(tmp, "before"), os.path.join(tmp, "after")
            write(before, source)
            run = subprocess.run(
                ["patch", "--fuzz=0", "--forward", "--no-backup-if-mismatch",
                 "--reject-file=-", "-o", after, before],
                input=diff, capture_output=True)
            if run.returncode != 0:
                said = (run.stdout + run.stderr).decode(errors="replace")
                failed = [str(numbers[int(n) - 1])
                          for n in re.findall(r"Hunk #(\d+) FAILED", said)]
                what = f"hunk {', '.join(failed)} of {edit}" if failed else edit
                log = os.path.join(TOP, "out", "patch.log")
                write(log, said.encode())
                raise Problem(f"{what} does not apply to {path} of {self.kernel}: "
                              "see out/patch.log and correct it.")
            return read(after)


# ----------------------------------------------------------- our own files

def our_files():
    """Every file of ours at a kernel path, as the repository names it."""
    if os.path.exists(os.path.join(TOP, ".git")):
        out = subprocess.run(
            ["git", "-C", TOP, "ls-files", "-z", "--cached", "--others",
             "--exclude-standard", "--", *KERNEL_FOLDERS, LAST],
            capture_output=True)
        # git refuses a clone owned by somebody else; the walk below does not.
        if out.returncode == 0:
            names = set(out.stdout.decode().split("\0")) - {""}
            return sorted(n for n in names if not LEFTOVER.search(n)
                          and os.path.isfile(os.path.join(TOP, n)))
    names = []
    for folder in (*KERNEL_FOLDERS, LAST.rstrip("/")):
        for at, _, files in os.walk(os.path.join(TOP, folder)):
            rel = os.path.relpath(at, TOP)
            names += [os.path.join(rel, f) for f in files]
    return sorted(n for n in names if not LEFTOVER.search(n))


def sort_ours(names):
    """To (kernel path -> our file), (kernel path -> its edits, in order) and the same of the
    edits that come last."""
    whole, edits, last = {}, {}, {}
    for name in names:
        m = EDIT.match(name.removeprefix(LAST))
        if not m:
            if name.startswith(LAST):
                raise Problem(f"{name}: only edits belong there, FILE.cocci or FILE.patch.")
            whole[RENAMED.get(name, name)] = name
            continue
        (last if name.startswith(LAST) else edits).setdefault(m["file"], []).append(
            (m["kind"], m["base"] or "", name))
    for path, list_ in edits.items():
        always = [name for _, version, name in list_ if not version]
        if path in whole and always:
            raise Problem(f"{always[0]}: {whole[path]} is ours, whole; edit it directly.")
    for list_ in [*edits.values(), *last.values()]:
        list_.sort()                   # cocci before patch, all bases before one
    return whole, edits, last


def ends(name):
    """Does this edit say that there is none any more, from its version on?"""
    return all(line.startswith(("#", "//")) or not line.strip()
               for line in read_text(os.path.join(TOP, name)).splitlines())


def in_force(base, edits):
    """The edits of one file that this base has."""
    version = {kind: bases.in_force([v for k, v, _ in edits if k == kind and v], base)
               for kind in ("cocci", "patch")}
    return [(kind, name) for kind, v, name in edits
            if v in ("", version[kind]) and not (v and ends(name))]


def edit_files(base, edits, content, result, editor, chosen):
    def edited(path):
        source = result[path] if path in result else content(path)
        for kind, name in in_force(base, edits[path]):
            if name not in chosen:
                continue
            if source is None:
                raise Problem(f"{name}: {editor.kernel}, stripped, has no {path} to edit.")
            source = editor.edit(kind, source, path, name, chosen[name])
        return source

    paths = sorted(path for path, list_ in edits.items()
                   if any(name in chosen for _, name in in_force(base, list_)))
    # spatch has one thread.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        try:
            result.update(zip(paths, threads.map(edited, paths)))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def insert_maintainers(kernel, content, result):
    """Put our section into the kernel's MAINTAINERS at its alphabetical place."""
    ours = os.path.join(TOP, "MAINTAINERS")
    if not os.path.exists(ours):
        return
    section = read_text(ours).strip("\n")
    title = section.split("\n", 1)[0]
    if not re.search(r"^[A-Z]:\t", section.split("\n")[1] if "\n" in section else ""):
        raise Problem("MAINTAINERS: must hold one section in the kernel's format: "
                      "a title, then 'M:', 'L:', 'S:', 'F:' lines.")
    kernels = content("MAINTAINERS").decode("utf-8")
    head = kernels.find("\nMaintainers List\n")
    for m in re.finditer(r"\n\n(?P<title>\S.*)\n(?=[A-Z]:\t)", kernels):
        if head >= 0 and m.start() > head and m["title"] > title:
            at = m.start() + 2
            result["MAINTAINERS"] = (kernels[:at] + section + "\n\n" + kernels[at:]).encode()
            return
    raise Problem(f"MAINTAINERS: found no place for '{title}' in that of {kernel}.")


def overlay(base, content, result, editor, chosen=None):
    """Put our files and edits into RESULT.

    CHOSEN says which, if not all: name -> None for the whole of it, or the
    parts of an edit: names of rules, numbers of hunks.
    """
    names = our_files()
    if chosen is None:
        chosen = dict.fromkeys([*names, "MAINTAINERS"])
    # Edits have the base in their names.
    others = patches.of_other_bases(base) - set(filter(EDIT.match, names))
    chosen = {name: parts for name, parts in chosen.items() if name not in others}
    whole, edits, last = sort_ours(names)
    whole = {path: name for path, name in whole.items() if name in chosen}
    for path, name in whole.items():
        if (result[path] if path in result else content(path)) is not None:
            raise Problem(f"{name} would replace the kernel's own {path} of {editor.kernel}; "
                          f"edit that with {path}.cocci or {path}.patch.")
        result[path] = read(os.path.join(TOP, name))
    edit_files(base, edits, content, result, editor, chosen)
    if "MAINTAINERS" in chosen:
        insert_maintainers(editor.kernel, content, result)
    edit_files(base, last, content, result, editor, chosen)
    return whole


def assemble(base, strip_only):
    kernel = Base(base, "stripped" if strip_only else "tree")
    kernel.unpack()
    result, whole = {}, {}
    strip(base, kernel.pristine, result)
    if not strip_only:
        editor = Editor(base, os.path.join(kernel.dir, "cache"))
        whole = overlay(base, kernel.pristine, result, editor)
        editor.prune()
    wanted = {}
    for path, data in result.items():
        if data is None and kernel.pristine(path) is None:
            continue
        if data is not None and data == kernel.pristine(path):
            continue
        name = whole.get(path)
        source = os.path.join(TOP, name) if name else os.path.join(kernel.tree, path)
        mode = os.stat(source).st_mode & 0o777 if os.path.exists(source) else 0o644
        wanted[path] = (data, mode)
    changed = kernel.apply(wanted)
    edited = sum(1 for p in wanted if p not in whole and wanted[p][0] is not None)
    step(f"Linux {base}{' stripped' if strip_only else ''}: {len(whole)} files of ours, "
         f"{edited} of the kernel's edited, {len(changed)} changed since the last time")


def main():
    parser = argparse.ArgumentParser(prog="series/assemble", usage="%(prog)s BASE [--strip-only | --list]")
    parser.add_argument("base", choices=bases.names())
    parser.add_argument("--strip-only", action="store_true")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    os.makedirs(os.path.join(TOP, "out", bases.base(args.base)["folder"]), exist_ok=True)
    if args.list:
        print("\n".join(sorted(Base(args.base, "tree").state["files"])))
        return
    with common.lock(bases.base(args.base)["folder"], "assemble"):
        assemble(args.base, args.strip_only)
