# SPDX-License-Identifier: LGPL-2.1-or-later
"""What tests share: no test module imports another one, only from here."""
