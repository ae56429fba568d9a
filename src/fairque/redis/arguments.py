"""The arguments of every script, and what comes many times in them: the one source of their names.

In the script, a line ``--@arguments`` makes a local of each field. A call sends them as one msgpack array in ARGV[1].
It has no bytes, as cmsgpack reads an older msgpack: they follow in ARGV, and a `Value` is their position there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeAlias

import msgspec

encode = msgspec.msgpack.Encoder().encode

Value: TypeAlias = Annotated[int, "position in ARGV, or 0 for none"]


class Values(list[bytes]):
    """The bytes that a call sends beside its arguments."""

    def __repr__(self) -> str:  # without the messages, which a traceback with local variables would show
        return f"<{len(self)} values>"

    def put(self, data: bytes) -> Value:
        if not data:
            return 0
        self.append(data)
        return len(self) + 1


class Arguments(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Of one script: those of enqueue_linked.lua are `EnqueueLinked`, in the same package."""

    script: ClassVar[str]
    package: ClassVar[str]
    waits_for_user: ClassVar[bool] = True
    """Whether the call is made again while its user stands still. Not where others are in it."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.script = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()
        cls.package = cls.__module__.rpartition(".")[0]


class Item(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What comes many times in the arguments of a script."""


# Tasks


class Rules(Item, frozen=True):
    """expires: '' or, as `AddedTask.when`, by when the task must begin. nonce: '' or, of a task that is put in on a
    condition, the name of the call. conflict: keep, replace or error. kind: '' or why it is alone under the key
    `pointer`, which is a hash: until it has started or ended; after, span_ms after that as well; debounce, for span_ms
    from the last call on, at most longest_ms (0: any time) from the first; throttle, for span_ms from the first.
    receipt_by_ms: 0, or of what comes from a database: the answer is kept until it is confirmed, and a call after this
    moment is refused.
    """

    expires: str = ""
    nonce: str = ""
    conflict: str = "keep"
    kind: str = ""
    pointer: str = ""
    span_ms: int = 0
    longest_ms: int = 0
    receipt_by_ms: int = 0


class AddedTask(Item, frozen=True):
    """when: '' now, '+ms' from when it waits for no other task, 'now+ms' from now, 'ms' since the epoch,
    'collect size ms' with others of its name, when so many wait or the first has waited for so long.
    needs: see `Needs`. rules: None for most.
    """

    user: str
    id: str
    priority: int
    when: str
    body: Value
    needs: msgspec.Raw | None = None
    rules: Rules | None = None


class Enqueue(Arguments, frozen=True):
    waits_for_user: ClassVar[bool] = False
    priority_step_ms: int
    tasks: list[AddedTask]


class Callback(Item, frozen=True):
    """A task that is put in at the end of another. kind: on_success, on_failure or on_end. when: as of `AddedTask`.
    after: what is put in at its own end.
    """

    kind: str
    priority: int
    when: str
    body: Value
    after: list[Callback]


class TaskWithEnd(Item, frozen=True):
    """What comes of the end of a task. at: its position in the call, from 1. batch: that counts it, or ''.
    adder: the task of that batch that adds it, or ''. parent: the task that puts it in, or ''. with_parent: it is
    canceled with that.
    """

    at: int
    callbacks: list[Callback]
    batch: str
    adder: str
    parent: str
    with_parent: bool


class EnqueueLinked(Arguments, frozen=True):
    """dead_letter_ttl_ms: how long records of what is canceled are kept. with_ends: those that have callbacks,
    a batch or a parent."""

    waits_for_user: ClassVar[bool] = False
    priority_step_ms: int
    dead_letter_ttl_ms: int
    tasks: list[AddedTask]
    with_ends: list[TaskWithEnd]


class BatchOpen(Arguments, frozen=True):
    """ttl_ms: after which it is abandoned when nobody adds to it. keep_ms: for which it is kept when all has ended, and
    where some has failed dead_letter_ttl_ms. calls_complete: put in when all has ended.
    calls_success: put in when all has finished.
    """

    nonce: str
    user: str
    batch: str
    ttl_ms: int
    keep_ms: int
    dead_letter_ttl_ms: int
    calls_complete: list[Callback]
    calls_success: list[Callback]


