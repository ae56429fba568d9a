"""What is outside of the tasks, and the same in both: payments, mails, a catalogue, a database. All pretended."""

import logging
import time
from collections.abc import Iterator

logger = logging.getLogger("webshop")


class Declined(Exception):
    """The bank says no."""


class Payments:
    def charge(self, number: int, cents: int) -> str:
        """A payment is known by the number of its order: charging it again changes nothing."""
        if cents > 100_000:
            raise Declined("that is too much for this card")
        return f"R{number}, {cents / 100:.2f} EUR"


class Mails:
    def send(self, to: str, text: str, attempt: int) -> None:
        if to.endswith("@slow.example") and attempt == 1:
            raise ConnectionError(f"no answer from the server of {to}")
        logger.info("mail to %s: %s", to, text)


class Catalogue:
    def add(self, row: str) -> None:
        time.sleep(0.01)
        logger.debug("added %s", row)


class Errors:
    def capture(self, error: str, *, task: str, task_id: str) -> None:
        logger.info("error report: %s in %s %s", error, task, task_id)


class Database:
    def open(self) -> None:
        logger.info("database open")

    def close(self) -> None:
        logger.info("database closed")


payments, mails, catalogue, errors, database = Payments(), Mails(), Catalogue(), Errors(), Database()


def resized(image: str, width: int) -> str:
    return f"{image}, {width} px"


def merchants() -> list[str]:
    return ["acme", "zoe"]


def orders_of(merchant: str) -> Iterator[int]:
    yield from range(100_000 if merchant == "acme" else 3)


def add_up(order: int) -> int:
    time.sleep(0.001)
    return order
