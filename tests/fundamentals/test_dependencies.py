"""8. Dependencies: tasks that wait for other tasks of their user."""

import asyncio

import pytest

from fairque import (
    DependencyError,
    InvalidInput,
    Priority,
    TaskCanceled,
    TaskQueue,
    TaskState,
    Worker,
    current_task,
    task,
)
from fairque.redis.scripts import load
from fairque.settings import QueueSettings
from fairque.tasks.registry import registry
from tests.support.calls import make_known, scripts_called
from tests.support.core import outcome
from tests.support.eventually import eventually
from tests.support.script_steps import script_steps

ran: list[str] = []
STATES = {"wait": "deferred", "cancel": "canceled", "run": "queued"}
"""By policy, behind a task that failed; behind one that was canceled, which nobody can requeue, "wait" is "cancel"."""


@task
async def step(name: str = "") -> str:
    ran.append(name or current_task().task_id)
    return name


@task
async def fail() -> None:
    ran.append(current_task().task_id)
    raise ValueError("on purpose")


@pytest.fixture(autouse=True)
def _registered():
    ran.clear()
    registry.update({made.name: made for made in (step, fail)})


async def serve(queue: TaskQueue, **options) -> None:
    await Worker(queue, **options).run_until_idle()


def script_calls(server) -> int:
    return scripts_called(server.execute)


async def nothing_was_written(queue: TaskQueue, server, queue_name: str) -> None:
    assert [key for key in server.keys(queue_name) if ":task:" in key or ":body:" in key or "deferred" in key] == []
    assert (await queue.stats()).deferred == 0


# What a task can wait for


async def test_a_task_waits_for_ids_handles_and_tasks(queue: TaskQueue):
    by_id = await queue.enqueue(step("id"), user_id="anna", task_id="by-id")
    by_handle = await queue.enqueue(step("handle"), user_id="anna")
    named = step("task").options(task_id="by-task")
    await queue.enqueue(named, user_id="anna")
    last = await queue.enqueue(step("last"), user_id="anna", depends_on=[by_id.task_id, by_handle, named])
    assert await last.state() is TaskState.DEFERRED
    await serve(queue)
    assert ran[-1] == "last"
    assert await last.result(20) == "last"


async def test_dependencies_are_given_to_the_decorator_the_options_or_the_call(queue: TaskQueue):
    @task(depends_on=["first"])
    async def decorated() -> None:
        ran.append("decorated")

    await queue.enqueue(step("first"), user_id="anna", task_id="first", delay=0.2)
    waiting = [
        await queue.enqueue(decorated(), user_id="anna"),
        await queue.enqueue(step("options").options(depends_on=["first"]), user_id="anna"),
        await queue.enqueue(step("call"), user_id="anna", depends_on=("first",)),
        await queue.enqueue(decorated().options(depends_on=[]), user_id="anna"),
    ]
    assert [await handle.state() for handle in waiting] == ["deferred", "deferred", "deferred", "queued"]
    async with Worker(queue, concurrency=1):
        for handle in waiting:
            await handle.result(20)
    assert ran == ["decorated", "first", "decorated", "options", "call"]


async def test_a_batch_may_wait_for_what_stands_before_in_it(queue: TaskQueue):
    first = step("first")
    handles = await queue.enqueue_many([first, step("second").options(depends_on=[first])], user_id="anna")
    assert [await handle.state() for handle in handles] == ["queued", "deferred"]
    assert (await handles[1].info()).dependencies == (handles[0].task_id,)
    await serve(queue)
    assert ran == ["first", "second"]


async def test_a_dependency_named_twice_is_one(queue: TaskQueue):
    first = await queue.enqueue(step("first"), user_id="anna", task_id="a")
    last = await queue.enqueue(step("last"), user_id="anna", depends_on=["a", first, "a"])
    assert (await last.info()).dependencies == ("a",)
    await serve(queue)
    assert ran == ["first", "last"]


