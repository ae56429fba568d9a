"""fairque for blocking code: Django, Flask, scripts, notebooks. The same names, results and errors, without await.

::

    from fairque.sync import TaskQueue

    with TaskQueue("redis://localhost:6379") as queue:
        handle = queue.enqueue(resize(42), user_id="acme")
        url = handle.result(timeout=30)

A queue may as well be a global that is never opened and closed: the first call opens it, the end of the process closes
it. Threads may share it. All blocking queues of a process share one event loop in a thread of its own.

- After a fork (gunicorn with ``--preload``, multiprocessing) a queue opens itself anew in the child. Handles that were
  made before the fork raise `FairqueError` there.
- A call blocks its thread, and with it an event loop that runs in that thread. In an async function, use
  `fairque.TaskQueue`. In a notebook it does no harm, unless what it waits for runs on the notebook's own loop: a
  `fairque.Worker` that was started there stands still meanwhile. Start it with ``with queue.worker():`` instead.
- On the queue's own loop, in the body of an async task that `worker` runs, a call raises `FairqueError`: it would wait
  for itself.
"""

from fairque.sync.batch import Batch
from fairque.sync.handle import PipelineHandle, TaskHandle, TaskStream
from fairque.sync.queue import TaskQueue
from fairque.sync.scheduler import TaskScheduler
from fairque.sync.xcom import XComManager

__all__ = ["Batch", "PipelineHandle", "TaskHandle", "TaskQueue", "TaskScheduler", "TaskStream", "XComManager"]
