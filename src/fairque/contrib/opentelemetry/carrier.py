"""`Carrier`: a trace and its baggage in the headers of tasks, which hold 4,096 bytes, and first of all what is given
there by callers.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator

from fairque.contrib.opentelemetry.guard import Guard, logger
from fairque.tasks.headers import MAX_HEADER_BYTES, header_bytes

__all__ = ["OF_SCHEDULE", "Carrier"]

OF_SCHEDULE = "scheduled-"
"""What the names of headers begin with that say where a schedule was made: no run of it is a child of that."""


class Carrier:
    """
    Args:
        propagator: How a context is written; None: that of the process at the time.
    """

    def __init__(self, propagator: TextMapPropagator | None) -> None:
        self._propagator = propagator
        self._told: set[str] = set()
        self._writing = Guard("the trace of a task cannot be written into its headers")
        self._reading = Guard("the trace of a task cannot be read from its headers")

    @property
    def _used(self) -> TextMapPropagator:
        return self._propagator if self._propagator is not None else propagate.get_global_textmap()

    def written(self, context: Context) -> dict[str, str]:
        """As headers; empty where there is no trace and no baggage, or where it cannot be written."""
        headers: dict[str, str] = {}
        with self._writing:
            self._used.inject(headers, context)
            header_bytes(headers)  # what is no text, no other process could read
            return headers
        return {}

    def read(self, headers: Mapping[str, str], prefix: str = "") -> Context:
        """What headers say, which may be by anybody; an empty context where that is nothing that can be read."""
        if prefix:
            headers = {name.removeprefix(prefix): text for name, text in headers.items() if name.startswith(prefix)}
        if not headers:
            return Context()
        with self._reading:
            return self._used.extract(headers, Context())
        return Context()

    def span_in(self, headers: Mapping[str, str], prefix: str = "") -> trace.SpanContext | None:
        """Whose child it is to be; None where the headers name none."""
        found = trace.get_current_span(self.read(headers, prefix)).get_span_context()
        return found if found.is_valid else None

    def custom(self, said: Mapping[str, str], inherited: Mapping[str, str]) -> trace.SpanContext | None:
        """Whose child a caller wants a task to be; None: it said nothing of that, or only passed on what the task has
        in which it is called.
        """
        return self.span_in(said) if self._names(said) - _same(said, inherited) else None

    def added(
        self, said: Mapping[str, str], inherited: Mapping[str, str], offered: Mapping[str, str]
    ) -> Mapping[str, str]:
        """What a caller said, and as many of these as fit, in their order: what is about the trace comes first, and
        baggage that is too long is left out. A trace that the caller said stays as it is.
        """
        names = self._names(said)
        if names and self.custom(said, inherited) is not None:
            return said
        stale = names & _same(said, inherited)
        merged = {name: text for name, text in said.items() if name not in stale}
        room = MAX_HEADER_BYTES - header_bytes(merged)
        for name, text in offered.items():
            size = header_bytes({name: text})
            if name in merged:
                continue
            if size > room:
                self._tell(name, f"header {name!r} is left out of tasks, as there is no room for its {size} bytes")
                continue
            merged[name] = text
            room -= size
        return merged

    def _names(self, headers: Mapping[str, str]) -> set[str]:
        """Of those that are about a trace."""
        return self._used.fields & headers.keys() if headers else set()

    def tell_too_large(self) -> None:
        self._tell("message", "a task is sent without its trace, with which its message would be too large")

    def _tell(self, what: str, text: str) -> None:
        """Once of each kind: it may be so with every task."""
        if what not in self._told:
            self._told.add(what)
            logger.warning("%s; this is told once", text)


def _same(said: Mapping[str, str], inherited: Mapping[str, str]) -> set[str]:
    return {name for name, text in said.items() if inherited.get(name) == text}