async def test_what_cannot_be_a_dependency_is_refused(queue: TaskQueue, server, queue_name: str):
    for wrong, text in (
        ([7], "takes ids, handles and tasks, not 7"),
        ([step()], "has no task_id yet: enqueue it first"),
        ([""], "an entry of depends_on must not be empty"),
        ("abc", "must be a list of ids, handles or tasks, not 'abc'"),
        (3, "must be a list"),
    ):
        with pytest.raises(InvalidInput, match=text):
            await queue.enqueue(step(), user_id="anna", depends_on=wrong)
    with pytest.raises(InvalidInput, match="must be 'wait', 'cancel' or 'run', not 'skip'"):
        step().options(on_dependency_failure="skip")
    with pytest.raises(InvalidInput, match="delay_from must be 'release' or 'enqueue', not 'now'"):
        step().options(delay_from="now")
    await nothing_was_written(queue, server, queue_name)


async def test_the_dependency_of_another_user_is_refused(queue: TaskQueue):
    theirs = await queue.enqueue(step(), user_id="ben", task_id="t")
    text = "task 't' belongs to user 'ben': a task of 'anna' cannot wait for it"
    with pytest.raises(DependencyError, match=text):
        await queue.enqueue(step(), user_id="anna", depends_on=[theirs])
    with pytest.raises(DependencyError, match=text):
        await queue.enqueue(step(), user_id="anna", depends_on=[step().options(task_id="t", user_id="ben")])
    first = step().options(user_id="ben")
    with pytest.raises(DependencyError, match="belongs to user 'ben'"):
        await queue.enqueue_many([first, step().options(user_id="anna", depends_on=[first], allow_unknown=True)])
    with pytest.raises(DependencyError, match="user 'anna' depends on 't', never enqueued"):
        await queue.enqueue(step(), user_id="anna", depends_on=["t"])
    assert (await queue.user("anna")).deferred == 0
    await serve(queue)


# How the dependency stands at the enqueue


async def test_a_finished_dependency_is_satisfied(queue: TaskQueue):
    first = await queue.enqueue(step(), user_id="anna")
    await serve(queue)
    last = await queue.enqueue(step("last"), user_id="anna", depends_on=[first])
    assert await last.state() is TaskState.QUEUED
    await serve(queue)
    assert await last.result(20) == "last"


async def test_a_living_dependency_is_waited_for_whatever_it_does(queue: TaskQueue):
    go_on = asyncio.Event()

    @task
    async def wait() -> None:
        await go_on.wait()

    root = await queue.enqueue(wait(), user_id="anna", task_id="started")
    await queue.enqueue(step(), user_id="anna", task_id="scheduled", delay=0.1)
    await queue.enqueue(step(), user_id="anna", task_id="deferred", depends_on=[root])
    async with Worker(queue):
        await eventually(lambda: is_in(root, TaskState.STARTED))
        waiting = await queue.enqueue(step(), user_id="anna", depends_on=["started", "scheduled", "deferred"])
        assert await waiting.state() is TaskState.DEFERRED
        go_on.set()
        await waiting.result(20)


@pytest.mark.parametrize("how", ["failed", "canceled"])
@pytest.mark.parametrize("policy", ["wait", "cancel", "run"])
async def test_a_dependency_that_failed_before_is_met_by_the_policy_at_once(queue: TaskQueue, policy, how):
    first = await queue.enqueue(fail(), user_id="anna", task_id="a")
    await (first.cancel() if how == "canceled" else serve(queue))
    last = await queue.enqueue(step("last").options(on_dependency_failure=policy), user_id="anna", depends_on=["a"])
    assert last.created
    is_over = policy == "cancel" or (policy == "wait" and how == "canceled")
    assert await last.state() == ("canceled" if is_over else STATES[policy])
    if is_over:
        with pytest.raises(TaskCanceled, match=f"dependency a {how}"):
            await last.result(20)
    await serve(queue)
    assert ("last" in ran) == (policy == "run")
    await last.cancel()
    if how == "failed":
        await queue.discard(first)


