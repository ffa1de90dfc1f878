# SPDX-License-Identifier: GPL-2.0-only
"""Are the locks taken in the documented order?  Prints KTAP.

    tests/locks/locks [--some] BASE

Every run with the debug kernel leaves lockdep's graph in out/lab/NAME/locks.  Those of all runs of
one kernel are added up.  lockdep itself sees one run at a time; what one program does and what another
does are in one order here as well.

The order is the one of Documentation/virtual/kvm/devices/vfio.txt, "Outermost first".
tests/locks/order.toml says what lockdep calls these locks, which of them are never taken one inside
the other, and which locks other sentences of the document are about.

A lock is inside another one if it is waited for while the other is held, or while one that is inside
the other is, and so on: over all locks of the kernel but SRCU, whose readers do not wait.

Cases: each lock was taken; inside each one the locks were that the document has there; none was that
the document has outside of it; what the document excludes otherwise was not.  --some: what was
taken was in that order; the runs so far need not have shown all.
out/BASE/locks/graph has the whole graph.
"""

import argparse
import bisect
import collections
import itertools
import os
import re

from kit import bases
from kit.common import TOP, Problem, read, write
from tests import records

DOCUMENT = os.path.join(TOP, "Documentation/virtual/kvm/devices/vfio.txt")
NAMES = os.path.join(TOP, "tests/locks/order.toml")
FIRST_LINE = "Outermost first::"
# Keys of locks in allocated memory are below the kernel.
KERNEL_START = 0xffffffff80000000


# --- what is documented -----------------------------------------------------------------------

def documented(text):
    """The locks, outermost first"""
    lines = text.partition(FIRST_LINE + "\n")[2].splitlines()
    block = list(itertools.takewhile(lambda line: not line or line.startswith(" "), lines))
    block = [line for line in block if line.strip()]
    depths = [len(line) - len(line.lstrip()) for line in block]
    if not block or any(a >= b for a, b in zip(depths, depths[1:])):
        raise Problem(f"the document has no list of locks after '{FIRST_LINE}', each line further in.")
    return [re.split(r"\s{2,}", line.strip())[0] for line in block]


def section(entry, keys, optional=()):
    if not set(keys) <= set(entry) <= {*keys, *optional}:
        raise Problem(f"tests/locks/order.toml: an entry has {', '.join(keys)}.")
    return entry


class Order:
    """What is documented, of what this base has"""

    def __init__(self, base, text, table):
        def here(entry):
            return all(bases.fact(base, need) for need in entry.get("needs", ()))

        locks = [section(entry, ("name", "classes"), ("needs",)) for entry in table.get("lock", [])]
        apart = [section(entry, ("outer", "inner", "why"), ("needs",)) for entry in table.get("apart", [])]
        never = [section(entry, ("says", "outer", "inner")) for entry in table.get("never", [])]
        order = documented(text)
        self._compare(text, order, locks, apart, never)
        self.classes = {entry["name"]: entry["classes"] for entry in locks if here(entry)}
        self.order = [name for name in order if name in self.classes]
        self.apart = [(entry["outer"], inner) for entry in apart if here(entry) for inner in entry["inner"]]
        self.never = [(entry["says"], entry["outer"],
                       [name for name in entry["inner"] if name in self.classes])
                      for entry in never if entry["outer"] in self.classes]

    @staticmethod
    def _compare(text, order, locks, apart, never):
        """The table is of this document, or Problem."""
        known = {entry["name"] for entry in locks}
        used = {*order, *(name for entry in never for name in (entry["outer"], *entry["inner"]))}
        if odd := sorted(known ^ used):
            raise Problem(f"'{odd[0]}' is in tests/locks/order.toml or in the document, not in both.")
        for entry in apart:
            for inner in entry["inner"]:
                if not {entry["outer"], inner} <= set(order) or \
                        order.index(entry["outer"]) >= order.index(inner):
                    raise Problem(f"the document does not have '{inner}' inside '{entry['outer']}'.")
        words = " ".join(text.split())
        for entry in never:
            if entry["says"] not in words:
                raise Problem(f"the document does not say '{entry['says']}'.")


# --- what lockdep saw ---------------------------------------------------------------------------

class Places:
    """Where the modules of a run are in memory"""

    def __init__(self, text):
        found = re.findall(r"^/sys/module/(\w+)/sections/(\S+):0x([0-9a-f]+)$", text, re.M)
        self.places = sorted((int(address, 16), module, name) for module, name, address in found)
        self.starts = [place[0] for place in self.places]

    def of(self, key, run):
        """(module, place), the same for a class in all runs of a kernel"""
        number = bisect.bisect_right(self.starts, key) - 1
        if number >= 0:
            start, module, name = self.places[number]
            return module, f"{name}+{key - start:#x}"
        if key >= KERNEL_START:
            return "vmlinux", f"{key:#x}"
        return "", f"{run} {key:#x}"    # allocated: another one in another run


