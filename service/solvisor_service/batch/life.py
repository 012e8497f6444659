"""The life of one batch: opened, sent, closed, watched to its end, its results brought.

Rules: it blocks, so it lives in a thread of its own; sending has another, so that the first jobs run while the last
are still to be sent. Whatever it learns goes into the ledger and, for the main thread, into the mailbox. It knows
neither signals nor the command line, nor how anything looks.
"""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path, PurePath
from typing import Final

from solvisor.errors import SolvisorError
from solvisor.model import State
from solvisor.names import escape_name
from solvisor.views import JobPage, JobRow, Status, Submitted
from solvisor_service.batch.idle import Idle
from solvisor_service.batch.ledger import STOP, Item, Ledger
from solvisor_service.batch.link import Left, Link
from solvisor_service.batch.mail import Mailbox, Over, Said
from solvisor_service.batch.progress import Progress
from solvisor_service.client import Client, RequestRefused, changed_configuration
from solvisor_service.download import DownloadFailed, fetch
from solvisor_service.targets import JOB_FILE_SUFFIX, UsageError

POLL_SECONDS: Final = 0.5
"""How long a question waits for another job to end."""

PACE_SECONDS: Final = 0.1
"""Between two questions at least: short jobs end faster than anybody can read."""

PAGE: Final = 500

_STEM_MAX: Final = 64
_ROWS_EVERY_SECONDS: Final = 2.0
_ROWS_SHARE: Final = 20
"""Jobs are looked up again after so many times what it took: a large batch is not slowed down by it."""

_OF_THIS_INPUT: Final = (1, 2)
"""Exit statuses of refusals that are about one input; others are about the daemon or the batch."""


class ServersFailed(SolvisorError):
    """The warm servers of the batch's solver failed too often, and nobody is there to start them again."""

    code = "servers_failed"


