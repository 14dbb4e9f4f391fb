# SPDX-License-Identifier: LGPL-2.1-or-later
"""The version, in one place: setup, the C library's build and Python read it."""

__version__ = "0.1.0"
