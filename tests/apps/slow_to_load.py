"""A module that takes long to import, as one does that loads a model."""

from __future__ import annotations

import os
import time

from fairque import TaskQueue

print("loading", flush=True)
try:
    time.sleep(60)
except BaseException:
    if "SLOW_SWALLOWS" not in os.environ:
        raise
    print("swallowed", flush=True)
finally:
    if "SLOW_CLEANUP" in os.environ:
        print("cleaning", flush=True)
        time.sleep(float(os.environ["SLOW_CLEANUP"]))
    print("cleaned up", flush=True)

queue = TaskQueue(os.environ["SERVED_URL"], name=os.environ["SERVED_QUEUE"])
