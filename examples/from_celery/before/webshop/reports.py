import os

from celery import group, shared_task
from celery.exceptions import SoftTimeLimitExceeded

from webshop import outside

SECONDS = float(os.environ.get("REPORT_SECONDS", "50"))


@shared_task(soft_time_limit=SECONDS, time_limit=SECONDS + 10)
def report(merchant):
    done = 0
    try:
        for order in outside.orders_of(merchant):
            outside.add_up(order)
            done += 1
    except SoftTimeLimitExceeded:
        return f"{merchant}: the first {done} orders"
    return f"{merchant}: all {done} orders"


@shared_task
def nightly():
    group(report.s(merchant) for merchant in outside.merchants()).delay()
