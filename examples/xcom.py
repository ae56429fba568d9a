"""XCom: the tasks of a user hand values to each other by key.

Run it with ``python examples/xcom.py``; it brings its own server (``pip install 'fairque[embedded]'``).
"""

import asyncio

from fairque import TaskQueue, Worker, XComMissing, current_task, task, xcom_task

SHELVES = {"acme": {"bolt": 0.25, "nut": 0.15}, "zeta": {"lamp": 40.0}}


def say(text: str) -> None:
    print(f"  {current_task().user_id}: {text}")


@xcom_task("prices")
async def fetch_prices() -> dict[str, float]:
    """What it returns lies under the key "prices" from the moment it is finished."""
    prices = SHELVES[current_task().user_id]
    say(f"fetched {len(prices)} prices")
    return prices


@task
def add_up() -> None:
    """A plain function: the same methods, without await."""
    xcom = current_task().xcom
    prices = xcom.pull("prices", type=dict[str, float])
    xcom.push("total", sum(prices.values()), ttl=60)
    say(f"added up {', '.join(prices)}")


@xcom_task(
    push_key="invoice",
    pull_keys={"total": "total", "currency": "currency"},  # parameter: key
    pull_defaults={"currency": "EUR"},
    ttl_seconds=3600,
    namespace="default",
)
async def write_invoice(number: int, *, total: float = 0.0, currency: str = "") -> str:
    """Its keyword arguments come from XCom; nobody passes them."""
    say(f"wrote invoice {number}")
    return f"No. {number}: {total:.2f} {currency}"


@task
async def check() -> bool:
    """Looks into several namespaces: the first that has the key wins."""
    xcom = current_task().xcom
    expected = await xcom.pull("total", namespace=["audit", "default"], type=float)
    invoice = await xcom.pull("invoice")
    right = f" {expected:.2f} " in invoice
    say(f"expected {expected:.2f}: {'right' if right else 'wrong'}; keys are {await xcom.keys()}")
    return right


async def bill(queue: TaskQueue, user_id: str, number: int) -> bool:
    """One task after another, each when the one before it has finished."""
    fetched = await queue.enqueue(fetch_prices(), user_id=user_id)
    added = await queue.enqueue(add_up(), user_id=user_id, depends_on=[fetched])
    written = await queue.enqueue(write_invoice(number), user_id=user_id, depends_on=[added])
    checked = await queue.enqueue(check(), user_id=user_id, depends_on=[written])
    return await checked.result(timeout=30)


async def main() -> None:
    async with TaskQueue("embedded://") as queue, Worker(queue, concurrency=4):
        acme, zeta = queue.xcom("acme"), queue.xcom("zeta")
        await zeta.push("currency", "USD")
        await queue.xcom("acme", namespace="audit").push("total", 0.5)

        print("tasks of two users, under the same keys:")
        results = [await bill(queue, "acme", 1), await bill(queue, "zeta", 2)]
        print("checked:", results)

        print("seen from outside:")
        print("  acme:", await acme.get("invoice"))
        print("  zeta:", await zeta.get("invoice"))
        print("  acme has no currency of its own:", await acme.get("currency"))

        await zeta.clear()
        print("zeta after clear():", await zeta.keys(), "- acme:", await acme.keys())
        try:
            await zeta.pull("invoice")
        except XComMissing as exc:
            print("pull() without a default:", exc)


if __name__ == "__main__":
    asyncio.run(main())
