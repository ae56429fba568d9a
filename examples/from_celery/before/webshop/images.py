from celery import chord, shared_task

from webshop import outside
from webshop.orders import send_mail


@shared_task(time_limit=60)
def thumbnail(image, width):
    return outside.resized(image, width)


@shared_task
def album(thumbnails, owner):
    send_mail.delay(f"{len(thumbnails)} images are ready", owner)
    return sorted(thumbnails)


def make_album(images, width, owner):
    return chord((thumbnail.s(image, width) for image in images), album.s(owner))()
