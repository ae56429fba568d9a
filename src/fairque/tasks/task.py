"""`Task`: a call of a function, ready to be enqueued.

``resize(42)`` builds a `Task`, it calls nothing: ``resize.fn(42)`` does. The arguments are encoded at once, so a value
that does not fit the annotations fails on the caller's line, and a later change of a list changes no task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar, Unpack, cast

import msgspec

from fairque.checks import check_id
from fairque.errors import InvalidInput, NotEncodable
from fairque.tasks.limit_keys import StandIn, limit_keys
from fairque.tasks.message import NIL, LimitKey, Message, Overrides, is_payload
from fairque.tasks.options import NO_OPTIONS, Options, TaskOptions
from fairque.tasks.pipeline import Composable
from fairque.tasks.signature import Output, Signature, encode_linked

__all__ = ["Task", "check_upstream"]

R_co = TypeVar("R_co", covariant=True)


class Task(Composable, Generic[R_co]):
    """A call of a function, or a payload for a `TaskHandler`, ready to be enqueued. Immutable.

    The same task may be enqueued many times; each time is a task of its own, unless a `task_id` is set.

    Tasks are put in order with ``>>``, ``<<`` and ``|``, see `Pipeline`, or by passing the `output` of one to another.

    Attributes:
        upstream: The tasks whose outputs are arguments of this one.
    """

    __slots__ = ("args", "kwargs", "name", "signature", "task_options", "upstream")

    def __init__(
        self,
        name: str,
        args: bytes,
        kwargs: bytes | None,
        signature: Signature | None,
        task_options: TaskOptions,
        upstream: tuple[Task[Any], ...] = (),
    ) -> None:
        self.name = name
        self.args = args
        self.kwargs = kwargs
        self.signature = signature
        self.task_options = task_options
        self.upstream = upstream

    @staticmethod
    def create(*, payload: Mapping[str, Any] | None = None, name: str = "", **options: Any) -> Task[Any]:
        """A task without a function, served by the `TaskHandler` of a worker.

        Args:
            payload: What the handler is given; anything that msgpack can hold, and outputs of other tasks.
            name: Shown in logs and listings.
            options: See `TaskOptions`.
        """
        try:
            [args], upstream = encode_linked(dict(payload or {}))
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise NotEncodable(f"the payload cannot be encoded: {exc}") from None
        return Task(name, args, None, None, NO_OPTIONS.merged(options), check_upstream(upstream))

    @staticmethod
    def by_name(
        name: str, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, /, **options: Unpack[Options]
    ) -> Task[Any]:
        """A call of a function that only workers know: ``Task.by_name("billing.invoice", [42], {"draft": True})``.

        Its arguments are checked by the worker. What the code says of its cost, its limits and its priority, and is not
        among the options here, the worker fills in before it runs; its timeout, retries and `result_ttl` it knows.

        Args:
            name: Of the task.
            args, kwargs: What it is called with: anything that msgpack can hold, and outputs of other tasks.
            options: See `TaskOptions`.

        Raises:
            NotEncodable: Arguments that cannot be sent.
            InvalidInput: A value breaks a rule.
        """
        check_id("task name", name)
        try:
            [plain, named], upstream = encode_linked(list(args), dict(kwargs or {}))
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise NotEncodable(f"the arguments of task {name!r} cannot be encoded: {exc}") from None
        encoded = named if kwargs else None
        return Task(name, plain, encoded, None, NO_OPTIONS.merged(options), check_upstream(upstream))

    @property
    def output(self) -> R_co:
        """The result, as an argument of another task, which then runs after this one: ``load(extract().output)``.

        For type checkers it is the value itself. While tasks are put together it only stands for the value, alone or
        in lists, tuples and dicts, and can do nothing but be passed on.
        """
        return cast(R_co, Output(self))

    def options(self, **changes: Unpack[Options]) -> Task[R_co]:
        """A copy with other options; see `TaskOptions`."""
        changed = self.task_options.merged(changes)
        return Task(self.name, self.args, self.kwargs, self.signature, changed, self.upstream)

    def otherwise(self, *callbacks: Task[Any]) -> Task[R_co]:
        """A copy that has these put in when it has failed for good, beside those of its ``on_failure``."""
        return self.options(on_failure=(*self.task_options.on_failure, *callbacks))

    @property
    def _fixed_name(self) -> str | None:
        return self.task_options.task_id

    @property
    def _short_name(self) -> str:
        return self.name.rpartition(".")[2] or self.name or "task"

    def message(
        self,
        depends_on: Sequence[str] = (),
        inputs: Sequence[str] = (),
        parent: str = "",
        stand_in: StandIn | None = None,
    ) -> Message:
        """What is sent to Redis. Raises `InvalidInput` for limit keys that its arguments do not fill."""
        kwargs = msgspec.Raw(self.kwargs) if self.kwargs is not None else NIL
        heading: str | list[str | LimitKey] = self.name
        if limits := self.task_options.limits:
            heading = [self.name, *limit_keys(limits, self.name, self.signature, self.args, self.kwargs, stand_in)]
        overrides = self.task_options.overrides(depends_on, inputs, parent)
        if self.signature is None and (unsaid := self._unsaid()):
            overrides = msgspec.structs.replace(overrides or Overrides(), unsaid=unsaid)
        return Message(heading, msgspec.Raw(self.args), kwargs, overrides)

    def _unsaid(self) -> list[str]:
        """What only the code of a function says that is not known here; a payload has none."""
        if is_payload(msgspec.Raw(self.args)):
            return []
        return [name for name in ("cost", "limits", "priority") if getattr(self.task_options, name) is None]

    def __repr__(self) -> str:
        set_options = {
            name: value
            for name in TaskOptions.__struct_fields__
            if (value := getattr(self.task_options, name)) != getattr(NO_OPTIONS, name)
        }
        shown = ", ".join(f"{name}={value!r}" for name, value in set_options.items())
        return f"<Task {self.name}{' ' if shown else ''}{shown}>"


def check_upstream(upstream: tuple[Composable, ...]) -> tuple[Task[Any], ...]:
    tasks = tuple(node for node in upstream if isinstance(node, Task))
    for each in tasks:
        if each.task_options.result_ttl == 0:
            raise InvalidInput(f"the output of {each.name!r} cannot be an argument: it keeps no result (result_ttl=0)")
    return tasks
