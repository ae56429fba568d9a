"""XCom: values that the tasks of a user hand to each other."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio.to_thread
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairque.embedded.server import EmbeddedServer
from fairque.errors import FairqueError, InvalidInput, MessageTooLarge, QueueUnavailable, XComMissing
from fairque.queue.xcom import BlockingXCom, XCom, XComManager, ttl_to_ms
from fairque.redis import store_xcom
from fairque.redis.keys import encode_user
from fairque.redis.store import Store
from tests.support.core import Core
from tests.support.eventually import eventually
from tests.support.proxy import CuttingProxy
from tests.support.servers import Server

SWEEP = 16
MOMENT = 0.001
NASTY = ["a", "a:b", "b", "b:a", "%3A", "a%3Ab", "{x}", "}:{", "**", "\0", "\0\0", "line\nline", "é", "🎈", ".", "xcom"]


class Parcel(msgspec.Struct):
    weight: int


@pytest.fixture
async def core(server: Server, queue_name: str) -> AsyncIterator[Core]:
    async with Core(server.url, queue_name) as core:
        yield core


@pytest.fixture
def xcom(core: Core) -> XCom:
    return XCom(core.store, "acme")


async def push_expired(core: Core, xcom: XCom, *keys: str) -> None:
    """Values whose time is over, as far as the server's clock is concerned."""
    for key in keys:
        await xcom.push(key, "late", ttl=MOMENT)
    core.wait_until_ms(core.now_us() // 1000 + 1)


def in_thread(call: Callable[..., Any], *args: Any) -> Any:
    """Run a plain function as a worker runs that of a task."""
    return anyio.to_thread.run_sync(call, *args, abandon_on_cancel=True)


# Push and pull


@pytest.mark.parametrize("value", [None, False, 0, -1.5, "", "text", b"\0\xff", [1, [2]], {"a": {"b": [None]}}])
async def test_what_one_task_pushes_another_pulls(core: Core, value: Any) -> None:
    await XCom(core.store, "acme").push("key", value)
    assert await XCom(core.store, "acme").pull("key") == value


async def test_a_moment_in_time_survives(xcom: XCom) -> None:
    at = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
    await xcom.push("at", at)
    assert await xcom.pull("at") == at


async def test_a_value_replaces_the_one_before(xcom: XCom) -> None:
    await xcom.push("key", "first")
    await xcom.push("key", "second")
    assert await xcom.pull("key") == "second"
    assert await xcom.keys() == ["key"]


async def test_a_missing_value_without_a_default_raises(xcom: XCom) -> None:
    with pytest.raises(XComMissing, match=r"'acme' has no XCom value 'nothing' in 'default'$") as caught:
        await xcom.pull("nothing")
    assert isinstance(caught.value, LookupError)


@pytest.mark.parametrize("default", [None, 0, "else", XComMissing])
async def test_a_missing_value_is_the_default_as_it_was_given(xcom: XCom, default: Any) -> None:
    assert await xcom.pull("nothing", default) is default
    assert await xcom.pull("nothing", default=default, type=int) is default


async def test_a_value_that_is_none_is_not_missing(xcom: XCom) -> None:
    await xcom.push("key", None)
    assert await xcom.pull("key", "else") is None


async def test_a_value_is_converted_to_the_type_that_is_asked_for(xcom: XCom) -> None:
    await xcom.push("pair", (1, 2))
    await xcom.push("parcel", Parcel(3))
    assert await xcom.pull("pair") == [1, 2]
    assert await xcom.pull("pair", type=tuple[int, int]) == (1, 2)
    assert await xcom.pull("parcel") == {"weight": 3}
    assert await xcom.pull("parcel", type=Parcel) == Parcel(3)


@pytest.mark.parametrize("type_", [int, list[str], Parcel, object()])
async def test_a_value_that_does_not_fit_the_type_is_an_error(xcom: XCom, type_: Any) -> None:
    await xcom.push("key", "s3cret")
    with pytest.raises(InvalidInput, match="'key' does not fit") as caught:
        await xcom.pull("key", 1, type=type_)
    assert "s3cret" not in str(caught.value)


async def test_many_keys_are_pulled_at_once(core: Core, xcom: XCom) -> None:
    await xcom.push("b", 2)
    await xcom.push("a", 1)
    await XCom(core.store, "acme", "other").push("c", 3)
    assert await xcom.pull_many(["a", "none", "b", "c"]) == {"a": 1, "b": 2}
    assert await xcom.pull_many(["a", "c"], namespace=["other", "default"]) == {"a": 1, "c": 3}


async def test_a_push_whose_reply_was_cut_is_repeated(proxy: CuttingProxy, queue_name: str) -> None:
    async with Core(proxy.url, queue_name) as cut_off:
        cut_off.store.patience = 5
        xcom = XCom(cut_off.store, "acme")
        await xcom.push("key", "first")
        cut = proxy.cut_reply("FCALL")
        await xcom.push("key", "second")
        assert cut.done.is_set()
        assert await xcom.pull("key") == "second"


# Whose values, and where


@pytest.mark.every_server
async def test_no_name_reaches_the_values_of_another(core: Core) -> None:
    names = list(itertools.product(NASTY[:9], NASTY[3:12], NASTY[7:]))
    for user, namespace, key in names:
        await XCom(core.store, user, namespace).push(key, [user, namespace, key])
    for user, namespace, key in names:
        assert await XCom(core.store, user, namespace).pull(key) == [user, namespace, key]
    for user, namespace in itertools.product(NASTY[:9], NASTY[3:12]):
        assert await XCom(core.store, user, namespace).keys() == sorted(NASTY[7:], key=str.encode)
    assert await XCom(core.store, NASTY[9], NASTY[3]).keys() == []


@given(
    st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]), min_size=1)] * 2), max_size=2, unique=True)
)
def test_two_users_or_namespaces_never_share_a_redis_key(pairs: list[tuple[str, str]]) -> None:
    encoded = {f"{encode_user(user)}:{encode_user(namespace)}" for user, namespace in pairs}
    assert len(encoded) == len(pairs)
    assert all(name.count(":") == 1 and name.isprintable() and "{" not in name for name in encoded)


