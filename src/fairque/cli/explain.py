"""``fairque explain``: why a task waits, and when it may start."""

from __future__ import annotations

from typing import Annotated

import typer

from fairque import Explanation, Reason
from fairque.cli.output import print_fields, print_json
from fairque.cli.reach import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.times import moment, span
from fairque.cli.values import shown

__all__ = ["command"]


def command(
    user: Annotated[str, typer.Argument(metavar="USER", help="The id of the user.")],
    task_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The id of the task; without it: the next one of the user.")
    ] = None,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Tell why a task waits, what is ahead of it, and when it may start.

    The estimate is good when the speed of the queue has been measured. It is rough when little was,
    or when something else than its turn holds the task back.

    Example: fairque explain acme 5f1c1a7e

    Exit codes: 0 told, 1 failed, 2 wrong usage, 4 no such task.
    """
    found = on_queue(make_queue(url, queue, config), lambda opened: opened.explain(user, task_id))
    if as_json:
        print_json(found)
    else:
        print_fields(_fields(found))
    return 0


def _fields(found: Explanation) -> list[tuple[str, object]]:
    fields: list[tuple[str, object]] = [("user", found.user_id)]
    if found.task_id is not None:
        fields.append(("task", found.task_id))
    fields.append(("state", found.state or "nothing waits for its turn"))
    if found.worker is not None:
        fields.append(("worker", found.worker))
    fields += [
        ("because" if number == 0 else "and", held.text + (f", {moment(held.until)}" if held.until else ""))
        for number, held in enumerate(held for held in found.waiting if held.reason is not Reason.NOTHING)
    ]
    if found.dependencies:
        fields.append(("waits for", ", ".join(map(shown, found.dependencies))))
    if found.task_id is not None and found.waiting:
        fields.append(("ahead of it", f"{found.ahead_own} of its own user, {found.ahead_others} of others"))
        fields.append(("starts in", _estimate(found)))
    share = f", {found.share:.1%} of what is served now" if found.share is not None else ""
    fields.append(("its user", f"{found.running} running, {found.backlog} waiting, weight {found.weight:g}{share}"))
    return fields


def _estimate(found: Explanation) -> str:
    if found.starts_in is None:
        return "cannot be told"
    return f"about {span(found.starts_in)} ({found.certainty})"
