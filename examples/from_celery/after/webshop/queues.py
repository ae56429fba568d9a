"""What was the app of Celery. The URL is that of FAIRQUE_REDIS_URL, and results lie beside the queue."""

from fairque import TaskQueue
from webshop.around import add_request_id, begin

shop = TaskQueue(result_ttl=3600, enqueue_middleware=[add_request_id], run_middleware=[begin])
images = TaskQueue(name="images", result_ttl=3600, enqueue_middleware=[add_request_id], run_middleware=[begin])