async def test_an_unknown_dependency_is_an_error_that_names_it(queue: TaskQueue, server, queue_name: str):
    with pytest.raises(DependencyError, match=r"task 't' of user 'anna: ä' depends on 'nobody: ä', never enqueued or"):
        await queue.enqueue(step(), user_id="anna: ä", task_id="t", depends_on=["nobody: ä"])
    await nothing_was_written(queue, server, queue_name)
    forgotten = await queue.enqueue(step().options(result_ttl=0.05), user_id="anna", task_id="old")
    await serve(queue)
    await eventually(lambda: is_forgotten(forgotten))
    with pytest.raises(DependencyError, match="depends on 'old', never enqueued or its result has expired"):
        await queue.enqueue(step(), user_id="anna", depends_on=[forgotten])


async def test_an_unknown_dependency_may_be_allowed_and_is_waited_for(queue: TaskQueue):
    early = await queue.enqueue(step("early").options(allow_unknown=True), user_id="anna", depends_on=["later"])
    await serve(queue)
    assert await early.state() is TaskState.DEFERRED
    assert ran == []
    await queue.enqueue(step("later"), user_id="anna", task_id="later")
    await serve(queue)
    assert ran == ["later", "early"]


async def test_one_unknown_dependency_keeps_a_whole_batch_out(queue: TaskQueue, server, queue_name: str):
    with pytest.raises(DependencyError, match="'nobody'"):
        await queue.enqueue_many([step(), step().options(depends_on=["nobody"])], user_id="anna")
    await nothing_was_written(queue, server, queue_name)


async def test_nobody_fails_for_the_refusal_of_another_caller(queue: TaskQueue):
    refused = {7: {"depends_on": ["nobody"]}, 13: {"task_id": "self", "depends_on": ["self"]}}
    calls = (queue.enqueue(step(str(at)), user_id="anna", **refused.get(at, {})) for at in range(20))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [at for at, answer in enumerate(answers) if isinstance(answer, Exception)] == [7, 13]
    assert "'nobody'" in str(answers[7])
    assert "self → self" in str(answers[13])
    await serve(queue)
    assert sorted(map(int, ran)) == [at for at in range(20) if at not in (7, 13)]


# Cycles


async def test_a_task_cannot_wait_for_itself(queue: TaskQueue, server, queue_name: str):
    with pytest.raises(DependencyError, match="of user 'anna' would wait for each other: a → a"):
        await queue.enqueue(step(), user_id="anna", task_id="a", depends_on=["a"])
    await nothing_was_written(queue, server, queue_name)


async def test_a_cycle_in_a_batch_is_named_and_nothing_is_written(queue: TaskQueue, server, queue_name: str):
    def waiting(name: str, *needs: str):
        return step(name).options(task_id=name, depends_on=needs)

    batch = [waiting("free"), waiting("x", "a"), waiting("a", "b"), waiting("b", "free", "c"), waiting("c", "a")]
    with pytest.raises(DependencyError, match=r"would wait for each other: a → b → c → a$"):
        await queue.enqueue_many(batch, user_id="anna")
    await nothing_was_written(queue, server, queue_name)


@pytest.mark.leaves_keys
async def test_a_cycle_through_what_waits_in_redis_is_refused(queue: TaskQueue):
    async def wait(name: str, *needs: str):
        made = step(name).options(allow_unknown=True)
        return await queue.enqueue(made, user_id="anna", task_id=name, depends_on=needs)

    await wait("b", "c")
    await wait("c", "d", "e")
    with pytest.raises(DependencyError, match=r"would wait for each other: e → b → c → e$"):
        await wait("e", "b")
    assert (await queue.user("anna")).deferred == 2
    await queue.enqueue(step("d"), user_id="anna", task_id="d")
    await queue.enqueue(step("e"), user_id="anna", task_id="e")
    await serve(queue)
    assert ran == ["d", "e", "c", "b"]


