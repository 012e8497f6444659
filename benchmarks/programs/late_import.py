"""A function for a warm Python worker, whose import takes 50 to 150 ms.

The monotonic instant of the import's end is written to the file ``ready_at``; the worker listens a moment later.
"""

import os
import random
import time


def process(job: object) -> None:
    """Nothing."""


time.sleep(random.uniform(0.05, 0.15))
with open("ready_at.part", "w") as told:
    told.write(repr(time.monotonic()))
os.replace("ready_at.part", "ready_at")