async def test_the_first_namespace_that_has_the_key_wins(core: Core, xcom: XCom) -> None:
    for namespace in ("first", "second"):
        await XCom(core.store, "acme", namespace).push("both", namespace)
    await XCom(core.store, "acme", "second").push("one", "second")
    assert await xcom.pull("both", namespace=["first", "second"]) == "first"
    assert await xcom.pull("both", namespace=("second", "first")) == "second"
    assert await xcom.pull("one", namespace=["first", "second"]) == "second"
    assert await xcom.pull("one", namespace="second") == "second"
    assert await xcom.pull("one", None) is None
    with pytest.raises(XComMissing, match="in 'first' or 'default'"):
        await xcom.pull("one", namespace=["first", "default"])


async def test_an_expired_value_does_not_win_over_a_later_namespace(core: Core, xcom: XCom) -> None:
    await push_expired(core, XCom(core.store, "acme", "first"), "key")
    await xcom.push("key", "in time")
    assert await xcom.pull("key", namespace=["first", "default"]) == "in time"


async def test_delete_removes_one_value(core: Core, xcom: XCom) -> None:
    other = XCom(core.store, "acme", "other")
    for at in (xcom, other):
        await at.push("key", 1)
    await xcom.push("kept", 2)
    await xcom.delete("key")
    await xcom.delete("key")
    assert await xcom.keys() == ["kept"]
    assert await other.keys() == ["key"]


async def test_clear_removes_one_namespace_of_one_user(core: Core, xcom: XCom) -> None:
    others = [XCom(core.store, "acme", "other"), XCom(core.store, "zeta")]
    for at in (xcom, *others):
        await at.push("a", 1)
        await at.push("b", 2)
    await xcom.clear()
    await xcom.clear()
    assert await xcom.keys() == []
    assert await xcom.pull("a", None) is None
    assert [await at.keys() for at in others] == [["a", "b"]] * 2


async def test_nothing_is_left_of_values_that_were_removed(core: Core, xcom: XCom) -> None:
    await xcom.push("a", 1)
    await xcom.push("b", 2)
    await xcom.delete("a")
    await xcom.delete("b")
    await XCom(core.store, "acme", "other").push("c", 3)
    await XCom(core.store, "acme", "other").clear()
    assert core.dump() == {}


async def test_the_namespaces_of_a_user_are_found_without_a_scan(core: Core) -> None:
    for namespace in ("a:b", "c"):
        await XCom(core.store, "ac:me", namespace).push("key", 1)
    found = core.dump()
    assert [name for name, _ in found["xcom-spaces:ac%3Ame"].scores] == ["a%3Ab", "c"]
    assert sorted(found) == sorted(
        ["xcom-spaces:ac%3Ame", *(f"{kind}:ac%3Ame:{of}" for kind in ("xcom", "xcom-expiry") for of in ("a%3Ab", "c"))]
    )


