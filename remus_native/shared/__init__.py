# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the command and the demo share: words for a terminal, mounts."""