@pytest.mark.leaves_keys
async def test_an_id_that_is_used_again_may_close_a_cycle(queue: TaskQueue):
    await queue.enqueue(fail(), user_id="anna", task_id="a")
    await serve(queue)
    await queue.enqueue(step(), user_id="anna", task_id="b", depends_on=["a"])
    with pytest.raises(DependencyError, match="a → b → a"):
        await queue.enqueue(step(), user_id="anna", task_id="a", depends_on=["b"])
    assert (await queue.user("anna")).dead_letters == 1, "nothing was written"


async def test_two_users_with_the_same_ids_make_no_cycle(queue: TaskQueue):
    for user, name, needed in (("anna", "a", "b"), ("ben", "b", "a")):
        await queue.enqueue(step(user), user_id=user, task_id=needed)
        await queue.enqueue(step(user), user_id=user, task_id=name, depends_on=[needed])
    await serve(queue)
    assert sorted(ran) == ["anna", "anna", "ben", "ben"]


# When the dependency ends


async def test_dependents_are_released_by_the_script_that_settles(queue: TaskQueue, server):
    """Nothing is left for a process to do that could die."""
    first = await queue.enqueue(step(), user_id="anna")
    last = await queue.enqueue(step(), user_id="anna", depends_on=[first])
    store = queue.store()
    [delivery] = (await claim(store)).deliveries
    make_known(server.execute, [load("settle")])
    before = script_calls(server)
    await settle(store, delivery)
    assert script_calls(server) - before == 1
    assert await last.state() is TaskState.QUEUED
    await leave(store)
    await serve(queue)


@pytest.mark.parametrize("policy", ["wait", "cancel", "run"])
@pytest.mark.parametrize("how", ["failed", "canceled"])
async def test_the_policy_is_followed_when_the_dependency_ends(queue: TaskQueue, policy, how):
    first = await queue.enqueue(fail(), user_id="anna", task_id="a")
    last = await queue.enqueue(step("last").options(on_dependency_failure=policy), user_id="anna", depends_on=["a"])
    await (first.cancel("not needed") if how == "canceled" else serve(queue))
    if policy == "run":
        await serve(queue)
        assert await last.result(20) == "last"
    elif policy == "cancel" or how == "canceled":
        with pytest.raises(TaskCanceled, match=f"dependency a {how}"):
            await last.result(20)
    else:
        assert await last.state() is TaskState.DEFERRED
        await last.cancel()
    if how == "failed":
        await queue.discard(first)


async def test_who_waits_is_released_when_the_dependency_was_requeued_and_finished(queue: TaskQueue):
    is_broken = True

    @task
    async def fragile() -> None:
        if is_broken:
            raise OSError("the disk")

    first = await queue.enqueue(fragile(), user_id="anna")
    waiting = [await queue.enqueue(step(str(at)), user_id="anna", depends_on=[first]) for at in range(3)]
    await serve(queue)
    assert [await handle.state() for handle in waiting] == ["deferred"] * 3
    await queue.requeue(first)
    await serve(queue)
    assert await first.state() is TaskState.FAILED, "it failed again, and they wait on"
    is_broken = False
    await queue.requeue(first)
    await serve(queue)
    assert sorted(ran) == ["0", "1", "2"]


@pytest.mark.parametrize("how", ["failed", "canceled", "discarded"])
async def test_who_waits_is_released_by_a_new_task_of_that_id(queue: TaskQueue, how):
    """Who takes ids that are not known waits for whatever has this one next."""
    first = await queue.enqueue(fail(), user_id="anna", task_id="a")
    await queue.enqueue(step("last").options(allow_unknown=how != "failed"), user_id="anna", depends_on=[first])
    await (first.cancel() if how == "canceled" else serve(queue))
    if how == "discarded":
        await queue.discard(first)
    await queue.enqueue(step("again"), user_id="anna", task_id="a")
    await serve(queue)
    assert ran[-2:] == ["again", "last"]


