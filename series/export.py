#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""series/export BASE | --onto DIR: the patches for `git am` and quilt, in out/BASE/series.

series/series says which patches there are, in their order, and which files of
ours and which edits each one brings; series/messages/PATCH is a patch's
message, series/messages/cover-letter the letter that goes before.

The patches are made as commits in out/BASE/series.git, on top of one commit
that holds Debian's linux-source-BASE as it is unpacked, and written by git
format-patch.  Nothing of the result depends on the time, the folder or the
settings of who runs it, but for the identity (user.name, user.email), who
becomes author and signs off.  The patches' date is that of the repository's
last commit.

With --onto they are made for a kernel tree of your own, plain or of git, with the
edits for the base that is the nearest to it, and tried on a copy of the files
they change.  The tree itself is only read.  What does not match is named, and then
there are no patches.  If it is a clone of the newest base's kernel, without changes,
they are what can be sent: its commit is named, and those whom they go to.

  --onto DIR     for the kernel tree in DIR; the patches go to out/onto/series
  --base BASE    ... with the edits for that base
  --output DIR   write to DIR instead, which holds nothing but what was exported
  --nobody       in nobody's name, to out/BASE/check/series: to be checked, not to be sent
  --orphans      only check that series/series says where everything belongs
"""

import argparse
import contextlib
import fcntl
import glob
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile

from kit import bases
from kit import common
from kit.common import TOP, Problem
from series import assemble as tree
from series.patches import SERIES, parse_series

MESSAGES = "series/messages"
# What takes the base's own device out; its parts are the paths that it is taken out of.
STRIP = "series/strip"
# Parts of an edit: what only removes, and what no other patch names.
REMOVES, REST = "-", "..."

# What git does without being told differs between versions and users.
GIT = ["git", "-c", "safe.directory=*", "-c", "core.compression=1",
       "-c", "core.autocrlf=false", "-c", "gc.auto=0"]
FORMAT = ["--no-signature", "--zero-commit", "--no-thread", "--no-attach", "--no-to", "--no-cc",
          "--no-notes", "--numbered", "--signoff", "--suffix=.patch", "--filename-max-length=64",
          "--cover-letter", "--cover-from-description=subject",
          "--abbrev=12", "--no-renames", "--diff-algorithm=histogram", "--indent-heuristic",
          "--unified=3", "--inter-hunk-context=0", "--src-prefix=a/", "--dst-prefix=b/",
          "--no-color", "--no-ext-diff", "--no-textconv", "--patch", "--stat=72", "--summary",
          # A file that is written anew goes as a whole and comes as a whole.
          "--break-rewrites=20%/30%"]
# By which b4 knows the versions of a series to be of one: when and as what it began
CHANGE = "20261126-kvm-vfio-external-users"
# For which kernels a paragraph of a message is
WHEN = re.compile(r"# (?=package|from|before)(?P<package>package)?(?: ?from (?P<since>\S+))?"
                  r"(?: ?before (?P<until>\S+))?\n")
# As the kernel's own .gitattributes: a label is not the name of a function.
ATTRIBUTES = "*.[ch] diff=cpp\n"


# ---------------------------------------------------- what belongs to which

def parts_of(name):
    """The parts of an edit, as assemble knows them, and what finds those that a word means."""
    if name == STRIP:
        # A folder means all that is taken out of what is in it.
        keys = tree.stripped()
        return keys, lambda word: [key for key in keys if f"{key}/".startswith(f"{word}/")]
    m = tree.EDIT.match(name)
    if not m:
        return None, None
    if m["kind"] == "cocci":
        rules, _ = tree.parse_cocci(tree.read_text(os.path.join(TOP, name)), name)
        keys = [rule.name for rule in rules if rule.changes]
        return keys, lambda word: only_one([key for key in keys if key == word])
    _, hunks = tree.parse_diff(tree.read(os.path.join(TOP, name)))
    hunks = {n: hunk.decode() for n, hunk in enumerate(hunks, 1)}
    changed = {n: "\n".join(re.findall(r"^[-+](.*)", hunk, re.M)) for n, hunk in hunks.items()}

    def find(word):
        if word == REMOVES:
            return [n for n, hunk in hunks.items() if not re.search(r"^\+", hunk, re.M)]
        return only_one([n for n, text in changed.items()
                         if re.search(rf"\b{re.escape(word)}\b", text)])
    return list(changed), find


def only_one(found):
    """Of what a word means, where it may mean one thing only."""
    if len(found) > 1:
        raise ValueError(len(found))
    return found


def named(name, words, at):
    """The parts of an edit that WORDS name."""
    keys, find = parts_of(name)
    if keys is None:
        raise Problem(f"{at} is ours, whole, and has no parts; remove ':' and after.")
    taken = []
    for word in words:
        try:
            found, count = find(word), "no"
        except ValueError as error:
            found, count = [], error.args[0]
        if not found:
            what = "of its paths" if name == STRIP else "of its rules or hunks"
            raise Problem(f"{at}: '{word}' is {count} {what}; name a path or a folder, a rule, "
                          "or a word that only one hunk changes.")
        taken += found
    return taken


def assign(patches):
    """Check that everything belongs to exactly one patch.

    Returns for each patch what assemble's overlay() takes: name -> None or parts.
    """
    # An edit that only ends another one brings nothing.
    ours = {name for name in tree.our_files() if not (tree.EDIT.match(name) and tree.ends(name))}
    ours |= {"MAINTAINERS", STRIP}
    owner, chosen, elsewhere = {}, [], {}
    for patch in patches:
        for name, words in patch.units.items():
            if name in ours and words and words != [REST]:
                elsewhere.setdefault(name, set()).update(
                    named(name, words, f"{patch.where.split(':')[0]}: {name}"))
    for patch in patches:
        mine = {}
        for name, words in patch.units.items():
            at = f"{patch.where.split(':')[0]}: {name}"
            if name not in ours:
                raise Problem(f"{at} of patch '{patch.name}' is not a file of ours; "
                              "remove the line or correct it.")
            keys, _ = parts_of(name)
            if words is None:
                mine[name] = None
                taken = keys or [None]
            elif words == [REST] and keys is not None:
                taken = [key for key in keys if key not in elsewhere.get(name, ())]
                mine[name] = set(taken)
            else:
                taken = named(name, words, at)
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


def is_for(when, base, package):
    """Is a paragraph that WHEN stands before for this base?"""
    def reached(other):
        return bases.in_force([other], base) is not None
    return ((package or not when["package"]) and
            (not when["since"] or reached(when["since"])) and
            (not when["until"] or not reached(when["until"])))


def message(name, base, version, package=True):
    """Subject and body of series/messages/NAME, for this base.

    A paragraph after a line "# from 6.12" is for Linux 6.12 and newer, after
    "# before 6.12" for older ones, after "# package" for Debian's source; after
    "# package from 6.1 before 7.3" for what is all of that.
    """
    path = os.path.join(TOP, MESSAGES, name)
    if not os.path.exists(path):
        raise Problem(f"{MESSAGES}/{name} is missing; write the message of that patch.")
    kept = []
    for paragraph in re.split(r"\n{2,}", tree.read_text(path).strip("\n")):
        when = WHEN.match(paragraph)
        for other in filter(None, when.group("since", "until") if when else ()):
            if other not in bases.names():
                raise Problem(f"{MESSAGES}/{name}: there is no base {other}.")
        if re.search(r"\n# (from|before|only|package)\b|^# only ", paragraph):
            raise Problem(f"{MESSAGES}/{name}: '# from' and '# before' must begin a paragraph.")
        if not when or is_for(when, base, package):
            kept.append(paragraph[when.end():] if when else paragraph)
    text = "\n\n".join(kept).replace("@BASE@", base).replace("@VERSION@", version)
    # Of Debian's versions what is upstream's
    text = text.replace("@UPSTREAM@", version.split("-")[0])
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
        self.kernel = f"Linux {base}"
        # Mainline's newest is what patches are for that have no other number.
        self.mailed = base == bases.names()[-1]
        self.prefix = "PATCH" if self.mailed else f"PATCH {base}"

    # Is it Debian's package?
    packaged = True

    def base_commit(self):
        """What git am is to apply the series to, if that is known. Those whom it is mailed to have
        no such commit, and b4 would look for it."""
        return None if self.mailed else self.git("rev-parse", "base").decode().strip()

    def recipients(self):
        """Whom the kernel's own script names for the files, as options of git format-patch."""
        if not self.mailed:
            return []
        at = self.asked_tree()
        # That file is everybody's, and as it will be it knows ours.
        changes = self.git("diff", f"base..{self.branch}", "--", ".", ":(exclude)MAINTAINERS")
        with tempfile.NamedTemporaryFile() as maintainers:
            maintainers.write(self.git("cat-file", "blob", f"{self.branch}:MAINTAINERS"))
            maintainers.flush()

            def ask(*who):
                done = subprocess.run(["scripts/get_maintainer.pl", "--no-git",
                                       "--no-git-fallback", "--no-rolestats", "--no-keywords",
                                       *who, "--mpath", maintainers.name],
                                      cwd=at, env=self.env(), input=changes,
                                      capture_output=True, check=False)
                if done.returncode:
                    raise Problem(f"scripts/get_maintainer.pl of {self.kernel} says: "
                                  f"{done.stderr.decode(errors='replace').strip()}")
                return [line for line in done.stdout.decode().splitlines() if "@" in line]
            to, everybody = ask("--no-l", "--no-r"), ask("--no-m")
        return [*(f"--to={line}" for line in to),
                *(f"--cc={line}" for line in everybody if line not in to)]

    def asked_tree(self):
        """Where the kernel's own scripts are"""
        common.need("series/assemble", self.base)
        return tree.Base(self.base, "tree").tree

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
        # A file has little in common with the one before it: no deltas are tried.
        with subprocess.Popen(["xz", "-d", "-c", self.tarball], stdout=subprocess.PIPE) as xz, \
             subprocess.Popen([*GIT, "fast-import", "--quiet", "--date-format=raw", "--depth=0"],
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


class Onto(Source):
    """A kernel tree of the user's: of its files, those that the series touches as a commit."""

    packaged = False

    # pylint: disable-next=super-init-not-called
    def __init__(self, folder, base=None):
        self.folder = os.path.abspath(folder)
        self.version = self.ask_makefile()
        major_minor = ".".join(self.version.split(".")[:2])
        self.base = base or bases.in_force(bases.names(), major_minor) or bases.names()[0]
        self.dir = os.path.join(TOP, "out/onto")
        self.git_dir = os.path.join(self.dir, "series.git")
        self.branch = "series"
        self.output = os.path.join(self.dir, "series")
        self.files = {}
        self.kernel = f"{self.folder} (Linux {self.version}, with the edits for {self.base})"
        self.prefix = "PATCH" if self.base == bases.names()[-1] else f"PATCH {major_minor}"
        self.newest = self.base == major_minor == bases.names()[-1]

    @property
    def mailed(self):
        """Is it for the kernel's lists? If it is for a commit of the newest base's kernel, as it is.
        Who gets anything else is the user's to say."""
        return (self.newest and self.base_commit() is not None and
                os.path.isfile(os.path.join(self.folder, "scripts/get_maintainer.pl")))

    def asked_tree(self):
        return self.folder

    def ask_makefile(self):
        """The version of the kernel."""
        path = os.path.join(self.folder, "Makefile")
        text = tree.read_text(path) if os.path.isfile(path) else ""
        said = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*)$", text,
                               re.M))
        if not said.get("VERSION", "").isdigit() or not said.get("PATCHLEVEL", "").isdigit():
            raise Problem(f"{self.folder} is no kernel tree: it has no Makefile with the version "
                          "of a kernel; name the folder that has it.")
        return (f"{said['VERSION']}.{said['PATCHLEVEL']}.{said.get('SUBLEVEL') or 0}"
                f"{said.get('EXTRAVERSION', '')}")

    def content(self, path):
        if path not in self.files:
            there = os.path.join(self.folder, path)
            self.files[path] = tree.read(there) if os.path.isfile(there) else None
        return self.files[path]

    def mode(self, path):
        if self.content(path) is None:
            return ""
        return "100755" if os.stat(os.path.join(self.folder, path)).st_mode & 0o100 else "100644"

    def import_files(self, paths, who):
        """Make a commit of these files as they are."""
        shutil.rmtree(self.git_dir, ignore_errors=True)
        self.git("init", "--quiet", "--bare", "--object-format=sha1", "--template=",
                 "--initial-branch=series", self.git_dir)
        tree.write(os.path.join(self.git_dir, "info/attributes"), ATTRIBUTES.encode())
        feed = io.BytesIO()
        self.start_commit(feed, "base", who, f"Linux {self.version}\n")
        for path in sorted(path for path in paths if self.content(path) is not None):
            feed.write(b"M %s inline %s\ndata %d\n%s\n" % (
                self.mode(path).encode(), quoted(path).encode(), len(self.content(path)),
                self.content(path)))
        self.git("fast-import", "--quiet", "--force", "--date-format=raw", data=feed.getvalue())

    def base_commit(self):
        """The commit that the tree is at, if it has these files as they are."""
        # The index is not to be written, either.
        def git(*command):
            done = subprocess.run(["git", "--no-optional-locks", "-c", "safe.directory=*",
                                   "-C", self.folder, *command],
                                  capture_output=True, text=True, check=False)
            return done.stdout.strip() if done.returncode == 0 else None

        here = git("rev-parse", "--show-prefix")
        changed = git("status", "--porcelain", "--", *self.files) if here == "" else "unknown"
        return git("rev-parse", "-q", "--verify", "HEAD") if changed == "" else None

    def try_on_copy(self, folder, names, after):
        """Problem unless the patches, applied to a copy of the files, make what they should."""
        with tempfile.TemporaryDirectory() as tmp:
            for path, content in self.files.items():
                if content is not None:
                    tree.write(os.path.join(tmp, path), content)
            for name in names:
                done = subprocess.run(["patch", "-p1", "--fuzz=0", "--forward", "--batch",
                                       "--no-backup-if-mismatch", "-d", tmp,
                                       "-i", os.path.join(folder, name)],
                                      capture_output=True, check=False)
                if done.returncode:
                    log = os.path.join(TOP, "out/patch.log")
                    tree.write(log, done.stdout + done.stderr)
                    raise Problem(f"{name} does not apply to {self.kernel}: see out/patch.log.")
            for path, (content, _) in after.items():
                there = os.path.join(tmp, path)
                if (tree.read(there) if os.path.isfile(there) else None) != content:
                    raise Problem(f"the patches make another {path} of {self.kernel} than they "
                                  "should; its lines may end in another way.")


