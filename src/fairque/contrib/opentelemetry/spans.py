"""`Spans`: started and ended so that nothing of a tracer or an exporter can fail a call or a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanContext, SpanKind

from fairque import Failure, Task, __version__
from fairque.contrib.opentelemetry.conventions import SCHEMA_URL, TASK_NAME, USER_ID
from fairque.contrib.opentelemetry.end import tell_error, tell_failure
from fairque.contrib.opentelemetry.guard import Guard

__all__ = ["MOST_LINKS", "Spans", "link"]

MOST_LINKS = 128
"""Of a span, as many as the SDK keeps by default."""
MOST_CHARS = 500
"""Of a name, which may be anything that a caller tries."""


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
        self.guard = Guard("a span is left out or lacks something")

    def start(
        self,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, Any],
        parent: Context | None = None,
        links: Sequence[Link] = (),
    ) -> Span:
        """`parent`: None is what is current here."""
        with self.guard:
            return self._tracer.start_span(name, parent, kind, attributes, links)
        return INVALID_SPAN

    def end(self, span: Span, error: BaseException | Failure | None = None) -> None:
        """One that a body has ended is left alone: ending it again would be a warning for each."""
        with self.guard:
            if not span.is_recording():
                return
            if isinstance(error, Failure):
                tell_failure(span, error, self.with_texts)
            elif error is not None:
                tell_error(span, error, self.with_texts)
        with self.guard:
            if span.is_recording():
                span.end()

    def about(self, task_name: str, user_id: str | None) -> dict[str, str]:
        """What a span says of the one task that it is about. It is said before that is checked: what no exporter can
        send would take the spans of others with it.
        """
        attributes = {TASK_NAME: _sendable(task_name)}
        if self._with_users and user_id is not None:
            attributes[USER_ID] = _sendable(user_id)
        return attributes

    def about_task(self, task: Task[Any]) -> dict[str, str]:
        return self.about(task.name, task.task_options.user_id)


def link(span: Span, others: Sequence[SpanContext]) -> None:
    """To as many as a span keeps."""
    for each in others[:MOST_LINKS]:
        span.add_link(each)


def _sendable(name: object) -> str:
    text = str(name)[:MOST_CHARS]
    return text if text.isascii() else text.encode(errors="replace").decode()
