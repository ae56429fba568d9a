"""`Spans`: started and ended so that nothing of a tracer or an exporter can fail a call or a run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanContext, SpanKind

from fairque import Task, __version__
from fairque.contrib.opentelemetry.conventions import SCHEMA_URL, TASK_NAME, USER_ID

__all__ = ["MOST_LINKS", "Spans", "link"]

logger = logging.getLogger("fairque.opentelemetry")
MOST_LINKS = 128
"""Of a span, as many as the SDK keeps by default."""


class Spans:
    """
    Args:
        provider: Where the tracer comes from; None: that of the process.
        with_users: Whether spans say whose tasks they are about.
        with_texts: Whether they have the texts of errors.
    """

    def __init__(self, provider: trace.TracerProvider | None, *, with_users: bool, with_texts: bool) -> None:
        self._tracer = trace.get_tracer("fairque", __version__, provider, SCHEMA_URL)
        self._with_users = with_users
        self.with_texts = with_texts
        self._is_told = False

    def start(
        self,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, Any],
        parent: Context | None = None,
        links: Sequence[Link] = (),
    ) -> Span:
        """`parent`: None is what is current here."""
        try:
            return self._tracer.start_span(name, parent, kind, attributes, links)
        except Exception:
            self._tell_once("started")
            return INVALID_SPAN

    def end(self, span: Span) -> None:
        """One that a body has ended is left alone: ending it again would be a warning for each."""
        if not span.is_recording():
            return
        try:
            span.end()
        except Exception:
            self._tell_once("ended")

    def about(self, task_name: str, user_id: str | None) -> dict[str, str]:
        """What a span says of the one task that it is about."""
        attributes = {TASK_NAME: task_name}
        if self._with_users and user_id is not None:
            attributes[USER_ID] = user_id
        return attributes

    def about_task(self, task: Task[Any]) -> dict[str, str]:
        return self.about(task.name, task.task_options.user_id)

    def _tell_once(self, what: str) -> None:
        """It may be so with every task."""
        if not self._is_told:
            self._is_told = True
            logger.warning("a span could not be %s; this is told once", what, exc_info=sys.exc_info())


def link(span: Span, others: Sequence[SpanContext]) -> None:
    """To as many as a span keeps."""
    for each in others[:MOST_LINKS]:
        span.add_link(each)
