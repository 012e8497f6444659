"""A function for a warm Python worker, whose import takes 50 to 150 ms.

The monotonic instant of the import's end is printed; the worker listens a moment later.
"""

import random
import time


def process(job: object) -> None:
    """Nothing."""


time.sleep(random.uniform(0.05, 0.15))
print(f"ready at {time.monotonic()!r}")