class Graph:
    """Classes, and which one was waited for while which was held"""

    def __init__(self):
        self.names = {}                 # of (module, place)
        self.inside = collections.defaultdict(dict)     # {outer: {inner: a run that has shown it}}

    def add(self, run, chains, sections):
        """lockdep has a chain for each wait: what was held, and last the lock that was waited for. What
        was only tried is in a chain, but not last."""
        places, known = Places(sections), {}
        for text in re.split(r"^irq_context: .*\n", chains, flags=re.M)[1:]:
            chain = []
            for key, name in re.findall(r"^\[([0-9a-f]+)\] (.*)$", text, re.M):
                if key not in known:
                    known[key] = places.of(int(key, 16), run)
                    # Of several classes of one name, the order of their first use makes the number.
                    self.names[known[key]] = re.sub(r"(#\d+)?(/\d+)?$", "", name)
                chain.append(known[key])
            for outer in chain[:-1]:
                self.inside[outer].setdefault(chain[-1], run)

    def called(self, names):
        """The classes of these names, as in order.toml"""
        return {at for at, name in self.names.items() if f"{at[0]} {name}" in names}

    def waits(self, at):
        """Does who is last in a chain wait? SRCU's readers do not, and who waits for these looks the
        same there: KVM begins to read kvm->srcu under the scheduler's locks."""
        return "srcu" not in self.names[at]

    def way(self, outer, inner):
        """A shortest way from OUTER inwards to INNER, '' if there is none. To and by way of SRCU there
        is none but a chain that has both."""
        before = dict.fromkeys(sorted(outer))
        queue = collections.deque(before)
        while queue:
            at = queue.popleft()
            for further in self.inside.get(at, ()):
                if further in before or not (self.waits(further) or at in outer):
                    continue
                before[further] = at
                if further in inner:
                    return self._say(before, further)
                if self.waits(further):
                    queue.append(further)
        return ""

    def _say(self, before, at):
        said = ""
        while (outer := before[at]) is not None:
            said = f" -> {self.names[at]} ({self.inside[outer][at]})" + said
            at = outer
        return self.names[at] + said

    def text(self):
        for outer, inner in sorted(self.inside.items()):
            yield f"{' '.join(outer)} {self.names[outer]}"
            for at, run in sorted(inner.items()):
                yield f"  -> {' '.join(at)} {self.names[at]} ({run})"


def add_up(folders):
    graph = Graph()
    for folder in folders:
        graph.add(os.path.basename(os.path.dirname(folder)),
                  read(os.path.join(folder, "lockdep_chains")), read(os.path.join(folder, "sections")))
    return graph


# --- comparing them -----------------------------------------------------------------------------

def judge(order, graph):
    """(what, is it so, what to say of it) for each case"""
    return [*shown(order, graph), *excluded(order, graph)]


def shown(order, graph):
    """What runs have to have shown"""
    at = called(order, graph)
    for name, classes in order.classes.items():
        missing = [called for called in classes if not graph.called([called])]
        yield f"{name}: was taken", not missing, [f"no run has shown {called}" for called in missing]
    for outer, inner in around(order.order):
        if not inner:
            continue
        more = []
        for name in inner:
            found = graph.way(at[outer], at[name])
            if (outer, name) in order.apart and found:
                more.append(f"{name} was: {found}, and tests/locks/order.toml has it apart")
            elif (outer, name) not in order.apart and not found:
                more.append(f"{name} was not")
        yield f"{outer}: those further in were taken inside it", not more, more


def excluded(order, graph):
    """What no run may show"""
    at = called(order, graph)
    for outer, inner in around(order.order):
        if inner:
            more = [f"{outer} was taken inside {name}: {found}" for name in inner
                    if (found := graph.way(at[name], at[outer]))]
            yield f"{outer}: was not taken inside those further in", not more, more
    for says, outer, inner in order.never:
        more = [found for name in inner if (found := graph.way(at[outer], at[name]))]
        yield says, not more, more


def called(order, graph):
    """The classes of each lock, of those that were taken"""
    return {name: graph.called(classes) for name, classes in order.classes.items()}


def around(order):
    """(lock, those further in) for each lock"""
    return [(name, order[number + 1:]) for number, name in enumerate(order)]


def main():
    parser = argparse.ArgumentParser(prog="tests/locks/locks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--some", action="store_true")
    parser.add_argument("base", metavar="BASE")
    args = parser.parse_args()
    order = Order(args.base, read(DOCUMENT), bases.toml(NAMES))
    folders = records.runs(args.base, "debug", "locks")
    if not folders:
        raise Problem("no run of this debug kernel left a graph: "
                      f"run make BASE={args.base} check-debug first.")
    graph = add_up(folders)
    work = os.path.join(TOP, "out", args.base, "locks")
    write(os.path.join(work, "graph"), "\n".join(graph.text()) + "\n")
    said = [f"# {len(graph.names)} classes of locks, "
            f"{sum(map(len, graph.inside.values()))} dependencies, of {len(folders)} runs"]
    cases = list((excluded if args.some else judge)(order, graph))
    return records.report(os.path.join(work, "report"), said, cases)
