# SPDX-License-Identifier: GPL-2.0-only
"""What runs with a kernel of build/debug-kernel leave in out/lab/NAME/KIND, and the report of what is
judged by it."""

import argparse
import glob
import os
import re

from kit.common import TOP, Problem, read_bytes, write
from tests import runner


def of_tests(folders, base, name):
    """Those of make check-NAME and make torture, by how their runs are called now. One by hand, or of a test
    that has gone, shows nothing of the tests."""
    checks = {os.path.basename(check.folder)
              for check in runner.listed_checks(base, argparse.Namespace(kernel=name))}
    torture = re.compile(rf"torture-\d+-{re.escape(base)}")
    for folder in folders:
        run = os.path.basename(os.path.dirname(folder))
        if run in checks or torture.fullmatch(run):
            yield folder


def runs(base, name, kind):
    """The folders of the tests' runs with the kernel NAME that is built."""
    kernel = os.path.join(TOP, "out", base, name, ".fingerprint")
    if not os.path.exists(kernel):
        raise Problem(f"there is no such kernel: run build/debug-kernel {base} {name} first.")
    folders = [os.path.dirname(path) for path in sorted(glob.glob(os.path.join(TOP, "out/lab/*", kind, "kernel")))
               if read_bytes(path) == read_bytes(kernel)]
    return list(of_tests(folders, base, name))


def report(path, said, cases):
    """Print the lines SAID and CASES, (what, is it so, what to say of it) each, as KTAP, and keep that
    in PATH; the exit status."""
    lines = [*said, "KTAP version 1", f"1..{len(cases)}"]
    for number, (what, good, more) in enumerate(cases, 1):
        lines += [] if good else [f"# {line}" for line in more]
        lines += [f"{'ok' if good else 'not ok'} {number} {what}"]
    print("\n".join(lines))
    write(path, "\n".join(lines) + "\n")
    return int(not all(good for _, good, _ in cases))
