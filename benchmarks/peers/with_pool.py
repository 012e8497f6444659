"""``concurrent.futures.ProcessPoolExecutor`` with two workers. Nothing is kept: what waits is gone with the program."""

from __future__ import annotations

import platform
from concurrent.futures import ProcessPoolExecutor

import driver

WAYS = {"spawn": driver.spawn, "call": driver.call}

if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:

        def carry_out(what: str, count: int) -> None:
            for done in [pool.submit(WAYS[what], number) for number in range(count)]:
                done.result()

        driver.drive(platform.python_version(), carry_out)
