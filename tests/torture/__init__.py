# SPDX-License-Identifier: GPL-2.0-only
"""The whole interface at random, in many runs."""
