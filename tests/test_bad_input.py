"""What breaks a rule is refused by one of our own errors, with the value and the rule, before anything is written."""

import asyncio
import itertools
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, ClassVar, cast
from urllib.parse import quote

import msgspec
import pytest

from fairque import (
    BadArguments,
    ConfigError,
    InvalidInput,
    MessageTooLarge,
    Schedule,
    StoreError,
    Task,
    TaskFailed,
    TaskHandler,
    TaskQueue,
    TaskScheduler,
    Worker,
    WrongType,
    task,
)
from fairque.settings import QueueSettings
from fairque.tasks.message import Message, encode_body, encode_value, new_nonce
from fairque.tasks.registry import registry
from tests.support.eventually import eventually
from tests.support.resp import RespClient

NASTY = [
    "a",
    "b:a",
    ":",
    "a:b",
    "a%3Ab",
    "a::b",
    "{}",
    "}{a}",
    "**",
    "a*",
    "?",
    "[a]",
    "\\",
    "\0",
    "a\0",
    "\n",
    "a\r\nb",
    " ",
    "/",
    "../a",
    "%",
    "%00",
    "🐈",
    "é",
    "e\u0301",
    "-",
    "0",
    "True",
    "None",
    "normal",
    "x" * 512,
    "🐈" * 128,
]
BEFORE_TIME = datetime(1, 1, 1)  # noqa: DTZ001
TOO_LONG = ["x" * 513, "🐈" * 128 + "x", "é" * 257]


@task(name="echo")
async def echo(value: object = None) -> object:
    return value


@task(name="add")
async def add(left: int, right: int) -> int:
    return left + right


class NoPayloads(TaskHandler):
    async def process_task(self, payload: dict) -> None:
        raise AssertionError(f"called with {payload}")


@pytest.fixture(autouse=True)
def _registered():
    before = dict(registry)
    registry.update({made.name: made for made in (echo, add)})
    yield
    registry.clear()
    registry.update(before)


@pytest.fixture
def nothing_written(server, queue_name: str):
    yield
    assert server.keys(queue_name) == []


# Ids


@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
async def test_ids_may_be_any_text_of_up_to_512_bytes(queue: TaskQueue, nasty: str):
    handle = await queue.enqueue(echo("hi"), user_id=nasty, task_id=nasty)
    assert not (await queue.enqueue(echo("hi"), user_id=nasty, task_id=nasty)).created
    waiting = asyncio.create_task(handle.result(20))
    await Worker(queue, assigned_users=["nobody", nasty]).run_until_idle()
    assert await waiting == "hi"
    info = await queue.handle(nasty, nasty).info()
    assert (info.user_id, info.task_id) == (nasty, nasty)
    assert [user.user_id for user in await queue.users()] == [nasty]
    assert (await queue.user(nasty)).finished == 1
    await queue.set_policy(nasty, weight=2)
    assert (await queue.user(nasty)).weight == 2
    await queue.clear_policy(nasty)


async def test_no_two_ids_collide(queue: TaskQueue, server, queue_name: str):
    pairs = list(itertools.product(NASTY, NASTY))
    handles = await queue.enqueue_many(
        [echo([user, task_id]).options(user_id=user, task_id=task_id) for user, task_id in pairs]
    )
    assert all(handle.created for handle in handles)
    assert len([key for key in server.keys(queue_name) if ":body:" in key]) == len(pairs)
    async with Worker(queue, concurrency=100):
        for handle, pair in zip(handles, pairs, strict=True):
            assert await handle.result(20) == list(pair)
    for user in NASTY:
        assert (await queue.user(user)).finished == len(NASTY)


