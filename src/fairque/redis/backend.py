"""`Backend`: where a queue lives, and the settings that all its processes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from fairque.checks import Duration
from fairque.codec.codec import Codec, Sealer
from fairque.errors import ConfigError, SettingsMismatch
from fairque.redis.branch import Branch
from fairque.redis.connector import Connector
from fairque.redis.keys import LAYOUT, Keys
from fairque.redis.places import Places
from fairque.settings import MAX_MESSAGE_BYTES, QueueSettings

__all__ = ["Backend", "CallListener", "CopyBackend", "PartitionBackend"]

CallListener = Callable[[str, float], None]
"""Told the name of a script and the seconds that a call of it took."""


class Backend:
    """One queue on one server, or spread over the partitions of a cluster.

    Args:
        url: See `Connector`.
        name: Of the queue.
        timeout: Seconds for connecting and for one request.
        given: Fields of `QueueSettings` that this process asks for; the others are as the queue has them.
        codec: What contents look like in Redis.

    Attributes:
        keys: Of a queue with partitions: of what it says of them.
        settings: Of the queue. Before `adopt`: those asked for, and defaults.
        call_listeners: Told of each call of a script that goes over an event loop, also of one that failed.
        sealer: The codec; None: contents are in Redis as they are.
        is_plain: It was asked for its settings, and has no partitions: each call goes straight to its keys.
        is_part: It is one partition of a queue.
        number: Which one, from 0 on; of a queue, 0.
    """

    is_part = False
    number = 0

    def __init__(
        self, url: str | None, name: str, *, timeout: Duration, given: Mapping[str, Any], codec: Codec | None = None
    ) -> None:
        key = Keys(name).state  # first: that is where it is told what a name may be
        self.name = name
        client_name = f"fairque-{name}" if name.isalnum() else "fairque"
        self.connector = Connector(url, timeout=timeout, client_name=client_name, key=key)
        self.keys = Keys(name, in_cluster=self.connector.scheme == "cluster")
        self.settings = QueueSettings(**given)
        self.is_plain = False
        self._agreed = False
        self.call_listeners: tuple[CallListener, ...] = ()
        self._given = given
        self._partitions: tuple[Backend, ...] = ()
        self._copy: CopyBackend | None = None
        self._places: Places | None = None
        self.sealer = Sealer(codec, name, self._most_bytes) if codec is not None else None

    @property
    def agreed(self) -> bool:
        """Whether the queue was asked for its settings."""
        return self._agreed

    @agreed.setter
    def agreed(self, agreed: bool) -> None:
        self._agreed = agreed
        self.is_plain = agreed and self.settings.partitions == 1
        if not agreed:
            for part in self._partitions:
                part.agreed = False

    @property
    def is_partitioned(self) -> bool:
        """By all that is known so far."""
        return self.settings.partitions > 1

    @property
    def partitions(self) -> tuple[Backend, ...]:
        """Each of them as a queue of its own; the queue itself where it has none."""
        if not self.is_partitioned:
            return (self,)
        count = self.settings.partitions
        if len(self._partitions) != count:
            self._partitions = tuple(PartitionBackend(self, at, count) for at in range(count))
        return self._partitions

    @property
    def places(self) -> Places:
        """In which of its partitions each user lives, as far as it is known."""
        count = self.settings.partitions
        if self._places is None or self._places.count != count:
            self._places = Places(count)
        return self._places

    @property
    def copy(self) -> CopyBackend:
        """Where its settings are kept once more, if it has partitions."""
        if self._copy is None:
            self._copy = CopyBackend(self)
        return self._copy

    def connector_of(self, name: str) -> Connector:
        """Leads to where a key or a channel is."""
        there = (part.connector for part in self.partitions if name.startswith(part.keys.prefix))
        return next(there, self.connector)

    @property
    def said(self) -> dict[str, Any]:
        """What is written where there are no settings yet."""
        return self.settings.stored()

    def _most_bytes(self) -> int:
        """Of what is unpacked: texts of errors are within the default, whatever the limit is."""
        return max(self.settings.max_message_bytes, MAX_MESSAGE_BYTES)

    def adopt(self, stored: Mapping[str, str]) -> None:
        """Take over what the queue has. Raises `SettingsMismatch` where that is not what was asked for."""
        settings = _settings_in(stored, f"queue {self.name!r}")
        for field, asked in self._given.items():
            kept = getattr(settings, field)
            if kept != asked and field == "partitions":
                raise SettingsMismatch(
                    f"queue {self.name!r} has partitions {kept}, not {asked}: their number is fixed when a queue is"
                    " made. Leave it out to use the queue's"
                )
            if kept != asked:
                raise SettingsMismatch(
                    f"queue {self.name!r} has {field} {kept}, not {asked}: its processes share its settings. Leave it"
                    " out to use the queue's, or change it for all with `fairque settings` or change_settings()"
                )
        self.settings = settings
        self.agreed = True


class _BranchBackend(Backend):
    """Keys under another hash tag of the same queue. All else is that of the queue."""

    is_part = True

    def __init__(self, root: Backend, keys: Keys) -> None:
        self.root = root
        self.name = root.name
        self.keys = keys
        in_cluster = root.connector.scheme == "cluster"
        self.connector = Branch(root.connector, self.keys.state) if in_cluster else root.connector
        self.is_plain = False
        self._agreed = False
        self._partitions = ()
        self.sealer = root.sealer

    @property
    def settings(self) -> QueueSettings:  # type: ignore[override]
        """Those of the queue, whatever was written here when the partition was made."""
        return self.root.settings

    @property
    def places(self) -> Places:
        return self.root.places

    @property
    def call_listeners(self) -> tuple[CallListener, ...]:  # type: ignore[override]
        return self.root.call_listeners

    @property
    def agreed(self) -> bool:
        return self._agreed

    @agreed.setter
    def agreed(self, agreed: bool) -> None:
        self._agreed = self.is_plain = agreed

    @property
    def is_partitioned(self) -> bool:
        return False


class CopyBackend(_BranchBackend):
    """What a queue with partitions says of all of them, once more, where it is found by the name of the queue alone.

    Args:
        root: The queue.
    """

    def __init__(self, root: Backend) -> None:
        super().__init__(root, root.keys.copy)

    @property
    def said(self) -> dict[str, Any]:
        return self.settings.stored()

    def adopt(self, stored: Mapping[str, str]) -> None:
        self.root.adopt(stored)


class PartitionBackend(_BranchBackend):
    """One partition of a queue: keys of its own under a hash tag of its own.

    Args:
        root: The queue.
        number: Which of its partitions, from 0 on.
        count: How many it has.
    """

    def __init__(self, root: Backend, number: int, count: int) -> None:
        super().__init__(root, Keys(root.name, (number, count), in_cluster=root.connector.scheme == "cluster"))
        self.number = number

    @property
    def said(self) -> dict[str, Any]:
        return {**self.settings.stored(), "partition": self.number}

    def adopt(self, stored: Mapping[str, str]) -> None:
        found = _settings_in(stored, f"partition {self.number} of queue {self.name!r}").partitions
        if found != self.settings.partitions or stored.get("partition") != str(self.number):
            raise SettingsMismatch(
                f"partition {self.number} of queue {self.name!r} says that it is {stored.get('partition')} of {found},"
                f" and not one of {self.settings.partitions}: somebody else writes under its keys"
            )
        self.agreed = True


def _settings_in(stored: Mapping[str, str], whose: str) -> QueueSettings:
    if stored["layout"] != str(LAYOUT):
        raise SettingsMismatch(
            f"{whose} has data of layout {stored['layout']}, this version of fairque reads and writes layout {LAYOUT}:"
            " let all processes run the same version"
        )
    try:
        return msgspec.convert(stored, QueueSettings, strict=False)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{whose} has settings that cannot be read: {exc}") from None
