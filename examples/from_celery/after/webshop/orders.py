from dataclasses import dataclass

from fairque import Fail, RetryPolicy, current_task, task
from webshop import outside


@dataclass
class Order:
    number: int
    cents: int
    customer: str


@task
def charge(order: Order) -> str:
    try:
        return outside.payments.charge(order.number, order.cents)
    except outside.Declined as declined:
        raise Fail(str(declined)) from declined


@task
def invoice(receipt: str) -> str:
    return f"invoice for receipt {receipt}"


@task(
    retry=RetryPolicy(max=5, base=1, cap=600, retry_on=(ConnectionError,)),
    rate="100/m burst 10",  # of all workers together
)
def send_mail(text: str, to: str) -> str:
    outside.mails.send(to, text, attempt=current_task().attempt)
    return f"to {to}: {text}"


@task
async def apologize(to: str) -> None:
    cause = current_task().cause
    assert cause is not None
    assert cause.failure is not None
    await current_task().enqueue(send_mail(f"we could not take your money: {cause.failure.message}", to))


@task
def import_products(rows: list[str]) -> int:
    me = current_task()
    for number, row in enumerate(rows):
        if me.canceled:  # a thread cannot be killed: it is told
            return number
        outside.catalogue.add(row)
        me.progress((number + 1) / len(rows), f"{number + 1} of {len(rows)}")
    return len(rows)
