"""What orchestrators and autoscalers ask for by HTTP: whether workers live and take tasks, and how many it takes.

Small ASGI apps, which any server runs and any framework mounts. Without either, they are served by
``fairque worker --http 127.0.0.1:8080`` and ``fairque http``, with ``pip install 'fairque[http]'``.
"""

from fairque.contrib.http.scaling import demand
from fairque.contrib.http.worker_probes import probes

__all__ = ["demand", "probes"]
