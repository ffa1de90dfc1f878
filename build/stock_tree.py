#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""build/stock-tree BASE: out/BASE/stock, the base's source as Debian ships it.

What the checks compare with: a warning that the base has itself is not ours.
All but the files we touch are hard links to those of out/BASE/tree.  That is
safe, since series/assemble replaces files and never writes into them, and
whoever builds from either uses an output folder of its own.
"""

import json
import os
import shutil
import subprocess
import sys

from kit import bases
from kit import common
from kit.common import TOP, Problem, read_bytes, step


def link_all(tree, stock):
    step(f"linking {os.path.relpath(tree, TOP)} to {os.path.relpath(stock, TOP)}")
    shutil.rmtree(stock, ignore_errors=True)
    shutil.rmtree(stock + ".tmp", ignore_errors=True)
    subprocess.run(["cp", "-al", tree, stock + ".tmp"], check=True)
    os.replace(stock + ".tmp", stock)


def restore(stock, orig, path):
    """The base's own PATH; dates change only where the content does."""
    here, base = os.path.join(stock, path), os.path.join(orig, path)
    if not os.path.isfile(base):
        if os.path.exists(here):
            os.unlink(here)
    elif not os.path.isfile(here) or read_bytes(here) != read_bytes(base):
        os.makedirs(os.path.dirname(here), exist_ok=True)
        shutil.copyfile(base, here + ".tmp")
        shutil.copymode(base, here + ".tmp")
        os.replace(here + ".tmp", here)


def make(base):
    folder = os.path.join(TOP, "out", base)
    tree, stock, orig = (os.path.join(folder, name) for name in ("tree", "stock", "orig"))
    record = os.path.join(folder, ".stock.state")
    # The assembler must not change what is being linked.
    with common.lock(base, "assemble"):
        with open(os.path.join(folder, ".tree.state"), encoding="utf-8") as f:
            state = json.load(f)
        known = {"source": None, "files": []}
        if os.path.isdir(stock) and os.path.exists(record):
            with open(record, encoding="utf-8") as f:
                known = json.load(f)
        if known["source"] != state["source"]:
            link_all(tree, stock)
            known = {"source": state["source"], "files": []}
        touched = sorted(set(known["files"]) | set(state["files"]))
        for path in touched:
            # What is no longer ours has gone back to the base's in the tree, too.
            if path in state["files"]:
                restore(stock, orig, path)
            else:
                restore(stock, tree, path)
        with open(record + ".tmp", "w", encoding="utf-8") as f:
            json.dump({"source": state["source"], "files": sorted(state["files"])}, f)
        os.replace(record + ".tmp", record)


def main():
    if len(sys.argv) != 2 or sys.argv[1] not in bases.names():
        raise Problem(f"needs a base, one of: {' '.join(bases.names())}.")
    base = sys.argv[1]
    common.need("series/assemble", base)
    try:
        make(base)
    except subprocess.CalledProcessError as error:
        raise Problem(f"{os.path.basename(error.cmd[0])} failed; see above, correct that and "
                      "run it again.") from None