class BatchClose(Arguments, frozen=True):
    user: str
    batch: str
    priority_step_ms: int


class BatchCancel(Arguments, frozen=True):
    """cursor: '0' at first. most: tasks of this step, more or less. dead_letter_ttl_ms: how long records are kept."""

    nonce: str
    user: str
    batch: str
    reason: str
    cursor: str
    most: int
    dead_letter_ttl_ms: int
    priority_step_ms: int


class Batch(Arguments, frozen=True):
    user: str
    batch: str


class Confirm(Arguments, frozen=True):
    """keep_ms: how long the receipts are kept from now on."""

    nonces: Sequence[str]
    keep_ms: int


class Claim(Arguments, frozen=True):
    """waits: note the worker as waiting when short. steals: look at what silent workers have. fairness: cost or time.
    groups: the assignments it serves, first to last; ``*`` is everyone. lists: the encoded users of each, where the
    script asked for them. holds: deliveries that it has, suspects: of them, those that were lost before and came less
    than a lease ago. max_deliveries: deaths of a task in workers that ran nothing else, until it is given up.
    number: of this call of the worker, under which its answer is kept; 0: it is not. It grows with each answer; a call
    that comes behind a later one, or behind its own repetition, is given nothing. repeats: a call of this number may
    have been answered.
    latest: in a queue with partitions, its virtual time as far as is known, from which one goes on that stood empty.
    floor: from which one goes on that was away. up_to: nobody is served who stands at a later one; None: everybody.
    revision: of what governs all users, as far as is known.
    rests: where it comes to nothing, it is left for whoever puts in to answer it, by a message. rested: this number was
    answered with nothing and left so.
    """

    worker: str
    want: int
    lease_ms: int
    max_message_bytes: int
    priority_step_ms: int
    dead_letter_ttl_ms: int
    waits: bool
    steals: bool
    fairness: str
    groups: Sequence[str]
    holds: int
    suspects: int
    max_deliveries: int
    number: int
    repeats: bool
    lists: Sequence[Sequence[str]] = ()
    latest: float | None = None
    floor: float = 0.0
    up_to: float | None = None
    revision: int = 0
    rests: bool = False
    rested: bool = False


class SettledDelivery(Item, frozen=True):
    """kind: finished, failed, canceled, retry, snoozed (it put itself off: it keeps its attempt), restated
    (record: its body, with what its code says of it), or released (not the task's fault: it keeps attempt and place,
    and where it goes back at once its charge).
    ttl_ms: how long the result record lives. delay_ms: wait before the retry or the return to the lane.
    error: a record, or of what is canceled the reason. pushed: the lengths of namespace and key, the TTL in ms, then
    namespace, key and value. cost: of the body. charge: what the task added while it ran. wait_ms: of a first attempt.
    """

    lane: str
    user: str
    id: str
    stream_id: str
    attempt: int
    kind: str
    ttl_ms: int
    delay_ms: int
    record: Value
    error: Value
    pushed: Value
    cost: float
    charge: float
    run_ms: float
    wait_ms: int | None


class SettledSuspect(Item, frozen=True):
    """at: of its outcome, from 1. alone: whether it ran beside nothing else."""

    at: int
    alone: bool


class Settle(Arguments, frozen=True):
    """outcomes: of `SettledDelivery`, packed by themselves. suspects: those that are of such."""

    worker: str
    dead_letter_ttl_ms: int
    priority_step_ms: int
    outcomes: Value
    suspects: list[SettledSuspect]


class Turn(Arguments, frozen=True):
    report: Settle
    claim: Claim


class HeldDelivery(Item, frozen=True):
    """cost: of the body."""

    lane: str
    user: str
    id: str
    stream_id: str
    attempt: int
    cost: float


class Receive(Arguments, frozen=True):
    worker: str
    lane: str
    user: str
    id: str
    stream_id: str
    attempt: int


class Accuse(Receive, frozen=True):
    """The same of one that stops its worker."""


class EndedRuns(Item, frozen=True):
    """Tasks of one name that ended. seconds: the mean of the times that they ran."""

    name: str
    runs: int
    seconds: float


