"""`Backend`: where a queue lives, and the settings that all its processes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from fairque.checks import Duration
from fairque.codec.codec import Codec, Sealer
from fairque.errors import ConfigError, SettingsMismatch
from fairque.redis.connector import Connector
from fairque.redis.keys import LAYOUT, Keys
from fairque.settings import MAX_MESSAGE_BYTES, QueueSettings

__all__ = ["Backend", "CallListener"]

CallListener = Callable[[str, float], None]
"""Told the name of a script and the seconds that a call of it took."""


class Backend:
    """One queue on one server.

    Args:
        url: See `Connector`.
        name: Of the queue.
        timeout: Seconds for connecting and for one request.
        given: Fields of `QueueSettings` that this process asks for; the others are as the queue has them.
        codec: What contents look like in Redis.

    Attributes:
        settings: Of the queue. Before `adopt`: those asked for, and defaults.
        agreed: Whether the queue was asked for its settings.
        call_listeners: Told of each call of a script that goes over an event loop, also of one that failed.
        sealer: The codec; None: contents are in Redis as they are.
    """

    def __init__(
        self, url: str | None, name: str, *, timeout: Duration, given: Mapping[str, Any], codec: Codec | None = None
    ) -> None:
        self.name = name
        self.keys = Keys(name)
        self.connector = Connector(
            url,
            timeout=timeout,
            client_name=f"fairque-{name}" if name.isalnum() else "fairque",
            key=self.keys.state,
        )
        self.settings = QueueSettings(**given)
        self.agreed = False
        self.call_listeners: tuple[CallListener, ...] = ()
        self._given = given
        self.sealer = Sealer(codec, name, self._most_bytes) if codec is not None else None

    def _most_bytes(self) -> int:
        """Of what is unpacked: texts of errors are within the default, whatever the limit is."""
        return max(self.settings.max_message_bytes, MAX_MESSAGE_BYTES)

    def adopt(self, stored: Mapping[str, str]) -> None:
        """Take over what the queue has. Raises `SettingsMismatch` where that is not what was asked for."""
        if stored["layout"] != str(LAYOUT):
            raise SettingsMismatch(
                f"queue {self.name!r} has data of layout {stored['layout']}, this version of fairque reads and writes"
                f" layout {LAYOUT}: let all processes run the same version"
            )
        try:
            settings = msgspec.convert(stored, QueueSettings, strict=False)
        except msgspec.ValidationError as exc:
            raise ConfigError(f"queue {self.name!r} has settings that cannot be read: {exc}") from None
        for field, asked in self._given.items():
            kept = getattr(settings, field)
            if kept != asked:
                raise SettingsMismatch(
                    f"queue {self.name!r} has {field} {kept}, not {asked}: its processes share its settings. Leave it"
                    " out to use the queue's, or change it for all with `fairque settings` or change_settings()"
                )
        self.settings = settings
        self.agreed = True
