"""XCom: values that the tasks of a user hand to each other, by namespace and key.

A value belongs to one user and expires by itself. Any key and any namespace is fine: it cannot reach another user's
values. Values are msgpack, so they come back as msgpack has them (a tuple as a list), unless `pull` is given a type.
"""

# ruff: noqa: A002 (`type` says what it is to whoever calls)

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar, overload

import msgspec

from fairque.checks import Duration, check_id, check_seconds
from fairque.codec.codec import Kind, Sealer
from fairque.errors import BrokenSeal, FairqueError, InvalidInput, MessageTooLarge, XComMissing
from fairque.everybody import check_user
from fairque.redis.store import Store
from fairque.settings import MAX_MESSAGE_BYTES
from fairque.tasks.message import encode_value
from fairque.tasks.sealed import open_value, seal_value
from fairque.tasks.types.stand_in import decoder
from fairque.tasks.types.translation import translated
from fairque.tasks.xcom import LONGEST_TTL, MOST_NAMES, SHORTEST_TTL

__all__ = ["DEFAULT_NAMESPACE", "DEFAULT_TTL", "BlockingXCom", "XCom", "XComManager", "sealed_xcom", "ttl_to_ms"]

T = TypeVar("T")
D = TypeVar("D")
DEFAULT_NAMESPACE = "default"
DEFAULT_TTL = 3600.0
LONGEST_TEXT = 2000
_MISSING: Any = object()
_MISFITS = (TypeError, ValueError, OverflowError, RecursionError)


class XCom(msgspec.Struct, frozen=True, eq=False):
    """The shared values of a user in one namespace.

    Every method raises `QueueUnavailable` when Redis cannot be reached, and `InvalidInput` for a key or a namespace
    that is empty, longer than 512 bytes in UTF-8, or not a str. A call whose reply was lost is repeated: then a push
    or a removal may take effect a second time, after that of another task.

    Args:
        store: Where the values are.
        user_id: Whose values they are.
        namespace: Where `push`, `keys`, `delete` and `clear` work, and `pull` unless it is told otherwise.
        max_bytes: Limit for one encoded value.
    """

    store: Store
    user_id: str
    namespace: str = DEFAULT_NAMESPACE
    max_bytes: int = MAX_MESSAGE_BYTES

    def __post_init__(self) -> None:
        check_user("user_id", self.user_id)
        check_id("XCom namespace", self.namespace)

    async def push(self, key: str, value: Any, ttl: Duration | None = None) -> None:
        """Keep a value, in place of an earlier one under the same key.

        Args:
            key: 1 to 512 bytes in UTF-8.
            value: What msgpack can hold.
            ttl: Seconds until it expires; default 3600, at most ten years.

        Raises:
            InvalidInput: The value cannot be encoded, or `ttl` is not above 0.
            MessageTooLarge: The encoded value has more than `max_bytes`.
        """
        _check_key(key)
        ttl_ms = ttl_to_ms(ttl)
        encoded = sealed_xcom(self.store.sealer, self.user_id, self.namespace, key, self._encode(key, value))
        await self.store.xcom_push(self.user_id, self.namespace, key, encoded, ttl_ms)

    @overload
    async def pull(self, key: str, *, type: type[T], namespace: str | Sequence[str] | None = None) -> T: ...
    @overload
    async def pull(
        self, key: str, default: D, *, type: type[T], namespace: str | Sequence[str] | None = None
    ) -> T | D: ...
    @overload
    async def pull(
        self, key: str, default: Any = ..., *, type: Any = ..., namespace: str | Sequence[str] | None = None
    ) -> Any: ...
    async def pull(
        self, key: str, default: Any = _MISSING, *, type: Any = Any, namespace: str | Sequence[str] | None = None
    ) -> Any:
        """The value under a key.

        Args:
            key: The key.
            default: Returned as it is when there is no value.
            type: What to convert the value to: ``int``, ``list[str]``, a dataclass, …
            namespace: Where to look, in order: the first namespace that has the key wins. At most 100.

        Raises:
            XComMissing: There is no value and no default.
            InvalidInput: The value does not fit `type`.
            SealError: The value cannot be read here.
        """
        namespaces = self._namespaces(namespace)
        [raw] = await self.store.xcom_pull(self.user_id, namespaces, [_check_key(key)])
        if raw is not None:
            return _decode(key, self._opened(namespaces, key, raw), type)
        if default is _MISSING:
            where = " or ".join(map(repr, namespaces))
            raise XComMissing(f"user {self.user_id!r} has no XCom value {key!r} in {where}"[:LONGEST_TEXT])
        return default

    async def pull_many(self, keys: Sequence[str], *, namespace: str | Sequence[str] | None = None) -> dict[str, Any]:
        """The values under at most 100 keys, in one round trip; a key without a value is left out."""
        names, namespaces = [_check_key(key) for key in _few("keys", keys)], self._namespaces(namespace)
        found = await self.store.xcom_pull(self.user_id, namespaces, names)
        return {
            key: _decode(key, self._opened(namespaces, key, raw), Any)
            for key, raw in zip(names, found, strict=True)
            if raw is not None
        }

    async def keys(self) -> list[str]:
        """The keys that have a value, sorted."""
        return await self.store.xcom_keys(self.user_id, self.namespace)

    async def delete(self, key: str) -> None:
        """Remove a value; nothing happens when there is none."""
        await self.store.xcom_delete(self.user_id, self.namespace, _check_key(key))

    async def clear(self) -> None:
        """Remove all values of the namespace."""
        await self.store.xcom_clear(self.user_id, self.namespace)

    def _namespaces(self, chosen: str | Sequence[str] | None) -> list[str]:
        if chosen is None:
            return [self.namespace]
        names = [chosen] if isinstance(chosen, str) else _few("namespaces", chosen)
        return [check_id("XCom namespace", name) for name in names]

    def _opened(self, namespaces: Sequence[str], key: str, raw: bytes) -> bytes:
        """It is from one of these namespaces, and sealed for that one."""
        sealer = self.store.sealer
        for namespace in namespaces[:-1]:
            with contextlib.suppress(BrokenSeal):
                return open_value(sealer, Kind.XCOM, self.user_id, _xcom_id(namespace, key), raw)
        return open_value(sealer, Kind.XCOM, self.user_id, _xcom_id(namespaces[-1], key), raw)

    def _encode(self, key: str, value: Any) -> bytes:
        try:
            encoded = encode_value(value)
        except _MISFITS as exc:
            raise InvalidInput(f"the XCom value {key!r} cannot be encoded: {exc}") from None
        if len(encoded) > self.max_bytes:
            raise MessageTooLarge(f"the XCom value {key!r} has {len(encoded)} bytes, the limit is {self.max_bytes}")
        return encoded

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.user_id!r} {self.namespace!r}>"


