"""The other side of ``run_in="process"``: what runs in a subprocess of the worker."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import signal
import sys
from collections.abc import Awaitable
from typing import Any

import msgspec

from fairque.errors import InvalidInput
from fairque.tasks.failure import Failure, Raised, Reply, encode_result, raised_by
from fairque.tasks.function import TaskFunction
from fairque.tasks.message import encode_value
from fairque.tasks.registry import get_function
from fairque.worker.context import TaskContext, running

__all__ = ["run_in_process"]


def run_in_process(where: tuple[str, str, str], args: bytes, kwargs: bytes | None, context: TaskContext) -> bytes:
    """The other side of ``run_in="process"``. What the body raises comes back as data."""
    # Ctrl-C reaches a whole process group: it is for the worker to say what becomes of its tasks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running.set(context)
    try:
        function = _find_function(*where)
        positional, named = function.signature.decode(args, kwargs)
        value = function.fn(*positional, **named)
        if inspect.isawaitable(value):  # a wrapper around an async function
            value = asyncio.run(_wait_for(value))
        encoded = encode_result(value)
    except BaseException as exc:
        return encode_value(Reply(raised=raised_by(exc), charged=context.charged))
    if isinstance(encoded, Failure):
        return encode_value(Reply(raised=Raised(encoded, is_final=True), charged=context.charged))
    return encode_value(Reply(msgspec.Raw(encoded), charged=context.charged))


async def _wait_for(value: Awaitable[Any]) -> Any:
    return await value


def _find_function(module: str, qualname: str, name: str) -> TaskFunction[Any, Any]:
    """By its registered name, once its module is imported."""
    found: Any = sys.modules.get("__mp_main__") if module == "__main__" else importlib.import_module(module)
    registered = get_function(name)
    if registered is not None:
        return registered
    for part in qualname.split("."):  # `python -m` gives the functions of its module another name here
        found = getattr(found, part, None)
    if not isinstance(found, TaskFunction):
        text = f"the subprocess imported {module} and found no task {name!r} there: define it at the top of its module"
        raise InvalidInput(text)
    return found
