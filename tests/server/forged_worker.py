"""A child of a forged server with workers: changed as its parent was, then what its order says."""

from __future__ import annotations

import sys

from tests.server.forge import prepare
from web.server.workers.__main__ import main

if __name__ == "__main__":
    prepare()
    sys.exit(main())
