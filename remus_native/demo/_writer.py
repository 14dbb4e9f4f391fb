# SPDX-License-Identifier: LGPL-2.1-or-later
"""The demo's guest: inserts rows at full speed until it is stopped or killed.

Run as ``python -m remus_native.demo._writer DATABASE ACCOUNT SEED LIMIT``.
"""

from __future__ import annotations

import os
import sys
import time

from ._account import Account, create_database, insert_rows

__all__ = ["main"]


def main(database: str, account_path: str, seed: int, limit: int) -> int:
    """Insert until told to stop, or until the database has ``limit`` bytes."""
    with Account(account_path) as account:
        db = create_database(database)
        account.ready = True
        rows = 0
        while not account.stop:
            if os.path.getsize(database) >= limit:
                time.sleep(0.01)
                continue
            rows = insert_rows(db, seed, rows)
            account.rows = rows
        db.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
