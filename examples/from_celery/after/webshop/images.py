from fairque import TaskHandle, current_task, task
from webshop import outside
from webshop.orders import send_mail
from webshop.queues import images, shop


@task(timeout=60, run_in="process")
def thumbnail(image: str, width: int) -> str:
    return outside.resized(image, width)


@task
async def album(thumbnails: list[str], owner: str) -> list[str]:
    me = current_task()
    mail = send_mail(f"{len(thumbnails)} images are ready", owner)
    await shop.enqueue(mail, user_id=me.user_id, task_id=f"{me.task_id}-mail")  # one mail, also when this runs twice
    return sorted(thumbnails)


async def make_album(merchant: str, names: list[str], width: int, owner: str) -> TaskHandle[list[str]]:
    small = [thumbnail(name, width).output for name in names]
    made = album(small, owner).options(on_dependency_failure="cancel")
    return await images.enqueue(made, user_id=merchant)  # brings the others with it, in one call
