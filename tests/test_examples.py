"""The examples run as they are, each as a process of its own, and things happen in the order that they tell."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.eventually import eventually
from tests.support.process import ROOT, WorkerProcess

Start = Callable[..., Awaitable[WorkerProcess]]

ORDER = {
    "quickstart": """
        zoe has her logo, 200 px wide
        in the end: 1001
    """,
    "blocking": """
        10 / 4 = 2.5
        1 / 0 has failed
        because of ZeroDivisionError: division by zero
        acme had 1 result
    """,
    "schedules": """
        hourly-acme of acme is ended and ran 1 time
        new-year of acme is active 30 12 1 1 *
        hourly-zeta of zeta is ended and ran 1 time
        acme: written by new-year
        zeta: written by hourly-zeta
    """,
    "pipeline": """
        say
        └── report
            ├── publish
        put in: 8 tasks in one call
        say      begin
        extract  reads s3://sales
        clean    gets 3 rows
        report   gets {'bolts': 350, 'all': 500}
        result of the last ones: ['published', None]
        the report: bolts: 3.50 EUR, all: 5.00 EUR
        tasks by state: {'finished': 8}
    """,
    "dependencies": """
        Three tasks wait for two others:
        at first: boot is deferred, celebrate is deferred, write_log is deferred
        check power: fine
        check network: loose!
        write the log
        with a loose cable: boot is deferred, celebrate is canceled, write_log is finished
        celebrate: dependency check('network') failed
        check: ConnectionError, the network cable is loose
        check network: fine
        boot
        in the end: boot is finished, celebrate is canceled, write_log is finished
        on 'nobody', never enqueued or its result has expired
    """,
    "log_context": """
        {"message": "asks for a lamp", "request-id": "r-1", "user": "acme"}
        {"message": "orders a lamp", "request-id": "r-1", "user": "acme", "task": "order", "attempt": 1}
        {"message": "writes the bill for a lamp", "request-id": "r-1", "user": "acme", "task": "bill", "attempt": 1}
        {"message": "prints the label for a lamp", "request-id": "r-1", "user": "acme", "task": "label", "attempt": 1}
        {"message": "asks for a chair", "request-id": "r-2", "user": "zoe"}
        {"message": "orders a chair", "request-id": "r-2", "user": "zoe", "task": "order", "attempt": 1}
        {"message": "writes the bill for a chair", "request-id": "r-2", "user": "zoe", "task": "bill", "attempt": 1}
        {"message": "prints the label for a chair", "request-id": "r-2", "user": "zoe", "task": "label", "attempt": 1}
    """,
    "error_reports": """
        fetch is failed
        divide is failed
        divide is finished
        pay is failed
        ConnectionError: no answer from a.example, in fetch, task fetch of acme, attempt 1, tags {'version': '7'}
        ConnectionError: no answer from a.example, in fetch, task fetch of acme, attempt 2, tags {'version': '7'}
        ZeroDivisionError: division by zero, in divide, task divide of acme, attempt 1, tags {'version': '7'}
        Fail: the card has expired, in pay, task pay of acme, attempt 1, tags {'version': '7'}
    """,
    "inherit_headers": """
        month {'request-id': '7f3a', 'reason': 'the month is over'}
        bill anna {'request-id': '7f3a', 'reason': 'the month is over'}
        bill ben {'request-id': '7f3a', 'reason': 'asked for'}
    """,
    "timing": """
        (payload) returned up to 1 s: 3
        divide raised up to 1 s: 1
        divide returned up to 1 s: 1
        nap returned up to 1 s: 2
    """,
    "tracing": """
        POST /orders
        enqueue default, order
        process default, order, ConnectionError
        process default, order
        check the stock
        enqueue default, label
        process default, label
        print
    """,
    "xcom": """
        acme: fetched 2 prices
        acme: added up bolt, nut
        acme: wrote invoice 1
        acme: expected 0.50: wrong; keys are ['invoice', 'prices', 'total']
        zeta: fetched 1 prices
        zeta: added up lamp
        zeta: wrote invoice 2
        zeta: expected 40.00: right; keys are ['currency', 'invoice', 'prices', 'total']
        checked: [False, True]
        acme: No. 1: 0.40 EUR
        zeta: No. 2: 40.00 USD
        zeta after clear(): [] - acme: ['invoice', 'prices', 'total']
        pull() without a default: user 'zeta' has no XCom value 'invoice' in 'default'
    """,
}
"""Lines that each of them prints, in this order, and none of them twice; others may stand between them."""

SOMEWHERE = {
    "pipeline": ["total    bolt is the sum of 2", "total    all is the sum of 3", "publish  for acme", "say      done"],
}
"""Lines whose order is not said."""


EXAMPLES = sorted(set((ROOT / "examples").glob("*.py")) - {ROOT / "examples" / "fastapi_app.py"})
"""Those that end by themselves; the others have tests of their own."""


@pytest.mark.smoke
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
async def test_an_example_tells_what_happens_in_the_order_in_which_it_happens(worker_process: Start, example: Path):
    process = await worker_process(example)
    assert await process.wait(30) == 0, process.output
    lines = [line.strip() for line in process.lines]
    expected = [line.strip() for line in ORDER[example.stem].strip().splitlines()]
    assert [line for line in lines if line in expected] == expected, process.output
    for line in SOMEWHERE.get(example.stem, []):
        assert lines.count(line) == 1, process.output


# The project that was moved from Celery, with its commands


SHOP = ROOT / "examples" / "from_celery" / "after"


@pytest.fixture
async def shop(worker_process: Start, tmp_path: Path) -> AsyncIterator[Shop]:
    env = {"FAIRQUE_REDIS_URL": f"embedded://{tmp_path}/server", "REPORT_SECONDS": "2"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SHOP), os.environ.get("PYTHONPATH")]))
    shop = Shop(worker_process, env)
    shop.workers = [await shop.run("fairque", "worker", f"webshop.workers:{name}") for name in ("of_shop", "of_images")]
    for worker in shop.workers:
        await worker.line("serves queue")
    web = await shop.run("uvicorn", "webshop.web:app", "--port", "0")
    address = (await web.line("Uvicorn running on ")).split(" on ")[1].split()[0]
    async with httpx.AsyncClient(base_url=address, trust_env=False, headers={"X-Request-Id": "r-7"}) as shop.client:
        yield shop
    for process in [web, *shop.workers]:
        process.send(signal.SIGTERM)
        await process.wait()
    for worker in shop.workers:
        await worker.line("database closed", deadline=1)


class Shop:
    """Its processes, and what is asked of its web server."""

    workers: list[WorkerProcess]
    client: httpx.AsyncClient

    def __init__(self, start: Start, env: dict[str, str]) -> None:
        self._start, self._env = start, env

    async def run(self, *command: str) -> WorkerProcess:
        return await self._start(*command, env=self._env)

    async def post(self, path: str, **request: Any) -> dict[str, str]:
        answer = await self.client.post(path, **request)
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    async def show(self, path: str) -> dict[str, Any]:
        answer = await self.client.get(path)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def ended(self, path: str) -> dict[str, Any]:
        """What a page that polls has in the end."""

        async def look() -> dict[str, Any] | None:
            found = await self.show(path)
            return found if found["state"] in ("finished", "failed", "canceled") else None

        return dict(await eventually(look, 30) or {})


@pytest.mark.timeout(180)
async def test_the_project_from_celery_does_what_it_did(shop: Shop) -> None:
    order = {"number": 7, "cents": 1250, "customer": "ann@slow.example"}
    ids = await shop.post("/acme/orders", json=order)
    mailed = await shop.ended(f"/acme/shop/tasks/{ids['task_id']}")  # in the second attempt
    assert mailed["result"] == "to ann@slow.example: invoice for receipt R7, 12.50 EUR"
    assert (await shop.show(f"/acme/shop/tasks/{ids['review_id']}"))["state"] == "scheduled"
    await shop.workers[0].line("request r-7: webshop.orders.send_mail begins for acme")

    ids = await shop.post("/zoe/orders", json=order | {"cents": 200_000, "customer": "ben@example.org"})
    assert (await shop.ended(f"/zoe/shop/tasks/{ids['task_id']}"))["state"] == "canceled"
    await shop.workers[0].line("error report: Fail in webshop.orders.charge")
    await shop.workers[0].line("request r-7: webshop.orders.apologize begins for zoe")
    await shop.workers[0].line("mail to ben@example.org: we could not take your money: that is too much for this card")

    ids = await shop.post("/acme/albums", json=["b", "a"], params={"owner": "cora@example.org"})
    assert (await shop.ended(f"/acme/images/tasks/{ids['task_id']}"))["result"] == ["a, 200 px", "b, 200 px"]
    await shop.workers[0].line("mail to cora@example.org: 2 images are ready")

    ids = await shop.post("/acme/imports", json=["a row"] * 3000)
    path = f"/acme/shop/tasks/{ids['task_id']}"

    async def is_under_way() -> bool:
        return ((await shop.show(path))["progress"] or 0) > 0

    await eventually(is_under_way)
    assert (await shop.client.delete(path)).status_code == 202
    assert (await shop.ended(path))["state"] == "canceled"
    assert (await shop.client.get("/acme/shop/tasks/nothing")).status_code == 404

    night = await shop.run("fairque", "schedule", "run", "webshop.reports.nightly", "--json")
    assert await night.wait() == 0, night.output
    nightly = json.loads(night.output)["task_id"]

    async def is_put_in() -> bool:
        answers = [await shop.client.get(f"/{user}/shop/tasks/{nightly}-report") for user in ("acme", "zoe")]
        return all(answer.status_code == 200 for answer in answers)

    await eventually(is_put_in)
    assert (await shop.ended(f"/zoe/shop/tasks/{nightly}-report"))["result"] == "zoe: all 3 orders"
    cut = (await shop.ended(f"/acme/shop/tasks/{nightly}-report"))["result"]
    assert re.fullmatch(r"acme: the first \d+ orders", cut), cut


def test_the_project_from_celery_stands_beside_its_port() -> None:
    before, after = SHOP.parent / "before" / "webshop", SHOP / "webshop"
    for file in before.glob("*.py"):
        ast.parse(file.read_text())  # Celery is not here to run it
    both = {file.name for file in before.glob("*.py")} & {file.name for file in after.glob("*.py")}
    assert both >= {"orders.py", "images.py", "reports.py", "web.py"}
