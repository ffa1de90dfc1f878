#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""series/check-series BASE: is the exported series what it has to be? Prints KTAP.

Takes out/BASE/series, as `make series` left it.  What a mailing list, git am
and quilt are given is the files there, so these are what is looked at.

  --export   export it first, in nobody's name if git knows none for its user
  --nobody   take the one in nobody's name, out/BASE/check/series
"""

import argparse
import email
import email.policy
import filecmp
import os
import re
import shutil
import subprocess

from kit import bases
from kit import common
from kit.common import TOP, Problem
from series import assemble as tree
from series import export
from series.patches import ALONE, parse_series

# How the subsystems begin their subjects
PREFIX = re.compile(r"((KVM: (VFIO|x86|x86/mmu)|KVM|vfio: selftests|vfio|iommufd|module|selftests: KVM|"
                    r"Documentation: KVM|MAINTAINERS): )")
# Verbs that end like a past tense or a participle, but are none
VERBS = {"Bring", "Embed", "Feed", "Focus", "Need", "Speed"}
WIDTH = 75
LETTER = "0000-cover-letter.patch"


# ------------------------------------------------------------ how it is told

def faults_of_mail(path):
    """What is wrong with the changelog of one patch."""
    with open(path, "rb") as f:
        mail = email.message_from_binary_file(f, policy=email.policy.default)
    # "[PATCH 6.1 01/10] " goes when it is applied.
    subject = re.sub(r"^\[PATCH[^]]*\] ", "", " ".join(str(mail["subject"]).split()))
    text = mail.get_payload(decode=True).decode("utf-8").partition("\n---\n")[0]
    body, trailers = split_trailers(text)
    prefix = PREFIX.match(subject)
    if not prefix:
        yield f"the subject '{subject}' does not begin like its subsystem's"
    if len(subject) > WIDTH:
        yield f"the subject has {len(subject)} characters, {WIDTH} is the most"
    first = subject[prefix.end() if prefix else 0:].split(" ")[0]
    if not first[:1].isupper():
        yield f"the subject's first word '{first}' needs a capital letter"
    if first not in VERBS and re.search(r"(ed|ing|[^s]s)$", first):
        yield f"the subject's first word '{first}' is not in the imperative"
    if subject.endswith("."):
        yield "the subject ends with a period"
    if not body:
        yield "there is nothing below the subject; say what changes and why"
    for line in body:
        # Neither a quotation nor a link can be broken.
        if len(line) > WIDTH and not re.search(r"^    |https?://", line):
            yield f"a line has {len(line)} characters, {WIDTH} is the most: {line[:40]}..."
    if re.search(r"\b([Tt]his (patch|commit)|I|[Ww]e)\b", "\n".join(body)):
        yield "the changelog speaks of 'this patch' or uses a pronoun; use the imperative"
    if not trailers or not trailers[-1].startswith("Signed-off-by: "):
        yield "the last line is no Signed-off-by"
    for line in re.findall(r"^Fixes:.*", text, re.M):
        if line not in trailers or not re.fullmatch(r'Fixes: [0-9a-f]{12} \(".+"\)', line):
            yield f"'{line[:40]}...' is not a tag of the form Fixes: 12 DIGITS (\"SUBJECT\")"
    yield from faults_of_text("\n".join([subject, text]))


def faults_of_letter(path):
    """What is wrong with the cover letter: what we write of it, above the list of patches."""
    with open(path, "rb") as f:
        mail = email.message_from_binary_file(f, policy=email.policy.default)
    text = mail.get_payload(decode=True).decode("utf-8")
    written = re.split(r"^.+ \(\d+\):\n", text, maxsplit=1, flags=re.M)[0].strip("\n")
    subject = " ".join(str(mail["subject"]).split())
    if not written:
        yield "the letter is empty; say what the series is for"
    elif len(re.findall(r"\d+", "".join(p for p in written.split("\n\n")
                                       if p.startswith("Measured ")))) < 2:
        yield "no paragraph begins with 'Measured' and has figures; say how much is broken"
    for line in written.split("\n"):
        if len(line) > WIDTH and not re.search(r"^    |https?://", line):
            yield f"a line has {len(line)} characters, {WIDTH} is the most: {line[:40]}..."
    if re.search(r"\*\*\* .* HERE \*\*\*", subject + text):
        yield "git's own words stand where the letter's should"
    yield from faults_of_text("\n".join([subject, text]))


def faults_of_text(text):
    """What export should have replaced, or taken out."""
    for word in re.findall(r"@[A-Z]+@|^# (?:from|before|package)\b.*", text, re.M):
        yield f"'{word}' is left in it"


def split_trailers(text):
    lines = text.strip("\n").split("\n")
    end = len(lines)
    while end and re.match(r"[A-Z][A-Za-z-]+: \S", lines[end - 1]):
        end -= 1
    return [line for line in lines[:end] if line], lines[end:]


def changelogs(folder, names):
    faults = []
    for name in [LETTER, *names]:
        judge = faults_of_letter if name == LETTER else faults_of_mail
        faults += [f"{name}: {fault}" for fault in judge(os.path.join(folder, name))]
    return faults


# ------------------------------------------------------------- what it makes

def changed_by(source, commit):
    """The files in which a commit differs from the base: path -> (content, executable)."""
    files = {}
    listing = source.git("diff-tree", "-r", "--no-renames", "base", commit).decode()
    for line in listing.splitlines():
        meta, path = line.split("\t")
        mode = meta.split()[1]
        content = None
        if mode != "000000":
            content = source.git("cat-file", "blob", f"{commit}:{path}")
        files[path] = (content, mode == "100755")
    return files


def on_disk(path):
    if not os.path.lexists(path):
        return None, False
    return tree.read(path), bool(os.stat(path).st_mode & 0o100)


def with_layout(source, expected):
    """What the tree has besides, for modules that are not built with it.

    Where there are symbol versions that is the last patch; elsewhere it is nobody's but theirs."""
    if bases.fact(source.base, "symbol_versions"):
        return expected
    _, _, last = tree.sort_ours(tree.our_files())
    result = {path: content for path, (content, _) in expected.items()}
    editor = tree.Editor(source.base, os.path.join(source.dir, "check/layout.cache"))
    tree.edit_files(source.base, last, source.content, result, editor,
                    dict.fromkeys(tree.our_files()))
    return {path: (content, expected[path][1] if path in expected else False)
            for path, content in result.items()}


