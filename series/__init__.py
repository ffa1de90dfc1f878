# SPDX-License-Identifier: GPL-2.0-only
"""The series: a kernel tree is assembled, the patches are exported and checked."""