class Renew(Arguments, frozen=True):
    """ttl_ms: of the worker's entry, which gets these fields. Without any, it is not the last part of a renewal, and no
    sign of life. scheduler: the name of that in its process; '' where there is none.
    """

    worker: str
    ttl_ms: int
    fields: Mapping[str, Any]
    deliveries: list[HeldDelivery]
    run_times: list[EndedRuns] = []
    scheduler: str = ""


class Sign(Arguments, frozen=True):
    """See `Renew`. fields: that have changed since they were told last."""

    worker: str
    ttl_ms: int
    fields: Mapping[str, Any]
    scheduler: str = ""


class Progress(Arguments, frozen=True):
    user: str
    id: str
    stream_id: str
    attempt: int
    fraction: str
    message: str


class YieldedChunks(Item, frozen=True):
    """queued_ms: of the delivery. first: the number of the first chunk in it, from 1 on. many: how many. chunks: a
    msgpack array of them.
    """

    user: str
    id: str
    stream_id: str
    attempt: int
    queued_ms: int
    first: int
    many: int
    chunks: Value


class Append(Arguments, frozen=True):
    """most_bytes: of all chunks of a task."""

    worker: str
    most_bytes: int
    batches: list[YieldedChunks]


class Chunks(Arguments, frozen=True):
    """after: the position behind which to begin, '' for the beginning of the last run. most_bytes: of a reply."""

    user: str
    id: str
    after: str
    most_bytes: int


class HandOn(Arguments, frozen=True):
    """groups: the assignments that it serves."""

    worker: str
    groups: Sequence[str]


class Heads(Arguments, frozen=True):
    """groups: assignments, first to last; ``*`` is everyone. The first one of which somebody is ready counts."""

    groups: Sequence[str]


class Leave(Arguments, frozen=True):
    """groups: the assignments that it served."""

    worker: str
    groups: Sequence[str]


class Cancel(Arguments, frozen=True):
    """dead_letter_ttl_ms: how long the record is kept."""

    user: str
    id: str
    reason: str
    dead_letter_ttl_ms: int
    priority_step_ms: int
    nonce: str


class Change(Arguments, frozen=True):
    """Of one that waits. start: as `AddedTask.when` has it, but for '+ms'; '' as it is. priority: 0 as it is.
    One of both is given.
    """

    user: str
    id: str
    start: str
    priority: int
    priority_step_ms: int
    nonce: str


class CancelAll(Arguments, frozen=True):
    """where: critical, normal, held, scheduled, deferred, critical-stream or normal-stream. start: where the step
    begins, '' at the first task. name: '' for any. before_ms: only those that were put in before, 0 at the first step:
    older_ms ago.
    """

    nonce: str
    user: str
    where: str
    start: str
    most: int
    name: str
    older_ms: int
    before_ms: int
    reason: str
    dead_letter_ttl_ms: int
    priority_step_ms: int


class Watch(Arguments, frozen=True):
    user: str
    id: str


class Peeked(Item, frozen=True):
    user: str
    id: str


class Peek(Arguments, frozen=True):
    tasks: list[Peeked]


class Standings(Arguments, frozen=True):
    user: str
    ids: Sequence[str]


class Info(Arguments, frozen=True):
    user: str
    id: str


class Graph(Arguments, frozen=True):
    """most: tasks."""

    user: str
    id: str
    most: int


class Records(Arguments, frozen=True):
    user: str
    ids: Sequence[str]


class Dead(Arguments, frozen=True):
    """user: '' for all. after_ms, after: the page begins behind the letter with this score and member; 0 and '': at the
    first. kind: '' for any; else one that has a list, see lib/dead_kinds.lua.
    """

    user: str
    most: int
    after_ms: int
    after: str
    dead_letter_ttl_ms: int
    kind: str = ""


class DeadKinds(Arguments, frozen=True):
    """user: '' for all."""

    user: str
    dead_letter_ttl_ms: int


class Requeue(Arguments, frozen=True):
    nonce: str
    user: str
    priority_step_ms: int
    ids: Sequence[str]


class Discard(Arguments, frozen=True):
    """dead_letter_ttl_ms: how long records of dependents that are canceled are kept."""

    nonce: str
    user: str
    priority_step_ms: int
    dead_letter_ttl_ms: int
    ids: Sequence[str]