def differences(root, expected):
    return [f"{path} differs from what `make tree` assembles"
            for path, wanted in sorted(expected.items())
            if on_disk(os.path.join(root, path)) != wanted]


def is_assembled(source, expected):
    """The branch against out/BASE/tree, which was made in another way."""
    common.need("series/assemble", source.base)
    assembled = tree.Base(source.base, "tree")
    expected = with_layout(source, expected)
    faults = differences(assembled.tree, expected)
    for path in sorted(set(assembled.state["files"]) ^ set(expected)):
        faults.append(f"{path} is changed by {'the series' if path in expected else 'make tree'} "
                      "alone")
    return faults


def run(faults, command, cwd, env, log):
    if not shutil.which(command[0]):
        raise Problem(f"{command[0]} is missing; run: build/setup series")
    done = subprocess.run(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    tree.write(log, done.stdout)
    if done.returncode:
        faults.append(f"{' '.join(command[:3])}: see {os.path.relpath(log, TOP)}")
    return done.stdout.decode(errors="replace")


def git_am(source, folder, work, expected, head):
    """Apply the mails to the base, with a work tree of the files they touch."""
    at = os.path.join(work, "am")
    shutil.rmtree(at, ignore_errors=True)
    source.git("worktree", "prune")
    source.git("worktree", "add", "--no-checkout", "--detach", at, "base")
    env = {key: value for key, value in source.env().items() if key != "GIT_DIR"}
    env.update(GIT_COMMITTER_NAME="nobody", GIT_COMMITTER_EMAIL="nobody@localhost")
    git = [*export.GIT, "-c", "core.sparseCheckout=true"]
    log = os.path.join(work, "am.log")
    faults = []
    where = subprocess.run([*git, "rev-parse", "--absolute-git-dir"], cwd=at, env=env, check=True,
                           capture_output=True, text=True).stdout.strip()
    tree.write(os.path.join(where, "info/sparse-checkout"),
               "".join(f"/{path}\n" for path in expected).encode())
    run(faults, [*git, "read-tree", "-m", "-u", "HEAD"], at, env, log)
    mails = [os.path.join(folder, n) for n in sorted(os.listdir(folder)) if n.endswith(".patch")]
    # As README has it: the cover letter holds no patch.
    run(faults, [*git, "am", "--empty=drop", *mails], at, env, log)
    if not faults:
        trees = [subprocess.run([*git, "rev-parse", commit + "^{tree}"], cwd=at, env=env,
                                check=True, capture_output=True).stdout
                 for commit in ("HEAD", head)]
        if trees[0] != trees[1]:
            faults.append(f"git am made another tree than series/export; look at {at}")
        faults += differences(at, expected)
    if not faults:
        shutil.rmtree(at)
    return [fault.replace(" ".join(git[:3]), "git am") for fault in faults]


def unpack(source, at, paths):
    """These files of Debian's source, unpacked as its documentation says."""
    shutil.rmtree(at, ignore_errors=True)
    os.makedirs(at)
    # `make tree` has unpacked it, and kept what it changed: that is as good as to do it again.
    kernel = tree.Base(source.base, "tree")
    if os.path.isdir(kernel.tree) and kernel.state["source"] == kernel.source_id():
        for path in filter(kernel.pristine_file, paths):
            os.makedirs(os.path.dirname(os.path.join(at, path)), exist_ok=True)
            shutil.copy(kernel.pristine_file(path), os.path.join(at, path))
        return
    names = "".join(f"{source.package}/{path}\n" for path in paths)
    subprocess.run(["tar", "-x", "-f", source.tarball, "--strip-components=1", "-C", at,
                    "--files-from=-"], input=names, text=True, check=True)


def quilt(source, folder, work, expected):
    """Push the patches onto the files of Debian's source that they touch, with no fuzz."""
    at = os.path.join(work, "quilt")
    there = [path for path in expected if source.content(path) is not None]
    unpack(source, at, there)
    faults = [f"the unpacked source itself has another {path} than the base"
              for path in there if on_disk(os.path.join(at, path))[0] != source.content(path)]
    shutil.copytree(folder, os.path.join(at, "patches"))
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C",
           "QUILT_PATCHES": "patches"}
    said = run(faults, ["quilt", "--quiltrc=-", "push", "-a", "--fuzz=0"], at, env,
               os.path.join(work, "quilt.log"))
    faults += [f"quilt: {line}" for line in said.splitlines()
               if re.search(r"\b(fuzz|offset|malformed|garbage)\b", line)]
    if not faults:
        faults += differences(at, expected)
        made = {os.path.relpath(os.path.join(root, name), at)
                for root, _, names in os.walk(at) for name in names}
        faults += [f"quilt touched {path}, the series does not" for path in sorted(made)
                   if path not in expected and path.split("/")[0] not in ("patches", ".pc")]
    if not faults:
        shutil.rmtree(at)
    return faults


