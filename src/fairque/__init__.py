"""fairque: a multi-tenant fair task queue on Redis Streams."""

import _fairque_command  # noqa: F401 (first: with `python -m fairque worker`, it hears signals while the rest loads)
from fairque.codec.codec import Codec
from fairque.codec.compress import Compress
from fairque.codec.encrypt import Encrypt
from fairque.codec.sign import Sign
from fairque.config.config import FairQueueConfig
from fairque.doctor.finding import Finding, FindingKind, QueueCheck
from fairque.errors import (
    BadArguments,
    BadExport,
    BatchClosed,
    BrokenSeal,
    ConfigError,
    DependencyError,
    DuplicateTask,
    Fail,
    FairqueError,
    InvalidInput,
    MessageTooLarge,
    NotEncodable,
    NotPermitted,
    PipelineBlocked,
    QueueFull,
    QueueUnavailable,
    QuotaExceeded,
    Restarted,
    ResultNotKept,
    ResultTimeout,
    Retry,
    SealError,
    SettingsMismatch,
    Snooze,
    SoftTimeout,
    StoreError,
    TaskCanceled,
    TaskEnded,
    TaskExists,
    TaskFailed,
    UnknownBatch,
    UnknownKey,
    UnknownSchedule,
    UnknownTask,
    UserFrozen,
    WrongType,
    XComMissing,
)
from fairque.everybody import EVERYBODY, Everybody
from fairque.limit import Limit, LimitInfo
from fairque.listed import Listed, ListedByName
from fairque.metrics import Metrics, WaitBucket, Waits
from fairque.middleware import CallNext, RunMiddleware
from fairque.models import (
    Attempt,
    BatchProgress,
    BatchState,
    Enqueued,
    FailureKind,
    Priority,
    QueueHealth,
    QueueStats,
    RunningTask,
    RunningTasks,
    Streamed,
    TaskInfo,
    TaskMoment,
    TaskState,
    UserInfo,
    WorkerInfo,
)
from fairque.policy import Breaker, Policy, Rate
from fairque.queue.batch import Batch, BlockingBatch
from fairque.queue.dead_letters import DeadGroup, DeadGroups, DeadLetter, DeadStep
from fairque.queue.demand import Demand
from fairque.queue.enqueue_call import EnqueueCall, EnqueueMiddleware
from fairque.queue.explanation import Certainty, Explanation, Reason, Waiting
from fairque.queue.firing_door import FiredTask
from fairque.queue.handle import (
    Cancellation,
    TaskHandle,
)
from fairque.queue.health_checks import HealthCheck, Severity
from fairque.queue.overview import Holder, Overview
from fairque.queue.pipeline_handle import PipelineHandle, PipelineState
from fairque.queue.purge import Purged
from fairque.queue.queue import TaskQueue
from fairque.queue.shares import Share, Shares
from fairque.queue.stream import TaskStream
from fairque.queue.task_graph import TaskGraph, TaskLink, TaskNode
from fairque.queue.usage import UsageHour
from fairque.queue.user_page import UserOrder, UserPage
from fairque.queue.user_status import UserStatus
from fairque.queue.user_view import UserView
from fairque.queue.xcom import BlockingXCom, XCom, XComManager
from fairque.schedule.spec import ScheduledTask, ScheduleRun, ScheduleState
from fairque.scheduler.page import SchedulePage, ScheduleView
from fairque.scheduler.schedule import Schedule
from fairque.scheduler.scheduler import TaskScheduler
from fairque.settings import QueueSettings
from fairque.tasks.cause import Cause
from fairque.tasks.collect import Collect
from fairque.tasks.conditions import Debounce, Throttle, Unique
from fairque.tasks.decorator import task
from fairque.tasks.failure import Failure, failure_of
from fairque.tasks.function import TaskFunction
from fairque.tasks.message import Firing
from fairque.tasks.options import TaskOptions
from fairque.tasks.partial import Partial
from fairque.tasks.pipeline import Pipeline, parallel, sequential
from fairque.tasks.retry import RetryPolicy
from fairque.tasks.task import Task
from fairque.tasks.xcom import xcom_task
from fairque.transfer.importing import Imported
from fairque.transfer.moving import Moved
from fairque.version import __version__
from fairque.worker.context import TaskContext, current_task
from fairque.worker.handler import TaskHandler
from fairque.worker.hooks import TaskEvent
from fairque.worker.worker import Worker
from fairque.worker.worker_stats import WorkerStats

