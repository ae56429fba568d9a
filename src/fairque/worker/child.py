"""`Child`: a worker process, as the one that has started it knows it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time

from fairque.worker.lifeline import Lifeline, Word
from fairque.worker.reports import ReportInbox

__all__ = ["Child"]


class Child:
    """A process, and what is known of it.

    Attributes:
        code: Its exit code; None while it runs.
        has_served: Whether a claim of it was ever answered.
        serves, is_full, has_ended: Set when it told so; all of them at its end.
        has_left: Whether its worker has ended, and its process is about to.
        is_outdated: Whether it was told to stop for a new one, which reads its files again.
    """

    def __init__(
        self, number: int, process: asyncio.subprocess.Process, line: Lifeline, inbox: ReportInbox | None
    ) -> None:
        self.number = number
        self.pid = process.pid
        self.began = time.monotonic()
        self.code: int | None = None
        self.has_served = self.has_left = False
        self.serves, self.is_full, self.has_ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.is_outdated = False
        self._process = process
        self._line = line
        self._inbox = inbox
        self._asked: asyncio.Future[Word | None] | None = None
        line.listen(self._hear)

    async def wait(self) -> None:
        self.code = await self._process.wait()
        self._line.close()
        if self._inbox is not None:
            self._inbox.close()
        self._answered(None)
        for event in (self.serves, self.is_full, self.has_ended):
            event.set()

    def tell(self, word: Word) -> None:
        if self.code is None:
            self._line.tell(word)

    def send(self, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signum)

    async def ask(self, seconds: float) -> Word | None:
        """How it is: `CLAIMS` or `CLAIMS_NOTHING`; None where its loop does not say so in that time, or it ended.

        One that owes an answer is not asked again, whoever wants to know: what it does not read would fill the line.
        """
        if self.code is not None:
            return None
        if self._asked is None:
            self._asked = asyncio.get_running_loop().create_future()
            self.tell(Word.ASK)
        asked = self._asked
        await asyncio.wait([asked], timeout=seconds)
        return asked.result() if asked.done() else None

    def _answered(self, word: Word | None) -> None:
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.set_result(word)

    def _hear(self, word: Word) -> None:
        if word in (Word.CLAIMS, Word.CLAIMS_NOTHING):
            self._answered(word)
        elif word is Word.SERVES:
            self.has_served = True
            self.serves.set()
        elif word is Word.IS_FULL:
            self.is_full.set()
        elif word is Word.LEAVES:
            self.has_left = True
