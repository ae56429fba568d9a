"""uvicorn webshop.web:app"""

import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from fastapi import FastAPI, Request, Response

from fairque import TaskQueue, TaskState
from fairque.contrib.fastapi import install_handlers, lifespan
from webshop import images, orders
from webshop.around import request_id
from webshop.orders import Order, apologize, charge, invoice, send_mail
from webshop.queues import images as image_queue
from webshop.queues import shop

app = FastAPI(lifespan=lifespan(shop, image_queue))
install_handlers(app)
TWO_WEEKS = 14 * 86_400
QueueName = Literal["shop", "images"]
QUEUES: dict[QueueName, TaskQueue] = {"shop": shop, "images": image_queue}


@app.middleware("http")
async def name_request(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    request_id.set(request.headers.get("X-Request-Id", uuid.uuid4().hex))
    return await call_next(request)


@app.post("/{merchant}/orders", status_code=202)
async def order(merchant: str, order: Order) -> dict[str, str]:
    paid = charge(order).otherwise(apologize(order.customer))
    written = invoice(paid.output).options(on_dependency_failure="cancel")
    mail = send_mail(written.output, order.customer).options(on_dependency_failure="cancel")
    mailed = await shop.enqueue(mail, user_id=merchant)  # all three, in one call
    asked = await shop.enqueue(
        send_mail("how was it?", order.customer), user_id=merchant, delay=TWO_WEEKS, expires=TWO_WEEKS + 86_400
    )
    return {"task_id": mailed.task_id, "review_id": asked.task_id}


@app.post("/{merchant}/albums", status_code=202)
async def album(merchant: str, names: list[str], owner: str) -> dict[str, str]:
    return {"task_id": (await images.make_album(merchant, names, 200, owner)).task_id}


@app.post("/{merchant}/imports", status_code=202)
async def start_import(merchant: str, rows: list[str]) -> dict[str, str]:
    return {"task_id": (await shop.enqueue(orders.import_products(rows), user_id=merchant)).task_id}


@app.get("/{merchant}/{queue}/tasks/{task_id}")
async def show(merchant: str, queue: QueueName, task_id: str) -> dict[str, Any]:
    handle = QUEUES[queue].handle(merchant, task_id)
    info = await handle.info()  # of a task that nobody knows: 404
    result = await handle.result() if info.state is TaskState.FINISHED else None
    return {"state": info.state, "progress": info.progress, "message": info.message, "result": result}


@app.delete("/{merchant}/{queue}/tasks/{task_id}", status_code=202)
async def cancel(merchant: str, queue: QueueName, task_id: str) -> None:
    await QUEUES[queue].handle(merchant, task_id).cancel()
