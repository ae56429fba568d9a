"""The examples run as they are, each as a process of its own, and things happen in the order that they tell."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

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
