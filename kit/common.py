# SPDX-License-Identifier: GPL-2.0-only
"""What the checks of the series share: where things are, how to talk, to lock and to call."""

import contextlib
import fcntl
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)
BASES = ("6.1", "6.12")


class Problem(Exception):
    """One sentence: what could not be done, where its log is, what to do."""


def step(text):
    print(f"==> {text}", file=sys.stderr, flush=True)


def rel(path):
    return os.path.relpath(path, TOP)


def read(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read()


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    tmp = f"{path}.tmp.{os.getpid()}"
    with open(tmp, "w", encoding="utf-8") as f:
        f.write(text)
    os.replace(tmp, path)


def load(name):
    """A script of this folder as a module, without leaving bytecode beside it."""
    sys.dont_write_bytecode = True
    loader = importlib.machinery.SourceFileLoader(name, os.path.join(HERE, name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


@contextlib.contextmanager
def lock(base, name):
    """One at a time in one base: a second run waits, it does not collide."""
    path = os.path.join(TOP, "out", base, f".{name}.lock")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="ascii") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            step(f"waiting for another {name} of {base}")
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def call(script, *arguments, **environment):
    """Run a script of this folder and pass on what it says while it says it.

    Returns its status, its output and the last that it said, which is the reason if it failed.
    """
    said = ""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as out, \
         subprocess.Popen([os.path.join(HERE, script), *arguments], cwd=TOP,
                          env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
                          stdout=out, stderr=subprocess.PIPE, text=True,
                          errors="replace") as child:
        for line in child.stderr:
            sys.stderr.write(line)
            sys.stderr.flush()
            said = line.strip() or said
        child.wait()
        out.seek(0)
        return child.returncode, out.read(), said


def need(script, *arguments, **environment):
    """The same, and Problem with its own sentence unless it succeeded."""
    status, out, said = call(script, *arguments, **environment)
    if status:
        raise Problem(said or f"series/{script} ended with status {status} and said nothing.")
    return out
