"""One look a second for all who look at the same page, while there are any."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from fairque import EVERYBODY, InvalidInput, QueueUnavailable, TaskQueue
from fairque.contrib.dashboard import Viewer, dashboard, stream
from fairque.contrib.dashboard.reader import Crowded, Parts, Reader, Topic
from fairque.contrib.dashboard.stream import EventStream
from tests.support.eventually import eventually

OPERATOR = Viewer("ops", users=EVERYBODY)
ANNA = Viewer("anna", users=["anna"])


class Looks:
    """A page that counts the looks at it."""

    def __init__(self) -> None:
        self.count = 0
        self.error: Exception | None = None

    async def look(self) -> int:
        self.count += 1
        if self.error is not None:
            raise self.error
        return self.count

    def topic(self, name: str = "page", *, is_operators: bool = True) -> Topic:
        return Topic((name,), is_operators, self.look, self.parts)

    def parts(self, seen: int, viewer: Viewer) -> Parts:
        return {"count": str(seen), "same": "always", "secret": "x" if viewer.payloads else ""}


async def test_two_hundred_viewers_cost_what_one_does():
    reader, looks = Reader(interval=0.05), Looks()
    with ExitStack() as stack:
        seats = [stack.enter_context(reader.seat(looks.topic(), OPERATOR)) for _ in range(200)]
        for seen in range(1, 4):
            parts = await asyncio.gather(*(seat.next() for seat in seats))
            assert {each["count"] for each in parts} == {str(seen)}
            assert looks.count == seen
        assert reader.topics == 1
    assert reader.topics == 0
    before = looks.count
    await asyncio.sleep(0.1)  # two more would have come by now
    assert looks.count == before


async def test_only_what_changed_is_told_and_who_comes_later_is_told_all():
    reader, looks = Reader(interval=0.02), Looks()
    with reader.seat(looks.topic(), OPERATOR) as first:
        assert set(await first.next()) == {"count", "same", "secret", "trouble"}
        assert set(await first.next()) == {"count"}
        with reader.seat(looks.topic(), OPERATOR) as late:
            assert set(await late.next()) == {"count", "same", "secret", "trouble"}


async def test_who_is_slow_gets_the_newest_and_holds_nobody_up():
    reader, looks = Reader(interval=0.01), Looks()
    with reader.seat(looks.topic(), OPERATOR) as quick, reader.seat(looks.topic(), OPERATOR) as slow:
        for _ in range(50):
            await quick.next()
        assert len(slow._pending) == 4, "one of each part, however many there were"
        assert int((await slow.next())["count"]) >= 50


async def test_what_was_read_before_an_act_is_shown_to_nobody_who_comes_after_it():
    reader, looks = Reader(interval=0.02), Looks()
    topic = looks.topic()
    assert reader.seen(topic) is None
    with reader.seat(topic, OPERATOR) as seat:
        await seat.next()
        assert reader.seen(topic) is not None
        reader.forget()
        assert reader.seen(topic) is None
        await eventually(lambda: reader.seen(topic) is not None)


async def test_who_may_see_less_is_drawn_another_page():
    reader, looks = Reader(interval=0.02), Looks()
    insider = Viewer("insider", users=EVERYBODY, payloads=True)
    with reader.seat(looks.topic(), OPERATOR) as plain, reader.seat(looks.topic(), insider) as told:
        assert (await plain.next())["secret"] == ""
        assert (await told.next())["secret"] == "x"
        assert looks.count == 1


async def test_an_error_of_one_page_is_told_there_and_stops_no_other():
    reader, good, bad = Reader(interval=0.02), Looks(), Looks()
    bad.error = QueueUnavailable("redis://secret-host is not there")
    with ExitStack() as stack:
        fine = stack.enter_context(reader.seat(good.topic("good"), OPERATOR))
        torn = stack.enter_context(reader.seat(bad.topic("bad"), OPERATOR))
        of_anna = stack.enter_context(reader.seat(bad.topic("bad", is_operators=False), ANNA))
        assert "secret-host" in (await torn.next())["trouble"]
        assert (await of_anna.next())["trouble"].startswith("The queue does not answer.")
        await eventually(lambda: good.count > 3)
        assert (await fine.next())["trouble"] == ""
        bad.error = None
        assert (await torn.next())["trouble"] == ""


async def test_an_error_that_nobody_thought_of_does_not_stop_a_page_for_ever(caplog: pytest.LogCaptureFixture):
    reader, looks = Reader(interval=0.02), Looks()
    looks.error = ZeroDivisionError("of this code")
    with reader.seat(looks.topic(), OPERATOR) as seat:
        await eventually(lambda: looks.count > 2)
        assert "cannot be brought up to date" in caplog.text
        looks.error = None
        assert await seat.next()


async def test_customers_cannot_take_all_places_nor_slow_down_what_operators_see():
    reader, looks = Reader(most=100), Looks()
    with ExitStack() as stack:

        def open_page(topic: Topic, viewer: Viewer) -> None:
            stack.enter_context(reader.place(viewer))
            stack.enter_context(reader.seat(topic, viewer))

        for n in range(20):
            open_page(looks.topic(f"{n}", is_operators=False), ANNA)
        with pytest.raises(Crowded):
            open_page(looks.topic("one more", is_operators=False), ANNA)
        for n in range(30):
            zoe = Viewer(f"zoe {n}", users=["zoe"])
            open_page(looks.topic(f"zoe {n}", is_operators=False), zoe)
        with pytest.raises(Crowded):
            open_page(looks.topic("late", is_operators=False), Viewer("late", users=["max"]))
        for _ in range(50):
            open_page(looks.topic("overview"), OPERATOR)
        assert reader._pause(looks.topic("overview")) == 1.0
        assert reader._pause(looks.topic("0", is_operators=False)) == 2.0
        with pytest.raises(Crowded):
            open_page(looks.topic("overview"), OPERATOR)
    assert reader.topics == 0


async def stream_of(
    reader: Reader, topic: Topic, viewer: Viewer, stuck_at: str, leaves: asyncio.Event | None = None
) -> list[Message]:
    """What a client is sent that takes nothing more from a kind of message on, until it leaves."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == stuck_at:
            await asyncio.Event().wait()

    async def receive() -> Message:
        await (leaves or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def who(_: Request) -> Viewer:
        return viewer

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await EventStream(reader, topic, viewer, Request(scope), who)(scope, receive, send)
    return sent


@pytest.mark.parametrize("stuck_at", ["http.response.start", "http.response.body"])
async def test_a_client_that_takes_nothing_is_shown_nothing_and_keeps_its_place(
    stuck_at: str, monkeypatch: pytest.MonkeyPatch
):
    """Its connection stays for as long as it likes: it must not have any number of them."""
    monkeypatch.setattr(stream, "STUCK_SECONDS", 0.05)
    reader, looks, leaves = Reader(interval=0.01, most=2), Looks(), asyncio.Event()
    clients = [asyncio.create_task(stream_of(reader, looks.topic(), ANNA, stuck_at, leaves))]
    await eventually(lambda: looks.count > 0)
    await eventually(lambda: reader.topics == 0)
    assert (await stream_of(reader, looks.topic(), ANNA, "", leaves))[0]["status"] == 503
    leaves.set()
    assert [(await client)[-1]["type"] for client in clients] == [stuck_at]
    with reader.place(ANNA):
        """There is one again."""


async def test_who_is_refused_by_an_exception_later_on_is_told_the_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream, "ASKED_AGAIN_SECONDS", 0.05)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def who(_: Request) -> Viewer:
        raise HTTPException(401)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    answer = EventStream(Reader(interval=0.01), Looks().topic(), ANNA, Request(scope), who)
    await answer(scope, asyncio.Event().wait, send)  # type: ignore[arg-type]
    assert (sent[-1]["body"], sent[-1]["more_body"]) == (b"event: end\ndata: null\n\n", False)


async def test_one_page_too_many_is_told_so():
    reader, looks = Reader(most=1), Looks()
    with reader.place(OPERATOR):
        sent = await stream_of(reader, looks.topic(), OPERATOR, "")
    assert sent[0]["status"] == 503


async def test_how_many_pages_may_be_open_is_a_number(queue: TaskQueue):
    with pytest.raises(InvalidInput, match="most_open"):
        dashboard(queue, authorize=lambda _: OPERATOR, most_open=0)
