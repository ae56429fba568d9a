"""What tasks raise goes to a service that collects errors, such as Sentry, with whose task it was and where it began.
Run it as it is: python examples/error_reports.py
"""

import asyncio
from typing import Any

from fairque import CallNext, Fail, Retry, RetryPolicy, TaskContext, TaskQueue, Worker, failure_of, task


class Reporter:
    """Stands for the client of such a service. It sends in the background, and drops what is too much."""

    MOST_WAITING = 100

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[str] = asyncio.Queue(self.MOST_WAITING)
        self.dropped = 0

    def capture(self, report: str) -> None:
        try:
            self._waiting.put_nowait(report)
        except asyncio.QueueFull:
            self.dropped += 1

    async def flush(self) -> None:
        while not self._waiting.empty():
            print(self._waiting.get_nowait())  # a real one sends it


class ErrorReports:
    """A middleware around runs: reports an error, and lets it go on to whom it is for.

    A cancellation is none, and a `Retry` is a wish. What an error means, another attempt or the end of the task, is not
    its matter: the hook `on_failure` of a worker is told of ends alone.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    async def __call__(self, run: TaskContext, call_next: CallNext) -> Any:
        try:
            return await call_next()
        except Retry:
            raise
        except Exception as error:
            failure = failure_of(error)  # of a body in a subprocess as well, whose exception stays there
            self._reporter.capture(
                f"{failure.type_name}: {failure.message}, in {place_in(failure.traceback)}, "
                f"task {run.name} of {run.user_id}, attempt {run.attempt}, tags {dict(run.headers)}"
            )
            raise


def place_in(traceback: str) -> str:
    """The name of the function that raised."""
    lines = [line for line in traceback.splitlines() if line.lstrip().startswith("File ")]
    return lines[-1].rpartition(" in ")[2]


@task(name="fetch", retry=RetryPolicy(max=1, base=0.01))
async def fetch(url: str) -> str:
    raise ConnectionError(f"no answer from {url}")


@task(name="divide", run_in="process")
def divide(a: int, b: int) -> float:
    return a / b


@task(name="pay")
async def pay() -> None:
    raise Fail("the card has expired")


async def main() -> None:
    reporter = Reporter()
    async with TaskQueue("embedded://") as queue, Worker(queue, run_middleware=[ErrorReports(reporter)]):
        calls = [fetch("a.example"), divide(1, 0), divide(1, 2), pay()]
        for call in calls:
            handle = await queue.enqueue(call, user_id="acme", headers={"version": "7"})
            async for info in handle.watch():
                state = info.state
            print(f"{call.name} is {state}")
        await reporter.flush()


if __name__ == "__main__":
    asyncio.run(main())
