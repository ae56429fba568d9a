import os

from fairque import current_task, task
from webshop import outside
from webshop.queues import shop

SECONDS = float(os.environ.get("REPORT_SECONDS", "50"))


@task(timeout=(SECONDS, SECONDS + 10))
def report(merchant: str) -> str:
    me, done = current_task(), 0
    for order in outside.orders_of(merchant):
        if me.soft_timed_out or me.canceled:  # canceled, or its worker stops
            return f"{merchant}: the first {done} orders"
        outside.add_up(order)
        done += 1
    return f"{merchant}: all {done} orders"


@task(cron="0 3 * * *", timezone="Europe/Berlin", user_id="system")
async def nightly() -> None:
    me = current_task()
    for merchant in outside.merchants():  # each pays for its own
        await shop.enqueue(report(merchant), user_id=merchant, task_id=f"{me.task_id}-report")