async def test_who_waits_for_one_task_is_not_confused_with_who_waits_for_another_of_a_similar_id(queue: TaskQueue):
    first = await queue.enqueue(fail(), user_id="anna", task_id="a")
    other = await queue.enqueue(step("other"), user_id="anna", task_id="a:held", delay=0.5)
    waits = await queue.enqueue(step("waits"), user_id="anna", depends_on=[first])
    last = await queue.enqueue(step("last"), user_id="anna", depends_on=[other])
    await serve(queue)
    assert await waits.state() is TaskState.DEFERRED
    async with Worker(queue):
        assert await last.result(timeout=10) == "last"
    await waits.cancel()


async def test_who_waits_for_a_dead_letter_that_expired_is_released_by_a_new_task_of_that_id(server, queue_name: str):
    async with TaskQueue(server.url, name=queue_name, dead_letter_ttl=1) as queue:
        first = await queue.enqueue(fail(), user_id="anna", task_id="a")
        last = await queue.enqueue(step("last").options(allow_unknown=True), user_id="anna", depends_on=[first])
        await serve(queue)
        await eventually(lambda: is_forgotten(first))
        assert await last.state() is TaskState.DEFERRED
        await queue.enqueue(step("again"), user_id="anna", task_id="a")
        await serve(queue)
        assert ran[-2:] == ["again", "last"]


async def test_a_retry_is_no_end(queue: TaskQueue):
    @task(max_retries=1)
    async def second_time() -> None:
        ran.append("try")
        if current_task().attempt == 1:
            raise ValueError

    first = await queue.enqueue(second_time(), user_id="anna")
    policy = step("last").options(on_dependency_failure="cancel")
    last = await queue.enqueue(policy, user_id="anna", depends_on=[first])
    async with Worker(queue):
        await last.result(20)
    assert ran == ["try", "try", "last"]


@pytest.mark.smoke
async def test_cancellation_cascades(queue: TaskQueue):
    first = await queue.enqueue(step(), user_id="anna", task_id="0")
    handles = [first]
    for at in range(1, 6):
        made = step().options(on_dependency_failure="cancel" if at < 5 else "wait")
        handles.append(await queue.enqueue(made, user_id="anna", task_id=str(at), depends_on=[str(at - 1)]))
    await first.cancel()
    for at in range(1, 6):
        with pytest.raises(TaskCanceled, match=f"dependency {at - 1} canceled"):
            await handles[at].result(20)
    assert (await queue.stats()).canceled == 6


async def test_who_is_canceled_waits_for_nothing_any_more(queue: TaskQueue, server, queue_name: str):
    first = await queue.enqueue(step("first"), user_id="anna", task_id="a")
    last = await queue.enqueue(step("last"), user_id="anna", depends_on=[first])
    await last.cancel()
    assert (await first.info()).dependents == ()
    assert not [key for key in server.keys(queue_name) if ":needs:" in key or ":feeds:" in key or ":task:" in key]
    await serve(queue)
    assert ran == ["first"]


async def test_one_failure_among_several_dependencies(queue: TaskQueue):
    good = await queue.enqueue(step("good"), user_id="anna", priority=1)
    bad = await queue.enqueue(fail(), user_id="anna", task_id="bad")
    made = {policy: step(policy).options(on_dependency_failure=policy) for policy in ("wait", "cancel", "run")}
    handles = {p: await queue.enqueue(made[p], user_id="anna", depends_on=[good, bad]) for p in made}
    await serve(queue)
    assert ran == ["bad", "good", "run"]
    assert await handles["wait"].state() is TaskState.DEFERRED
    assert await handles["cancel"].state() is TaskState.CANCELED
    await handles["wait"].cancel()
    await queue.discard(bad)


# Shares