async def test_every_key_of_a_user_keeps_to_the_hash_tag_of_the_queue(queue: TaskQueue, server, queue_name: str):
    await queue.enqueue(echo(), user_id="}{a}", task_id="{b}")
    assert {key.partition("}")[0] for key in server.keys(queue_name)} == {f"fairque:{{{queue_name}"}
    assert f"fairque:{{{queue_name}}}:normal:{quote('}{a}', safe='')}" in server.keys(queue_name)
    await Worker(queue).run_until_idle()


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ("", "must not be empty"),
        *((text, rf"has 51\d bytes, the limit is 512: '{text[:40]}'…") for text in TOO_LONG),
        ("a\ud800", r"'a\\ud800' cannot be encoded as UTF-8"),
        (7, "must be a str, not 7"),
        (b"anna", "must be a str, not b'anna'"),
        (True, "must be a str, not True"),
    ],
    ids=ascii,
)
async def test_other_ids_are_refused(queue: TaskQueue, bad, rule: str):
    for call in (
        lambda: queue.enqueue(echo(), user_id=bad),
        lambda: queue.enqueue(echo().options(user_id=bad)),
        lambda: queue.enqueue_many([echo()], user_id=bad),
        lambda: queue.push_function_task(bad, echo),
        lambda: queue.user(bad),
        lambda: queue.set_policy(bad, weight=1),
        lambda: queue.clear_policy(bad),
    ):
        with pytest.raises(InvalidInput, match=f"user_id.* {rule}"):
            await call()
    with pytest.raises(InvalidInput, match=f"task_id.* {rule}"):
        await queue.enqueue(echo(), user_id="anna", task_id=bad)
    for look in (lambda: queue.handle(bad, "t"), lambda: queue.handle("anna", bad)):
        with pytest.raises(InvalidInput, match=rule):
            look()


@pytest.mark.parametrize("wrong", [max, sorted, "echo", 7, lambda: 1])
async def test_a_handle_is_about_a_task_function(queue: TaskQueue, wrong):
    with pytest.raises(WrongType, match="task must be a TaskFunction, not "):
        queue.handle("anna", "t", task=wrong)


@pytest.mark.parametrize("name", ["", "a{b", "a}b", "x" * 201, "é" * 101, "a\nb", "\ud800", 7, None])
def test_names_that_no_queue_can_have_are_refused(name):
    with pytest.raises(ConfigError, match=r"a queue name has 1 to 200 bytes and no braces, not "):
        TaskQueue("redis://localhost", name=name)


# Things of ours


def things_that_are_none_of_ours(queue: TaskQueue) -> dict[str, Callable[[], Awaitable[object]]]:
    scheduler, handle = TaskScheduler(queue), queue.handle("anna", "a")
    again = Schedule("@daily", echo(), user_id="anna")
    wrong: Any = "a"
    return {
        "tasks must be a list, not <Task": lambda: queue.enqueue_many(cast("Any", echo())),
        "not <task function ": lambda: queue.enqueue_many([cast("Any", echo)]),
        "handles must be a list, not <TaskHandle": lambda: queue.results(cast("Any", handle)),
        "each of handles must be a TaskHandle, not 'a'": lambda: queue.results([wrong]),
        "schedules must be a list, not Schedule": lambda: scheduler.add_schedules(cast("Any", again)),
        "task must be a DeadLetter or TaskHandle, not 'a'": lambda: queue.requeue(wrong),
        "must be a DeadLetter or TaskHandle, not 'a'": lambda: queue.discard(wrong),
        "config must be a FairQueueConfig, not 'a'": lambda: queue.apply_policies(wrong),
        "since must be a datetime, not 'a'": lambda: queue.usage("anna", wrong),
    }


async def test_what_is_none_of_our_things_is_refused(queue: TaskQueue):
    for rule, call in things_that_are_none_of_ours(queue).items():
        with pytest.raises(WrongType, match=rule):
            await call()
    with pytest.raises(WrongType, match="task must be a TaskFunction, not 'a'"):
        queue.handle("anna", "a", task=cast("Any", "a"))


async def test_dead_letters_are_chosen_by_what_there_is(queue: TaskQueue):
    with pytest.raises(InvalidInput, match="user_id must be a str, not 5"):
        await queue.requeue_all(cast("Any", 5))
    with pytest.raises(InvalidInput, match=r"kind must be error, .*, not 'a'"):
        await queue.requeue_all(kind="a")


