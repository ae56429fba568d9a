"""`dashboard`: the pages of a queue as an ASGI app."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from starlette.applications import Starlette
from starlette.types import ASGIApp

from fairque import TaskQueue
from fairque.checks import check_count, check_kind
from fairque.config.hosts import LOOPBACK
from fairque.contrib.dashboard.files import Files
from fairque.contrib.dashboard.guard import Guard
from fairque.contrib.dashboard.look import Look
from fairque.contrib.dashboard.page import Page
from fairque.contrib.dashboard.pages.dead import DeadPage
from fairque.contrib.dashboard.pages.health import HealthPage
from fairque.contrib.dashboard.pages.limits import LimitsPage
from fairque.contrib.dashboard.pages.overview import OverviewPage
from fairque.contrib.dashboard.pages.schedules import SchedulesPage
from fairque.contrib.dashboard.pages.task import TaskPage
from fairque.contrib.dashboard.pages.user import UserPage
from fairque.contrib.dashboard.pages.users import UsersPage
from fairque.contrib.dashboard.pages.workers import WorkersPage
from fairque.contrib.dashboard.reader import Reader
from fairque.contrib.dashboard.site import Site
from fairque.contrib.dashboard.viewer import Authorize

__all__ = ["PAGES", "dashboard"]

PAGES: tuple[type[Page[Any]], ...] = (
    OverviewPage,
    UsersPage,
    UserPage,
    TaskPage,
    DeadPage,
    SchedulesPage,
    WorkersPage,
    LimitsPage,
    HealthPage,
)
"""Those with a place in the navigation come in its order."""


def dashboard(
    queue: TaskQueue, *, authorize: Authorize, hosts: Iterable[str] = LOOPBACK, most_open: int = 500
) -> ASGIApp:
    """The pages of a queue, to be mounted under any path: ``app.mount("/queues", dashboard(queue, authorize=…))``.

    The queue is the app's: it opens it before the first request, and closes it. Pages that stay open are brought up to
    date once a second, by one look for all viewers of the same page in this process.

    Args:
        queue: An open queue.
        authorize: A function, async or not, that is given a request and says who asks: a `Viewer`, None for nobody, or
            a response of its own, such as a redirect to a login. It is asked for each request, and again each minute
            for pages that stay open. One that is not async runs in the event loop: it must not block.
        hosts: The names under which it is served, as browsers send them, without a port. Default: those of this machine
            alone.
        most_open: How many pages may be open and live at once, in all tabs of all viewers.

    Raises:
        InvalidInput: A value breaks a rule.
    """
    check_kind("queue", queue, TaskQueue)
    files = Files()
    look = Look(files)
    site = Site(queue, look, Reader(most=check_count("most_open", most_open, 1, 100_000)))
    pages = [page(queue, look) for page in PAGES]
    app = Starlette(routes=site.routes(pages), exception_handlers=site.exception_handlers)
    app.router.redirect_slashes = False
    guard = Guard(app, files, authorize, hosts)
    site.who = guard.who
    return guard
