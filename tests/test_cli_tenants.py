"""The commands of the tenant controls, on a real queue."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fairque import (
    EVERYBODY,
    Breaker,
    ConfigError,
    FairQueueConfig,
    LimitInfo,
    Policy,
    Rate,
    Share,
    TaskQueue,
    Worker,
    current_task,
    task,
)
from fairque.config.policies import GroupConfig, LimitConfig, PolicyConfig
from fairque.queue.shares import MOST_BEHIND
from fairque.queue.user_status import UserStatus
from fairque.tasks.registry import unregister
from tests.apps.served import greet, nap
from tests.support.command import Ended, Run, call_command
from tests.support.eventually import eventually
from tests.support.process import ROOT, WorkerProcess
from tests.support.servers import Server
from tests.test_cli_reading import ODD_USER

pytestmark = pytest.mark.leaves_keys

POLICIES = """
[[policies]]
user = "*"
max_running = 20
rate = "100/m burst 20"

[[policies]]
user = "acme"
weight = 2
group = "gold"
breaker = "5/1m/30s"

[[groups]]
name = "gold"
weight = 3.5

[[limits]]
key = "call_api"
max_running = 5
"""


@task
async def use(tokens: float) -> None:
    current_task().charge(tokens)


@task
async def break_down() -> None:
    raise ValueError


@pytest.fixture
def run(server: Server, queue_name: str) -> Run:
    """Run a command on the queue of the test."""

    async def on_queue(*arguments: str) -> Ended:
        return await call_command(*arguments, f"--url={server.url}", f"--queue={queue_name}")

    return on_queue


@pytest.fixture
async def ruled(queue: TaskQueue) -> TaskQueue:
    """A queue with rules of every kind."""
    await queue.set_policy(EVERYBODY, max_running=4, rate="100/m burst 20")
    await queue.set_policy("acme", weight=2, group="gold", breaker=Breaker(5, window=60, cooldown=30))
    await queue.set_policy(ODD_USER, weight=0.5, max_queued=7, overflow="drop_oldest")
    await queue.pause("sleepy")
    await queue.set_group("gold", weight=3)
    await queue.set_limit("call_api", max_running=5, rate="100/m")
    return queue


def said(shown: Ended, *lines: str) -> None:
    """Each pattern is a whole line of the output."""
    assert (shown.code, shown.err) == (0, "")
    for line in lines:
        assert re.search(f"^{line} *$", shown.out, re.MULTILINE), (line, shown.out)


def refused(ended: Ended, error: str, hint: str = "") -> None:
    assert (ended.code, ended.out) == (2, "")
    first, second = ended.err.splitlines()
    assert first.startswith("error: ")
    assert error in first
    assert second.startswith("hint: ")
    assert hint in second


# policy show


@pytest.mark.usefixtures("ruled")
async def test_policy_show_lists_all_that_was_set(run: Run) -> None:
    shown = await run("policy", "show")
    said(
        shown,
        r"user +rules",
        r"\* +max running 4, rate 100/m burst 20",
        r"acme +weight 2, group gold, breaker 5 failures in 60 s: 30 s of rest",
        rf"{re.escape(repr(ODD_USER))} +weight 0.5, max queued 7, overflow drop_oldest",
        r"sleepy +paused yes",
        r"group +weight",
        r"gold +3",
        r"limit +of +running +max running +rate +set by",
        r"call_api +all +0 +5 +100/m +hand",
    )
    assert "\x1b" not in shown.out


async def test_policy_show_says_the_same_as_json(run: Run, ruled: TaskQueue) -> None:
    found = (await run("policy", "show", "--json")).json
    assert msgspec.convert(found["default"], Policy) == await ruled.get_policy(EVERYBODY)
    assert {name: msgspec.convert(own, Policy) for name, own in found["users"].items()} == await ruled.policies()
    assert set(found["users"]) == {"acme", "sleepy", ODD_USER}
    assert found["groups"] == {"gold": 3}
    assert msgspec.convert(found["limits"], list[LimitInfo]) == await ruled.limits()
    assert found["has_more"] is False


async def test_policy_show_of_a_user_says_where_each_rule_comes_from(run: Run, ruled: TaskQueue) -> None:
    said(
        await run("policy", "show", "acme"),
        r"user +acme",
        r"weight +2 +its own",
        r"max running +4 +\*",
        r"rate +100/m burst 20 +\*",
        r"group +gold +its own",
        r"breaker +5 failures in 60 s: 30 s of rest +its own",
        r"weight of the group +3 +the group",
    )
    found = (await run("policy", "show", "acme", "--json")).json
    assert msgspec.convert(found["policy"], Policy) == await ruled.get_policy("acme")
    assert msgspec.convert(found["own"], Policy) == await ruled.get_policy("acme", defaults=False)
    assert (found["user_id"], found["group_weight"]) == ("acme", 3)


@pytest.mark.usefixtures("begun")
async def test_policy_show_without_any_rules_says_so(run: Run, server: Server, queue_name: str) -> None:
    before = server.keys(queue_name)
    said(await run("policy", "show", "nobody"), "no limits, a weight of 1")
    said(await run("policy", "show"), r"user +rules", r"\* +-")
    assert server.keys(queue_name) == before, "looking writes nothing"


async def test_policy_show_lists_as_many_as_asked_for(run: Run, queue: TaskQueue) -> None:
    for at in range(5):
        await queue.set_policy(f"user-{at}", weight=2)
    shown = await run("policy", "show", "--limit=3")
    assert (shown.code, shown.err) == (0, "there are more: see --limit\n")
    found = (await run("policy", "show", "--limit=3", "--json")).json
    assert (sorted(found["users"]), found["has_more"]) == (["user-0", "user-1", "user-2"], True)
    assert (await run("policy", "show", "--limit=5", "--json")).json["has_more"] is False


async def test_policies_are_listed_page_by_page(queue: TaskQueue) -> None:
    users = ["a", "a b", "é", "z", ODD_USER]
    for user in users:
        await queue.set_policy(user, weight=2)
    found: list[str] = []
    while page := await queue.policies(limit=2, after=found[-1] if found else ""):
        found += page
    assert sorted(found) == sorted(users)
    await queue.clear_policy("a b")
    await queue.purge("z")
    assert set(await queue.policies()) == {"a", "é", ODD_USER}
    await queue.set_group("one", weight=2)
    await queue.set_group("two", weight=3)
    assert await queue.groups(limit=1, after="one") == {"two": 3}
    await queue.set_limit("first", max_running=1)
    await queue.set_limit("second", rate="7/s burst 3")
    [first] = await queue.limits(limit=1)
    assert await queue.limits(after=first) == [LimitInfo(key="second", rate=Rate(7, burst=3), running=0)]
    await queue.clear_limit("second")
    assert await queue.limits() == [first]


# policy set, clear, group; limits


async def test_policy_set_changes_what_is_named_and_leaves_the_rest(run: Run, ruled: TaskQueue) -> None:
    said(
        await run(
            "policy", "set", "acme", "--max-running=7", "--max-share=0.8", "--min-running=2", "--rate=9/s burst 20"
        ),
        r"weight +2 +its own",
        r"max running +7 +its own",
        r"max share +0.8 +its own",
        r"min running +2 +its own",
        r"rate +9/s burst 20 +its own",
    )
    found = await ruled.get_policy("acme", defaults=False)
    assert (found.weight, found.max_running, found.max_share, found.min_running) == (2, 7, 0.8, 2)
    assert found.rate == Rate(9, burst=20)


async def test_policy_set_forgets_fields(run: Run, ruled: TaskQueue) -> None:
    set_ = await run("policy", "set", "acme", "--unset=weight", "--unset=max-running", "--breaker=3/1m/5", "--json")
    assert set_.json["own"]["weight"] is None
    found = await ruled.get_policy("acme", defaults=False)
    assert found == Policy(group="gold", breaker=Breaker(3, window=60, cooldown=5))


@pytest.mark.parametrize("user", [ODD_USER, "a: *b%", "\U0001f40d"])
async def test_ids_are_taken_and_shown_literally(run: Run, queue: TaskQueue, user: str) -> None:
    literal = user if user.isprintable() else repr(user)
    shown = await run("policy", "set", user, "--max-queued=9", "--overflow=drop_oldest", "--group=[b]plan")
    said(shown, rf"user +{re.escape(literal)}", r"group +\[b\]plan +its own")
    assert await queue.get_policy(user) == Policy(max_queued=9, overflow="drop_oldest", group="[b]plan")
    said(await run("usage", user, "--since=1h"), "total .*")
    said(await run("explain", user), rf"user +{re.escape(literal)}", "state +nothing waits for its turn")


async def test_policy_clear_forgets_all(run: Run, ruled: TaskQueue) -> None:
    said(await run("policy", "clear", "acme"), r"max running +4 +\*")
    assert await ruled.get_policy("acme", defaults=False) == Policy()
    assert (await run("policy", "clear", "*", "--json")).json["policy"]["max_running"] is None
    assert await ruled.get_policy(EVERYBODY) == Policy()


async def test_policy_group_shows_and_changes_a_weight(run: Run, ruled: TaskQueue) -> None:
    said(await run("policy", "group", "gold"), "group +gold", "weight +3")
    said(await run("policy", "group", "gold", "--weight=4.5"), "weight +4.5")
    assert await ruled.get_group("gold") == 4.5
    assert (await run("policy", "group", "gold", "--clear", "--json")).json == {"group": "gold", "weight": 1}
    assert await ruled.groups() == {}


async def test_limits_are_set_listed_and_cleared(run: Run, begun: TaskQueue) -> None:
    queue = begun
    said(await run("limits", "list"), "no limits")
    said(await run("limits", "set", "call", "--max-running=5", "--rate=100/m"), "limit +call", "rate +100/m")
    assert await queue.limits() == [LimitInfo(key="call", max_running=5, rate=Rate(100, per=60), running=0)]
    changed = await run("limits", "set", "call", "--max-running=6", "--json")
    assert changed.json == {"limit": "call", "max_running": 6, "rate": None}
    said(await run("limits", "set", "crm:{customer}", "--max-running=2", f"--user={ODD_USER}"), "max running +2")
    said(await run("limits", "set", "each", "--rate=1/h", "--each-user"))
    said(
        await run("limits", "list"),
        r"limit +of +running +max running +rate +set by",
        r"call +all +0 +6 +- +hand",
        rf"crm:{{customer}} +{re.escape(repr(ODD_USER))} +- +2 +- +hand",
        r"each +each user +- +- +1/h +hand",
    )
    found = msgspec.convert((await run("limits", "list", "--json")).json, list[LimitInfo])
    assert found == await queue.limits()
    shown = await run("limits", "list", "--limit=1")
    assert (shown.code, shown.err) == (0, "there are more: see --limit\n")
    said(await run("limits", "set", "call", "--unlimited"), "max running +-", "rate +-")
    assert LimitInfo(key="call", running=0) in await queue.limits()
    said(await run("limits", "clear", "call"), "limit +call", "cleared +yes")
    said(await run("limits", "clear", "crm:{customer}", f"--user={ODD_USER}"))
    assert (await run("limits", "clear", "each", "--each-user", "--json")).json == {"limit": "each", "cleared": True}
    assert await queue.limits() == []


async def test_limits_in_code_are_shown_as_such(run: Run, queue: TaskQueue) -> None:
    @task(name="limited in code", max_running=2)
    async def limited() -> None: ...

    try:
        await Worker(queue).run_until_idle()
    finally:
        unregister("limited in code")
    said(await run("policy", "show"), "limited in code +all +0 +2 +- +code")


@pytest.mark.parametrize(
    ("command", "error", "hint"),
    [
        ("set acme", "nothing to change", "policy set --help"),
        ("set acme --weight=0", "weight must be a number from 1e-06 to 1000000, not 0.0", "change that value"),
        ("set acme --weight=much", "Invalid value for '--weight'", "policy set --help"),
        ("set acme --rate=fast", "'100/m' with s, m, h or d, not 'fast'", ""),
        ("set acme --overflow=drop", "overflow must be 'reject' or 'drop_oldest', not 'drop'", ""),
        ("set acme --breaker=5/60", "'5/60s/30s', not '5/60'", ""),
        ("set acme --unset=wait", "a policy has no field 'wait'", "there are weight, max_running"),
        ("set acme --unset=weight --weight=2", "'weight' is set and forgotten at once", "leave one out"),
        ("set * --group=gold", "not everybody can be in one group", ""),
        ("group gold --weight=1 --clear", "exclude each other", "leave one out"),
        ("show --limit=0", "--limit", ""),
    ],
)
async def test_what_cannot_be_is_refused_and_writes_nothing(
    run: Run, server: Server, queue_name: str, command: str, error: str, hint: str
) -> None:
    refused(await run("policy", *command.split()), error, hint)
    assert server.keys(queue_name) == []


@pytest.mark.parametrize(
    ("command", "error", "hint"),
    [
        ("set call", "nothing to change", "--unlimited, or --max-running"),
        ("set call --unlimited --rate=5/s", "--unlimited lifts the limit", "either --unlimited"),
        ("set call --max-running=0", "max_running must be a whole number from 1", ""),
        ("list --limit=0", "--limit", ""),
    ],
)
async def test_limits_that_cannot_be_are_refused(
    run: Run, server: Server, queue_name: str, command: str, error: str, hint: str
) -> None:
    refused(await run("limits", *command.split()), error, hint)
    assert server.keys(queue_name) == []


# policy apply, and the configuration


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


async def apply(server: Server, queue_name: str, *arguments: str) -> Ended:
    return await call_command("policy", "apply", *arguments, f"--url={server.url}", f"--queue={queue_name}")


async def test_policy_apply_sets_what_a_file_says_and_nothing_else(
    server: Server, queue: TaskQueue, queue_name: str, tmp_path: Path
) -> None:
    await queue.set_policy("acme", max_queued=9, weight=7)
    await queue.set_policy("other", weight=3)
    await queue.pause("acme")
    file = write(tmp_path / "rules.toml", POLICIES)
    for _ in range(2):
        said(await apply(server, queue_name, file), "policies +2", "groups +1", "limits +1")
        breaker = Breaker(5, window=60, cooldown=30)
        assert await queue.policies() == {
            "acme": Policy(weight=2, group="gold", breaker=breaker, max_queued=9, paused=True),
            "other": Policy(weight=3),
        }
        assert await queue.get_policy(EVERYBODY) == Policy(max_running=20, rate=Rate(100, per=60, burst=20))
        assert await queue.groups() == {"gold": 3.5}
        assert await queue.limits() == [LimitInfo(key="call_api", max_running=5, running=0)]
    counted = await apply(server, queue_name, file, "--json")
    assert counted.json == {"policies": 2, "groups": 1, "limits": 1}


async def test_what_holds_already_is_not_written_again(queue: TaskQueue, server: Server) -> None:
    config = FairQueueConfig(policies=(PolicyConfig(user="*", max_running=20, rate="9/s"),))
    await queue.apply_policies(config)
    key = f"fairque:{{{queue.name}}}:state"
    assert server.execute("HEXISTS", key, "sweep") == 1, "a change of the default is brought to those who wait"
    await queue.enqueue(greet("x"), user_id="acme")
    await Worker(queue).run_until_idle()
    assert server.execute("HEXISTS", key, "sweep") == 0
    await queue.apply_policies(config)
    assert server.execute("HEXISTS", key, "sweep") == 0


async def test_a_worker_sets_the_policies_of_its_configuration_when_it_starts(
    server: Server,
    queue: TaskQueue,
    queue_name: str,
    worker_process: Callable[..., Awaitable[WorkerProcess]],
    tmp_path: Path,
) -> None:
    head = f'redis.url = "{server.url}"\nqueue.name = "{queue_name}"\n'
    file = write(tmp_path / "all.toml", head + POLICIES)
    worker = await worker_process("fairque", "worker", "tests.apps.served", f"--config={file}")
    await worker.line("serves queue")
    assert await queue.groups() == {"gold": 3.5}
    assert (await queue.get_policy("acme")).max_running == 20


async def test_a_file_that_is_wrong_is_told_line_by_line_and_nothing_is_set(
    server: Server, queue_name: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "bad.toml", POLICIES + '[[policies]]\nuser = "other"\nwait = 1\n')
    refused(
        await apply(server, queue_name, file), "policies[2].wait: unknown key; did you mean 'weight'?", "config check"
    )
    assert server.keys(queue_name) == []


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"policies": [{"weight": 1}]}, "policies[0].user: user must not be empty"),
        ({"policies": [{"user": "a"}]}, "policies[0].user: there is no rule for it"),
        ({"policies": [{"user": "*", "group": "x"}]}, "policies[0].group: not everybody can be in one group"),
        ({"policies": [{"user": "a", "rate": "fast"}]}, "policies[0].rate: a rate is"),
        ({"policies": [{"user": "a", "breaker": "5"}]}, "policies[0].breaker: breaker must be"),
        ({"policies": [{"user": "a", "paused": True}]}, "policies[0].paused: unknown key"),
        ({"policies": [{"user": "a", "weight": "2m"}]}, "policies[0].weight: expected a number from 1e-06 to 1000000"),
        ({"policies": [{"user": "a", "max_running": 0}]}, "policies[0].max_running: expected a whole number from 1"),
        ({"policies": [{"user": "a", "weight": 1}] * 2}, "policies: 2 entries are about 'a'"),
        ({"groups": [{"name": "g", "weight": 1}] * 2}, "groups: 2 entries are about 'g'"),
        ({"groups": [{"name": "g"}]}, "groups[0].name: there is no rule for it"),
        ({"limits": [{"max_running": 1}]}, "limits[0].key: key must not be empty"),
    ],
)
def test_rules_that_cannot_be_are_named_with_their_place(data: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FairQueueConfig.from_dict(data, environ={})
    assert str(caught.value).startswith(problem)


def test_rules_come_from_variables_and_come_back_from_a_dict() -> None:
    environ = {"FAIRQUE_POLICIES_0_USER": "acme", "FAIRQUE_POLICIES_0_WEIGHT": "2.5", "FAIRQUE_GROUPS_0_NAME": "g"}
    config = FairQueueConfig.from_dict({}, environ={**environ, "FAIRQUE_GROUPS_0_WEIGHT": "3"})
    assert config.policies == (PolicyConfig(user="acme", weight=2.5),)
    assert config.groups == (GroupConfig(name="g", weight=3),)
    assert FairQueueConfig.from_dict(config.to_dict(), environ={}) == config
    with pytest.raises(ConfigError, match=r"FAIRQUE_POLICIES_0_WEIGHT: policies\[0\]\.weight: expected a number"):
        FairQueueConfig.from_dict({}, environ={**environ, "FAIRQUE_POLICIES_0_WEIGHT": "1h"})


def test_the_rules_that_fairque_yaml_suggests_are_good_ones(tmp_path: Path) -> None:
    _, rules = (ROOT / "config" / "fairque.yaml").read_text().split("\npolicies:\n")
    file = write(tmp_path / "rules.yaml", "policies:\n" + re.sub("^# (?=- |  )", "", rules, flags=re.MULTILINE))
    config = FairQueueConfig.from_yaml(file, environ={})
    assert {policy.user for policy in config.policies} == {"*", "acme"}
    shown = {field for policy in config.policies for field in policy.rules()}
    assert shown == set(PolicyConfig.__struct_fields__) - {"user"}
    assert config.groups == (GroupConfig(name="gold", weight=3),)
    assert config.limits == (LimitConfig(key="call_api", max_running=5, rate="100/m"),)


async def test_config_check_shows_the_rules_that_are_given(tmp_path: Path) -> None:
    file = write(tmp_path / "rules.toml", POLICIES)
    shown = await call_command("config", "check", file)
    assert (shown.code, shown.err) == (0, "")
    lines = [line.split()[:2] for line in shown.out.splitlines() if line.startswith(("policies", "groups", "limits"))]
    assert ["policies[1].weight", "2"] in lines
    assert ["groups[0].weight", "3.5"] in lines
    assert ["policies[1].breaker", "5/1m/30s"] in lines
    assert len(lines) == 3 + 4 + 2 + 2


# usage


@pytest.fixture
async def used(queue: TaskQueue) -> TaskQueue:
    """Two users that were served."""
    await queue.enqueue_many([use(250.25), use(1)], user_id="acme")
    await queue.enqueue(use(7), user_id=ODD_USER)
    await Worker(queue).run_until_idle()
    return queue


async def test_usage_is_told_hour_by_hour_with_a_total(run: Run, used: TaskQueue) -> None:
    [hour] = await used.usage("acme")
    start = re.escape(f"{hour.start:%Y-%m-%d %H:%M}")
    shown = await run("usage", "acme", ODD_USER, "--since=12h")
    said(
        shown,
        r"user +hour \(UTC\) +tasks +cost +busy",
        rf"acme +{start} +2 +253.25 +\d.*s",
        rf"{re.escape(repr(ODD_USER))} +{start} +1 +8 +\d.*s",
        r"total +3 +261.25 +\d.*s",
    )


async def test_usage_without_a_user_is_that_of_all_together(run: Run, used: TaskQueue) -> None:
    found = (await run("usage", "--json")).json
    assert {hour["user_id"] for hour in found} == {"*"}
    assert sum(hour["tasks"] for hour in found) == 3
    assert sum(hour["cost"] for hour in found) == 261.25
    assert datetime.fromisoformat(found[0]["start"]) == (await used.usage(EVERYBODY))[0].start


async def test_usage_as_csv_can_be_read_back(run: Run, used: TaskQueue) -> None:
    ended = await run("usage", ODD_USER, "acme", "--csv")
    assert ended.code == 0
    rows = list(csv.DictReader(io.StringIO(ended.out, newline="")))
    expected = [(user, hour) for user in (ODD_USER, "acme") for hour in await used.usage(user)]
    assert [row["user_id"] for row in rows] == [user for user, _ in expected]
    for row, (_, hour) in zip(rows, expected, strict=True):
        assert datetime.fromisoformat(row["start"]) == hour.start
        assert (int(row["tasks"]), float(row["cost"])) == (hour.tasks, hour.cost)
        assert float(row["busy_seconds"]) == hour.busy_seconds


@pytest.mark.usefixtures("used")
async def test_usage_begins_where_it_is_told(run: Run) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert (await run("usage", "--json", f"--since={tomorrow.isoformat()}")).json == []
    assert (await run("usage", "--json", f"--since={tomorrow:%Y-%m-%d}", "--csv")).code == 2
    assert len((await run("usage", "--json", "--since=99999d")).json) in (1, 2)
    refused(await run("usage", "--since=2026"), "--since '2026' is not a date and time", "2030-01-31T09:00")
    refused(await run("usage", "--csv", "--json"), "exclude each other")


# explain


async def test_explain_tells_why_the_next_task_waits(run: Run, ruled: TaskQueue) -> None:
    await ruled.pause(ODD_USER, until=datetime.now(UTC) + timedelta(hours=3))
    await ruled.enqueue_many([greet("x").options(task_id=name) for name in ("[i]first\x07", "last")], user_id=ODD_USER)
    shown = await run("explain", ODD_USER)
    said(
        shown,
        rf"user +{re.escape(repr(ODD_USER))}",
        r"task +'\[i\]first\\x07'",
        r"state +queued",
        r"because +its user is paused for another (3 h|1\d\d(\.\d)? m), \d{4}-\d\d-\d\d .*",
        r"and +no worker runs that serves its user",
        r"ahead of it +0 of its own user, 0 of others",
        r"starts in +cannot be told",
        r"its user +0 started, 2 queued, weight 0.5",
    )
    found = (await run("explain", ODD_USER, "last", "--json")).json
    assert (found["task_id"], found["ahead_own"], found["starts_in"]) == ("last", 1, None)
    assert {held["reason"] for held in found["waiting"]} == {"paused", "no-worker"}


async def test_explain_of_what_runs_waits_for_others_or_has_ended_says_where_it_is(run: Run, queue: TaskQueue) -> None:
    await queue.enqueue(greet("x"), user_id="acme", task_id="done")
    await Worker(queue).run_until_idle()
    async with Worker(queue, worker_id="w 1", shutdown_timeout=0):
        runs = await queue.enqueue(nap(600), user_id="acme", task_id="runs")
        await queue.enqueue(greet("x"), user_id="acme", task_id="kept", depends_on=[runs])
        await eventually(lambda: is_running(queue))
        said(await run("explain", "acme", "runs"), r"state +started", r"worker +w 1", r"its user +1 started, .*")
        said(await run("explain", "acme", "kept"), r"state +deferred", r"waits for +runs")
        said(await run("explain", "acme", "done"), r"state +finished")


async def is_running(queue: TaskQueue) -> bool:
    return (await queue.user("acme")).started == 1


@pytest.mark.usefixtures("begun")
async def test_explain_of_an_unknown_task_is_4(run: Run) -> None:
    ended = await run("explain", "acme", "never")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err.startswith("error: user 'acme' has no task 'never', or its result has expired\nhint: ")


# demand


async def test_demand_says_how_many_slots_it_takes(run: Run, queue: TaskQueue) -> None:
    await queue.enqueue_many([nap(0.2)] * 3, user_id="acme")
    await Worker(queue).run_until_idle()
    await queue.enqueue_many([nap(0.2)] * 100, user_id="acme")
    found = (await run("demand", "--target-wait=2", "--json")).json
    assert (found["backlog"], found["running"], found["slots"], found["wait_seconds"]) == (100, 0, 0, None)
    assert found["work_seconds"] == pytest.approx(100 * found["run_seconds"])
    assert found["slots_needed"] >= 10
    said(
        await run("demand", "--target-wait=2"),
        r"backlog +100 tasks, \d.* of work",
        r"slots +0, 0 in use, 0 ms of work left in them",
        r"wait with these +-",
        r"slots needed +\d+ for a wait of 2 s",
    )
    refused(await run("demand", "--target-wait=0"), "--target-wait")


# What the reading commands say of tenants


@pytest.fixture
async def crowd(queue: TaskQueue) -> AsyncIterator[TaskQueue]:
    """A user for each thing that holds one back."""
    await queue.set_policy("broken", breaker=Breaker(failures=1, cooldown=3600))
    await queue.set_policy("fast", rate="1/h")
    await queue.set_policy("full", max_running=1)
    await queue.pause("sleepy")
    await queue.pause("awake", until=datetime.now(UTC) - timedelta(hours=1))
    await queue.enqueue(break_down(), user_id="broken")
    await Worker(queue).run_until_idle()
    for user in ("broken", "fast", "full", "sleepy"):
        await queue.enqueue_many([nap(600), nap(600)], user_id=user)
    await queue.enqueue(nap(600), user_id="awake")
    async with Worker(queue, concurrency=9, shutdown_timeout=0):
        await eventually(lambda: are_running(queue, 3))
        yield queue


async def are_running(queue: TaskQueue, tasks: int) -> bool:
    return (await queue.stats()).started == tasks


@pytest.mark.usefixtures("crowd")
async def test_what_holds_users_back_is_flagged(run: Run) -> None:
    wanted = {"broken": ["breaker"], "fast": ["rate"], "full": ["limit"], "sleepy": ["paused"], "awake": []}
    found = (await run("users", "--json")).json
    assert {user["user_id"]: sorted(set(user["flags"]) - {"noisy"}) for user in found} == wanted
    rows = (await run("top", "--once", "--interval=0.1", "--json")).json["rows"]
    assert {row["user"]["user_id"]: sorted(set(row["flags"]) - {"noisy"}) for row in rows} == wanted
    for command in (["users"], ["info"], ["top", "--once", "--interval=0.1"]):
        said(await run(*command), *(rf"{user} .* {flags[0]}(, noisy)?" for user, flags in wanted.items() if flags))
    said(await run("user", "full"), r"flags +limit(, noisy)?", r"policy: max_running +1")
    said(await run("user", "broken"), r"flags +breaker(, noisy)?", r"policy: breaker +1 failure in 60 s: .*")


async def test_shares_are_held_against_what_users_are_entitled_to(run: Run, queue: TaskQueue) -> None:
    await queue.enqueue_many([greet("x")] * 30, user_id="greedy")
    await Worker(queue).run_until_idle()
    await queue.set_policy("patient", weight=3)
    await queue.enqueue_many([greet("x")] * 5, user_id="patient")
    await queue.pause("resting")
    await queue.enqueue(greet("x"), user_id="resting")
    said(
        await run("user", "greedy"),
        r"share lately +100.0%, entitled to 25.0%",
        r"flags +noisy",
        r"cost +30",
        r"busy .*s",
    )
    said(await run("user", "patient"), r"share lately +0.0%, entitled to 75.0%", r"flags +-")
    found = (await run("info", "--json")).json
    assert found["shares"]["jain"] == 0.5
    assert found["statuses"]["greedy"]["flags"] == ["noisy"]
    assert found["demand"]["backlog"] == 6
    said(
        await run("info"),
        r"fairness 0\.50 \(Jain's index\), \d.* of work in the backlog, \d+ slots? (does|do) it in 10 s",
    )
    said(await run("health", "--workers=0"), r"starved +ok +0 users are starved, 1 is noisy")


async def test_who_waits_long_and_gets_little_is_starved(queue: TaskQueue) -> None:
    await queue.enqueue(greet("x"), user_id="acme")
    user = await queue.user("acme")
    starved = Share(user_id="acme", share=0.1, entitled=0.5, verdict="starved")
    for waited, flags in ((MOST_BEHIND - 1, ()), (MOST_BEHIND + 1, ("starved",))):
        waiting = msgspec.structs.replace(user, wait_seconds=waited)
        assert UserStatus.of(waiting, starved, 0.0).flags == flags


async def test_dead_letters_are_counted_by_the_kind_of_their_error(run: Run, queue: TaskQueue) -> None:
    await queue.enqueue_by_name(greet.name, [], user_id="acme")
    await Worker(queue, scheduler=False).run_until_idle()
    [group] = (await run("dead", "groups", "--json")).json["groups"]
    assert (group["kind"], group["count"]) == ("bad-arguments", 1)
    said(await run("dead", "groups", "acme"), r"BadArguments +bad-arguments +1 .*")
    assert not (await run("dead", "groups", "zoe", "--json")).json["groups"]