async def test_a_dependent_is_placed_by_its_own_priority(queue: TaskQueue):
    first = await queue.enqueue(step("first"), user_id="anna", priority=Priority.CRITICAL)
    for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.CRITICAL):
        await queue.enqueue(step(priority.name), user_id="anna", priority=priority, depends_on=[first])
    await serve(queue, concurrency=1)
    assert ran == ["first", "CRITICAL", "HIGH", "NORMAL", "LOW"]


async def test_dependents_are_charged_to_their_user(queue: TaskQueue):
    """A fan-out jumps nobody's queue."""
    first = await queue.enqueue(step("anna"), user_id="anna")
    await queue.enqueue_many([step("anna").options(depends_on=[first], priority=6)] * 200, user_id="anna")
    await queue.enqueue_many([step("ben")] * 10, user_id="ben")
    await serve(queue, concurrency=1)
    assert ran[:20].count("ben") in (9, 10)
    assert len(ran) == 211


async def test_a_delay_begins_when_a_task_waits_for_nothing_else(queue: TaskQueue):
    first = await queue.enqueue(step("first"), user_id="anna", delay=0.5)
    last = await queue.enqueue(step("last"), user_id="anna", depends_on=[first], delay=0.5)
    async with Worker(queue, poll_interval=60):
        await last.result(20)
    assert (await last.info()).started_at - (await first.info()).ended_at >= 0.499


async def test_a_delay_without_dependencies_begins_at_once(queue: TaskQueue):
    first = await queue.enqueue(step("first"), user_id="anna")
    await serve(queue)
    last = await queue.enqueue(step("last"), user_id="anna", depends_on=[first], delay=3600)
    assert await last.state() is TaskState.SCHEDULED
    await last.cancel()


async def test_a_delay_may_begin_at_the_enqueue(queue: TaskQueue):
    first = await queue.enqueue(step("first"), user_id="anna")
    made = {name: step(name).options(delay_from="enqueue", depends_on=[first]) for name in ("late", "soon")}
    late = await queue.enqueue(made["late"], user_id="anna", delay=0.5)
    soon = await queue.enqueue(made["soon"], user_id="anna", delay=0.001)
    began = (await first.info()).queued_at
    await serve(queue)
    assert await late.state() is TaskState.SCHEDULED
    async with Worker(queue, poll_interval=60):
        await soon.result(20)
        await late.result(20)
    assert 0.499 <= (await late.info()).started_at - began < 5
    assert ran == ["first", "soon", "late"]


async def test_a_sleeping_worker_hears_of_a_dependent_that_becomes_due(queue: TaskQueue):
    first = await queue.enqueue(step("first"), user_id="anna", delay=0.2)
    late = await queue.enqueue(step("late"), user_id="anna", depends_on=[first], delay=0.5)
    async with Worker(queue, poll_interval=60):
        await late.result(20)


# Large ones


async def test_a_fan_in_of_a_thousand(queue: TaskQueue):
    parts = await queue.enqueue_many([step("part")] * 1000, user_id="anna")
    last = await queue.enqueue(step("last"), user_id="anna", depends_on=parts)
    assert len((await last.info()).dependencies) == 1000
    await serve(queue, concurrency=100)
    assert ran == ["part"] * 1000 + ["last"]


async def test_a_chain_of_a_thousand(queue: TaskQueue):
    chain = [step("0").options(task_id="0")]
    chain += [step(str(at)).options(task_id=str(at), depends_on=[str(at - 1)]) for at in range(1, 1000)]
    await queue.enqueue_many(chain, user_id="anna")
    await serve(queue)
    assert ran == [str(at) for at in range(1000)]


@pytest.mark.parametrize("end", ["finished", "canceled"])
async def test_a_chain_of_a_thousand_that_is_canceled(queue: TaskQueue, end):
    """500 at a time: the worker that is woken does the rest."""
    chain = [step("0").options(task_id="0")]
    made = step().options(on_dependency_failure="cancel")
    chain += [made.options(task_id=str(at), depends_on=[str(at - 1)]) for at in range(1, 1000)]
    chain.append(step("end").options(depends_on=["999"], on_dependency_failure="run"))
    handles = await queue.enqueue_many(chain, user_id="anna")
    await handles[0].cancel()
    assert 200 < (await queue.stats()).canceled <= 501
    if end == "finished":
        async with Worker(queue, poll_interval=60):
            await handles[-1].result(20)
    else:
        await serve(queue)
    assert ran == ["end"]
    assert (await queue.stats()).canceled == 1000


