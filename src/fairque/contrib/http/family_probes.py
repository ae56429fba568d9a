"""`family_probes`: whether the worker processes of one parent are alive, and one of them takes tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fairque.contrib.http.asgi import Answer, App, Query, sentence
from fairque.contrib.http.metrics import metrics_page
from fairque.worker.child import Child
from fairque.worker.lifeline import Word
from fairque.worker.supervisor import Supervisor

__all__ = ["family_probes"]

PATIENCE_SECONDS = 1.5
"""What the loop of a child may take to answer."""


def family_probes(supervisor: Supervisor, render: Callable[[], bytes]) -> App:
    """The same pages as `probes`, for several processes.

    They are asked when somebody asks. Alive are they all, or none: the loop of each that has served answers within
    a second and a half. Ready is one of them, or more. A process that starts, or is started anew after its end, is
    neither.

    Args:
        supervisor: Their parent.
        render: Their metrics, added up.
    """

    def serving() -> list[Child]:
        return [child for child in supervisor.children if child.has_served and not child.has_left]

    async def livez(_: Query) -> Answer:
        asked = serving()
        answers = await asyncio.gather(*(child.ask(PATIENCE_SECONDS) for child in asked))
        silent = [
            str(child.pid)
            for child, answer in zip(asked, answers, strict=True)
            if answer is None and child.code is None and not child.has_left
        ]
        if silent:
            return sentence(503, f"the event loop stands still in {', '.join(silent)}")
        return sentence(200, f"{len(asked)} of {supervisor.wanted} processes serve, and the event loop of each turns")

    async def readyz(_: Query) -> Answer:
        if supervisor.is_stopping:
            return sentence(503, "stops")
        answers = await asyncio.gather(*(child.ask(PATIENCE_SECONDS) for child in serving()))
        claiming = answers.count(Word.CLAIMS)
        return sentence(200 if claiming else 503, f"{claiming} of {supervisor.wanted} processes claim")

    return App({"/livez": livez, "/readyz": readyz, "/metrics": metrics_page(render)})
