"""A function for a warm Python worker, whose import takes ``LATE_SECONDS``, half to one and a half.

The instant of the import's end, in seconds of the time of day, is added to the file that ``LATE_IMPORT`` names; the
worker listens a moment later.
"""

import os
import random
import time


def process(job: object) -> None:
    """Nothing."""


time.sleep(random.uniform(0.5, 1.5) * float(os.environ["LATE_SECONDS"]))
ready = time.time()
with open(os.environ["LATE_IMPORT"], "a") as file:
    file.write(f"{ready!r}\n")