def brought(source, patches, chosen):
    """The patches that SOURCE is to have, with what they bring.

    Symbol versions are kept for the sake of a distribution's binaries, where it has them."""
    keep = source.packaged and bases.fact(source.base, "symbol_versions")
    return [(patch, mine) for patch, mine in zip(patches, chosen)
            if keep or not any(name.startswith(tree.LAST) for name in mine)]


def states(source, chosen):
    """After each patch: path -> (content or None for deleted, mode)."""
    base = source.base
    editor = tree.Editor(base, os.path.join(TOP, "out", base, "series.cache"), source.kernel)
    so_far = {}
    for mine in chosen:
        for name, parts in mine.items():
            if name in so_far and parts is not None:
                parts = parts | so_far[name]
            so_far[name] = parts
        result = {}
        tree.strip(base, source.content, result, so_far.get(STRIP, ()), source.kernel)
        whole = tree.overlay(base, source.content, result, editor, so_far)
        state = {}
        for path, content in result.items():
            if path in whole:
                x = os.stat(os.path.join(TOP, whole[path])).st_mode & 0o100
                state[path] = (content, "100755" if x else "100644")
            elif content != source.content(path):
                state[path] = (content, source.mode(path))
        yield state
    # Other kernels have their results there, too.
    if source.packaged:
        editor.prune()