class Purge(Arguments, frozen=True):
    """most: tasks in this step."""

    nonce: str
    user: str
    most: int


# A user that is carried elsewhere


class Freeze(Arguments, frozen=True):
    """token: of the export, the import or the move. why: export, import or move. ms: for how long, 0: until it is
    complete. renews: it is to stand still already.
    """

    waits_for_user: ClassVar[bool] = False
    user: str
    token: str
    why: str
    ms: int
    renews: bool


class Thaw(Arguments, frozen=True):
    """token: as of `Freeze`. ahead: of an import that is complete, how far the tag of the user was ahead of the clock;
    else -1.
    """

    user: str
    token: str
    ahead: float


class DumpedKey(Item, frozen=True):
    """name: without the prefix. kind: its type. start: '' or where the page begins."""

    name: str
    kind: str
    start: str


class Dump(Arguments, frozen=True):
    """token: as of `Freeze`. most_bytes: of parts, after which no further key is read."""

    user: str
    token: str
    most_bytes: int
    keys: list[DumpedKey]


class ImportedRecord(Item, frozen=True):
    """kind, name: of the key ``<kind>:<u>:<name>``. expires_ms: since the epoch, or -1. parts: as dump.lua has them."""

    kind: str
    name: str
    redis_type: str
    expires_ms: int
    parts: list[Value]


class Import(Arguments, frozen=True):
    """token: as of `Freeze`. first: how many records come before these."""

    user: str
    token: str
    first: int
    dead_letter_ttl_ms: int
    records: list[ImportedRecord]


class Arrive(Arguments, frozen=True):
    """token: of the move. source: the partition that it comes from. passport: as freeze.lua has it."""

    waits_for_user: ClassVar[bool] = False
    user: str
    token: str
    source: int
    passport: Value


class Manifest(Arguments, frozen=True):
    """token: of the move. first: how many names come before these. names: of keys, without their prefix."""

    waits_for_user: ClassVar[bool] = False
    user: str
    token: str
    first: int
    names: Sequence[str]


class Depart(Arguments, frozen=True):
    """token: of the move. partition: where the user lives from now on. epoch: of this move. taken: what it takes from
    totals here, as it adds it to those there.
    """

    waits_for_user: ClassVar[bool] = False
    user: str
    token: str
    partition: int
    epoch: int
    taken: Mapping[str, int]


class Erase(Arguments, frozen=True):
    """token: of the move. most: keys and members of this step, more or less."""

    waits_for_user: ClassVar[bool] = False
    user: str
    token: str
    most: int


class Adopt(Arguments, frozen=True):
    """most: moves."""

    most: int


class Moving(Arguments, frozen=True):
    waits_for_user: ClassVar[bool] = False
    user: str


class Forward(Arguments, frozen=True):
    """Of a partition where the user does not live: partition and epoch: where it does, and since which of its moves. A
    group is named by its root, with '@' in front, and -1 is the partition itself.
    """

    user: str
    partition: int
    epoch: int


# What is known


class Stats(Arguments, frozen=True):
    """silent_ms: after which a worker is not listed."""

    silent_ms: int


class Demand(Arguments, frozen=True):
    """most: running tasks to look at. silent_ms: after which a worker counts as dead."""

    most: int
    silent_ms: int


class Health(Arguments, frozen=True):
    """most: users."""

    dead_letter_ttl_ms: int
    most: int


class Users(Arguments, frozen=True):
    """named: these, wherever they stand. strict: one that is damaged fails the call, else it is left out."""

    offset: int
    most: int
    named: Sequence[str]
    strict: bool = False


class UserNames(Arguments, frozen=True):
    """after: '' or the user behind whom the page begins, and after_ms when that was last active."""

    after_ms: int
    after: str
    most: int


class Active(Arguments, frozen=True):
    most: int


class Holders(Arguments, frozen=True):
    """most: users. lanes: to look at."""

    most: int
    lanes: int


class Running(Arguments, frozen=True):
    """worker: '' for any. most: tasks. lanes: to look at."""

    worker: str
    most: int
    lanes: int