# Options


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("priority", [0, 7, -1, 2.5, "3", "high", float("nan")])
async def test_priorities_are_one_to_six(queue: TaskQueue, priority):
    with pytest.raises(InvalidInput, match=f"priority must be 1 to 6, not {priority!r}"):
        await queue.enqueue(echo(), user_id="anna", priority=priority)


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(
    "delay", [-1, -1e-9, float("nan"), float("inf"), 1e300, "soon", True, timedelta(seconds=-1), timedelta.max], ids=str
)
async def test_delays_are_times_that_can_be_waited(queue: TaskQueue, delay):
    shown = delay.total_seconds() if isinstance(delay, timedelta) else delay
    with pytest.raises(InvalidInput, match=re.escape(f"not {shown!r}")) as refused:
        await queue.enqueue(echo(), user_id="anna", delay=delay)
    assert "delay must be a number from 0 to 3153600000 seconds" in str(refused.value)


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("moment", ["tomorrow", 5, BEFORE_TIME, date(2024, 2, 29)], ids=str)
async def test_moments_are_datetimes(queue: TaskQueue, moment):
    with pytest.raises(InvalidInput, match=r"execute_after .*" + re.escape(repr(moment))):
        await queue.enqueue(echo(), user_id="anna", execute_after=moment)


@pytest.mark.leaves_keys
async def test_the_last_moment_there_is_can_be_waited_for(queue: TaskQueue):
    handle = await queue.enqueue(echo(), user_id="anna", execute_after=datetime.max.replace(tzinfo=UTC))
    async with Worker(queue):
        assert await (await queue.enqueue(echo(1), user_id="anna")).result(20) == 1
        assert await handle.state() == "scheduled"


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("weight", [0, -1, 1e-300, 1e300, float("nan"), float("inf"), "heavy", True])
async def test_weights_are_numbers_above_zero(queue: TaskQueue, weight):
    with pytest.raises(
        InvalidInput, match=rf"weight must be a number from 1e-06 to 1000000, not {re.escape(repr(weight))}"
    ):
        await queue.set_policy("anna", weight=weight)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"timeout": 0}, "timeout must be more than 0 seconds"),
        ({"timeout": -1}, "timeout must be a number from 0 .*, not -1"),
        ({"timeout": True}, "timeout must be .*, not True"),
        ({"timeout": float("nan")}, "timeout must be .*, not nan"),
        ({"result_ttl": -1}, "result_ttl must be .*, not -1"),
        ({"result_ttl": 1e18}, r"result_ttl must be .*, not 1e\+18"),
        ({"cost": -1}, "cost must be a number from 0.001 .*, not -1"),
        ({"cost": float("inf")}, "cost must be .*, not inf"),
        ({"cost": 1e300}, r"cost must be .*, not 1e\+300"),
        ({"cost": "dear"}, "cost must be .*, not 'dear'"),
        ({"max_retries": -1}, "max_retries must be a whole number from 0 .*, not -1"),
        ({"max_retries": True}, "max_retries must be .*, not True"),
    ],
    ids=str,
)
def test_numbers_keep_to_their_limits(options, rule: str):
    for make in (
        lambda: task(**options)(lambda: None),
        lambda: echo.options(**options),
        lambda: echo().options(**options),
        lambda: Task.create(**options),
    ):
        with pytest.raises(InvalidInput, match=rule):
            make()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"timeout": 0}, "timeout must be a number from 0.001 .*, not 0"),
        ({"timeout": float("inf")}, "timeout must be .*, not inf"),
        ({"timeout": "5"}, "timeout must be .*, not '5'"),
        ({"lease": 0.05}, r"lease must be a number from 0\.1 .*, not 0\.05"),
        ({"lease": float("nan")}, "lease must be .*, not nan"),
        ({"priority_step": -1}, "priority_step must be .*, not -1"),
        ({"result_ttl": -1}, "result_ttl must be .*, not -1"),
        ({"dead_letter_ttl": 0.5}, "dead_letter_ttl must be .*, not 0.5"),
        ({"max_message_bytes": 0}, "max_message_bytes must be a whole number from 1 .*, not 0"),
        ({"max_message_bytes": 1e5}, "max_message_bytes must be .*, not 100000.0"),
    ],
    ids=str,
)
def test_options_of_a_queue_keep_to_their_limits(options, rule: str):
    with pytest.raises(InvalidInput, match=rule):
        TaskQueue("redis://localhost", **options)


# Arguments


class Opaque: ...


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def circular() -> list:
    value: list = []
    value.append(value)
    return value


