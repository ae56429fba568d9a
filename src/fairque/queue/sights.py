"""`Sights`: what is to be seen of a queue, for pages and screens, each at a cost that does not grow with the queue."""

from __future__ import annotations

from fairque.checks import check_count, check_id
from fairque.everybody import check_user
from fairque.models import RunningTasks
from fairque.queue.dead_letters import DeadLetters
from fairque.queue.overview import Overview, look_over
from fairque.queue.running import look_at_running
from fairque.queue.task_graph import TaskGraph, look_at_graph
from fairque.queue.user_page import UserOrder, UserPage, find_users
from fairque.queue.user_view import UserView, look_at_user
from fairque.redis.store import Store

__all__ = ["Sights"]

MOST_SHOWN = 1000


class Sights:
    """The part of a `TaskQueue` that is for looking at it."""

    name: str
    _reader: Store
    _letters: DeadLetters

    async def overview(self, *, limit: int = 50) -> Overview:
        """The queue at one glance: totals, workers, users with what they hold and are entitled to, what is wrong.

        Costs three round trips, and no more with a million users or tasks than with some hundred.

        Args:
            limit: Most users with something to do, and as many of those that were active last, up to 1,000.
        """
        return await look_over(self._reader, self.name, check_count("limit", limit, 1, MOST_SHOWN))

    async def find_users(
        self,
        *,
        prefix: str = "",
        order: UserOrder | str = UserOrder.ACTIVITY,
        limit: int = 50,
        after: str | None = None,
    ) -> UserPage:
        """A page of users: all of them by their last activity, those whose ids begin alike, or the first of a sample.

        By activity, a page costs two round trips, wherever it is. The user whose id is just `prefix` is on the first
        page. The others are looked for among all users, 100,000 a call at most, in steps of 10,000: ``is_sample`` says
        whether there are more, and the next page goes on from there. One may come twice. Other orders are among some
        hundred users: those with something to do, those that hold most, those that were active last, and for
        ``"dead"`` those of the last 1,000 dead letters.

        Args:
            prefix: How their ids begin.
            order: See `UserOrder`; for a search, the default.
            limit: About so many users, up to 1,000.
            after: That of the page before.

        Raises:
            InvalidInput: A value breaks a rule.
        """
        return await find_users(self._reader, prefix, order, limit, after)

    async def user_view(self, user_id: str, *, hours: int = 48, limit: int = 50) -> UserView:
        """A user at one glance, from reads of its own: what it has, what holds it back, runs, was used, and failed.

        Costs one round trip. Its tasks, dead letters and schedules come in pages: `tasks`, `dead_letters`,
        `TaskScheduler.schedule_page`.

        Args:
            user_id: Which one; zeros for one never heard of.
            hours: How many of `usage`, up to 960.
            limit: Most running tasks, up to 1,000.
        """
        user = check_user("user_id", user_id)
        check_count("hours", hours, 1, 960)
        count = check_count("limit", limit, 1, MOST_SHOWN)
        return await look_at_user(self._reader, self._letters, user, hours, count)

    async def running(self, *, worker_id: str | None = None, limit: int = 200) -> RunningTasks:
        """What runs, and since when: some tasks of each user, or what one worker has.

        Looks at 2,000 lanes of users at most, in one call. Of a single user, `tasks` tells more.

        Args:
            worker_id: Only what this worker has.
            limit: Most tasks, up to 1,000.
        """
        worker = "" if worker_id is None else check_id("worker_id", worker_id)
        return await look_at_running(self._reader, worker, check_count("limit", limit, 1, MOST_SHOWN))

    async def graph(self, user_id: str, task_id: str, *, limit: int = 100) -> TaskGraph:
        """What hangs on a task: what it depends on, what depends on it, its children, and on from these.

        Args:
            user_id: Whose it is; so is all that hangs on it.
            task_id: Where it begins.
            limit: Most tasks, up to 1,000.

        Raises:
            UnknownTask: Nothing is known of the task.
        """
        user, name = check_user("user_id", user_id), check_id("task_id", task_id)
        return await look_at_graph(self._reader, user, name, check_count("limit", limit, 1, MOST_SHOWN))
