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
    size: int = 0

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
        body = self.body(nonce)
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

    def body(self, nonce: bytes) -> bytes:
        heading: Any = [self.name, *self.limits] if self.limits else self.name
        arguments = msgspec.Raw(msgspec.msgpack.encode(["x" * self.size])) if self.size else _NO_ARGS
        return encode_body(Message(heading, arguments), nonce, self.cost, self.priority, MAX_BODY)

    def ends(self, nonce: bytes) -> Ends | None:
        if not (self.callbacks or self.batch):
            return None
        size = packed_size(new_callbacks(self.callbacks, nonce), self.batch)
        return Ends(named(self.callbacks, nonce), self.batch, size=size)

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
            limits=tuple(name_in_redis(key, self.user_id) for key in self.limits),
            ends=self.ends(nonce),
            adder=self.adder,
            body_bytes=len(self.body(nonce)),
        )


def new_callbacks(callbacks: tuple[ModelCallback, ...], nonce: bytes) -> tuple[NewCallback, ...]:
    return tuple(_new_callback(callback, nonce) for callback in callbacks)


def _new_callback(callback: ModelCallback, nonce: bytes) -> NewCallback:
    body = encode_body(Message(callback.name, _NO_ARGS), nonce, callback.cost, callback.priority, MAX_BODY)
    when = f"+{callback.delay_ms}" if callback.delay_ms else ""
    return NewCallback(callback.kind, callback.priority, when, body, new_callbacks(callback.after, nonce))


def packed_size(callbacks: tuple[NewCallback, ...], batch: str = "") -> int:
    """How many bytes they take as they are kept: {life, {{kind, priority, when, body, its own} ...}, batch}."""
    return 3 + _text_size(len(batch.encode())) + sum(map(_callback_size, callbacks))


def _callback_size(callback: NewCallback) -> int:
    after = packed_size(callback.after) if callback.after else 0
    texts = (len(callback.kind), len(callback.when), len(callback.body), after)
    return 2 + sum(map(_text_size, texts))


def _text_size(length: int) -> int:
    return length + (1 if length < 32 else 2 if length < 256 else 3)


def named(callbacks: tuple[ModelCallback, ...], nonce: bytes) -> tuple[ModelCallback, ...]:
    """With the name of the call that they came with."""
    return tuple(callback._replace(nonce=nonce, after=named(callback.after, nonce)) for callback in callbacks)


def name_in_redis(key: LimitKey, user_id: str) -> str:
    user = encode_user(user_id) if key.each_user else ""
    return f"{user}={key.template}:{key.text}" if key.template else f"{user}:{key.text}"