@dataclass
class Checked:
    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise LookupError("below zero")


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (Opaque(), "Encoding objects of type tests.test_bad_input.Opaque is unsupported"),
        (lambda: None, "Encoding objects of type function is unsupported"),
        (ValueError("x"), "Encoding objects of type ValueError is unsupported"),
        (2**64, r"can't serialize ints < -2\*\*63 or > 2\*\*64 - 1"),
        (-(2**63) - 1, r"can't serialize ints < -2\*\*63 or > 2\*\*64 - 1"),
        (10**1000, r"can't serialize ints < -2\*\*63 or > 2\*\*64 - 1"),
        (1j, "Encoding objects of type complex is unsupported"),
        ("\ud800", "surrogates not allowed"),
        (nested(100_000), "recursion"),
        (circular(), "recursion"),
    ],
    ids=["object", "function", "error", "2**64", "-2**63-1", "huge", "complex", "surrogate", "deep", "circular"],
)
def test_arguments_that_cannot_be_encoded_are_refused(value, rule: str):
    for call in (lambda: echo(value), lambda: echo(value=value), lambda: echo({"a": [value]})):
        with pytest.raises(
            BadArguments, match=f"the arguments of task 'echo' cannot be encoded: .*({rule}).* - at `value`"
        ):
            call()
    with pytest.raises(BadArguments, match=f"the payload cannot be encoded: .*({rule})"):
        Task.create(payload={"a": value})


