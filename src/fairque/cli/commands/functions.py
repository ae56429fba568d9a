"""``fairque functions``: the scripts of this version on the server, for processes that may not load them."""

from __future__ import annotations

import asyncio

import typer

from fairque import TaskQueue, __version__
from fairque.cli.options import AsJson, ConfigFile, QueueName, Url, make_queue
from fairque.cli.output import print_json
from fairque.counted import counted

__all__ = ["app"]

app = typer.Typer(
    help="The functions that fairque keeps on a server.\n\nExample: fairque functions load --url redis://admin@host",
    no_args_is_help=True,
)


@app.command("load")
def load(url: Url = None, queue: QueueName = None, config: ConfigFile = None, as_json: AsJson = False) -> int:
    """Load the functions of this version into the server.

    Processes load what the server does not know, where their user of Redis may.
    Where it may not, do this before a deploy, and whenever the server has lost its data.
    Those of other versions stay. In a cluster, they go to the node that has the queue.

    Example: fairque functions load

    Exit codes: 0 loaded, 1 failed, 2 wrong usage.
    """
    loaded = asyncio.run(_load(make_queue(url, queue, config, asks=False)))
    if as_json:
        print_json({"loaded": loaded, "version": __version__})
    else:
        typer.echo(f"{counted(loaded, 'function')} of fairque {__version__} loaded")
    return 0


async def _load(queue: TaskQueue) -> int:
    """Without `open`: who may load functions need not be one who may use the queue."""
    try:
        return await queue.reader.load_functions()
    finally:
        await queue.close()
