"""A module that takes long to import, as one does that loads a model, and takes no exception for an answer."""

from __future__ import annotations

import os
import time

from fairque import TaskQueue

print("loading", flush=True)
try:
    time.sleep(60)
except BaseException as error:
    print("swallowed", type(error).__name__, flush=True)

queue = TaskQueue(os.environ["SERVED_URL"], name=os.environ["SERVED_QUEUE"])
