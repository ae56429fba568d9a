"""Pages that show who is served, and why not: mounted in any ASGI app, or by ``fairque dashboard``.

::

    async def who(request: Request) -> Viewer | None:
        user = await my_session(request)
        return user and Viewer(user.email, users=EVERYBODY, acts=user.is_operator)


    app.mount("/queues", dashboard(queue, authorize=who, hosts=["ops.example.com"]))

The app opens and closes the queue, as for all else that it does with it.
"""

from __future__ import annotations

try:
    import jinja2  # noqa: F401
    import starlette  # noqa: F401
except ModuleNotFoundError as exc:
    raise ImportError(f"fairque.contrib.dashboard needs {exc.name}: pip install 'fairque[dashboard]'") from exc

from fairque.contrib.dashboard.app import dashboard
from fairque.contrib.dashboard.token import Token
from fairque.contrib.dashboard.viewer import Authorize, Viewer

__all__ = ["Authorize", "Token", "Viewer", "dashboard"]
