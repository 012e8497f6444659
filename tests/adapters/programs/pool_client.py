"""Send WORDS as a line to HOST PORT and print the answer; without one, end with exit code 1."""

import socket
import sys

with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as connection:
    connection.sendall(f"{' '.join(sys.argv[3:])}\n".encode())
    answer = connection.makefile().readline()
print(answer, end="")
sys.exit(0 if answer else "the server hung up")
