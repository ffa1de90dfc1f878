# SPDX-License-Identifier: GPL-2.0-only
"""What a reviewer's tools say."""