@pytest.mark.parametrize(
    ("args", "kwargs", "rule"),
    [
        ((), {}, "missing a required argument: 'left'"),
        ((1,), {}, "missing a required argument: 'right'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"left": 2}, "multiple values for argument 'left'"),
        ((1, 2), {"more": 3}, "got an unexpected keyword argument 'more'"),
        ((1, "2"), {}, r"Expected `int`, got `str` - at `right`"),
        ((1,), {"right": None}, "Expected `int`, got `N?n?[ou]"),
        ((1, 2.5), {}, "Expected `int`, got `float`"),
        ((1, True), {}, "Expected `int`, got `bool`"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(args, kwargs, rule: str):
    with pytest.raises(BadArguments, match=f"the arguments of task 'add' do not fit: {rule}"):
        add(*args, **kwargs)


def test_what_a_class_does_not_accept_is_refused():
    @task(name="checked")
    async def take(checked: Checked) -> None: ...

    made = Checked(1)
    made.n = -1
    with pytest.raises(BadArguments, match=r"the arguments of task 'checked' do not fit: .*below zero"):
        take(made)


@pytest.mark.usefixtures("nothing_written")
async def test_messages_have_a_limit(queue: TaskQueue):
    with pytest.raises(MessageTooLarge, match=r"the message of task 'echo' has 3000\d\d bytes, the limit is 262144"):
        await queue.enqueue(echo("x" * 300_000), user_id="anna")
    with pytest.raises(MessageTooLarge, match="the limit is 262144"):
        await queue.enqueue_many([echo(), echo("x" * 300_000)], user_id="anna")
    with pytest.raises(MessageTooLarge, match="the limit is 262144"):
        await queue.enqueue(Task.create(payload={"a": "x" * 300_000}), user_id="anna")


async def test_the_limit_is_exact(server, queue_name: str):
    size = len(encode_body(Message("echo", msgspec.Raw(echo("xx").args)), new_nonce(), 1, 3, 1000))
    async with TaskQueue(server.url, name=queue_name, max_message_bytes=size) as queue:
        handle = await queue.enqueue(echo("xx"), user_id="anna")
        with pytest.raises(MessageTooLarge, match=f"has {size + 1} bytes, the limit is {size}"):
            await queue.enqueue(echo("xxx"), user_id="anna")
        await Worker(queue).run_until_idle()
        assert await handle.result(20) == "xx"


# Results


@pytest.mark.parametrize(
    ("value", "kind", "rule"),
    [
        (Opaque(), "TypeError", r"the result cannot be encoded: Encoding objects of type \S*Opaque is unsupported"),
        (2**64, "OverflowError", "the result cannot be encoded"),
        ("\ud800", "UnicodeEncodeError", "the result cannot be encoded: .*surrogates not allowed"),
        (nested(100_000), "RecursionError", "the result cannot be encoded"),
        ("x" * 300_000, "ResultTooLarge", "the result has 30000. bytes, the limit is 262144"),
    ],
    ids=["object", "2**64", "surrogate", "deep", "too large"],
)
async def test_results_that_cannot_be_kept_fail_their_task(queue: TaskQueue, value, kind: str, rule: str):
    @task(name="give", max_retries=5)
    async def on_the_loop() -> object:
        return value

    @task(name="give-from-thread")
    def in_a_thread() -> object:
        return value

    async with Worker(queue):
        for made in (on_the_loop, in_a_thread):
            handle = await queue.enqueue(made(), user_id="anna")
            with pytest.raises(TaskFailed, match=f"{kind}: {rule}") as failed:
                await handle.result(20)
            assert failed.value.kind == "error"
            assert (await handle.info()).attempt == 1, "it would be the same again"
        assert await (await queue.enqueue(add(1, 2), user_id="anna")).result(20) == 3


async def test_results_whose_encoding_goes_wrong_fail_their_task(queue: TaskQueue):
    @dataclass
    class Sly:
        n: int

        def __getattribute__(self, name: str):
            raise KeyboardInterrupt if name == "n" else AttributeError(name)

    @task(name="sly")
    async def sly() -> object:
        return object.__new__(Sly)

    async with Worker(queue):
        handle = await queue.enqueue(sly(), user_id="anna")
        with pytest.raises(TaskFailed, match="the result cannot be encoded"):
            await handle.result(20)
        assert await (await queue.enqueue(add(1, 2), user_id="anna")).result(20) == 3


# Servers


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("http://localhost", "http"),
        ("localhost:6379", ""),
        ("postgres://u:secret@h/1", "postgres"),
        ("/a", ""),
    ],
)
def test_unknown_url_schemes_are_refused(url: str, scheme: str):
    with pytest.raises(
        ConfigError, match=rf"unknown URL scheme '{scheme}'; there are redis://, .*embedded://"
    ) as refused:
        TaskQueue(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["redis://u:secret@[::1", "redis://u:secret@localhost:port"])
async def test_urls_that_make_no_sense_are_refused_without_telling_the_password(url: str):
    with pytest.raises((ConfigError, StoreError)) as refused:
        await TaskQueue(url).open()
    assert "redis://" in str(refused.value)
    assert "secret" not in str(refused.value)


async def test_a_server_that_is_too_old_is_refused(own_server, tmp_path):
    old = tmp_path / "old.conf"
    old.write_text('rename-command FCALL_RO ""\n')
    server = own_server(include=str(old))
    text = r"fairque needs Redis 7\.0 or Valkey 7\.2, this server is older \(it does not know FCALL_RO\)"
    with pytest.raises(ConfigError, match=text):
        async with TaskQueue(server.url):
            pytest.fail("it was opened")
    with RespClient(server.url) as client:
        assert client.execute("DBSIZE") == 0


async def test_a_server_that_evicts_keys_is_warned_of(own_server, caplog: pytest.LogCaptureFixture):
    server = own_server(maxmemory_policy="allkeys-lru")
    async with TaskQueue(server.url):
        pass
    assert "set maxmemory-policy to noeviction, not" in caplog.text
    assert "allkeys-lru" in caplog.text


# What others left in Redis


HEAD = encode_body(Message("echo", msgspec.Raw(b"\x90")), new_nonce(), 1, 3, 1000)[:18]
WHOLE = HEAD + encode_value(["echo", [1]])
BODIES = {
    "empty": (b"", "truncated: 0 bytes"),
    "one byte": (b"\x01", "truncated: 1 bytes"),
    "half a head": (HEAD[:10], "truncated: 10 bytes"),
    "only a head": (HEAD, "cannot be decoded"),
    "half a message": (WHOLE[:-1], "cannot be decoded"),
    "more than a message": (WHOLE + b"\x00", "cannot be decoded"),
    "another version": (b"\x02" + WHOLE[1:], "has version 2, this worker reads version 1"),
    "a zero": (b"\0", "the message in Redis is "),
    "zero and no text": (b"\0\xff\xfe" * 20, "the message in Redis is "),
    "text": (b"hello, this is not for you", "has version 104"),
    "pickle": (b"\x80\x04\x95" + b"x" * 50, "has version 128"),
    "noise": (HEAD + bytes(range(256)), "cannot be decoded"),
    "a map": (HEAD + encode_value({"name": "echo"}), "cannot be decoded"),
    "too few fields": (HEAD + encode_value(["echo"]), "cannot be decoded"),
    "no name": (HEAD + encode_value([7, []]), "cannot be decoded"),
    "name is no text": (HEAD + b"\x92\xa2\xff\xfe\x90", "cannot be decoded"),
    "wrong options": (HEAD + encode_value(["echo", [], None, {"timeout": "long"}]), "cannot be decoded"),
    "deep options": (HEAD + b"\x94\xa4echo\x90\xc0" + b"\x91" * 100_000, "cannot be decoded"),
    "deep": (HEAD + b"\x92\xa4echo" + b"\x91" * 100_000 + b"\x90", "cannot be decoded|do not fit"),
    "negative cost": (HEAD[:9] + b"\xbf" + HEAD[10:], "cannot be decoded"),
    "cost is no number": (HEAD[:9] + b"\x7f\xf8" + b"\0" * 6 + HEAD[17:], "cannot be decoded"),
    "infinite cost": (HEAD[:9] + b"\x7f\xf0" + b"\0" * 6 + HEAD[17:], "cannot be decoded"),
    "huge": (WHOLE + b"x" * 300_000, r"too large: 3000\d\d bytes, the limit is 262144"),
}


def overwrite(server, queue_name: str, handle, body: bytes) -> None:
    key = f"fairque:{{{queue_name}}}:body:{handle.user_id}:{handle.task_id}"
    assert server.execute("GET", key)
    server.execute("SET", key, body)


@pytest.mark.parametrize("kind", BODIES)
async def test_a_message_that_cannot_be_read_is_a_dead_letter(queue: TaskQueue, server, queue_name: str, kind: str):
    body, reason = BODIES[kind]
    bad = await queue.enqueue(echo(), user_id="anna")
    good = await queue.enqueue(echo("fine"), user_id="anna")
    overwrite(server, queue_name, bad, body)
    assert await bad.state() == "queued"
    failures = []
    async with Worker(queue, concurrency=1, on_failure=failures.append, handler=NoPayloads()) as worker:
        with pytest.raises(TaskFailed, match=reason) as failed:
            await bad.result(20)
        assert await good.result(20) == "fine"
        assert (await queue.stats()).workers[0].worker_id == worker.worker_id
    assert failed.value.kind in ("bad-message", "bad-arguments")
    assert [event.task_id for event in failures] == [bad.task_id]
    info = await bad.info()
    assert (info.state, info.attempt, len(info.errors)) == ("failed", 1, 1)
    user = await queue.user("anna")
    assert (user.dead_letters, user.failed, user.finished) == (1, 1, 1)
    stats = await queue.stats()
    assert (stats.queued, stats.started, stats.users_ready) == (0, 0, 0)
    assert stats.clock < 100


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (7, None),
        ("text", None),
        (None, None),
        ({"a": 1}, None),
        ([1, 2, 3], None),
        ([], 7),
        ([], [1]),
        ([], {1: 2}),
        ([], {"nobody": 2}),
    ],
    ids=str,
)
async def test_a_message_with_foreign_arguments_is_a_dead_letter(
    queue: TaskQueue, server, queue_name: str, args, kwargs
):
    bad = await queue.enqueue(echo(), user_id="anna")
    overwrite(server, queue_name, bad, HEAD + encode_value(["echo", args, kwargs]))
    failing_handler = type("Handler", (TaskHandler,), {"process_task": lambda *_: Opaque().nothing})
    async with Worker(queue, handler=failing_handler()):
        with pytest.raises(TaskFailed) as failed:
            await bad.result(20)
        assert await (await queue.enqueue(echo(1), user_id="anna")).result(20) == 1
    assert failed.value.kind == ("error" if isinstance(args, dict) else "bad-arguments")
    assert (await queue.user("anna")).dead_letters == 1


