"""`RedisConfig`: the section that says where Redis is."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar
from urllib.parse import quote

from msgspec import Meta

from fairque.checks import MAX_SECONDS
from fairque.config.section import Section
from fairque.errors import InvalidInput
from fairque.redis.url import Address, ServerUrl

__all__ = ["RedisConfig"]

_SENTINEL_OPTIONS = {name: name for name in ("sentinel_username", "sentinel_password")}
_TLS_OPTIONS = {
    "tls_ca_file": "ssl_ca_certs",
    "tls_cert_file": "ssl_certfile",
    "tls_key_file": "ssl_keyfile",
    "tls_key_password": "ssl_password",
    "tls_check_hostname": "ssl_check_hostname",
}
"""Options of a URL, by the field that they come from."""


class RedisConfig(Section, frozen=True, kw_only=True):
    """Where Redis is, and how to connect to it.

    Args:
        url: Any URL that `TaskQueue` takes, instead of `host`, `port` and `db`. What it does not say may be said by the
            fields below: ``url: sentinel://host1,host2/service`` with a `password` and `tls`.
        host: Name or address.
        port: Of the server.
        db: Number of the database.
        username: Of an ACL user.
        password: Of that user, or of the server.
        sentinel_username: For the sentinels, where they ask for one.
        sentinel_password: For the sentinels.
        tls: Connect by TLS.
        tls_ca_file: Certificates of the authorities to trust, instead of those of the system.
        tls_cert_file: Certificate of this client.
        tls_key_file: Its key.
        tls_key_password: Of an encrypted key.
        tls_check_hostname: The certificate of the server must be one for its name.
        timeout: Seconds within which every call succeeds or raises `QueueUnavailable`.
    """

    url: str | None = None
    host: Annotated[str, Meta(min_length=1, max_length=255)] = "localhost"
    port: Annotated[int, Meta(ge=1, le=65535)] = 6379
    db: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    username: str | None = None
    password: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    tls: bool = False
    tls_ca_file: str | None = None
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    tls_key_password: str | None = None
    tls_check_hostname: bool = True
    timeout: Annotated[float, Meta(ge=0.001, le=MAX_SECONDS)] = 5.0

    secrets: ClassVar[frozenset[str]] = frozenset(("password", "sentinel_password", "tls_key_password"))
    replaces: ClassVar[Mapping[str, Collection[str]]] = {
        # It says everything about its server: passwords of another one must not go there.
        "url": ("host", "port", "db", "username", "password", "tls", *_SENTINEL_OPTIONS, *_TLS_OPTIONS),
        "host": ("url",),
    }

    @property
    def redis_url(self) -> str:
        """All of it as one URL, as `TaskQueue` takes it; with the passwords."""
        scheme, _, rest = (self.url or self._own_url()).partition("://")
        if self.tls and scheme == "redis":
            scheme = "rediss"
        if self.username is not None or self.password is not None:
            rest = f"{quote(self.username or '', safe='')}:{quote(self.password or '', safe='')}@{rest}"
        options = self._options(has_tls=scheme == "rediss")
        return f"{scheme}://{rest}{'&' if '?' in rest else '?'}{options}" if options else f"{scheme}://{rest}"

    def _own_url(self) -> str:
        host = quote(self.host.strip("[]"), safe=":")
        return f"redis://{Address(host, self.port)}{f'/{self.db}' if self.db else ''}"

    def _options(self, *, has_tls: bool) -> str:
        """Of the URL, encoded."""
        given = self.given()
        names = _SENTINEL_OPTIONS | _TLS_OPTIONS | ({} if has_tls else {"tls": "tls"})
        return "&".join(f"{name}={_encoded(given[field])}" for field, name in names.items() if field in given)

    def shown(self, field: str) -> Any:
        if field == "url" and self.url is not None:
            return ServerUrl(self.url).safe
        return super().shown(field)

    def contradictions(self) -> Iterator[tuple[str, str]]:
        url, given = self.url or "", self.given()
        if self.url is not None and "://" not in url:
            yield "url", "it begins with a scheme, such as redis://"
            return
        wrong: dict[str, str] = {}
        if self.url is None:
            wrong |= dict.fromkeys(
                _SENTINEL_OPTIONS, "it needs a url of sentinels, such as sentinel://host1,host2/service"
            )
        else:
            wrong |= dict.fromkeys(("host", "port", "db"), "the url says it already: give one of the two")
        if not (self.tls or url.startswith("rediss://") or "tls=" in url):
            wrong |= dict.fromkeys(_TLS_OPTIONS, "it needs tls: true")
        if "@" in url.partition("://")[2].partition("/")[0] and given.keys() & {"username", "password"}:
            wrong["url"] = "it has credentials in it, and username or password are given as well: give one of the two"
        problems = [(field, text) for field, text in wrong.items() if field in given]
        yield from problems or self._unusable_url()

    def _unusable_url(self) -> Iterator[tuple[str, str]]:
        try:
            ServerUrl(self.redis_url)
        except InvalidInput as error:
            yield "host" if self.url is None else "url", str(error)


def _encoded(value: str | bool) -> str:
    return quote(value, safe="/") if isinstance(value, str) else str(value).lower()
