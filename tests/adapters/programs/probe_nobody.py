"""As root, start a child that holds a listening socket; then, as a user who may not look into it, tell whose it is."""

import os
import socket
import subprocess

from solvisor.process.listeners import held_by, owner

with socket.create_server(("127.0.0.1", 0)) as listener:
    inode = os.fstat(listener.fileno()).st_ino
    child = subprocess.Popen(["sleep", "1000"], pass_fds=[listener.fileno()])
try:
    before = held_by(child.pid, "home/none", {inode}) == {inode}, owner(inode)
    os.setgroups([])
    os.setresgid(65534, 65534, 0)
    os.setresuid(65534, 65534, 0)
    after = held_by(child.pid, "home/none", {inode}) == {inode}, owner(inode)
    print(before == (True, f"sleep (pid {child.pid})"), after == (False, None))
finally:
    os.setresuid(0, 0, 0)
    child.kill()
    child.wait()
