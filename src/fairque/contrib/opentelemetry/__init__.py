"""Traces and metrics by OpenTelemetry: a span of each call that puts tasks in, and of each run, in one trace.

::

    tracing = Tracing()
    queue = TaskQueue("redis://localhost:6379", **tracing.doors)

It needs the API alone, ``fairque[otel]``. Where spans go is said by the SDK that the program sets up; without one,
nothing is recorded.
"""

try:
    import opentelemetry.trace  # noqa: F401
except ModuleNotFoundError as exc:
    raise ImportError(f"fairque.contrib.opentelemetry needs {exc.name}: pip install 'fairque[otel]'") from exc

from fairque.contrib.opentelemetry.tracing import Tracing

__all__ = ["Tracing"]
