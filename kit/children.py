# SPDX-License-Identifier: GPL-2.0-only
"""Commands that run beside each other, and end together."""

import concurrent.futures
import contextlib
import os
import signal
import subprocess
import threading

from kit.common import TOP

stopping = threading.Event()
running = set()
lock = threading.Lock()


@contextlib.contextmanager
def started(command, **options):
    """One command, with these options of Popen. stop() ends it, and what it started."""
    child = subprocess.Popen(command, cwd=TOP, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             text=True, errors="replace", start_new_session=True, **options)
    with lock:
        running.add(child)
    if stopping.is_set():               # before it was among those that stop() looks at
        kill()
    try:
        yield child
    finally:
        child.wait()
        with lock:
            running.discard(child)


def run(command, **environment):
    """Run one command; returns (status, its output, its errors)."""
    with started(command, env={**os.environ, **environment}, stderr=subprocess.PIPE) as child:
        out, err = child.communicate()
    return child.returncode, out, err


def kill():
    with lock:
        for child in running:
            try:
                os.killpg(child.pid, signal.SIGTERM)
            except ProcessLookupError:
                pass


def stop():
    """End all that run, and all that are about to."""
    stopping.set()
    kill()


@contextlib.contextmanager
def pool(jobs):
    """So many threads that run commands. Interrupted, or when something goes wrong with it, what runs is
    ended and what waits does not begin."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as threads:
        try:
            yield threads
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            stop()
            raise
