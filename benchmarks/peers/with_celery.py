"""Celery with redis, which writes every change to its file before it answers (``appendfsync always``); two processes.

What waits survives; what was being done is lost when the worker dies, as is the default of Celery. Results are kept in
the same redis. Events, gossip and heartbeats are off: one worker has nobody to tell.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import celery
import driver

SOCKET = Path("redis.sock").resolve()
app = celery.Celery("with_celery", broker=f"redis+socket://{SOCKET}", backend=f"redis+socket://{SOCKET}")
app.conf.update(broker_connection_retry_on_startup=True, result_expires=None)
spawn = app.task(name="spawn")(driver.spawn)
call = app.task(name="call")(driver.call)
WAYS = {"spawn": spawn, "call": call}


def carry_out(what: str, count: int) -> None:
    for result in [WAYS[what].delay(number) for number in range(count)]:
        result.get()


if __name__ == "__main__":
    durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    listening = ["--port", "0", "--unixsocket", str(SOCKET), "--dir", str(Path.cwd())]
    program = shutil.which("redis-check-rdb")  # the same program; by its name it knows what to be
    redis = subprocess.Popen(["redis-server", *durable, *listening], executable=program, stdout=subprocess.DEVNULL)
    while not SOCKET.exists():
        time.sleep(0.01)
    alone = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR"]
    command = [sys.executable, "-m", "celery", "--quiet", "-A", "with_celery", "worker", "-c", "2", *alone]
    environment = os.environ | {"C_FORCE_ROOT": "1"}
    worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    with contextlib.suppress(KeyboardInterrupt):
        driver.drive(celery.__version__, carry_out)
    worker.terminate()
    worker.wait()
    redis.terminate()
    redis.wait()
