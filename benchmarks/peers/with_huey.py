"""huey on SQLite with ``fsync`` on (``synchronous = FULL``), and its own consumer with two threads in a second process.

What waits survives; what was being done is lost when the consumer dies. The consumer looks every millisecond when it is
idle (of itself it looks after 0.1 to 10 s), so that the latency of one job is not that of its poll. Other arguments are
given to it instead.
"""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.metadata import version

import driver
from huey import SqliteHuey

queue = SqliteHuey(filename="huey.db", fsync=True, store_none=True)
spawn = queue.task(name="spawn")(driver.spawn)
call = queue.task(name="call")(driver.call)
WAYS = {"spawn": spawn, "call": call}
POLL_SECONDS = 0.001


def carry_out(what: str, count: int) -> None:
    """The results are counted while they come, which costs the workers less than to ask for each of them."""
    results = [WAYS[what](number) for number in range(count)]
    pause = POLL_SECONDS if count == 1 else 10 * POLL_SECONDS
    while queue.storage.result_store_size() < count:
        time.sleep(pause)
    for result in results:
        result.get()


if __name__ == "__main__":
    consumer = [sys.executable, "-m", "huey.bin.huey_consumer", "with_huey.queue", "--workers", "2", "--quiet"]
    often = ["--delay", str(POLL_SECONDS), "--max-delay", str(POLL_SECONDS), "--no-periodic"]
    process = subprocess.Popen(consumer + (sys.argv[1:] or often), stderr=subprocess.DEVNULL)
    driver.drive(version("huey"), carry_out)
    process.terminate()
    process.wait()
