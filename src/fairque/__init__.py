"""fairque: a multi-tenant fair task queue on Redis Streams."""

from fairque.config import FairQueueConfig
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
    QueueFull,
    QueueUnavailable,
    ResultNotKept,
    ResultTimeout,
    Retry,
    StoreError,
    TaskCanceled,
    TaskEnded,
    TaskFailed,
    UnknownSchedule,
    UnknownTask,
    XComMissing,
)
from fairque.executor import TaskHandler
from fairque.explain import Certainty, Explanation, Reason, Waiting
from fairque.failure import Failure
from fairque.handle import (
    Cancellation,
    TaskHandle,
)
from fairque.hooks import TaskEvent
from fairque.message import Firing
from fairque.metrics import Metrics, Waits
from fairque.models import (
    Attempt,
    FailureKind,
    Priority,
    QueueHealth,
    QueueStats,
    TaskInfo,
    TaskState,
    UserInfo,
    WorkerInfo,
)
from fairque.pipeline import Pipeline, parallel, sequential
from fairque.pipeline_handle import PipelineHandle, PipelineState
from fairque.policy import Breaker, Policy, Rate, TaskLimit
from fairque.purge import Purged
from fairque.queue import TaskQueue
from fairque.retry import RetryPolicy
from fairque.schedule import ScheduledTask, ScheduleState
from fairque.scheduler import TaskScheduler
from fairque.task import (
    Task,
    TaskFunction,
    task,
    xcom_task,
)
from fairque.task_options import TaskOptions
from fairque.usage import Demand, Share, Shares, UsageHour
from fairque.version import __version__
from fairque.worker import Worker
from fairque.xcom import BlockingXCom, XCom, XComManager

__all__ = [
    "Attempt",
    "BadArguments",
    "BlockingXCom",
    "Breaker",
    "Cancellation",
    "Certainty",
    "ConfigError",
    "DeadLetter",
    "Demand",
    "DependencyError",
    "DuplicateTask",
    "Explanation",
    "Failure",
    "FailureKind",
    "FairQueueConfig",
    "FairqueError",
    "Firing",
    "InvalidInput",
    "MessageTooLarge",
    "Metrics",
    "Pipeline",
    "PipelineHandle",
    "PipelineState",
    "Policy",
    "Priority",
    "Purged",
    "QueueFull",
    "QueueHealth",
    "QueueStats",
    "QueueUnavailable",
    "Rate",
    "Reason",
    "ResultNotKept",
    "ResultTimeout",
    "Retry",
    "RetryPolicy",
    "ScheduleState",
    "ScheduledTask",
    "Share",
    "Shares",
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
    "TaskLimit",
    "TaskOptions",
    "TaskQueue",
    "TaskScheduler",
    "TaskState",
    "UnknownSchedule",
    "UnknownTask",
    "UsageHour",
    "UserInfo",
    "Waiting",
    "Waits",
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
