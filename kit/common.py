# SPDX-License-Identifier: GPL-2.0-only
"""What all commands share: where things are, how to say, read, write, lock, call and fail."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


class Problem(Exception):
    """One sentence: what could not be done, where its log is, what to do."""


def step(text):
    print(f"==> {text}", file=sys.stderr, flush=True)


def rel(path):
    return os.path.relpath(path, TOP)


# --- files -----------------------------------------------------------------------------------

def read(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read()


def read_bytes(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, *chunks, mode=0o644):
    """Write whole or not at all; chunks are text or bytes."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".tmp-")
    try:
        with os.fdopen(fd, "wb") as f:
            for chunk in chunks:
                f.write(chunk if isinstance(chunk, bytes) else chunk.encode())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


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


# --- other commands --------------------------------------------------------------------------

def call(script, *arguments, **environment):
    """Run a command of the repository and pass on what it says while it says it.

    Returns its status, its output and the last that it said, which is the reason if it failed.
    """
    said = ""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as out, \
         subprocess.Popen([os.path.join(TOP, script), *arguments], cwd=TOP,
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
        raise Problem(said or f"{script} ended with status {status} and said nothing.")
    return out


# --- commands --------------------------------------------------------------------------------

def command(name, main, broken=1):
    """Run MAIN and exit with what it returns, or say in one sentence why it could not be done.

    BROKEN is the exit status for that.  Being asked to end counts as Ctrl-C.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        sys.exit(main())
    except Problem as problem:
        print(f"{name}: {problem}", file=sys.stderr)
    except FileNotFoundError as error:
        # A program has no path, and a file does.
        missing = str(error.filename)
        print(f"{name}: {missing}: {error.strerror}" if "/" in missing else
              f"{name}: {missing} is not installed.", file=sys.stderr)
    except OSError as error:
        print(f"{name}: {error.filename or 'out/'}: {error.strerror}; make room or correct its "
              "permissions, and run it again.", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the next run goes on from here.", file=sys.stderr)
        sys.exit(130)
    sys.exit(broken)