@pytest.mark.damages
async def test_a_body_that_is_no_string_is_a_dead_letter(queue: TaskQueue, server, queue_name: str):
    bad = await queue.enqueue(echo(), user_id="anna")
    good = await queue.enqueue(echo("fine"), user_id="anna")
    key = f"fairque:{{{queue_name}}}:body:anna:{bad.task_id}"
    server.execute("DEL", key)
    server.execute("RPUSH", key, "a", "b")
    async with Worker(queue, concurrency=1):
        with pytest.raises(TaskFailed, match="the message in Redis is not a string"):
            await bad.result(20)
        assert await good.result(20) == "fine"
    assert (await queue.stats()).queued == 0


async def test_a_body_that_is_gone_is_skipped(queue: TaskQueue, server, queue_name: str):
    gone = await queue.enqueue(echo(), user_id="anna")
    last = await queue.enqueue(echo(), user_id="ben")
    good = await queue.enqueue(echo("fine"), user_id="anna")
    for handle in (gone, last):
        server.execute("DEL", f"fairque:{{{queue_name}}}:body:{handle.user_id}:{handle.task_id}")
    async with Worker(queue, concurrency=1):
        assert await good.result(20) == "fine"
        await eventually(lambda: nothing_waits(queue))
    assert (await queue.user("anna")).finished == 1