class Life:
    """Lives the batch of ``ledger`` through ``link``; results go into ``out``, if it is given."""

    def __init__(self, ledger: Ledger, link: Link, mailbox: Mailbox, out: Path | None) -> None:
        self._ledger = ledger
        self._link = link
        self._mailbox = mailbox
        self._out = out
        self._sender_fault: Exception | None = None
        self._given_up: ServersFailed | None = None
        self._look_up_after = 0.0

    def run(self) -> None:
        """Live it; ``Over`` is the last mail."""
        error: Exception | None = None
        try:
            self._live()
        except Left:
            pass
        except Exception as caught:  # noqa: BLE001  raised again by the main thread, after the summary
            error = caught
        self._mailbox.put(Over(error))

    def _live(self) -> None:
        ledger = self._ledger
        self._check(self._link.attach())
        if ledger.wish:
            return
        ledger.batch = self._link.batch = self._link.ask_once(lambda client: client.open_batch(ledger.rule)).id
        ledger.began = time.monotonic()
        try:
            threading.Thread(target=self._send, args=(ledger.batch,), daemon=True).start()
            self._watch(ledger.batch)
        finally:
            ledger.ended = time.monotonic()
        if self._out is not None and ledger.wish < STOP:
            self._bring(self._out)
        if self._given_up is not None and not ledger.wish:
            raise self._given_up

    def _check(self, status: Status) -> None:
        """Say what can be seen to be wrong before anything is sent."""
        if self._ledger.solver not in status.solvers:
            known = ", ".join(status.solvers) or "none"
            text = f"there is no solver {self._ledger.solver} on {status.home}; there are: {known}"
            raise UsageError("; ".join(filter(None, [text, changed_configuration(status)])))
        asked = self._ledger.rule.max_jobs
        if asked is not None and asked > status.jobs.total:
            text = f"--max-jobs {asked}: the daemon runs at most {status.jobs.total} jobs at once (max_jobs)"
            self._mailbox.put(Said(text))

    # --- sending ----------------------------------------------------------------------------------------------------

    def _send(self, batch: str) -> None:
        ledger = self._ledger
        try:
            for item in ledger.items:
                if ledger.wish or ledger.stopped is not None:
                    break
                self._submit(batch, item)
                if item.refusal is not None and ledger.rule.on_error == "fail":
                    ledger.stopped = f"{escape_name(item.given)} was rejected, and the batch stops at the first failure"
                    self._cancel(batch, running=False)
            self._link.ask(lambda client: client.close_batch(batch))
        except Exception as fault:  # noqa: BLE001  raised again by the watcher
            self._sender_fault = fault

    def _submit(self, batch: str, item: Item) -> None:
        prepared = item.prepared
        if prepared is None:  # refused before it was sent
            return
        key = prepared.key or f"{batch}/{item.index}"

        def submit(client: Client) -> Submitted:
            for upload in prepared.uploads:  # a file that is gone must not look like a daemon that is gone
                upload.path.open("rb").close()
            item.sent = True
            return client.submit(prepared.uploads, prepared.job, batch=batch, key=key)

        try:
            item.id = self._link.ask(submit).id
        except RequestRefused as refused:
            if refused.exit_status not in _OF_THIS_INPUT:
                raise
            item.refusal = str(refused)
        except OSError as error:
            item.refusal = f"{error.filename} cannot be read any more: {error.strerror}"

    # --- watching ---------------------------------------------------------------------------------------------------

    def _watch(self, batch: str) -> None:
        """Until every job has its end; what the user wishes is passed on."""
        ledger, passed_on, idle = self._ledger, 0, Idle()
        while True:
            if self._sender_fault is not None:
                raise self._sender_fault
            wish = ledger.wish
            if wish > passed_on:
                self._cancel(batch, running=wish >= STOP)
                passed_on = wish
            asked = time.monotonic()
            view = self._link.ask(lambda client: client.batch(batch, wait=POLL_SECONDS))
            ledger.view = view
            if ledger.stopped is None and not wish:
                ledger.stopped = view.stopped
            self._mailbox.put(ledger.progress())
            if view.over or time.monotonic() >= self._look_up_after:
                self._look_up(batch)
            if view.over:
                return
            if idle.is_due(view, time.monotonic()) and not self._gives_up(batch):
                self._tell_why(idle)
            self._link.rest(asked + PACE_SECONDS - time.monotonic())

    def _gives_up(self, batch: str) -> bool:
        """Cancel what waits if it would wait for ever: for warm servers that nobody will start again."""
        if not self._link.unattended or self._given_up is not None:
            return self._given_up is not None
        pools = self._link.ask(lambda client: client.status()).servers
        pool = next((pool for pool in pools if pool.solver == self._ledger.solver), None)
        if pool is None or pool.state != "failed" or pool.ready:
            return False
        why = f"the servers of {pool.solver} failed {pool.failures} times in a row: {pool.error}"
        self._given_up = ServersFailed(f"{why}; what waited for them was cancelled: correct it, then run it again")
        self._ledger.stopped = why
        self._cancel(batch, running=False)
        return True

    def _tell_why(self, idle: Idle) -> None:
        """Say what the first job waits for that is known to be queued."""
        jobs = self._ledger.jobs
        rows = (jobs.get(item.id) for item in self._ledger.items if item.id is not None)
        first = next((row.id for row in rows if row is not None and row.state is State.QUEUED), None)
        if first is None:
            return
        try:
            words = idle.words(self._link.ask(lambda client: client.explain(first)))
        except RequestRefused:  # it is gone
            return
        if words is not None:
            self._mailbox.put(Said(words))

    def _cancel(self, batch: str, *, running: bool) -> None:
        self._link.ask(lambda client: client.cancel_batch(batch, running=running))

    def _look_up(self, batch: str) -> None:
        """Bring what is known of the jobs up to date."""
        began = time.monotonic()
        jobs: dict[str, JobRow] = {}
        cursor: str | None = None
        while True:
            page = self._page(batch, cursor)
            jobs.update((job.id, job) for job in page.jobs)
            cursor = page.next
            if cursor is None:
                break
        self._ledger.jobs = jobs
        ended = time.monotonic()
        self._look_up_after = ended + max(_ROWS_EVERY_SECONDS, _ROWS_SHARE * (ended - began))

    def _page(self, batch: str, cursor: str | None) -> JobPage:
        return self._link.ask(lambda client: client.jobs(limit=PAGE, cursor=cursor, batch=batch))

    # --- results ----------------------------------------------------------------------------------------------------

    def _bring(self, out: Path) -> None:
        """Bring the results of every job that ended; a further interrupt breaks that off."""
        ledger, wish = self._ledger, self._ledger.wish
        brought = [(item, job) for item in ledger.items if (job := ledger.jobs.get(item.id or "")) is not None]
        width = len(str(len(ledger.items)))
        ledger.missing = len(brought)
        for done, (item, job) in enumerate(brought):
            if ledger.wish > wish:
                return
            self._mailbox.put(Progress(total=len(brought), finished=done, fetching=True))
            self._bring_one(job.id, out / f"{item.index:0{width}}-{stem_of(item.given)}")
        self._mailbox.put(Progress(total=len(brought), finished=len(brought), fetching=True))

    def _bring_one(self, job: str, folder: Path) -> None:
        try:
            self._link.ask(lambda client: fetch(client, job, folder))
        except (DownloadFailed, RequestRefused) as error:
            self._mailbox.put(Said(f"the results of {job} did not come: {error}"))
        else:
            self._ledger.missing -= 1
            self._ledger.brought += 1


def stem_of(given: str) -> str:
    """A name for a folder, harmless everywhere, by which a person knows the input again."""
    name = PurePath(given).name
    if name.lower().endswith(JOB_FILE_SUFFIX):
        name = name[: -len(JOB_FILE_SUFFIX)]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", PurePath(name).stem)[:_STEM_MAX].strip("._") or "job"
