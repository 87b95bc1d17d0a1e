"""In a directory on `PYTHONPATH` it makes the wall clock of a Python process wrong by `CLOCK_OFFSET_SECONDS`."""

import os
import time
from functools import partial

time.time = partial(lambda right, offset: right() + offset, time.time, float(os.environ["CLOCK_OFFSET_SECONDS"]))
