"""Schedules that a program adds at each start, in blocking code, without waiting for the new year.

Run it with ``python examples/schedules.py``; it brings its own server (``pip install 'fairque[embedded]'``).
"""

from datetime import timedelta

from fairque import Schedule, current_task, task
from fairque.sync import TaskQueue, TaskScheduler

queue = TaskQueue("embedded://")
scheduler = TaskScheduler(queue)


@task
def report(customer: str) -> str:
    firing = current_task().schedule
    return f"{customer}: written by {firing.schedule_id if firing else 'hand'}"


def start(moment: str) -> None:
    """What the program does whenever it starts: it may have run before, with other times."""
    scheduler.add_schedule(moment, report("acme"), timezone="Europe/Berlin", user_id="acme", schedule_id="new-year")
    scheduler.add_schedules(
        [
            Schedule(
                every=timedelta(hours=1), task=report(name), user_id=name, schedule_id=f"hourly-{name}", max_runs=1
            )
            for name in ("acme", "zeta")
        ]
    )


start("0 12 1 1 *")
scheduler.fire_due(3600)  # in production, every worker fires: fairque worker
start("30 12 1 1 *")
scheduler.fire_due(3600)

for each in scheduler.list_schedules():
    print(
        each.schedule_id, "of", each.user_id, "is", each.state, f"and ran {each.runs} time" if each.every else each.cron
    )

by_hand = scheduler.run_now("new-year")
with queue.worker(scheduler=False):
    print(queue.handle("acme", by_hand).result(timeout=10))
    last = scheduler.get_schedule("hourly-zeta").last_task_id
    print(queue.handle("zeta", last or "").result(timeout=10))