class XComManager(XCom, frozen=True, eq=False):
    """The shared values of a user, seen from outside its tasks: the same, and `get`."""

    async def get(
        self, key: str, default: Any = None, *, type: Any = Any, namespace: str | Sequence[str] | None = None
    ) -> Any:
        """The value under a key, or the default: `pull` that does not insist."""
        return await self.pull(key, default, type=type, namespace=namespace)


class BlockingXCom(msgspec.Struct, frozen=True, eq=False):
    """The shared values of a user for a plain function in its thread: the methods of `XCom`, without await.

    They work in any thread but that of the worker's event loop, while the worker runs. Else they raise `FairqueError`.
    """

    xcom: XCom
    loop: asyncio.AbstractEventLoop

    @property
    def user_id(self) -> str:
        """Whose values they are."""
        return self.xcom.user_id

    @property
    def namespace(self) -> str:
        """Where they are looked for."""
        return self.xcom.namespace

    def push(self, key: str, value: Any, ttl: Duration | None = None) -> None:
        """See `XCom.push`."""
        self._wait(partial(self.xcom.push, key, value, ttl))

    @overload
    def pull(self, key: str, *, type: type[T], namespace: str | Sequence[str] | None = None) -> T: ...
    @overload
    def pull(self, key: str, default: D, *, type: type[T], namespace: str | Sequence[str] | None = None) -> T | D: ...
    @overload
    def pull(
        self, key: str, default: Any = ..., *, type: Any = ..., namespace: str | Sequence[str] | None = None
    ) -> Any: ...
    def pull(
        self, key: str, default: Any = _MISSING, *, type: Any = Any, namespace: str | Sequence[str] | None = None
    ) -> Any:
        """See `XCom.pull`."""
        return self._wait(partial(self.xcom.pull, key, default, type=type, namespace=namespace))

    def pull_many(self, keys: Sequence[str], *, namespace: str | Sequence[str] | None = None) -> dict[str, Any]:
        """See `XCom.pull_many`."""
        return self._wait(partial(self.xcom.pull_many, keys, namespace=namespace))

    def keys(self) -> list[str]:
        """See `XCom.keys`."""
        return self._wait(self.xcom.keys)

    def delete(self, key: str) -> None:
        """See `XCom.delete`."""
        self._wait(partial(self.xcom.delete, key))

    def clear(self) -> None:
        """See `XCom.clear`."""
        self._wait(self.xcom.clear)

    def _wait(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if not self.loop.is_running() or asyncio._get_running_loop() is self.loop:
            raise FairqueError("a plain task's XCom works in the task's own thread, while its worker runs")
        return asyncio.run_coroutine_threadsafe(call(), self.loop).result()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.user_id!r} {self.namespace!r}>"


def ttl_to_ms(ttl: Duration | None) -> int:
    """Seconds as given to `push` in milliseconds, at least 1. Raises `InvalidInput`."""
    seconds = DEFAULT_TTL if ttl is None else check_seconds("ttl", ttl, SHORTEST_TTL, LONGEST_TTL)
    return math.ceil(seconds * 1000)


def sealed_xcom(sealer: Sealer | None, user_id: str, namespace: str, key: str, encoded: bytes) -> bytes:
    """As it is kept under this key. Raises `UnknownKey`."""
    if sealer is None:
        return encoded
    return seal_value(sealer, Kind.XCOM, user_id, _xcom_id(namespace, key), encoded)


def _xcom_id(namespace: str, key: str) -> str:
    return f"{len(namespace)} {namespace} {key}"


def _check_key(key: str) -> str:
    return check_id("XCom key", key)


def _few(kind: str, names: Sequence[str]) -> list[str]:
    chosen = list(names) if isinstance(names, Iterable) and not isinstance(names, str) else []
    if not 1 <= len(chosen) <= MOST_NAMES:
        raise InvalidInput(f"{kind} must be a sequence of 1 to {MOST_NAMES} strings, not {names!r}"[:LONGEST_TEXT])
    return chosen


def _decode(key: str, raw: bytes, type: Any) -> Any:
    try:
        return decoder(translated(type)).decode(raw)
    except (msgspec.MsgspecError, *_MISFITS) as exc:
        raise InvalidInput(f"the XCom value {key!r} does not fit {type!r}: {exc}") from None