__all__ = [
    "EVERYBODY",
    "Attempt",
    "BadArguments",
    "BadExport",
    "Batch",
    "BatchClosed",
    "BatchProgress",
    "BatchState",
    "BlockingBatch",
    "BlockingXCom",
    "Breaker",
    "BrokenSeal",
    "CallNext",
    "Cancellation",
    "Cause",
    "Certainty",
    "Codec",
    "Collect",
    "Compress",
    "ConfigError",
    "DeadGroup",
    "DeadGroups",
    "DeadLetter",
    "DeadStep",
    "Debounce",
    "Demand",
    "DependencyError",
    "DuplicateTask",
    "Encrypt",
    "EnqueueCall",
    "EnqueueMiddleware",
    "Enqueued",
    "Everybody",
    "Explanation",
    "Fail",
    "Failure",
    "FailureKind",
    "FairQueueConfig",
    "FairqueError",
    "Finding",
    "FindingKind",
    "FiredTask",
    "Firing",
    "HealthCheck",
    "Holder",
    "Imported",
    "InvalidInput",
    "Limit",
    "LimitInfo",
    "Listed",
    "ListedByName",
    "MessageTooLarge",
    "Metrics",
    "Moved",
    "NotEncodable",
    "NotPermitted",
    "Overview",
    "Partial",
    "Pipeline",
    "PipelineBlocked",
    "PipelineHandle",
    "PipelineState",
    "Policy",
    "Priority",
    "Purged",
    "QueueCheck",
    "QueueFull",
    "QueueHealth",
    "QueueSettings",
    "QueueStats",
    "QueueUnavailable",
    "QuotaExceeded",
    "Rate",
    "Reason",
    "Restarted",
    "ResultNotKept",
    "ResultTimeout",
    "Retry",
    "RetryPolicy",
    "RunMiddleware",
    "RunningTask",
    "RunningTasks",
    "Schedule",
    "SchedulePage",
    "ScheduleRun",
    "ScheduleState",
    "ScheduleView",
    "ScheduledTask",
    "SealError",
    "SettingsMismatch",
    "Severity",
    "Share",
    "Shares",
    "Sign",
    "Snooze",
    "SoftTimeout",
    "StoreError",
    "Streamed",
    "Task",
    "TaskCanceled",
    "TaskContext",
    "TaskEnded",
    "TaskEvent",
    "TaskExists",
    "TaskFailed",
    "TaskFunction",
    "TaskGraph",
    "TaskHandle",
    "TaskHandler",
    "TaskInfo",
    "TaskLink",
    "TaskMoment",
    "TaskNode",
    "TaskOptions",
    "TaskQueue",
    "TaskScheduler",
    "TaskState",
    "TaskStream",
    "Throttle",
    "Unique",
    "UnknownBatch",
    "UnknownKey",
    "UnknownSchedule",
    "UnknownTask",
    "UsageHour",
    "UserFrozen",
    "UserInfo",
    "UserOrder",
    "UserPage",
    "UserStatus",
    "UserView",
    "WaitBucket",
    "Waiting",
    "Waits",
    "Worker",
    "WorkerInfo",
    "WorkerStats",
    "WrongType",
    "XCom",
    "XComManager",
    "XComMissing",
    "__version__",
    "current_task",
    "failure_of",
    "parallel",
    "sequential",
    "task",
    "xcom_task",
]
