"""``fairque doctor``: whether a queue contradicts itself, and what can be done about it."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from fairque import Finding, QueueCheck, TaskQueue
from fairque.cli.known_queues import missing
from fairque.cli.options import AsJson, ConfigFile, QueueName, Url, make_queue
from fairque.cli.output import NOTHING, print_json, span
from fairque.cli.table import names, print_table, words
from fairque.counted import counted, unanswered

__all__ = ["command"]

WRONG = 3


def command(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended, and say how.")] = False,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Look whether a queue contradicts itself, and mend it.

    Lost and damaged keys are found, tasks that nobody would run, wrong totals. Every key of the queue is looked at, in
    steps of about a millisecond, while others work. With --repair, no task that can still be run is lost.

    Example: fairque doctor --queue emails --repair

    Exit codes: 0 nothing is wrong, or nothing any more; 1 failed; 2 wrong usage; 3 something is wrong.
    """
    check = asyncio.run(_check(make_queue(url, queue, config, asks=False), repair=repair))
    if as_json:
        print_json(check)
    else:
        _show(check)
    return 0 if check.sound else WRONG


async def _check(queue: TaskQueue, *, repair: bool) -> QueueCheck:
    """Without `open`, which a queue with damaged settings refuses."""
    try:
        found = await queue.check(repair=repair)
        if not found.keys and found.complete and not found.findings:
            raise await missing(queue)
        return found
    finally:
        await queue.close()


def _show(check: QueueCheck) -> None:
    if check.findings:
        columns = (words("what"), names("key", whole=1), names("user", 4), names("task", 2), words("seen, and done"))
        print_table(columns, map(_row, check.findings))
    typer.echo(_summary(check))


def _row(finding: Finding) -> tuple[str, ...]:
    done = f": {'' if finding.mended else 'not mended, '}{finding.how}" if finding.how else ""
    who = finding.user_id or NOTHING, finding.task_id or NOTHING
    where = "" if finding.partition is None else f"{finding.partition}: "
    return finding.kind, f"{where}{finding.key}", *who, f"{finding.detail}{done}"


def _summary(check: QueueCheck) -> str:
    if check.missing:
        return f"{len(check.unmended)} wrong in the others; {unanswered(check.missing)}"
    if not check.complete:
        return "nothing else can be looked at: run with --repair"
    mended, wrong = len(check.findings) - len(check.unmended), len(check.unmended)
    looked_at = f"{counted(check.keys, 'key')}, {counted(check.users, 'user')}, {span(check.seconds)}"
    told = f"{wrong} wrong, {mended} mended; {looked_at}"
    return told if check.totals_compared else f"{told}; the queue moved: its totals were not compared"
