"""Reports of worker processes to their parent: the line itself. `test_prometheus.py` has real processes."""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import Iterator

import pytest

from fairque.worker.reports import MOST_BYTES, ReportInbox, are_wanted, reporting
from tests.support.eventually import eventually


class Line:
    """Both ends in this process, as a parent and its child have them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inbox = ReportInbox()
        self.heard: list[bytes] = []
        [(variable, _)] = self.inbox.environment.items()
        self.theirs = os.dup(self.inbox.descriptor)  # the child closes its own
        monkeypatch.setenv(variable, str(self.theirs))

    def listen(self) -> None:
        self.inbox.listen(self.heard.append)

    def say(self, raw: bytes) -> None:
        os.write(self.inbox.descriptor, raw)


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    line = Line(monkeypatch)
    yield line
    line.inbox.close()


async def test_what_has_changed_is_told_and_the_last_one_at_the_end(line: Line) -> None:
    line.listen()
    now = [b"first"]
    assert are_wanted()
    async with reporting(lambda: now[0]):
        assert not are_wanted(), "what this process starts in turn is not asked"
        await eventually(lambda: line.heard == [b"first"])
        now[0] = b"second"
        await eventually(lambda: line.heard == [b"first", b"second"])
        now[0] = b""
    await eventually(lambda: line.heard == [b"first", b"second", b""])


async def test_a_report_of_any_length_comes_whole(line: Line) -> None:
    line.listen()
    long = os.urandom(3_000_000)
    async with reporting(lambda: long):
        await eventually(lambda: line.heard == [long])


async def test_what_was_told_before_the_end_is_heard_after_it(line: Line) -> None:
    line.listen()
    line.say(struct.pack("!I", 3) + b"one" + struct.pack("!I", 3) + b"two" + struct.pack("!I", 9) + b"cut off")
    line.inbox.close()
    assert line.heard == [b"one", b"two"]
    line.inbox = ReportInbox()
    os.close(line.theirs)


@pytest.mark.usefixtures("line")
async def test_a_parent_that_reads_nothing_holds_up_nobody() -> None:
    began = time.monotonic()
    async with reporting(lambda: os.urandom(3_000_000)):
        await asyncio.sleep(0.1)
        assert time.monotonic() - began < 5, "the loop goes on"
    assert time.monotonic() - began < 15


async def test_who_is_not_asked_or_has_nothing_to_tell_tells_nothing(line: Line) -> None:
    line.listen()
    async with reporting(None):
        pass
    assert not are_wanted()
    async with reporting(lambda: b"to nobody"):
        pass
    await asyncio.sleep(0)
    assert line.heard == []


async def test_a_report_that_cannot_be_made_ends_reporting_alone(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    line.listen()

    def broken() -> bytes:
        raise ZeroDivisionError

    async with reporting(broken):
        await eventually(lambda: "reports nothing any more" in caplog.text)
    assert line.heard == []


async def test_what_is_no_report_ends_listening_and_not_the_parent(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    line.listen()
    line.say(struct.pack("!I", MOST_BYTES + 1) + b"x")
    await eventually(lambda: "is not listened to any more" in caplog.text)
    line.say(struct.pack("!I", 1) + b"x")
    line.inbox.close()
    assert line.heard == []
    line.inbox = ReportInbox()
    os.close(line.theirs)
