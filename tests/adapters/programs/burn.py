"""Use SECONDS of processor time, then tell it by a file ``burnt``."""

import sys
import time

while time.process_time() < float(sys.argv[1]):
    pass
open("burnt", "w").close()
