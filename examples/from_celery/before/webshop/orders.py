from celery import shared_task

from webshop import outside


@shared_task(throws=(outside.Declined,))
def charge(order):
    return outside.payments.charge(order["number"], order["cents"])


@shared_task
def invoice(receipt):
    return f"invoice for receipt {receipt}"


@shared_task(
    bind=True,
    autoretry_for=(ConnectionError,),
    retry_backoff=True,
    retry_backoff_max=600,
    max_retries=5,
    rate_limit="100/m",  # of each worker: with four of them it is 400/m
)
def send_mail(self, text, to):
    outside.mails.send(to, text, attempt=self.request.retries + 1)
    return f"to {to}: {text}"


@shared_task
def apologize(_request, error, _traceback, to):
    send_mail.delay(f"we could not take your money: {error}", to)


@shared_task(bind=True)
def import_products(self, rows):
    for number, row in enumerate(rows):
        outside.catalogue.add(row)
        self.update_state(state="PROGRESS", meta={"done": number + 1, "all": len(rows)})
    return len(rows)