def commit_patches(source, patches, after, who):
    """The branch "series", or that of nobody, of the states AFTER each patch."""
    before, feed, parent = {}, io.BytesIO(), "refs/heads/base^0"
    for patch, state in zip(patches, after):
        subject, body = message(patch.name, source.base, source.version, source.packaged)
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
                          f"in {source.kernel}.")
        source.start_commit(feed, source.branch, who, f"{subject}\n\n{body}\n",
                            parent)
        feed.writelines(changes)
        before, parent = state, None
    source.git("fast-import", "--quiet", "--force", "--date-format=raw", data=feed.getvalue())


def format_patches(source, who, output, check=None):
    """Write the mails to OUTPUT, if CHECK has nothing against them."""
    name, mail, date = re.match(r"(.+) <(.+)> (.+)", who).groups()
    subject, body = message("cover-letter", source.base, source.version, source.packaged)
    tmp = f"{output}.tmp.{os.getpid()}"
    # A run that was killed leaves its own.
    for path in glob.glob(f"{glob.escape(output)}.tmp.[0-9]*"):
        shutil.rmtree(path, ignore_errors=True)
    try:
        source.git("-c", f"branch.{source.branch}.description={subject}\n\n{body}\n",
                   "format-patch", *FORMAT, *source.recipients(),
                   f"--subject-prefix={source.prefix}",
                   f"--output-directory={tmp}", f"base..{source.branch}",
                   GIT_AUTHOR_NAME=name, GIT_AUTHOR_EMAIL=mail, GIT_AUTHOR_DATE=date,
                   GIT_COMMITTER_NAME=name, GIT_COMMITTER_EMAIL=mail, GIT_COMMITTER_DATE=date)
        names = sorted(n for n in os.listdir(tmp) if not n.startswith("0000-"))
        letter = os.path.join(tmp, "0000-cover-letter.patch")
        tree.write(letter, tree.read(letter).rstrip(b"\n") + trailers(source).encode())
        tree.write(os.path.join(tmp, "series"), "".join(n + "\n" for n in names).encode())
        if check:
            check(tmp, names)
        shutil.rmtree(output, ignore_errors=True)
        os.replace(tmp, output)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return names


