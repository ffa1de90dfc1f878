# SPDX-License-Identifier: GPL-2.0-only
"""The emulated hosts: boot one kernel, run one program in it, judge the run."""
