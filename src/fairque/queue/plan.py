"""A graph of tasks made ready to be sent: an id for each, what each waits for, and the order."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

from fairque.checks import check_id
from fairque.errors import DependencyError, InvalidInput
from fairque.queue.producer import Producer, user_of
from fairque.redis.delivery import NewTask
from fairque.tasks.child import Parent
from fairque.tasks.message import new_nonce
from fairque.tasks.pipeline import Composable, Pipeline
from fairque.tasks.task import Task, check_upstream

__all__ = ["MAX_TASKS", "PipelinePlan", "child_of", "dependency_ids"]

MAX_TASKS = 1000
# For outputs in a queue that keeps no results. While a task waits for it, a result is kept longer in any case.
OUTPUT_TTL = 60.0


class PipelinePlan:
    """One run of a pipeline.

    Args:
        producer: Makes the messages.
        pipeline: What runs.
        changed: Its tasks as they are sent, in its order: with other options, where a middleware said so.
        user_id: Whose run it is; None: the tasks say so.
        keeps_results: Whether the queue does, unless a task says otherwise.
        run_id: Of a run that its parent may put in again.
        parent: The task that puts it in.

    Attributes:
        run_id: Else fresh for each run; the id of each task is this, a dot, and its name in the pipeline.
        user_id: Whose tasks they are.
        names: Name in the pipeline by node.
        tasks: What is sent, dependencies first.
    """

    def __init__(
        self,
        producer: Producer,
        pipeline: Pipeline,
        changed: Sequence[Task[Any]],
        user_id: str | None,
        *,
        keeps_results: bool = True,
        run_id: str | None = None,
        parent: Parent | None = None,
    ) -> None:
        nodes = cast("tuple[Task[Any], ...]", pipeline.nodes)
        if not 1 <= len(nodes) <= MAX_TASKS:
            raise InvalidInput(f"a pipeline has 1 to {MAX_TASKS} tasks, not {len(nodes)}: it is added in one step")
        self.run_id = run_id if run_id is not None else os.urandom(8).hex()
        self.user_id = _one_user(changed, user_id)
        self.names: Mapping[Composable, str] = pipeline.names()
        ids = {node: check_id("task_id", f"{self.run_id}.{self.names[node]}") for node in nodes}
        nonce = new_nonce()
        sources = {source for node in nodes for source in node.upstream}
        to_keep = set() if keeps_results else sources
        check_upstream(tuple(sent for node, sent in zip(nodes, changed, strict=True) if node in sources))
        self.tasks: list[NewTask] = []
        for node, sent in zip(nodes, changed, strict=True):
            if sent.task_options.condition is not None:
                raise InvalidInput(f"{node!r} in a pipeline: another task cannot stand for a step of a run")
            needs = [ids[cast("Task[Any]", needed)] for needed in pipeline.dependencies(node)]
            needs += dependency_ids(sent.task_options.depends_on, self.user_id, ids)
            inputs = [ids[source] for source in node.upstream]
            is_lost = node in to_keep and sent.task_options.result_ttl is None
            made = producer.make(
                sent.options(result_ttl=OUTPUT_TTL) if is_lost else sent,
                self.user_id,
                nonce,
                task_id=ids[node],
                depends_on=list(dict.fromkeys(needs)),
                inputs=inputs,
                parent=parent.task_id if parent is not None else "",
            )
            self.tasks.append(child_of(made, parent))


def child_of(new: NewTask, parent: Parent | None) -> NewTask:
    if parent is None:
        return new
    return new._replace(adder=parent.task_id, parent=parent.task_id, with_parent=parent.cancels)


def dependency_ids(depends_on: tuple[Any, ...], user_id: str, ids: Mapping[Task[Any], str]) -> list[str]:
    """The ids of what was given as ids, handles or tasks; `ids` knows tasks that are added by this call."""
    return [_dependency_id(entry, user_id, ids) for entry in depends_on]


def _dependency_id(entry: Any, user_id: str, ids: Mapping[Task[Any], str]) -> str:
    if isinstance(entry, str):
        return check_id("an entry of depends_on", entry)
    if isinstance(entry, Task):
        return ids.get(entry) or _id_of_task(entry, user_id)
    owner, task_id = getattr(entry, "user_id", None), getattr(entry, "task_id", None)
    if not isinstance(task_id, str):
        raise DependencyError(f"depends_on takes ids, handles and tasks, not {entry!r}")
    if owner != user_id:
        raise _foreign(task_id, owner, user_id)
    return task_id


def _id_of_task(task: Task[Any], user_id: str) -> str:
    task_id, owner = task.task_options.task_id, task.task_options.user_id
    if owner not in (None, user_id):
        raise _foreign(task_id or task.name, owner, user_id)
    if task_id is None:
        raise DependencyError(f"{task!r} has no task_id yet: enqueue it first, in the same call, or in a pipeline")
    return task_id


def _foreign(task_id: str, owner: object, user_id: str) -> DependencyError:
    return DependencyError(f"task {task_id!r} belongs to user {owner!r}: a task of {user_id!r} cannot wait for it")


def _one_user(nodes: Sequence[Task[Any]], user_id: str | None) -> str:
    """What `enqueue` was told, else what the tasks say: those that say nothing go with the others."""
    named = [node for node in nodes if node.task_options.user_id is not None]
    users = {user_of(node, user_id) for node in named or nodes[:1]}
    if len(users) > 1:
        raise InvalidInput(f"the tasks of a pipeline belong to one user, not to {', '.join(sorted(users))}")
    return users.pop()
