"""fairque: a multi-tenant fair task queue on Redis Streams."""

from fairque.context import TaskContext, current_task
from fairque.dead_letters import DeadLetter
from fairque.errors import (
    BadArguments,
    ConfigError,
    DependencyError,
    DuplicateTask,
    FairqueError,
    InvalidInput,
    MessageTooLarge,
    QueueUnavailable,
    ResultNotKept,
    ResultTimeout,
    Retry,
    StoreError,
    TaskCanceled,
    TaskEnded,
    TaskFailed,
    UnknownTask,
    XComMissing,
)
from fairque.executor import TaskHandler
from fairque.failure import Failure
from fairque.handle import (
    Cancellation,
    TaskHandle,
)
from fairque.hooks import TaskEvent
from fairque.models import (
    Attempt,
    FailureKind,
    Priority,
    QueueStats,
    TaskInfo,
    TaskState,
    UserInfo,
    WorkerInfo,
)
from fairque.pipeline import Pipeline, parallel, sequential
from fairque.pipeline_handle import PipelineHandle, PipelineState
from fairque.purge import Purged
from fairque.queue import TaskQueue
from fairque.retry import RetryPolicy
from fairque.task import (
    Task,
    TaskFunction,
    task,
    xcom_task,
)
from fairque.task_options import TaskOptions
from fairque.version import __version__
from fairque.worker import Worker
from fairque.xcom import BlockingXCom, XCom, XComManager

__all__ = [
    "Attempt",
    "BadArguments",
    "BlockingXCom",
    "Cancellation",
    "ConfigError",
    "DeadLetter",
    "DependencyError",
    "DuplicateTask",
    "Failure",
    "FailureKind",
    "FairqueError",
    "InvalidInput",
    "MessageTooLarge",
    "Pipeline",
    "PipelineHandle",
    "PipelineState",
    "Priority",
    "Purged",
    "QueueStats",
    "QueueUnavailable",
    "ResultNotKept",
    "ResultTimeout",
    "Retry",
    "RetryPolicy",
    "StoreError",
    "Task",
    "TaskCanceled",
    "TaskContext",
    "TaskEnded",
    "TaskEvent",
    "TaskFailed",
    "TaskFunction",
    "TaskHandle",
    "TaskHandler",
    "TaskInfo",
    "TaskOptions",
    "TaskQueue",
    "TaskState",
    "UnknownTask",
    "UserInfo",
    "Worker",
    "WorkerInfo",
    "XCom",
    "XComManager",
    "XComMissing",
    "__version__",
    "current_task",
    "parallel",
    "sequential",
    "task",
    "xcom_task",
]