class Tasks(Arguments, frozen=True):
    """where: critical, normal, held, scheduled, dead, critical-stream, normal-stream, or '' for those that are named.
    after: the id behind which the page begins, '' from the start.
    """

    user: str
    place: str
    most: int
    after: str
    named: Sequence[str]


class Explain(Arguments, frozen=True):
    """id: '' for the first task in line. most: members of each set to look at."""

    user: str
    id: str
    most: int


class Usage(Arguments, frozen=True):
    """user: '*' for all. days: since the epoch."""

    user: str
    days: Sequence[int]


# Settings, policies, limits


class Agree(Arguments, frozen=True):
    layout: int
    settings: Mapping[str, Any]


class Denied(Arguments, frozen=True):
    """commands: of each its words, with a key or a channel of the queue."""

    commands: list[list[str]]


class ChangeSettings(Arguments, frozen=True):
    settings: Mapping[str, Any]


class Policy(Arguments, frozen=True):
    """whose: a user, '@' and a group, or '*'. forgotten: fields, '*' for all. is_behind: of a group that has left for
    another partition. revision: see lib/revision.lua.
    """

    whose: str
    changes: Mapping[str, Any]
    forgotten: Sequence[str]
    is_behind: bool = False
    revision: int = 0


class Policies(Arguments, frozen=True):
    """names: users, '@' and a group, '*'."""

    names: Sequence[str]


class Governed(Arguments, frozen=True):
    """index: policy-users, policy-groups or limit-keys. after: the name before the page, or ''."""

    index: str
    after: str
    most: int


class LimitRecord(Item, frozen=True):
    """is_set: else it is taken back. max: most that run at once. interval_us: between two starts. Neither: no limit.
    paused: of the name of a task, and nothing else of it is changed.
    """

    record: str
    is_set: bool
    max: int | None
    interval_us: int | None
    burst: int | None
    paused: bool | None = None


class Limits(Arguments, frozen=True):
    """declared: by the code of a worker; else by hand, which goes before that. revision: see lib/revision.lua."""

    declared: bool
    limits: list[LimitRecord]
    revision: int = 0


class Rulebook(Arguments, frozen=True):
    """newer_than: of an older one the revision is told alone."""

    newer_than: int


class Rule(Item, frozen=True):
    """What is said in the record of a limit: by hand, by code, and whether it is paused; '' where nothing is."""

    record: str
    hand: str
    code: str
    paused: str


class Follow(Arguments, frozen=True):
    """policy: of everybody, as a msgpack map. forfeited: the revision at which places were, last."""

    revision: int
    policy: Value
    forfeited: int
    rules: list[Rule]


# Places of limits over all users, between partitions: lib/loans.lua


class Ask(Item, frozen=True):
    """What a borrower tells the home of a key: epoch, granted and returned of its loan, 0 where it has none. closed:
    the last epoch of a loan of that home that is over for it. need: places for tasks that wait. rate_need: starts.
    users: that wait. excess: what runs without a place. lease: 0, or that of a rate that it gives back, which opens in
    left_us. changed: when the limit was, there.
    """

    home: int
    key: str
    epoch: int
    granted: int
    returned: int
    closed: int
    need: int
    rate_need: int
    users: int
    excess: int
    lease: int
    left_us: float
    changed: int


class Told(Item, frozen=True):
    """What the home of a key tells a borrower: epoch, granted and returned of its loan. over: that loan is over. most:
    by which it was granted. keep: -1, or how many it may keep, as others wait. waits: it gets more when there is more.
    lease: 0, or that of a rate, with which so many starts may be for a second from asked_us on; the rate opens in
    left_us. poke: its turn at the rate has come, it is to ask again. changed: of its ask.
    """

    key: str
    epoch: int
    granted: int
    returned: int
    over: int
    most: int
    keep: int
    waits: int
    lease: int
    starts: int
    left_us: float
    asked_us: float
    poke: int
    changed: int


class Exchange(Arguments, frozen=True):
    """most: keys."""

    most: int


class Lend(Arguments, frozen=True):
    """partition: that asks, at asked_us of its clock."""

    partition: int
    asked_us: float
    asks: list[Ask]