def hidden(source, folder, names):
    """What the patches but the last one hide from genksyms, or all where that has no use."""
    faults = []
    for name in names[:-1] if bases.fact(source.base, "symbol_versions") else names:
        path = os.path.join(folder, name)
        # One that is lost is another check's to notice.
        text = tree.read_text(path) if os.path.exists(path) else ""
        if re.search(r"^\+.*__GENKSYMS__", text, re.M):
            faults.append(f"{name} adds __GENKSYMS__; make that an edit below {tree.LAST}")
    return faults


# ------------------------------------------------------- whether it is safe to stop anywhere

DEVICE = "virt/kvm/vfio.c"
# What has to be in the kernel for there to be a device: a file, and a word in it
WANTED = [
    (DEVICE, r"."),
    ("virt/kvm/Makefile.kvm", r"\bvfio\.o\b"),
    ("virt/kvm/Kconfig", r"^config KVM_VFIO$"),
    ("virt/kvm/kvm_main.c", r"\bkvm_vfio_ops"),
]


class History:
    """The commits of the series."""

    def __init__(self, source, head):
        self.source = source
        self.commits = source.git("rev-list", "--reverse", f"base..{head}").decode().split()
        self.known = {}

    def content(self, commit, path):
        """One file's, None if there is none."""
        return next(self.contents(commit, [path]))

    def contents(self, commit, paths):
        said = self.source.git("cat-file", "--batch",
                               data="".join(f"{commit}:{path}\n" for path in paths).encode())
        for _ in paths:
            head, _, said = said.partition(b"\n")
            if head.endswith(b"missing"):
                yield None
                continue
            size = int(head.split()[2])
            yield said[:size].decode()
            said = said[size + 1:]

    def vfio(self, commit):
        """All of VFIO's source that is compiled."""
        listing = self.source.git("ls-tree", "-r", commit, "--", "drivers/vfio").decode()
        if listing not in self.known:
            names = [line.split("\t")[1] for line in listing.splitlines() if line.endswith(".c")]
            self.known[listing] = "".join(self.contents(commit, names))
        return self.known[listing]