async def informed_by(queue: TaskQueue, step_: object) -> int:
    before = (await queue.stats()).deferred
    await step_
    return before - (await queue.stats()).deferred


@pytest.mark.parametrize("policy", ["run", "cancel", "wait", "wait on"])
async def test_a_fan_out_is_passed_on_in_bounded_steps(queue: TaskQueue, server, policy):
    first = await queue.enqueue(step("first"), user_id="anna", task_id="a")
    made = step("next").options(depends_on=["a"], on_dependency_failure=policy.removesuffix(" on"))
    made = made.options(allow_unknown=policy == "wait on")
    handles = await queue.enqueue_many([made] * 3000, user_id="anna")
    store = queue.store()
    steps = [await informed_by(queue, first.cancel())]
    prefix = queue.keys.prefix
    rounds = 0
    while server.execute("EXISTS", f"{prefix}announcements"):
        steps.append(await informed_by(queue, claim(store, want=0)))
        rounds += 1
        assert rounds < 20
    await leave(store)
    assert max(steps) <= 500
    assert sum(steps) == (0 if policy == "wait on" else 3000)
    if policy == "wait on":
        assert len((await first.info()).dependents) == 1000, "as many as are shown"
        again = await queue.enqueue(step("again"), user_id="anna", task_id="a")
        await serve(queue, concurrency=500)
        assert await again.result(20) == "again"
    else:
        await serve(queue, concurrency=500)
    assert ran.count("next") == (3000 if policy in ("run", "wait on") else 0)
    assert (await queue.stats()).deferred == 0
    assert (await handles[0].state()).ended


async def test_a_dependency_that_is_requeued_half_way_through_its_fan_out_keeps_the_rest(queue: TaskQueue):
    first = await queue.enqueue(fail(), user_id="anna", task_id="a")
    made = step("next").options(depends_on=["a"], on_dependency_failure="cancel")
    await queue.enqueue_many([made] * 1200, user_id="anna")
    store = queue.store()
    [delivery] = (await claim(store)).deliveries
    await settle(store, delivery, "failed")
    canceled = (await queue.stats()).canceled
    assert 0 < canceled <= 500
    await queue.requeue(first)
    [delivery] = (await claim(store)).deliveries
    await settle(store, delivery, "finished")
    await leave(store)
    await serve(queue, concurrency=500)
    assert ran.count("next") == 1200 - canceled
    assert (await queue.stats()).deferred == 0


async def test_no_script_does_much_at_once_for_a_fan_out(own_server):
    url = own_server().url
    async with TaskQueue(url) as queue:
        first = await queue.enqueue(step("first"), user_id="anna")
        await queue.enqueue_many([step("next").options(depends_on=[first])] * 3000, user_id="anna")
        with script_steps(url) as steps:
            await serve(queue, concurrency=100)
    assert len(ran) == 3001
    assert max(steps) < 6000  # a hundred that end, a hundred that start, and five hundred links; all at once are 12,000


# What the tests use


async def is_in(handle, state: TaskState) -> bool:
    return await handle.state() is state


async def is_forgotten(handle) -> bool:
    try:
        await handle.state()
    except LookupError:
        return True
    return False


async def leave(store) -> None:
    await store.leave("w", [])
    await store.close()


async def claim(store, want: int = 1):
    return await store.claim(
        "w",
        want,
        settings=QueueSettings(lease_ms=60_000),
        wait=False,
    )


async def settle(store, delivery, kind: str = "finished") -> None:
    answers = await store.settle(
        "w",
        [outcome(delivery, kind)],
    )
    assert answers == [True]
