"""What is asked for in an enqueue, as the scripts and as the model are told of it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec

from fairque.fairness.model_queue import ModelTask
from fairque.fairness.model_task import Alone, Conflict, Ends, ModelCallback, OnFailure
from fairque.redis.arguments import Rules
from fairque.redis.delivery import Needs, NewCallback, NewTask
from fairque.redis.keys import encode_user
from fairque.tasks.message import LimitKey, Message, encode_body
from tests.support.core import MAX_BODY

_NO_ARGS = msgspec.Raw(b"\x90")
SPAN_MS = 5


class Order(NamedTuple):
    """What is asked for in an enqueue."""

    user_id: str
    task_id: str
    priority: int = 3
    cost: float = 1.0
    delay_ms: int = 0
    name: str = "t"
    needs: tuple[str, ...] = ()
    on_failure: OnFailure = "wait"
    allow_unknown: bool = True
    expires_ms: int = 0
    conflict: Conflict = "keep"
    kind: Alone = ""
    pointer: str = ""
    longest_ms: int = 0
    limits: tuple[LimitKey, ...] = ()
    callbacks: tuple[ModelCallback, ...] = ()
    batch: str = ""
    adder: str = ""

    @property
    def is_conditional(self) -> bool:
        return self.conflict != "keep" or bool(self.kind)

    @property
    def span_ms(self) -> int:
        return SPAN_MS if self.kind else 0

    def call(self, nonce: bytes, at: int) -> bytes:
        """Its own name of the call, where it has a condition."""
        return nonce + bytes([at]) if self.is_conditional else b""

    def rules(self, call: bytes) -> Rules | None:
        if not (self.expires_ms or call):
            return None
        expires = f"+{self.expires_ms}" if self.expires_ms else ""
        return Rules(expires, call.hex(), self.conflict, self.kind, self.pointer, self.span_ms, self.longest_ms)

    def new_task(self, nonce: bytes, at: int) -> NewTask:
        heading: Any = [self.name, *self.limits] if self.limits else self.name
        body = encode_body(Message(heading, _NO_ARGS), nonce, self.cost, self.priority, MAX_BODY)
        needs = msgspec.msgpack.encode(Needs(self.on_failure, self.allow_unknown, list(self.needs)))
        when = f"+{self.delay_ms}" if self.delay_ms else ""
        return NewTask(
            self.user_id,
            self.task_id,
            self.priority,
            when,
            body,
            needs if self.needs else b"",
            self.rules(self.call(nonce, at)),
            new_callbacks(self.callbacks, nonce),
            self.batch,
            self.adder,
        )

    def model_task(self, nonce: bytes, at: int) -> ModelTask:
        return ModelTask(
            self.user_id,
            self.task_id,
            self.priority,
            self.cost,
            nonce,
            delay_ms=self.delay_ms,
            name=self.name,
            needs=set(self.needs),
            on_failure=self.on_failure,
            allow_unknown=self.allow_unknown,
            expires_in_ms=self.expires_ms or math.inf,
            call=self.call(nonce, at),
            conflict=self.conflict,
            kind=self.kind,
            pointer=self.pointer,
            span_ms=self.span_ms,
            longest_ms=self.longest_ms,
            limits=tuple(_name_in_redis(key, self.user_id) for key in self.limits),
            ends=Ends(named(self.callbacks, nonce), self.batch) if self.callbacks or self.batch else None,
            adder=self.adder,
        )


def new_callbacks(callbacks: tuple[ModelCallback, ...], nonce: bytes) -> tuple[NewCallback, ...]:
    return tuple(_new_callback(callback, nonce) for callback in callbacks)


def _new_callback(callback: ModelCallback, nonce: bytes) -> NewCallback:
    body = encode_body(Message(callback.name, _NO_ARGS), nonce, callback.cost, callback.priority, MAX_BODY)
    when = f"+{callback.delay_ms}" if callback.delay_ms else ""
    return NewCallback(callback.kind, callback.priority, when, body, new_callbacks(callback.after, nonce))


def named(callbacks: tuple[ModelCallback, ...], nonce: bytes) -> tuple[ModelCallback, ...]:
    """With the name of the call that they came with."""
    return tuple(callback._replace(nonce=nonce, after=named(callback.after, nonce)) for callback in callbacks)


def _name_in_redis(key: LimitKey, user_id: str) -> str:
    user = encode_user(user_id) if key.each_user else ""
    return f"{user}={key.template}:{key.text}" if key.template else f"{user}:{key.text}"
