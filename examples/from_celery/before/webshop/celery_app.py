from celery import Celery
from celery.schedules import crontab

app = Celery(
    "webshop",
    broker="redis://localhost/0",
    backend="redis://localhost/1",
    include=["webshop.orders", "webshop.images", "webshop.reports", "webshop.signals"],
)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={"visibility_timeout": 3600},
    task_serializer="json",
    result_expires=3600,
    task_routes={"webshop.images.*": {"queue": "images"}},
    timezone="Europe/Berlin",
    beat_schedule={
        "nightly": {"task": "webshop.reports.nightly", "schedule": crontab(hour=3, minute=0)},
    },
)