def device_is_there(source, head):
    """After each patch there is a device, whole, that finds what it needs of VFIO."""
    history = History(source, head)
    old, faults, replaced = history.content("base", DEVICE), [], []
    last = old
    for number, commit in enumerate(history.commits, 1):
        at = f"after patch {number}"
        for path, pattern in WANTED:
            if not re.search(pattern, history.content(commit, path) or "", re.M):
                faults.append(f"{at} there is no device: /{pattern}/ is not in {path}")
        now = history.content(commit, DEVICE)
        if now != last:
            replaced.append(str(number))
        last = now
        # By name, at run time: it builds without, and each ADD fails.
        for name in re.findall(r"\bsymbol_get\((\w+)\)", now or ""):
            if f"\nEXPORT_SYMBOL_GPL({name});\n" not in history.vfio(commit):
                faults.append(f"{at} VFIO does not export {name}, which the device gets by name")
        # A driver that needs its VM has it from where the device puts it.
        if bool(re.search(r"\bdevice->group->kvm\b", history.vfio(commit))) != (now == old):
            faults.append(f"{at} VFIO's drivers look for their VM where the device does not put it")
    if len(replaced) != 1:
        faults.append(f"{DEVICE} is changed by {len(replaced)} patches "
                      f"({', '.join(replaced) or 'none'}); one has to replace it")
    return faults


def fixes_come_first(source, folder, names):
    """What can be taken alone applies alone, and what cures a fault is among that."""
    alone = [p.name for p in parse_series() if p.alone and p.due(source.base)]
    index = os.path.join(source.dir, "check/alone.index")
    source.git("read-tree", "base", GIT_INDEX_FILE=index)
    faults = []
    for number, name in enumerate(names):
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            continue            # another check's to notice
        mail = tree.read(path)
        if number < len(alone):
            try:
                source.git("apply", "--cached", "--check", "-", data=mail, GIT_INDEX_FILE=index)
            except Problem:
                faults.append(f"{name} does not apply to the base by itself")
        elif re.search(rb"^Fixes: ", mail, re.M) and \
                not re.search(rf"^\+\+\+ b/{DEVICE}$".encode(), mail, re.M):
            faults.append(f"{name} cures a fault, but comes after what does not; "
                          f"put it first, and '{ALONE}' behind its name")
    os.unlink(index)
    return faults


# ---------------------------------------------------------------- whether it can be sent

def numbered(source, folder, names):
    """What git am, b4 and readers know a series by."""
    faults = []
    letter = tree.read_text(os.path.join(folder, LETTER))
    commit = source.base_commit()
    if re.findall(r"^base-commit: (.*)", letter, re.M) != ([commit] if commit else []):
        faults.append(f"{LETTER} does not name the commit that the series is for (base-commit:)" if
                      commit else f"{LETTER} names a commit (base-commit:) that nobody else has")
    if source.mailed != bool(re.search(r"^To: (?:.*\n )*.*@.*\n(?:.*\n)*?Cc: ", letter, re.M)):
        faults.append(f"{LETTER} {'does not go' if source.mailed else 'goes'} to the kernel's "
                      "maintainers and lists (To:, Cc:)")
    if len(re.findall(r"^change-id: \d{8}-[a-z0-9-]+-[0-9a-f]{12}$", letter, re.M)) != 1:
        faults.append(f"{LETTER} does not say by what the series is known (change-id:)")
    digits = len(str(len(names)))
    for number, name in enumerate([LETTER, *names]):
        wanted = f"[{source.prefix} {number:0{digits}d}/{len(names)}] "
        path = os.path.join(folder, name)
        if os.path.exists(path) and f"\nSubject: {wanted}" not in tree.read_text(path):
            faults.append(f"the subject of {name} does not begin with {wanted}")
    return faults


