#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""series/export BASE: make out/BASE/series, the patches for `git am` and quilt.

series/series says which patches there are, in their order, and which files of
ours and which edits each one brings; series/messages/PATCH is a patch's
message, series/messages/cover-letter the letter that goes before.

The patches are made as commits in out/BASE/series.git, on top of one commit
that holds Debian's linux-source-BASE as it is unpacked, and written by git
format-patch.  Nothing of the result depends on the time, the folder or the
settings of who runs it, but for the identity (user.name, user.email), who
becomes author and signs off.  The patches' date is that of the repository's
last commit.

  --output DIR   write to DIR instead, which holds nothing but what was exported
  --nobody       in nobody's name, to out/BASE/check/series: to be checked, not to be sent
  --orphans      only check that series/series says where everything belongs
"""

import argparse
import collections
import contextlib
import fcntl
import glob
import io
import os
import re
import shutil
import subprocess
import tarfile

from kit import bases
from kit.common import TOP, Problem
from series import assemble as tree

SERIES = "series/series"
MESSAGES = "series/messages"
# The unit of patch 1: all that series/strip takes out.
STRIP = "series/strip"

# What git does without being told differs between versions and users.
GIT = ["git", "-c", "safe.directory=*", "-c", "core.compression=1",
       "-c", "core.autocrlf=false", "-c", "gc.auto=0"]
FORMAT = ["--no-signature", "--zero-commit", "--no-thread", "--no-attach", "--no-to", "--no-cc",
          "--no-notes", "--numbered", "--signoff", "--suffix=.patch", "--filename-max-length=64",
          "--cover-letter", "--cover-from-description=subject",
          "--abbrev=12", "--no-renames", "--diff-algorithm=histogram", "--indent-heuristic",
          "--unified=3", "--inter-hunk-context=0", "--src-prefix=a/", "--dst-prefix=b/",
          "--no-color", "--no-ext-diff", "--no-textconv", "--patch", "--stat=72", "--summary"]
# As the kernel's own .gitattributes: a label is not the name of a function.
ATTRIBUTES = "*.[ch] diff=cpp\n"


# ---------------------------------------------------- what belongs to which

class Patch:
    """One patch: its name, and what it brings: file -> words of parts, or None.

    Where it says from which base on it is there ("6.12"), or up to which one ("before 7.3"),
    it is left out for others.
    """

    def __init__(self, line, where):
        self.name, _colon, when = (part.strip() for part in line.partition(":"))
        self.last, self.first = when.startswith("before "), when.removeprefix("before ").strip()
        if self.first and self.first not in bases.names():
            raise Problem(f"{where}: there is no base {self.first}.")
        self.where = where
        self.units = {}

    def due(self, base):
        """Is it for this base?"""
        return not self.first or self.last != bool(bases.in_force([self.first], base))


def parse_series():
    """The patches of series/series, in their order."""
    patches = []
    for where, line in tree.lines_of(os.path.join(TOP, SERIES)):
        if not line[0].isspace():
            patches.append(Patch(line.strip(), where))
            if not re.fullmatch(r"[a-z0-9-]+", patches[-1].name):
                raise Problem(f"{where}: '{line.strip()}' is not a name of a patch; "
                              "indent what a patch brings.")
            continue
        if not patches:
            raise Problem(f"{where}: names no patch before '{line.strip()}'.")
        name, colon, parts = line.strip().partition(":")
        if colon and not parts.split():
            raise Problem(f"{where}: '{name}:' names no part; drop the colon for all of them.")
        if name in patches[-1].units:
            raise Problem(f"{where}: {name} is there twice; put its parts on one line.")
        patches[-1].units[name] = parts.split() or None
    names = [p.name for p in patches]
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise Problem(f"{SERIES}: there are {count} patches '{name}'.")
    if not patches or list(patches[0].units) != [STRIP]:
        raise Problem(f"{SERIES}: the first patch must bring {STRIP} and nothing else.")
    return patches


def parts_of(name):
    """The parts of an edit: word -> the keys that assemble knows the parts by."""
    m = tree.EDIT.match(name)
    if not m:
        return None, None
    if m["kind"] == "cocci":
        rules, _ = tree.parse_cocci(tree.read_text(os.path.join(TOP, name)), name)
        keys = [rule.name for rule in rules if rule.changes]
        return keys, lambda word: [key for key in keys if key == word]
    _, hunks = tree.parse_diff(tree.read(os.path.join(TOP, name)))
    changed = {n: "\n".join(re.findall(r"^[-+](.*)", hunk.decode(), re.M))
               for n, hunk in enumerate(hunks, 1)}
    return list(changed), lambda word: [n for n, text in changed.items()
                                        if re.search(rf"\b{re.escape(word)}\b", text)]


def assign(patches):
    """Check that everything belongs to exactly one patch.

    Returns for each patch what assemble's overlay() takes: name -> None or parts.
    """
    # An edit that only ends another one brings nothing.
    ours = {name for name in tree.our_files() if not (tree.EDIT.match(name) and tree.ends(name))}
    ours |= {"MAINTAINERS", STRIP}
    owner, chosen = {}, []
    for patch in patches:
        mine = {}
        for name, words in patch.units.items():
            at = f"{patch.where.split(':')[0]}: {name}"
            if name not in ours:
                raise Problem(f"{at} of patch '{patch.name}' is not a file of ours; "
                              "remove the line or correct it.")
            keys, find = parts_of(name)
            if words is None:
                mine[name] = None
                taken = keys or [None]
            elif keys is None:
                raise Problem(f"{at} is ours, whole, and has no parts; remove ':' and after.")
            else:
                taken = []
                for word in words:
                    found = find(word)
                    if len(found) != 1:
                        raise Problem(f"{at}: '{word}' is {len(found) or 'no'} of its rules or "
                                      "hunks; name a rule, or a word that only one hunk changes.")
                    taken += found
                mine[name] = set(taken)
            for key in taken:
                other = owner.setdefault((name, key), patch.name)
                if other != patch.name or taken.count(key) > 1:
                    part = "" if key is None else f" (its part {key})"
                    raise Problem(f"{at}{part} belongs to patch '{other}' and to "
                                  f"'{patch.name}'; remove it from one of them.")
        chosen.append(mine)
        # What hides from genksyms comes when all else is there, and with nothing else.
        hides = {name.startswith(tree.LAST) for name in mine}
        if True in hides and (patch is not patches[-1] or False in hides):
            raise Problem(f"{patch.where}: patch '{patch.name}' brings edits of {tree.LAST}; "
                          "they make the last patch, and nothing else does.")
    for name in sorted(ours):
        keys, _ = parts_of(name)
        for key in keys or [None]:
            if (name, key) not in owner:
                part = "" if key is None else f", part {key},"
                raise Problem(f"{name}{part} belongs to no patch; "
                              f"add it to the one that needs it first, in {SERIES}.")
    known = {p.name for p in patches} | {"cover-letter"}
    for name in sorted(os.listdir(os.path.join(TOP, MESSAGES))):
        if name not in known and not tree.LEFTOVER.search(name):
            raise Problem(f"{MESSAGES}/{name} is the message of no patch; "
                          f"name the patch in {SERIES} or remove it.")
    return chosen


def message(name, base, version):
    """Subject and body of series/messages/NAME, for this base.

    A paragraph after a line "# from 6.12" is for Linux 6.12 and newer, after
    "# before 6.12" for older ones.
    """
    path = os.path.join(TOP, MESSAGES, name)
    if not os.path.exists(path):
        raise Problem(f"{MESSAGES}/{name} is missing; write the message of that patch.")
    kept = []
    for paragraph in re.split(r"\n{2,}", tree.read_text(path).strip("\n")):
        when = re.match(r"# (from|before) (\S+)\n", paragraph)
        if when and when[2] not in bases.names():
            raise Problem(f"{MESSAGES}/{name}: there is no base {when[2]}.")
        if re.search(r"\n# (from|before|only) |^# only ", paragraph):
            raise Problem(f"{MESSAGES}/{name}: '# from' and '# before' must begin a paragraph.")
        if not when or (when[1] == "from") == (bases.in_force([when[2]], base) is not None):
            kept.append(paragraph[when.end():] if when else paragraph)
    text = "\n\n".join(kept).replace("@BASE@", base).replace("@VERSION@", version)
    subject, _, body = text.partition("\n")
    return subject, body.strip("\n")


# ----------------------------------------------------------------- identity

def asked(*command):
    """What a command of the user's own git says, or None."""
    done = subprocess.run(["git", "-c", "safe.directory=*", "-C", TOP, *command],
                          capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def identity():
    """(name, mail) of who exports."""
    said = asked("-c", "user.useConfigOnly=true", "var", "GIT_AUTHOR_IDENT")
    m = re.match(r"(.+) <(.+)> \d+ [-+]\d+$", said or "")
    if not m:
        raise Problem("the patches need an author who signs them off: run git config --global "
                      "user.name 'YOUR NAME' and git config --global user.email YOU@EXAMPLE.ORG.")
    return m[1], m[2]


# Who signs what only a check looks at
NOBODY = ("Nobody", "nobody@localhost")


def date_of_repository(fallback):
    """The date of the last commit, as git's "seconds zone"."""
    # A release that was unpacked without its history
    if not os.path.exists(os.path.join(TOP, ".git")):
        return fallback
    return asked("-c", "log.showSignature=false", "log", "-1", "--format=%cd",
                 "--date=raw") or fallback


# ---------------------------------------------------------------- the commits

class Source:
    """Debian's source as a commit, and commits on top of it."""

    def __init__(self, base, nobody=False):
        self.base = base
        self.dir = os.path.join(TOP, "out", base)
        # What a user exported, and may be about to send, is not touched in nobody's name.
        self.branch = "nobody" if nobody else "series"
        self.output = os.path.join(self.dir, "check/series" if nobody else "series")
        self.git_dir = os.path.join(self.dir, "series.git")
        self.tarball = tree.Base(base, "tree").tarball
        self.package = bases.base(base)["source"]
        self.version, self.maintainer = self.ask_dpkg()
        self.files = {}

    def ask_dpkg(self):
        if not bases.native(self.base):
            return self.ask_fetched()
        done = subprocess.run(["dpkg-query", "-W", "-f", "${Version}\t${Maintainer}", self.package],
                              capture_output=True, text=True, check=False)
        if done.returncode or not os.path.exists(self.tarball):
            raise Problem(f"{self.package} is not installed; "
                          f"run: BASE={self.base} build/setup build")
        return done.stdout.split("\t")

    def ask_fetched(self):
        """The same of a package that build/fetch has unpacked."""
        version = os.path.join(self.dir, "debian/version")
        if not os.path.exists(self.tarball) or not os.path.exists(version):
            raise Problem(f"{self.package} is not there; run: build/fetch {self.base}")
        return (tree.read_text(version).strip(),
                "Debian Kernel Team <debian-kernel@lists.debian.org>")

    def env(self, **more):
        env = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
        return {**env, "HOME": "/nonexistent", "LC_ALL": "C", "TZ": "UTC", "GIT_DIR": self.git_dir,
                "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull,
                "GIT_ATTR_NOSYSTEM": "1", **more}

    def git(self, *command, data=None, **env):
        """Run git, away from the user's settings; its standard output."""
        done = subprocess.run([*GIT, *command], input=data, capture_output=True,
                              env=self.env(**env), check=False)
        if done.returncode:
            log = os.path.join(self.dir, "log", "export.log")
            tree.write(log, done.stderr)
            raise Problem(f"git {command[0]} failed in {os.path.relpath(self.git_dir, TOP)}: see "
                          f"{os.path.relpath(log, TOP)}; remove that folder and run it again.")
        return done.stdout

    @contextlib.contextmanager
    def locked(self):
        """Nobody else changes the commits and branches meanwhile."""
        os.makedirs(self.dir, exist_ok=True)
        with open(os.path.join(self.dir, ".series.lock"), "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def import_base(self):
        """Make the commit of Debian's source, unless it is there already."""
        st = os.stat(self.tarball)
        stamp = os.path.join(self.git_dir, "kvm-vfio-base")
        want = f"2 {self.version} {st.st_size} {int(st.st_mtime)}\n"
        if os.path.exists(stamp) and tree.read_text(stamp) == want:
            return
        tree.step(f"making a git commit of {self.package} {self.version} (a minute, once)")
        final, self.git_dir = self.git_dir, self.git_dir + ".tmp"
        for folder in (final, self.git_dir):
            shutil.rmtree(folder, ignore_errors=True)
        self.git("init", "--quiet", "--bare", "--object-format=sha1", "--template=",
                 "--initial-branch=series", self.git_dir)
        tree.write(os.path.join(self.git_dir, "info/attributes"), ATTRIBUTES.encode())
        with subprocess.Popen(["xz", "-d", "-c", self.tarball], stdout=subprocess.PIPE) as xz, \
             subprocess.Popen([*GIT, "fast-import", "--quiet", "--date-format=raw"],
                              stdin=subprocess.PIPE, env=self.env()) as fast:
            try:
                entries, newest = self.feed_tar(xz.stdout, fast.stdin)
                # dpkg dates what it changes by the package's changelog.
                text = f"{self.package} {self.version}\n\nThe source of that package, unpacked.\n"
                self.start_commit(fast.stdin, "base", f"{self.maintainer} {newest} +0000", text)
                fast.stdin.write("".join(entries).encode())
                fast.stdin.close()
                whole = True
            except (tarfile.TarError, BrokenPipeError):
                whole = False
        if not whole or xz.returncode or fast.returncode:
            raise Problem(f"cannot make a commit of {self.tarball}: the disk may be full or the "
                          "package damaged; make room or reinstall it, and run it again.")
        tree.write(os.path.join(self.git_dir, "kvm-vfio-base"), want.encode())
        os.replace(self.git_dir, final)
        self.git_dir = final

    def feed_tar(self, pipe, out):
        """Every file of the archive to git fast-import.

        Returns the lines of a commit that has them, and the newest one's date.
        """
        entries, newest, mark = [], 0, 0
        with tarfile.open(fileobj=pipe, mode="r|", encoding="utf-8") as archive:
            for member in archive:
                newest = max(newest, int(member.mtime))
                path = member.name.partition("/")[2]
                if not path or member.isdir():
                    continue
                if member.issym():
                    mode, data = "120000", member.linkname.encode()
                elif member.islnk():
                    raise Problem(f"{self.tarball}: {path} is a hard link; that is not expected.")
                else:
                    mode = "100755" if member.mode & 0o100 else "100644"
                    data = archive.extractfile(member).read()
                mark += 1
                out.write(b"blob\nmark :%d\ndata %d\n%s\n" % (mark, len(data), data))
                entries.append(f"M {mode} :{mark} {quoted(path)}\n")
        return entries, newest

    @staticmethod
    def start_commit(out, branch, who, text, parent=None):
        text = text.encode()
        out.write(f"commit refs/heads/{branch}\nauthor {who}\ncommitter {who}\n".encode())
        out.write(b"data %d\n%s\n" % (len(text), text))
        if parent:
            out.write(f"from {parent}\n".encode())

    def content(self, path):
        """The base's own content of a file, None if it has no such file."""
        if path not in self.files:
            said = self.git("cat-file", "--batch", data=f"base:{path}\n".encode())
            head, _, body = said.partition(b"\n")
            self.files[path] = None if head.endswith(b"missing") else body[:-1]
        return self.files[path]

    def mode(self, path):
        return self.git("ls-tree", "base", "--", path)[:6].decode()


def quoted(path):
    """As git fast-import reads it"""
    return path if re.fullmatch(r"[^\"\s\\]+", path) else \
        '"' + path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def states(source, chosen):
    """After each patch: path -> (content or None for deleted, mode)."""
    base = source.base
    editor = tree.Editor(base, os.path.join(source.dir, "series.cache"))
    so_far = {}
    for mine in chosen:
        for name, parts in mine.items():
            if name in so_far and parts is not None:
                parts = parts | so_far[name]
            so_far[name] = parts
        result = {}
        tree.strip(base, source.content, result)
        whole = tree.overlay(base, source.content, result, editor, so_far)
        state = {}
        for path, content in result.items():
            if path in whole:
                x = os.stat(os.path.join(TOP, whole[path])).st_mode & 0o100
                state[path] = (content, "100755" if x else "100644")
            elif content != source.content(path):
                state[path] = (content, source.mode(path))
        yield state
    editor.prune()


def commit_patches(source, patches, chosen, who):
    """The branch "series", or that of nobody."""
    before, feed = {}, io.BytesIO()
    for number, (patch, state) in enumerate(zip(patches, states(source, chosen))):
        subject, body = message(patch.name, source.base, source.version)
        changes = []
        for path in sorted(set(before) | set(state)):
            now = state.get(path) or (source.content(path), source.mode(path))
            was = before.get(path) or (source.content(path), source.mode(path))
            if now == was:
                continue
            if now[0] is None:
                changes.append(b"D %s\n" % quoted(path).encode())
            else:
                changes.append(b"M %s inline %s\ndata %d\n%s\n" % (
                    now[1].encode(), quoted(path).encode(), len(now[0]), now[0]))
        if not changes and not patch.due(source.base):
            continue
        if not changes:
            raise Problem(f"{patch.where}: patch '{patch.name}' changes nothing "
                          f"in Linux {source.base}.")
        source.start_commit(feed, source.branch, who, f"{subject}\n\n{body}\n",
                            None if number else "refs/heads/base^0")
        feed.writelines(changes)
        before = state
    source.git("fast-import", "--quiet", "--force", "--date-format=raw", data=feed.getvalue())


def format_patches(source, who, output):
    name, mail, date = re.match(r"(.+) <(.+)> (.+)", who).groups()
    subject, body = message("cover-letter", source.base, source.version)
    tmp = f"{output}.tmp.{os.getpid()}"
    # A run that was killed leaves its own.
    for path in glob.glob(f"{glob.escape(output)}.tmp.[0-9]*"):
        shutil.rmtree(path, ignore_errors=True)
    try:
        source.git("-c", f"branch.{source.branch}.description={subject}\n\n{body}\n",
                   "format-patch", *FORMAT, f"--subject-prefix=PATCH {source.base}",
                   f"--base={source.git('rev-parse', 'base').decode().strip()}",
                   f"--output-directory={tmp}", f"base..{source.branch}",
                   GIT_AUTHOR_NAME=name, GIT_AUTHOR_EMAIL=mail, GIT_AUTHOR_DATE=date,
                   GIT_COMMITTER_NAME=name, GIT_COMMITTER_EMAIL=mail, GIT_COMMITTER_DATE=date)
        names = sorted(n for n in os.listdir(tmp) if not n.startswith("0000-"))
        tree.write(os.path.join(tmp, "series"), "".join(n + "\n" for n in names).encode())
        shutil.rmtree(output, ignore_errors=True)
        os.replace(tmp, output)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return names


def replaceable(output):
    """Problem if there is anything but an exported series."""
    if not os.path.lexists(output):
        return
    there = sorted(os.listdir(output)) if os.path.isdir(output) else [""]
    others = [name for name in there if not re.fullmatch(r"\d{4}-.*\.patch|series", name)]
    if others:
        raise Problem(f"{os.path.join(output, others[0])} is not of an exported series, and all "
                      "that is there would be removed; give --output an empty or a new folder.")


def main():
    parser = argparse.ArgumentParser(prog="series/export",
                                     usage="%(prog)s BASE [--output DIR] [--nobody] | --orphans")
    parser.add_argument("base", choices=bases.names())
    parser.add_argument("--output")
    parser.add_argument("--nobody", action="store_true")
    parser.add_argument("--orphans", action="store_true")
    args = parser.parse_args()
    patches = parse_series()
    chosen = assign(patches)
    if args.orphans:
        return
    source = Source(args.base, args.nobody)
    output = os.path.abspath(args.output or source.output)
    replaceable(output)
    who = NOBODY if args.nobody else identity()
    os.makedirs(os.path.dirname(output), exist_ok=True)
    with source.locked():
        source.import_base()
        date = source.git("log", "-1", "--format=%cd", "--date=raw", "base").decode().strip()
        who = f"{who[0]} <{who[1]}> {date_of_repository(date)}"
        commit_patches(source, patches, chosen, who)
        names = format_patches(source, who, output)
    tree.step(f"{len(names)} patches for Linux {args.base} ({source.version}) in "
              f"{os.path.relpath(output, TOP)}")
