"""The context of a run in the subprocess of its body: the span there is the one that the worker has started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = ["attached", "written"]

_PROPAGATOR = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
"""Between a worker and its subprocess, whatever there is between programs."""


def written(within: Context) -> dict[str, str]:
    """What `attached` reads."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers, within)
    return headers


@contextmanager
def attached(headers: dict[str, str]) -> Iterator[None]:
    """In the subprocess, around the body."""
    token = context.attach(_PROPAGATOR.extract(headers, Context()))
    try:
        yield
    finally:
        context.detach(token)