def recipients(source, folder, names, work):
    """Ask the kernel's own script who each patch is for; out/BASE/check/recipients says."""
    at = tree.Base(source.base, "tree").tree
    script = os.path.join(at, "scripts/get_maintainer.pl")
    if not os.path.exists(script):
        return [f"there is no scripts/get_maintainer.pl in {os.path.relpath(at, TOP)}"]
    faults, told = [], []
    for name in names:
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            continue
        done = subprocess.run([script, "--no-git", "--no-git-fallback", "--no-rolestats", path],
                              cwd=at, capture_output=True, text=True, check=False)
        who = [line for line in done.stdout.splitlines() if "@" in line]
        # MAINTAINERS is everybody's, and goes to those whom the other patches go to.
        if set(re.findall(r"^\+\+\+ b/(.*)", tree.read_text(path), re.M)) == {"MAINTAINERS"}:
            continue
        if done.returncode or not [line for line in who if "linux-kernel@" not in line]:
            faults.append(f"get_maintainer.pl knows nobody for {name}: "
                          f"{done.stderr.strip() or 'it has no section for its files'}")
        told += [name, *(f"\t{line}" for line in who)]
    tree.write(os.path.join(work, "recipients"), "\n".join([*told, ""]).encode())
    return faults


# --------------------------------------------------- whether it is the same

HOSTILE = """[user]
	name = {name}
	email = {mail}
[diff]
	algorithm = patience
	noprefix = true
	mnemonicPrefix = true
	renames = copies
	context = 7
	interHunkContext = 9
	indentHeuristic = false
	external = false
	orderFile = /dev/null
	suppressBlankEmpty = true
	statGraphWidth = 9
[core]
	abbrev = 7
	quotePath = false
	attributesFile = {attributes}
[format]
	signature = else
	thread = deep
	numbered = false
	attach = true
	subjectPrefix = OTHER
	headers = "X-Else: yes\\n"
	coverLetter = false
	outputDirectory = /nonexistent
	encodeEmailHeaders = false
	useAutoBase = true
	from = Else <else@localhost>
	notes = true
	suffix = .else
[i18n]
	commitEncoding = latin1
	logOutputEncoding = latin1
[log]
	date = iso
	showSignature = true
[color]
	ui = always
"""


def same_again(source, folder, work, nobody):
    """Export once more, as somebody whose settings are all different."""
    again, home = os.path.join(work, "again"), os.path.join(work, "home")
    shutil.rmtree(again, ignore_errors=True)
    name, mail = export.NOBODY if nobody else export.identity()
    attributes = os.path.join(home, "attributes")
    tree.write(os.path.join(home, ".gitconfig"),
               HOSTILE.format(name=name, mail=mail, attributes=attributes).encode())
    tree.write(attributes, b"* -diff\n")
    env = {**os.environ, "HOME": home, "TZ": "Pacific/Apia", "LC_ALL": "C", "COLUMNS": "40",
           "XDG_CONFIG_HOME": home, "GIT_DIFF_OPTS": "--unified=1"}
    faults = []
    run(faults, ["sh", "-c", 'umask 077; cd / && exec "$@"', "sh",
                 os.path.join(TOP, "series/export"), source.base, "--output", again,
                 *(["--nobody"] if nobody else [])],
        "/", env, os.path.join(work, "again.log"))
    if faults:
        return [f"the second export failed: see {os.path.relpath(work, TOP)}/again.log"]
    names = set(os.listdir(folder)) | set(os.listdir(again))
    _, differ, absent = filecmp.cmpfiles(folder, again, sorted(names), shallow=False)
    return [f"{n} differs: diff {os.path.relpath(folder, TOP)} {os.path.relpath(again, TOP)}"
            for n in differ + absent]


