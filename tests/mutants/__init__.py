# SPDX-License-Identifier: GPL-2.0-only
"""Ways to break the device, to see that the tests notice."""
