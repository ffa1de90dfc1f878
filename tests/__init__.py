# SPDX-License-Identifier: GPL-2.0-only
"""The tests for the lab, and what runs them all."""