@pytest.mark.parametrize("values", [2, 3, 10])
async def test_keys_are_read_in_pages(core: Core, xcom: XCom, monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    monkeypatch.setattr(store_xcom, "XCOM_PAGE", 3)
    names = [f"{number:02}" for number in range(3 * values)]
    for name in names:
        await xcom.push(name, 1)
    soon = core.now_us() // 1000 + 60_000
    for number, name in enumerate(names):
        core.execute("ZADD", ":xcom-expiry:acme:default", soon + number // values, name)  # so many expire together
    assert await xcom.keys() == names


# Expiry


@pytest.mark.every_server
async def test_values_go_without_anybody_asking_for_them(core: Core, xcom: XCom) -> None:
    await xcom.push("a", 1, ttl=0.05)
    await XCom(core.store, "acme", "other").push("b", 1, ttl=0.02)
    await eventually(lambda: core.dump() == {})


@pytest.mark.every_server
async def test_an_expired_value_is_never_returned_while_others_live(core: Core, xcom: XCom) -> None:
    await xcom.push("long", 1)
    await push_expired(core, xcom, "short")
    assert await xcom.keys() == ["long"]
    assert await xcom.pull_many(["short", "long"]) == {"long": 1}
    with pytest.raises(XComMissing):
        await xcom.pull("short")


async def test_a_new_push_brings_a_new_time(core: Core, xcom: XCom) -> None:
    await push_expired(core, xcom, "key")
    await xcom.push("key", "again")
    assert await xcom.pull("key") == "again"
    await push_expired(core, xcom, "key")
    assert await xcom.pull("key", None) is None


@pytest.mark.every_server
@pytest.mark.parametrize("ttls", list(itertools.permutations([10, 20, 30])))
async def test_keys_live_as_long_as_the_value_that_lives_longest(core: Core, xcom: XCom, ttls: tuple[int, ...]) -> None:
    for ttl in ttls:
        await xcom.push(f"for {ttl} s", 1, ttl)
    found = core.dump()
    assert sorted(found) == ["xcom-expiry:acme:default", "xcom-spaces:acme", "xcom:acme:default"]
    assert all(25_000 < key.ttl_ms <= 30_000 for key in found.values())


async def test_without_a_ttl_a_value_lives_an_hour(core: Core, xcom: XCom) -> None:
    await xcom.push("key", 1)
    found = {name: key for name, key in core.dump().items() if name.startswith("xcom")}
    assert len(found) == 3
    assert all(3_590_000 < key.ttl_ms <= 3_600_000 for key in found.values())


@pytest.mark.parametrize("call", ["push", "pull"])
async def test_each_call_cleans_up_a_few_expired_values(core: Core, xcom: XCom, call: str) -> None:
    await xcom.push("long", 1)
    keys = [str(number) for number in range(2 * SWEEP + 1)]
    for key in keys:
        await xcom.push(key, "late")
    for key in keys:
        core.execute("ZADD", ":xcom-expiry:acme:default", core.now_us() // 1000, key)
    for left in (SWEEP + 1, 1, 0):
        await (xcom.push("long", 1) if call == "push" else xcom.pull("long"))
        found = core.dump()
        assert len(found["xcom-expiry:acme:default"].scores) == left + 1
        assert len(found["xcom:acme:default"].content) == 2 * (left + 1)


async def test_a_user_who_takes_new_namespaces_for_ever_leaves_no_trail(core: Core, xcom: XCom) -> None:
    await xcom.push("long", 1)
    for run in range(50):
        await push_expired(core, XCom(core.store, "acme", f"run {run}"), "key")
    await xcom.push("long", 1)
    assert [name for name, _ in core.dump()["xcom-spaces:acme"].scores] == ["default"]


async def test_a_namespace_is_known_until_its_last_value_expires(core: Core, xcom: XCom) -> None:
    await xcom.push("long", 1)
    await push_expired(core, xcom, "short")
    await XCom(core.store, "acme", "other").push("key", 1)
    assert [name for name, _ in core.dump()["xcom-spaces:acme"].scores] == ["default", "other"]


async def test_the_last_expired_value_takes_its_namespace_with_it(core: Core, xcom: XCom) -> None:
    other = XCom(core.store, "acme", "other")
    await xcom.push("key", 1)
    await other.push("long", 1)
    await push_expired(core, other, "short")
    await other.delete("long")
    await other.pull("short", None)
    assert sorted(core.dump()) == ["xcom-expiry:acme:default", "xcom-spaces:acme", "xcom:acme:default"]
    assert [name for name, _ in core.dump()["xcom-spaces:acme"].scores] == ["default"]


# Limits


@pytest.mark.parametrize("name", ["", "x" * 513, "é" * 257, "\ud800", 5, b"bytes", None])
async def test_names_that_break_a_rule_are_refused(core: Core, name: Any) -> None:
    xcom = XComManager(core.store, "acme")
    calls: list[Callable[[], Any]] = [
        partial(xcom.push, name, 1),
        partial(xcom.pull, name),
        partial(xcom.pull, name, None),
        partial(xcom.get, name),
        partial(xcom.pull_many, ["key", name]),
        partial(xcom.delete, name),
        partial(xcom.pull, "key", namespace=[name]),
    ]
    for call in calls:
        with pytest.raises(InvalidInput, match=r"XCom (key|namespace)"):
            await call()
    with pytest.raises(InvalidInput, match="namespace"):
        XCom(core.store, "acme", name)
    with pytest.raises(InvalidInput, match="user_id"):
        XCom(core.store, name)
    assert core.dump() == {}


@pytest.mark.parametrize("names", [[], ["x"] * 101, 5, {"a": 1}.values()])
async def test_lists_of_names_that_are_none_or_too_many_are_refused(xcom: XCom, names: Any) -> None:
    with pytest.raises(InvalidInput):
        await xcom.pull("key", namespace=names)
    with pytest.raises(InvalidInput):
        await xcom.pull_many(names)


async def test_a_str_is_no_list_of_keys(xcom: XCom) -> None:
    with pytest.raises(InvalidInput, match="keys must be a sequence of 1 to 100 strings, not 'abc'"):
        await xcom.pull_many("abc")


async def test_the_longest_names_work(core: Core) -> None:
    longest = "é" * 256
    xcom = XCom(core.store, longest, longest)
    await xcom.push(longest, 1)
    assert await xcom.pull(longest) == 1
    assert await xcom.keys() == [longest]


@pytest.mark.parametrize("ttl", [0, -1, -0.0, 1e-9, float("nan"), float("inf"), 1e300, "60", [1]])
async def test_a_ttl_that_makes_no_sense_is_refused(core: Core, xcom: XCom, ttl: Any) -> None:
    with pytest.raises(InvalidInput, match=r"ttl must be a number from 0\.001 to"):
        await xcom.push("key", 1, ttl=ttl)
    assert core.dump() == {}


@pytest.mark.parametrize(("ttl", "milliseconds"), [(None, 3_600_000), (0.001, 1), (0.0015, 2), (60, 60_000)])
def test_a_ttl_is_rounded_up(ttl: float | None, milliseconds: int) -> None:
    assert ttl_to_ms(ttl) == milliseconds


async def test_the_longest_ttl_works(core: Core, xcom: XCom) -> None:
    await xcom.push("key", 1, ttl=10 * 365 * 86_400)
    assert await xcom.pull("key") == 1
    found = {name: key for name, key in core.dump().items() if name.startswith("xcom")}
    assert len(found) == 3
    assert all(key.ttl_ms > 9 * 365 * 86_400_000 for key in found.values())


@pytest.mark.parametrize("value", [object(), 1 << 70, {1j: 1}, "\ud800"])
async def test_a_value_that_cannot_be_encoded_is_refused(core: Core, xcom: XCom, value: Any) -> None:
    with pytest.raises(InvalidInput, match="XCom value 'key' cannot be encoded"):
        await xcom.push("key", value)
    assert core.dump() == {}


async def test_a_value_that_contains_itself_is_refused(xcom: XCom) -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(InvalidInput, match="cannot be encoded"):
        await xcom.push("key", value)


async def test_values_have_a_size_limit(core: Core) -> None:
    xcom = XCom(core.store, "acme", max_bytes=100)
    await xcom.push("fits", b"x" * 98)  # and two bytes that tell the length
    with pytest.raises(MessageTooLarge, match="XCom value 'key' has 101 bytes, the limit is 100"):
        await xcom.push("key", b"x" * 99)
    assert await xcom.keys() == ["fits"]


async def test_large_values_come_back_whole(xcom: XCom) -> None:
    values = {str(number): bytes([number]) * 200_000 for number in range(8)}
    for key, value in values.items():
        await xcom.push(key, value)
    assert await xcom.pull_many(list(values)) == values


async def test_out_of_memory_refuses_a_push_and_nothing_else(own_server: Callable[..., EmbeddedServer]) -> None:
    async with Core(own_server().url, "full") as core:
        xcom = XCom(core.store, "acme")
        for key in ("a", "b", "c"):
            await xcom.push(key, key)
        core.execute("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(QueueUnavailable, match="maxmemory"):
            await xcom.push("key", 1)
        assert await xcom.pull("a") == "a"
        await xcom.delete("a")
        assert await xcom.keys() == ["b", "c"]
        await xcom.clear()
        assert core.dump() == {}


# From outside, and from threads


async def test_a_manager_gets_without_insisting(core: Core) -> None:
    manager = XComManager(core.store, "acme", "runs", 1000)
    await manager.push("key", (1, 2))
    assert await manager.get("key") == await manager.pull("key") == [1, 2]
    assert await manager.get("key", type=tuple[int, ...]) == (1, 2)
    assert await manager.get("nothing") is None
    assert await manager.get("nothing", "else") == "else"
    assert await manager.get("key", namespace="default") is None
    with pytest.raises(XComMissing):
        await manager.pull("nothing")


async def test_a_plain_function_does_the_same_without_await(core: Core, xcom: XCom) -> None:
    def body(blocking: BlockingXCom) -> list[Any]:
        blocking.push("a", (1, 2))
        blocking.push("b", "x", ttl=60)
        seen: list[Any] = [blocking.keys(), blocking.pull("a"), blocking.pull("a", type=tuple[int, int])]
        seen += [
            blocking.pull("none", 7),
            blocking.pull_many(["b", "none"]),
            blocking.pull("o", namespace=["x", "other"]),
        ]
        blocking.delete("a")
        return seen

    await XCom(core.store, "acme", "other").push("o", "there")
    assert await in_thread(body, BlockingXCom(xcom, asyncio.get_running_loop())) == [
        ["a", "b"],
        [1, 2],
        (1, 2),
        7,
        {"b": "x"},
        "there",
    ]
    assert await xcom.keys() == ["b"]
    await in_thread(BlockingXCom(xcom, asyncio.get_running_loop()).clear)
    assert await xcom.keys() == []


async def test_errors_reach_the_plain_function(xcom: XCom) -> None:
    blocking = BlockingXCom(xcom, asyncio.get_running_loop())
    with pytest.raises(XComMissing):
        await in_thread(blocking.pull, "nothing")
    with pytest.raises(InvalidInput):
        await in_thread(blocking.push, "", 1)
    with pytest.raises(MessageTooLarge):
        await in_thread(blocking.push, "key", b"x" * 300_000)


async def test_many_threads_at_once(xcom: XCom) -> None:
    blocking = BlockingXCom(xcom, asyncio.get_running_loop())

    def body(number: int) -> int:
        blocking.push(str(number), number)
        return blocking.pull(str(number), type=int)

    assert await asyncio.gather(*(in_thread(body, number) for number in range(50))) == list(range(50))
    assert len(await xcom.keys()) == 50


async def test_a_blocking_call_elsewhere_says_where_it_belongs(xcom: XCom) -> None:
    blocking = BlockingXCom(xcom, asyncio.get_running_loop())
    with pytest.raises(FairqueError, match="in the task's own thread"):
        blocking.keys()
    other = asyncio.new_event_loop()
    with contextlib.closing(other), pytest.raises(FairqueError, match="in the task's own thread"):
        await asyncio.to_thread(BlockingXCom(xcom, other).push, "key", 1)
    await asyncio.to_thread(blocking.push, "key", 1)


async def test_they_say_whose_they_are_and_cannot_be_changed(core: Core) -> None:
    xcom = XCom(core.store, "ac:me", "runs")
    assert [
        repr(of)
        for of in (xcom, XComManager(core.store, "ac:me", "runs"), BlockingXCom(xcom, asyncio.get_running_loop()))
    ] == [
        "<XCom 'ac:me' 'runs'>",
        "<XComManager 'ac:me' 'runs'>",
        "<BlockingXCom 'ac:me' 'runs'>",
    ]
    for of, field in itertools.product(
        (xcom, BlockingXCom(xcom, asyncio.get_running_loop())), ("user_id", "namespace")
    ):
        with pytest.raises(AttributeError):
            setattr(of, field, "zeta")


def test_making_one_asks_nothing_of_redis() -> None:
    assert XCom(Store.__new__(Store), "acme").namespace == "default"


async def test_a_purge_erases_many_namespaces_in_bounded_steps(core: Core) -> None:
    for number in range(5):
        await XCom(core.store, "acme", f"space {number}").push("key", number)
    steps = [await core.store.purge_step("acme", 2) for _ in range(3)]
    assert [(erased[5], erased[7]) for erased in steps] == [(2, 1), (2, 1), (1, 0)]
    assert not [name for name in core.dump() if "xcom" in name]
