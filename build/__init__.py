# SPDX-License-Identifier: GPL-2.0-only
"""What is built: set-up, Debian's kernels, modules, other kernels and configurations."""
