"""fairque worker webshop.workers:of_shop, and webshop.workers:of_images, on other machines if you like."""

import logging

from fairque import Worker
from webshop import images, orders, reports  # noqa: F401  (what is imported is known)
from webshop.around import database, report_error
from webshop.outside import Database
from webshop.queues import images as image_queue
from webshop.queues import shop

logging.getLogger("webshop").setLevel(logging.INFO)


def of_shop() -> Worker[Database]:
    return Worker(shop, concurrency=20, lifespan=database, on_failure=report_error)


def of_images() -> Worker[Database]:
    return Worker(image_queue, concurrency=4, lifespan=database, on_failure=report_error)