async def test_a_message_that_grew_while_its_worker_was_silent_is_a_dead_letter(server, queue_name: str):
    async with TaskQueue(server.url, name=queue_name, lease=0.1) as queue:
        bad = await queue.enqueue(echo(), user_id="anna")
        store = queue.store()
        claim = await store.claim("silent", 1, settings=QueueSettings(lease_ms=100), wait=False)
        assert len(claim.deliveries) == 1
        await store.leave("silent", [])
        await store.close()
        overwrite(server, queue_name, bad, b"x" * 300_000)
        async with Worker(queue):
            with pytest.raises(TaskFailed, match="too large"):
                await bad.result(20)


class Moody(msgspec.Struct):
    n: int
    mood: ClassVar[type[BaseException] | None] = None

    def __post_init__(self) -> None:
        if Moody.mood is not None:
            raise Moody.mood("not today")


@pytest.mark.parametrize("mood", [ValueError, LookupError, SystemExit, KeyboardInterrupt])
async def test_arguments_whose_class_raises_are_a_dead_letter(
    queue: TaskQueue, mood: type[BaseException], monkeypatch: pytest.MonkeyPatch
):
    @task(name="take")
    async def take(moody: Moody) -> None: ...

    bad = await queue.enqueue(take(Moody(0)), user_id="anna")
    monkeypatch.setattr(Moody, "mood", mood)
    async with Worker(queue):
        with pytest.raises(TaskFailed, match="not today") as failed:
            await bad.result(20)
        assert await (await queue.enqueue(echo(1), user_id="anna")).result(20) == 1
    assert failed.value.kind in ("bad-arguments", "bad-message")
    assert (await queue.user("anna")).dead_letters == 1


@pytest.mark.parametrize("record", [b"", b"x", b"\x01" + b"n" * 8 + b"F", b"\x01" + b"n" * 8 + b"Z\x90", b"F" * 100])
async def test_a_result_that_cannot_be_read_is_an_error_of_the_store(
    queue: TaskQueue, server, queue_name: str, record: bytes
):
    handle = await queue.enqueue(echo(), user_id="anna")
    await Worker(queue).run_until_idle()
    key = f"fairque:{{{queue_name}}}:result:anna:{handle.task_id}"
    server.execute("SET", key, record, "PX", 60_000)
    for look in (handle.result, handle.info):
        with pytest.raises((StoreError, LookupError), match=r"cannot be decoded|never enqueued"):
            await asyncio.wait_for(look(), 5)


@pytest.mark.damages
@pytest.mark.leaves_keys
async def test_one_user_with_foreign_keys_harms_no_other(
    queue: TaskQueue, server, queue_name: str, caplog: pytest.LogCaptureFixture
):
    """Only somebody who writes to Redis by hand can do this; the others must not pay for it."""

    @task(name="fail")
    async def fail() -> None:
        raise ValueError

    server.execute("SET", f"fairque:{{{queue_name}}}:dead:broken", "not a sorted set")
    with caplog.at_level(logging.CRITICAL):
        async with Worker(queue, shutdown_timeout=0):
            await queue.enqueue(fail(), user_id="broken")
            for at in range(20):
                assert await (await queue.enqueue(echo(at), user_id="anna")).result(20) == at


async def nothing_waits(queue: TaskQueue) -> bool:
    return (await queue.stats()).queued == 0
