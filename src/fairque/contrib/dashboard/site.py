"""`Site`: answers requests that were let in, with pages, with what changes on them, and with what was done."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from fairque import (
    ConfigError,
    FairqueError,
    InvalidInput,
    QueueFull,
    QueueUnavailable,
    TaskQueue,
    UnknownSchedule,
    UnknownTask,
    UserFrozen,
    WrongType,
)
from fairque.contrib.dashboard.acts import ACTS, Act
from fairque.contrib.dashboard.look import Look, link
from fairque.contrib.dashboard.pace import Pace
from fairque.contrib.dashboard.page import NOT_THERE, Page, trouble_of
from fairque.contrib.dashboard.reader import Reader
from fairque.contrib.dashboard.stream import EventStream
from fairque.contrib.dashboard.viewer import Viewer
from fairque.contrib.dashboard.visit import Visit, visit_of
from fairque.contrib.dashboard.words import brief, shown

__all__ = ["Site"]

audit = logging.getLogger("fairque.dashboard.audit")
logger = logging.getLogger("fairque.dashboard")
MOST_LOGGED = 5000
"""Characters of what an act is about: as many as the longest ids have, with their marks escaped."""
Who = Callable[[Request], Awaitable[Viewer | Response | None]]


class Site:
    """Everything behind the guard.

    Args:
        queue: What is shown.
        look: The templates.
        reader: For pages that stay open.

    Attributes:
        who: Asks again who looks at a page that stays open.
    """

    who: Who

    def __init__(self, queue: TaskQueue, look: Look, reader: Reader) -> None:
        self._queue = queue
        self._look = look
        self._reader = reader
        self._pace = Pace()
        self._pages: Mapping[str, Page[Any]] = {}
        self._acts: Mapping[str, Act] = {}
        self.exception_handlers: Mapping[Any, Callable[[Request, Any], Awaitable[Response]]] = {
            HTTPException: self._on_refusal,
            FairqueError: self._on_error,
        }

    def routes(self, pages: Sequence[Page[Any]]) -> list[Route]:
        """Of all pages, of what changes on them, and of what can be done."""
        self._pages = {page.name: page for page in pages}
        self._acts = {**ACTS, **{name: act for page in pages for name, act in page.acts.items()}}
        return [
            *(Route(f"/{page.path}", self._shows(page)) for page in pages),
            Route("/live", self._live),
            Route("/act/{name}", self._act, methods=["POST"]),
        ]

    def _shows(self, page: Page[Any]) -> Callable[[Request], Awaitable[Response]]:
        async def show(request: Request) -> Response:
            visit = visit_of(request)
            if page.path == "" and not visit.viewer.is_operator:
                return self._of_customer(request, visit)
            about = page.about(request.query_params, visit.viewer)
            self._keep_pace(visit.viewer)
            topic = page.topic(about, visit)
            # What another process has read may be older than what this viewer just did.
            seen = self._reader.seen(topic) if "did" not in request.query_params else None
            if seen is None:
                seen = await topic.look()
            parts = page.drawn(seen.what, visit.viewer, visit.base)
            given = {"seen": seen.what, "parts": parts, "trouble": trouble_of(seen, visit.viewer)}
            given |= {**page.shown(seen.what, visit.viewer), **page.asked(about)}
            return self._page(request, page.name, page.heading(*about), given, live=page.is_live(about), page=page)

        return show

    def _of_customer(self, request: Request, visit: Visit) -> Response:
        """Its only user, or which there are."""
        users = visit.viewer.users or ()
        if len(users) == 1:
            return RedirectResponse(link(visit.base, "user", user=users[0]), 303)
        return self._page(request, "customer", "Your users", {"users": users})

    def _keep_pace(self, viewer: Viewer) -> None:
        if not self._pace.allows(viewer):
            raise HTTPException(429, "You ask too often: wait for some seconds, then reload this page.")

    async def _live(self, request: Request) -> Response:
        visit = visit_of(request)
        page = self._pages.get(request.query_params.get("page", ""))
        about = page.about(request.query_params, visit.viewer) if page is not None else ()
        if page is None or not page.is_live(about):
            raise HTTPException(404, NOT_THERE)
        topic = page.topic(about, visit)
        self._keep_pace(visit.viewer)
        return EventStream(self._reader, topic, visit.viewer, request, self.who)

    async def _act(self, request: Request) -> Response:
        visit, name = visit_of(request), request.path_params["name"]
        self._keep_pace(visit.viewer)  # also of what is refused, for which there is a line in the log
        act = self._acts.get(name)
        given = {**visit.form, **request.query_params}
        about = tuple(given.get(argument, "") for argument in act.arguments) if act is not None else ()
        logged = f"{brief(name)}{brief(repr(about), MOST_LOGGED)}"
        if act is None or not _may(visit.viewer, act, about):
            audit.warning("%r may not %s", visit.viewer.name, logged)
            raise HTTPException(404, NOT_THERE)
        try:
            await act.do(self._queue, *about)
        except BaseException as exc:  # also what is broken off may have been done
            why = str(exc) or type(exc).__name__
            audit.warning("%r failed to %s: %s", visit.viewer.name, logged, brief(why, MOST_LOGGED))
            raise
        finally:
            self._reader.forget()
        audit.info("%r did %s", visit.viewer.name, logged)
        page = self._pages[act.page]
        kept = {argument: given.get(argument) for argument in page.arguments}
        return RedirectResponse(link(visit.base, page.path, **kept, did=name), 303)

    def _page(
        self,
        request: Request,
        template: str,
        title: str,
        given: Mapping[str, Any],
        *,
        status: int = 200,
        live: bool = False,
        page: Page[Any] | None = None,
    ) -> Response:
        visit = visit_of(request)
        did = self._acts.get(request.query_params.get("did", ""))
        did = did if did is not None and _may_at_all(visit.viewer, did) else None
        address = request.query_params if page is not None else {}
        asked = {name: address.get(name, "") for name in (page.arguments if page is not None else ())}
        common = {
            "title": title,
            "queue": self._queue.name,
            "viewer": visit.viewer,
            "base": visit.base,
            "csrf": visit.csrf,
            "pages": [each for each in self._pages.values() if each.in_navigation],
            "page": page,
            "here": link(visit.base, page.path, **asked) if page is not None else "",
            "live": link(visit.base, "live", page=page.name, **asked) if page is not None and live else "",
            "did": did.says if did is not None else "",
            "trouble": "",
        }
        return HTMLResponse(self._look.draw(f"{template}.html", {**common, **given}), status)

    async def _on_refusal(self, request: Request, error: HTTPException) -> Response:
        """Whatever was not found is told in the same words: what is not yours is not there."""
        return self._problem(request, error.status_code, NOT_THERE if error.status_code == 404 else error.detail)

    async def _on_error(self, request: Request, error: FairqueError) -> Response:
        viewer = visit_of(request).viewer
        status, text = _told(error)
        if status >= 500:
            logger.warning("%s cannot be shown: %s", shown(request.url.path), shown(error))
        return self._problem(request, status, text or (str(error) if viewer.is_operator else "This cannot be shown."))

    def _problem(self, request: Request, status: int, text: str) -> Response:
        return self._page(request, "problem", _TITLES.get(status, "That did not work"), {"text": text}, status=status)


_TITLES = {404: "Not found", 429: "Too often", 503: "No answer"}


def _may(viewer: Viewer, act: Act, about: Sequence[str]) -> bool:
    return _may_at_all(viewer, act) and all(about) and (viewer.is_operator or viewer.sees(about[0]))


def _may_at_all(viewer: Viewer, act: Act) -> bool:
    return viewer.acts and (viewer.is_operator or act.is_for_customers)


def _told(error: FairqueError) -> tuple[int, str]:
    """Status, and what everybody may read; where that is empty, only who sees the whole queue may read more."""
    if isinstance(error, QueueUnavailable):
        return 503, "The queue does not answer. It may be back in a moment: reload this page."
    if isinstance(error, (UnknownTask, UnknownSchedule)):
        return 404, "It is not there: it was never put in, or it has been given up, or its result has expired."
    if isinstance(error, QueueFull):
        return 409, "That does not fit: the user has as much waiting, or stored, as its policy allows."
    if isinstance(error, UserFrozen):
        return 409, "The user stands still for a while, as it is exported or imported."
    if isinstance(error, InvalidInput) and not isinstance(error, (ConfigError, WrongType)):
        return 422, str(error)
    return 500, ""  # of the server, its keys or this code, not of what was asked for