def listed(folder):
    """The patches as quilt's list has them, and whether that is all there are."""
    names = tree.read_text(os.path.join(folder, "series")).split()
    here = sorted(n for n in os.listdir(folder) if n.endswith(".patch"))
    faults = [] if here == [LETTER, *names] else \
        ["its file 'series' does not list the patches that are there"]
    return names, faults


def export_now(base, nobody):
    """Export; returns whether it was in nobody's name, which is enough for a check."""
    try:
        export.identity()
    except Problem:
        nobody = True
    if nobody:
        tree.step("git knows no name and address of yours: exporting in nobody's name, which "
                  "only serves to be checked")
    common.need("series/export", base, *(["--nobody"] if nobody else []))
    return nobody


def orphans():
    try:
        export.assign(parse_series())
    except Problem as problem:
        return [str(problem)]
    return []


# What is checked: its name, and what it means
CHECKS = [
    ("orphans", "every file and edit of ours belongs to exactly one patch"),
    ("changelogs", "the letter and the changelogs have the kernel's form"),
    ("deterministic", "a second export, by a user with other settings, is byte-identical"),
    ("assembled", "the series makes the tree that `make tree` assembles"),
    ("git-am", "git am applies it to the base and gives that tree"),
    ("quilt", "quilt applies it to Debian's source, unpacked, with no fuzz"),
    ("plain", "only the last patch cares for symbol versions"),
    ("device", "each patch leaves a device that finds what it needs, and one replaces it"),
    ("alone", "fixes come first, and each applies to the base by itself"),
    ("numbered", "the letter and the subjects say which series it is, and of what commit"),
    ("recipients", "the kernel's get_maintainer.pl knows whom to send each patch to"),
]


def check(base, nobody):
    source = export.Source(base, nobody)
    folder = source.output
    if not os.path.isdir(folder):
        raise Problem(f"there is no series yet; run: make series BASE={base}")
    work = os.path.join(source.dir, "check")
    os.makedirs(work, exist_ok=True)
    names, faults = listed(folder)
    # Exporting again moves the branch.
    head = source.git("rev-parse", source.branch).decode().strip()
    expected = changed_by(source, head)
    functions = {
        "orphans": orphans,
        "changelogs": lambda: faults + changelogs(folder, names),
        "deterministic": lambda: same_again(source, folder, work, nobody),
        "assembled": lambda: is_assembled(source, expected),
        "git-am": lambda: git_am(source, folder, work, expected, head),
        "quilt": lambda: quilt(source, folder, work, expected),
        "plain": lambda: hidden(source, folder, names),
        "device": lambda: device_is_there(source, head),
        "alone": lambda: fixes_come_first(source, folder, names),
        "numbered": lambda: numbered(source, folder, names),
        "recipients": lambda: recipients(source, folder, names, work),
    }
    print("KTAP version 1", f"1..{len(CHECKS)}", sep="\n", flush=True)
    failed = 0
    for number, (name, what) in enumerate(CHECKS, 1):
        try:
            found = functions[name]()
        except Problem as problem:
            found = [str(problem)]
        except OSError as error:
            found = [f"{error.filename or 'out/'}: {error.strerror}"]
        except subprocess.CalledProcessError as error:
            found = [f"{' '.join(error.cmd[:2])} failed: is the disk full? Run it again."]
        for fault in found:
            print(f"# {fault}")
        failed += bool(found)
        print(f"{'not ok' if found else 'ok'} {number} {name} # {what}", flush=True)
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(prog="series/check-series",
                                     usage="%(prog)s BASE [--export] [--nobody]")
    parser.add_argument("base", choices=bases.names())
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--nobody", action="store_true")
    args = parser.parse_args()
    with common.lock(args.base, "check-series"):
        nobody = export_now(args.base, args.nobody) if args.export else args.nobody
        return check(args.base, nobody)