class Forfeit(Arguments, frozen=True):
    """partition: that is gone. revision: -1 to number it, else 0."""

    partition: int
    keys: list[str]
    revision: int = 0


class Accept(Arguments, frozen=True):
    tells: list[Told]


# XCom. User and namespace are percent-encoded.


class XcomPush(Arguments, frozen=True):
    user: str
    namespace: str
    key: str
    value: Value
    ttl_ms: int


class XcomPull(Arguments, frozen=True):
    user: str
    namespaces: Sequence[str]
    keys: Sequence[str]


class XcomKeys(Arguments, frozen=True):
    """from_ms: the expiry to begin at. skip: so many of that expiry."""

    user: str
    namespace: str
    from_ms: int
    skip: int
    most: int


class XcomDelete(Arguments, frozen=True):
    user: str
    namespace: str
    keys: Sequence[str]


class XcomClear(Arguments, frozen=True):
    user: str
    namespace: str


# Schedules


class Ripe(Arguments, frozen=True):
    """scheduler: who takes turns with others; '' for one that does not. ahead_ms: as if it were so much later."""

    scheduler: str
    most: int
    ahead_ms: int


class Expire(Arguments, frozen=True):
    """dead_letter_ttl_ms: how long records of what has expired are kept."""

    dead_letter_ttl_ms: int
    priority_step_ms: int


class LeaveSchedules(Arguments, frozen=True):
    scheduler: str


class Firing(AddedTask, frozen=True, kw_only=True):
    """A task, and what becomes of its schedule. expected_ms: when it was to fire. next_ms: None when it ends.
    kind: fire, pass (no task, only the next slot) or now (a task, and the schedule stays as it is).
    overlap: allow, skip or cancel_running. callbacks: put in at the end of the task.
    """

    schedule_id: str
    expected_ms: int
    revision: str
    next_ms: int | None
    next_slot: int | None
    missed: int
    kind: str
    overlap: str
    max_runs: int | None
    callbacks: list[Callback]


class Fire(Arguments, frozen=True):
    """dead_letter_ttl_ms: how long records of what is canceled are kept. keep_ms: how long an ended schedule is."""

    nonce: str
    priority_step_ms: int
    dead_letter_ttl_ms: int
    keep_ms: int
    firings: list[Firing]


class Field(Item, frozen=True):
    """One without a value is removed."""

    name: str
    value: Value


class WrittenSchedule(Item, frozen=True):
    """read: the revision that was read, '' for a new schedule.
    next_ms: of the next firing; 'keep': as it is, '': none.
    """

    id: str
    user: str
    read: str
    next_ms: int | str
    fields: list[Field]


class Schedule(Arguments, frozen=True):
    """revision: of all, from now on. keep_ms: how long an ended schedule is kept."""

    revision: str
    keep_ms: int
    schedules: list[WrittenSchedule]


class Schedules(Arguments, frozen=True):
    """ids: these; none: a page. user: '' for any. after: '' or the <user>:<id> behind which the page begins."""

    ids: Sequence[str]
    user: str
    after: str
    most: int


class Unschedule(Arguments, frozen=True):
    nonce: str
    ids: Sequence[str]


class Declaration(Item, frozen=True):
    """definition: a fingerprint."""

    id: str
    definition: str


class Declare(Arguments, frozen=True):
    """ttl_ms: for which a declaration counts."""

    ttl_ms: int
    declarations: list[Declaration]


# Checks


class Check(Arguments, frozen=True):
    """items: which check, the user and the id that it is about or '', then what the check needs; see lib/doctor.lua."""

    dead_letter_ttl_ms: int
    priority_step_ms: int
    items: Sequence[Sequence[Any]]


class Repair(Check, frozen=True):
    """As `Check`."""

    nonce: str


class WalkedKey(Item, frozen=True):
    name: str
    kind: str


class Members(Arguments, frozen=True):
    """keys: without their prefix. most: members of all of them."""

    most: int
    keys: list[WalkedKey]


class HeldSpan(Item, frozen=True):
    """first, last: ranks among the held tasks of a user."""

    user: str
    first: int
    last: int


class Totals(Arguments, frozen=True):
    since_ms: int
    users: Sequence[str]
    held: list[HeldSpan]
