"""dask.distributed: a scheduler and two workers of one thread each. What waits lives in the scheduler's memory."""

from __future__ import annotations

import distributed
import driver

WAYS = {"spawn": driver.spawn, "call": driver.call}

if __name__ == "__main__":
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):

        def carry_out(what: str, count: int) -> None:
            client.gather(client.map(WAYS[what], range(count), pure=False))

        driver.drive(distributed.__version__, carry_out)
