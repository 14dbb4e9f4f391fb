# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a resource does, told to whoever watches it.

`ask` collects what both sides say on this host, `status_text` words it,
``status.schema.json`` beside this file describes it as JSON.  `follow` tells
each change of state; `Newest` is what a serving process adds to its status.
"""

from ._ask import RESOURCES_DIR, Told, ask, files_of
from ._events import Follower, event_line
from ._newest import Newest
from ._text import status_text

__all__ = [
    "RESOURCES_DIR",
    "Follower",
    "Newest",
    "Told",
    "ask",
    "event_line",
    "files_of",
    "status_text",
]