def trailers(source):
    """What ends the letter, for git and b4: where the series belongs, and which one it is."""
    commit = source.base_commit()
    return ("\n\n" + (f"base-commit: {commit}\n" if commit else "") +
            f"change-id: {CHANGE}-{tree.sha(source.prefix)[:12]}\n")


def replaceable(output):
    """Problem if there is anything but an exported series."""
    if not os.path.lexists(output):
        return
    there = sorted(os.listdir(output)) if os.path.isdir(output) else [""]
    others = [name for name in there if not re.fullmatch(r"\d{4}-.*\.patch|series", name)]
    if others:
        raise Problem(f"{os.path.join(output, others[0])} is not of an exported series, and all "
                      "that is there would be removed; give --output an empty or a new folder.")


def export(source, output, who, patches, chosen):
    """Write the patches for SOURCE to OUTPUT."""
    date = source.git("log", "-1", "--format=%cd", "--date=raw", "base").decode().strip() \
        if source.packaged else "1 +0000"
    who = f"{who[0]} <{who[1]}> {date_of_repository(date)}"
    wanted = brought(source, patches, chosen)
    after = list(states(source, [mine for _, mine in wanted]))
    if not source.packaged:
        source.import_files({path for state in after for path in state}, who)
    commit_patches(source, [patch for patch, _ in wanted], after, who)
    check = None if source.packaged else lambda folder, names: source.try_on_copy(
        folder, names, after[-1])
    return format_patches(source, who, output, check)


