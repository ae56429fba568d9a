import logging

from celery import signals
from flask import g, has_request_context

from webshop import outside

logger = logging.getLogger("webshop")


@signals.worker_process_init.connect
def open_database(**_):
    outside.database.open()


@signals.worker_process_shutdown.connect
def close_database(**_):
    outside.database.close()


@signals.before_task_publish.connect
def add_request_id(headers, **_):
    if has_request_context():
        headers["request_id"] = g.request_id


@signals.task_prerun.connect
def begin(task, **_):
    logger.info("request %s: %s begins", task.request.get("request_id"), task.name)


@signals.task_failure.connect
def report_error(sender, task_id, exception, **_):
    outside.errors.capture(exception, task=sender.name, task_id=task_id)
