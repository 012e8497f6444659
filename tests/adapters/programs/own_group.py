"""Leave the group, but not the session; write the process id to the file PID; keep no other tie."""

import os
import sys

os.setpgid(0, 0)
os.chdir("/")
with open(sys.argv[1], "w") as file:
    print(os.getpid(), file=file)
os.execv("/bin/sleep", ["sleep", "1000"])
