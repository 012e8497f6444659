"""How many no-op jobs a second through the socket? From the first request to the last visible manifest, two at a time.

Files are sent with ``POST /v1/jobs``, by one client that waits for each answer, and by eight at once: an answer means
that the job is accepted, durably. Beside them, turn by turn in the same run: the same jobs through the inbox, and the
floor. Then, on an idle system: how long one answer takes, and how long until that job is done.

    python benchmarks/submit.py [--jobs 1000] [--rounds 5] [--quick]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from bench_kit import Connection
from figures import percentile, shown, spread
from race import Entry, Race, Rates
from record import Options, keep, scratch
from runners import Solvisor

BOUNDARY = "a-job-from-the-benchmark"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
REST_SECONDS = 0.1


def body(number: int) -> bytes:
    """One file, as ``curl -F file=@NAME`` sends it."""
    head = f'Content-Disposition: form-data; name="file"; filename="sent{number:06}.noop"'
    return f"--{BOUNDARY}\r\n{head}\r\n\r\nnothing\n\r\n--{BOUNDARY}--\r\n".encode()


def send(connection: Connection, data: bytes) -> None:
    connection.request("POST", "/v1/jobs", data, HEADERS)
    answer = connection.getresponse()
    told = answer.read()
    if answer.status != 201:
        sys.exit(f"a job was answered with {answer.status}: {told[:300]!r}")


class OneClient(Solvisor):
    """Who sends waits for each answer."""

    name = "Solvisor, socket, 1 client"
    clients: ClassVar[int] = 1

    def carry_out(self, way: str, count: int) -> float:
        wanted = self.daemon.done() + count
        shares = [[body(number) for number in range(first, count, self.clients)] for first in range(self.clients)]
        with ThreadPoolExecutor(self.clients) as threads:
            begin = time.perf_counter()
            for sent in [threads.submit(_send_all, self.daemon.home, share) for share in shares]:
                sent.result()
            self.daemon.until(wanted)
            return time.perf_counter() - begin


class ManyClients(OneClient):
    name = "Solvisor, socket, 8 clients"
    clients = 8


class Inbox(Solvisor):
    name = "Solvisor, inbox"


def _send_all(home: Path, bodies: Sequence[bytes]) -> None:
    with closing(Connection(home)) as connection:
        for data in bodies:
            send(connection, data)


def singly(base: Path, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds until a job is answered, and until it is done, of ``count`` jobs one after the other."""
    answered, done = [], []
    with Solvisor(base / "singly") as runner, closing(Connection(runner.daemon.home)) as connection:
        for number in range(-5, count):
            wanted, data = runner.daemon.done() + 1, body(number + 5)
            time.sleep(REST_SECONDS)
            begin = time.perf_counter()
            send(connection, data)
            sent = time.perf_counter()
            runner.daemon.until(wanted, 0.0002)
            if number >= 0:  # the first ones warm it up
                answered.append(1000 * (sent - begin))
                done.append(1000 * (time.perf_counter() - begin))
    return answered, done


def main() -> None:
    parser = Options(__doc__)
    parser.count("jobs", 1000, 200, "at most, in each turn")
    parser.count("rounds", 5, 1)
    arguments = parser.asked()
    jobs, rounds = arguments.jobs, arguments.rounds
    with scratch(arguments) as base:
        race = Race(base, [Entry(runner) for runner in (Inbox, OneClient, ManyClients)], Rates(jobs, 3.0))
        race.run(rounds)
        answered, done = singly(base, 10 if arguments.quick else 50)
    race.print()
    print(f"one job on an idle system: answered after {shown(spread(answered), 1)} ms", end=", ")
    print(f"{percentile(answered, 0.95):.1f} at the 95th percentile; done after {shown(spread(done), 1)} ms")
    single = {"answered_ms": spread(answered), "answered_p95_ms": percentile(answered, 0.95), "done_ms": spread(done)}
    keep("submit", {"jobs": jobs, "rounds": rounds, **race.report(), "one_job": single}, arguments)


if __name__ == "__main__":
    main()