def main():
    parser = argparse.ArgumentParser(
        prog="series/export",
        usage="%(prog)s BASE [--output DIR] [--nobody] | "
              "--onto DIR [--base BASE] [--output DIR] [--nobody] | --orphans")
    parser.add_argument("base", nargs="?", choices=bases.names())
    parser.add_argument("--onto")
    parser.add_argument("--base", dest="edits", choices=bases.names())
    parser.add_argument("--output")
    parser.add_argument("--nobody", action="store_true")
    parser.add_argument("--orphans", action="store_true")
    args = parser.parse_args()
    if not args.orphans and bool(args.base) == bool(args.onto) or args.edits and not args.onto:
        parser.error("give a base, or --onto and a kernel tree")
    patches = parse_series()
    chosen = assign(patches)
    if args.orphans:
        return
    source = Onto(args.onto, args.edits) if args.onto else Source(args.base, args.nobody)
    output = os.path.abspath(args.output or source.output)
    replaceable(output)
    who = NOBODY if args.nobody else identity()
    os.makedirs(os.path.dirname(output), exist_ok=True)
    with source.locked():
        if source.packaged:
            source.import_base()
        names = export(source, output, who, patches, chosen)
    of = f"Linux {args.base} ({source.version})" if source.packaged else source.kernel
    tree.step(f"{len(names)} patches for {of} in {os.path.relpath(output, TOP)}")
