"""``fairque demand``: how much work waits, for an autoscaler."""

from __future__ import annotations

from typing import Annotated

import typer

from fairque.cli.output import print_fields, print_json
from fairque.cli.reach import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.times import span

__all__ = ["command"]


def command(
    target_wait: Annotated[
        float, typer.Option(min=0.001, metavar="SECONDS", help="Within this time, what waits should be served.")
    ] = 10.0,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Show how much work waits, and how many slots it takes to serve it in time.

    For an autoscaler: "slots_needed" in JSON is how many tasks should be able to run at once, on all workers.
    The mean run is that of the last minute or so, or where nothing ran lately, of everything that was measured.

    Example: fairque demand --target-wait 30 --json

    Exit codes: 0 shown, 1 failed, 2 wrong usage.
    """
    found = on_queue(make_queue(url, queue, config), lambda opened: opened.demand(target_wait=target_wait))
    if as_json:
        print_json(found)
        return 0
    print_fields(
        (
            ("waiting", f"{found.backlog} tasks, {span(found.work_seconds)} of work"),
            ("mean run", span(found.run_seconds)),
            ("slots", f"{found.slots}, {found.running} tasks run"),
            ("wait with these", span(found.wait_seconds)),
            ("slots needed", f"{found.slots_needed} for a wait of {span(target_wait)}"),
        )
    )
    return 0
