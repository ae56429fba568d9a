"""What a check of a queue tells: `Finding`, and `QueueCheck` with all of them."""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = ["Finding", "FindingKind", "QueueCheck"]


class FindingKind(StrEnum):
    """What is wrong. The guide "When something is damaged" tells of each what it means and what a repair does."""

    # Keys
    WRONG_TYPE = "wrong-type"  # somebody else wrote under the name of a key
    NO_EXPIRY = "no-expiry"  # it should have a time to live
    EXPIRES = "expires"  # it should not
    UNKNOWN_KEY = "unknown-key"  # not one of fairque's
    UNREADABLE = "unreadable"  # it could not be looked at, mostly because of a wrong type
    CORRUPT = "corrupt"  # it has the right type, and makes no sense

    # The queue
    LOST_STATE = "lost-state"
    LOST_SETTINGS = "lost-settings"
    BAD_NUMBER = "bad-number"
    WRONG_TOTAL = "wrong-total"

    # Tasks
    NO_PLACE = "no-place"  # nobody would ever run it
    MANY_PLACES = "many-places"
    WRONG_STATE = "wrong-state"
    LOST_MESSAGE = "lost-message"
    LOST_FIELDS = "lost-fields"
    LEFTOVER = "leftover"
    STALE_RESULT = "stale-result"
    LOST_KEY = "lost-key"  # another one may be put in beside a task that is to be alone under a key
    HALF_A_LETTER = "half-a-letter"
    LOST_GROUP = "lost-group"  # tasks that are to run together would run apart

    # What runs
    STALE_DELIVERY = "stale-delivery"
    NOBODYS_DELIVERY = "nobodys-delivery"
    NO_GROUP = "no-group"
    NO_LEASE = "no-lease"
    LEASE_WITHOUT_TASKS = "lease-without-tasks"

    # Users
    UNLISTED_USER = "unlisted-user"
    NOT_DUE = "not-due"
    DUE_WITHOUT_TASKS = "due-without-tasks"
    NOT_READY = "not-ready"
    NOT_PARKED = "not-parked"
    READY_WITHOUT_TASKS = "ready-without-tasks"
    WRONG_LINE = "wrong-line"
    NOT_IN_TREE = "not-in-tree"
    HALF_AN_ASSIGNMENT = "half-an-assignment"
    WRONG_RESERVATION = "wrong-reservation"
    PARKED_WITHOUT_TASKS = "parked-without-tasks"
    ASTRAY = "astray"  # nobody finds a user that was moved to another partition
    TWO_HOMES = "two-homes"
    FORSAKEN_MOVE = "forsaken-move"  # a user is on its way to another partition, and nobody goes on with that
    APART = "apart"  # a user does not live where its group does

    # What waits for others
    HALF_A_LINK = "half-a-link"
    FED_FOR_NOTHING = "fed-for-nothing"
    UNTOLD_END = "untold-end"
    UNMARKED = "unmarked"
    WAITS_FOR_NOTHING = "waits-for-nothing"
    UNLISTED_END = "unlisted-end"

    # Policies and limits
    LOST_COUNT = "lost-count"
    UNLISTED_NAME = "unlisted-name"
    LOST_POLICY = "lost-policy"
    LOST_LIMIT = "lost-limit"
    UNCOUNTED = "uncounted"
    UNCOUNTED_RUN = "uncounted-run"
    DOES_NOT_RUN = "does-not-run"
    HELD_FOR_NOBODY = "held-for-nobody"
    NOT_LET_IN = "not-let-in"
    HELD_WITHOUT_TASKS = "held-without-tasks"
    STRANDED_PLACES = "stranded-places"
    NO_OFFER = "no-offer"
    OFFER_WITHOUT_TASK = "offer-without-task"

    # Schedules and values
    UNLISTED_SCHEDULE = "unlisted-schedule"
    WRONG_LIST = "wrong-list"
    LOST_SCHEDULE = "lost-schedule"
    HALF_A_VALUE = "half-a-value"
    UNLISTED_SPACE = "unlisted-space"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong with a queue.

    Attributes:
        kind: What is wrong.
        key: The key in Redis where it shows, without the prefix of the queue.
        user_id: Whose it is; None where it is nobody's.
        task_id: Of which task; None where it is about no task.
        detail: What was seen there.
        mended: Whether it is right again.
        how: What a repair did, or why it could not; empty where none was asked for.
        partition: In which partition of the queue; None where it has none.
    """

    kind: FindingKind
    key: str
    user_id: str | None = None
    task_id: str | None = None
    detail: str = ""
    mended: bool = False
    how: str = ""
    partition: int | None = None


class QueueCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What a check of a queue found.

    Attributes:
        findings: What is wrong, and what was wrong and is mended.
        keys: How many keys were looked at.
        users: How many users have tasks, or have ends of tasks to be told.
        totals_compared: Whether the totals of the queue were compared with what is there. They cannot be in a large
            queue that never stands still.
        complete: Whether all was looked at. Without `state` and `settings` of the right type nothing can be, and of a
            partition that does not answer nothing either.
        seconds: How long it took.
        missing: Partitions that did not answer.
    """

    findings: tuple[Finding, ...]
    keys: int
    users: int
    totals_compared: bool
    complete: bool
    seconds: float
    missing: tuple[int, ...] = ()

    @property
    def unmended(self) -> tuple[Finding, ...]:
        """What is wrong now."""
        return tuple(finding for finding in self.findings if not finding.mended)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong, or nothing any more."""
        return self.complete and not self.unmended
