"""`ProcessPool`: the subprocesses of a worker. Those that ran a body are kept warm for the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from fairque.tasks.failure import Reply
from fairque.worker.subprocesses.fork_server import EXIT_SECONDS, ForkServer
from fairque.worker.subprocesses.frames import Job
from fairque.worker.subprocesses.subprocess import DiedIdle, Subprocess

__all__ = ["ProcessPool"]

IDLE_SECONDS = 300.0
MOST_DEBTORS = 10_000


class _Idle(NamedTuple):
    timer: asyncio.TimerHandle
    last_user_id: str


class ProcessPool:
    """Starts a subprocess when none is free.

    One whose body is not waited for any more is killed: a body that is cancelled leaves nothing. A user whose bodies
    cost a subprocess takes no warm one until it has left another one instead: one user's crashes and timeouts are no
    reason for others to start cold.

    Args:
        most_idle: Subprocesses that are kept without work.
        max_jobs: Bodies that a subprocess runs before it ends; None: no limit.
    """

    def __init__(self, most_idle: int, max_jobs: int | None) -> None:
        self._most_idle = most_idle
        self._max_jobs = max_jobs
        self._server: ForkServer | None = None
        self._idle: dict[Subprocess, _Idle] = {}
        self._all: set[Subprocess] = set()
        self._debts: dict[str, int] = {}

    async def run(self, job: Job, on_report: Callable[[float, str], None]) -> Reply:
        """Raises `RaisedElsewhere` where the process dies, and `OSError` where none can be started."""
        while True:
            process, last_user_id = self._take(job.user_id)
            try:
                return await self._run_in(process, job, on_report)
            except DiedIdle:
                self._note_debt(last_user_id, 1)

    async def _run_in(self, process: Subprocess, job: Job, on_report: Callable[[float, str], None]) -> Reply:
        is_new = not process.jobs
        try:
            reply = await process.run(job, on_report)
        except DiedIdle:
            raise
        except BaseException:
            self._lose(process, job.user_id, is_new)
            raise
        if process.ended.is_set():  # right after its reply
            self._lose(process, job.user_id, is_new)
        elif self._keep(process, job.user_id) and is_new:
            self._note_debt(job.user_id, -1)
        return reply

    def _lose(self, process: Subprocess, user_id: str, is_new: bool) -> None:
        process.kill()
        self._note_debt(user_id, 0 if is_new else 1)

    def _take(self, user_id: str) -> tuple[Subprocess, str]:
        """The one that was used last, so that those beyond the need become idle for long. Second: by whom."""
        if self._idle and user_id not in self._debts:
            process, idle = self._idle.popitem()
            idle.timer.cancel()
            return process, idle.last_user_id
        if self._server is None or self._server.ended.is_set():
            self._server = ForkServer()
        process = Subprocess(self._server, self._forget)
        self._all.add(process)
        return process, user_id

    def _keep(self, process: Subprocess, user_id: str) -> bool:
        """Unless it has served its time, or enough are kept."""
        if process.jobs == self._max_jobs or len(self._idle) >= self._most_idle:
            process.close()
            return False
        timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._let_go, process)
        self._idle[process] = _Idle(timer, user_id)
        return True

    def _note_debt(self, user_id: str, change: int) -> None:
        """Of the users who owe, the latest ones are remembered."""
        owed = self._debts.pop(user_id, 0) + change
        if owed > 0:
            self._debts[user_id] = owed
        if len(self._debts) > MOST_DEBTORS:
            del self._debts[next(iter(self._debts))]

    def _let_go(self, process: Subprocess) -> None:
        self._idle.pop(process).timer.cancel()
        process.close()

    def _forget(self, process: Subprocess) -> None:
        self._all.discard(process)
        idle = self._idle.pop(process, None)
        if idle is not None:  # what the last body left in it has ended it
            idle.timer.cancel()
            self._note_debt(idle.last_user_id, 1)

    async def close(self) -> None:
        """End them all. Those that are idle may do what they registered for their exit."""
        for process in list(self._idle):
            self._let_go(process)
        waiting = [asyncio.ensure_future(process.ended.wait()) for process in self._all]
        if waiting:
            await asyncio.wait(waiting, timeout=EXIT_SECONDS)
        if self._server is not None:
            await self._server.close()
        await asyncio.gather(*waiting)
