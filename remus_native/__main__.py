# SPDX-License-Identifier: LGPL-2.1-or-later
"""``python -m remus_native`` is ``remus-native``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
