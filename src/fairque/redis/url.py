"""The URL of a server, or of those who know where it is: read, checked, and shown without its passwords."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import quote, unquote

from fairque.errors import ConfigError

__all__ = ["Address", "ServerUrl"]

SCHEMES = ("redis", "rediss", "unix", "sentinel", "cluster", "redis+cluster", "embedded")
REDIS_PORT = 6379
SENTINEL_PORT = 26379
_SHAPE = re.compile(r"[^:/?#]*://((?P<credentials>[^/?#]*)@)?(?P<hosts>[^/?#]*)(?P<path>/[^?#]*)?(\?(?P<query>[^#]*))?")
_HOST = re.compile(r"(\[(?P<bracketed>[^][]+)\]|(?P<plain>[^][:]*))(:(?P<port>[0-9]{1,5}))?")
_ENCODED = ", with special characters of a password percent-encoded"
_SHAPES = {
    "unix": "write it like unix:///path/to/socket, with three slashes",
    "embedded": "write it like embedded:// or embedded:///path/to/directory, with three slashes",
}
_TLS_OPTIONS = (
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_ciphers",
    "ssl_keyfile",
    "ssl_min_version",
    "ssl_password",
)
_OF_ONE_SERVER = ("db", "username", "password")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "redis": _OF_ONE_SERVER,
    "rediss": (*_OF_ONE_SERVER, *_TLS_OPTIONS),
    "unix": _OF_ONE_SERVER,
    "sentinel": ("tls", "sentinel_username", "sentinel_password", *_TLS_OPTIONS),
    "cluster": ("tls", *_TLS_OPTIONS),
    "embedded": (),
}
_PUBLIC = "|".join({"tls"}.union(*_OPTIONS.values()) - {"password", "sentinel_password", "ssl_password"})
_SWITCH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


ServerName = tuple[str, int | None]
"""The host and the port of a server, or the path of its socket and None."""


class Address(NamedTuple):
    """Where a server of a network listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ServerUrl:
    """Where a queue is, in one of these forms; ``user:password@`` may stand before hosts and paths of servers.

    =============================================  ==================================================================
    ``redis://host:6379/db``                       one server
    ``rediss://host:6379/db?ssl_ca_certs=…``       the same by TLS; ``ssl_…`` options as redis-py has them
    ``unix:///path/to/socket?db=1``                one server of this machine
    ``sentinel://host:26379,host2/service/db``     the master of the service, by its sentinels; options are
                                                   ``sentinel_username``, ``sentinel_password``, ``tls=true``, ``ssl_…``
    ``cluster://host:6379,host2``                  the node of a cluster that has the queue (also ``redis+cluster://``);
                                                   options are ``tls=true``, ``ssl_…``
    ``embedded://``, ``embedded:///directory``     see `EmbeddedServer`
    =============================================  ==================================================================

    Args:
        text: As the user gave it; parts with special characters are percent-encoded.

    Raises:
        ConfigError: It cannot be used.
    """

    def __init__(self, text: str) -> None:
        self.text = str(text)
        self.scheme = _known_scheme(self.text)
        shape = _SHAPE.fullmatch(self.text)
        if shape is None or (self.scheme == "embedded" and shape["query"] is not None):
            raise self._misshapen()
        self._credentials = f"{shape['credentials']}@" if shape["credentials"] is not None else ""
        self._path = shape["path"] or ""
        self._options = self._read_options(shape["query"])
        self.hosts: tuple[Address, ...] = ()
        self.service = ""
        self._db = ""
        if self.scheme == "embedded":
            if shape["credentials"] is not None or shape["hosts"]:
                raise self._misshapen()
        elif self.scheme != "unix":
            if "@" in self._path:  # credentials that are not encoded, most likely
                raise self._misshapen()
            self._read_network(shape["hosts"])
        elif shape["hosts"] or len(self._path) < 2:
            raise self._misshapen()

    @property
    def safe(self) -> str:
        """For logs and errors."""
        # Up to the last @, whatever is before it: a password with a slash in it is a mistake, but still a secret.
        without = re.sub(r"//([^:@]*):.*@", r"//\1:***@", self.text, count=1, flags=re.DOTALL)
        if "//" not in without:
            return f"{self.scheme}:***"
        # Of options, only values that are known to be harmless: the name of another may be a password's, misspelt.
        return re.sub(rf"([?&](?!(?:{_PUBLIC})=)[^=&#]*=)[^&#]*", r"\1***", without)

    @property
    def path(self) -> str:
        """Of a socket or a directory."""
        return unquote(self._path)

    def server(self, address: Address | None = None) -> str:
        """The URL of the server at an address; without one, of the only one there is."""
        if self.scheme == "unix":
            return self.text
        return self._at(address or self.hosts[0], self._credentials, self._db)

    def sentinel(self, address: Address) -> str:
        user, password = (self._option(f"sentinel_{part}") for part in ("username", "password"))
        return self._at(address, f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else "")

    def _at(self, address: Address, credentials: str, db: str = "") -> str:
        passed_on = [f"{name}={value}" for name, value in self._options.items() if not name.startswith(("sent", "tls"))]
        query = f"?{'&'.join(passed_on)}" if passed_on else ""
        return f"redis{'s' if self._is_encrypted else ''}://{credentials}{address}/{db}{query}"

    @property
    def _is_encrypted(self) -> bool:
        return self.scheme == "rediss" or _SWITCH[self._options.get("tls", "no")]

    def _option(self, name: str) -> str:
        return unquote(self._options.get(name, ""))

    def _read_options(self, query: str | None) -> dict[str, str]:
        """Values as they were written."""
        options: dict[str, str] = {}
        for part in filter(None, (query or "").split("&")):
            name, _, value = part.partition("=")
            known = _OPTIONS[self.scheme]
            if name not in known:
                raise self._wrong(f"{self.scheme}:// has no option {name!r}{_hint(name, known)}")
            options[name] = value
        if options.get("tls", "no") not in _SWITCH:
            raise self._wrong(f"tls is true or false, not {options['tls']!r}")
        is_encrypted = self.scheme == "rediss" or _SWITCH[options.get("tls", "no")]
        if not is_encrypted and any(name in _TLS_OPTIONS for name in options):
            raise self._wrong("options that begin with ssl_ need tls=true")
        return options

    def _read_network(self, hosts: str) -> None:
        port = SENTINEL_PORT if self.scheme == "sentinel" else REDIS_PORT
        self.hosts = tuple(self._address(host, port) for host in hosts.split(","))
        if len(self.hosts) > 1 and self.scheme in ("redis", "rediss"):
            raise self._wrong("it names one host; several are for sentinel:// and cluster://")
        self._db = self._path[1:].rstrip("/")
        if self.scheme == "sentinel":
            service, _, self._db = self._db.partition("/")
            self.service = unquote(service)
            if not self.service:
                raise self._wrong("it needs the name of the service, as in sentinel://host1,host2/mymaster")
        if self._db and not re.fullmatch("[0-9]+", self._db):
            raise self._wrong(f"the database is a number, not {unquote(self._db)!r}")
        if self.scheme == "cluster" and self._db.strip("0"):
            raise self._wrong(f"a cluster has only database 0, not {self._db}")

    def _address(self, host: str, port: int) -> Address:
        found = _HOST.fullmatch(host)
        if found is None or int(found["port"] or port) > 65535:
            raise self._wrong("a host is like host, host:6379 or [::1]:6379")
        name = found["bracketed"] or unquote(found["plain"])
        if not name and self.scheme not in ("redis", "rediss"):
            raise self._wrong("a host is missing")
        return Address(name or "localhost", int(found["port"] or port))

    def _misshapen(self) -> ConfigError:
        return self._wrong(_SHAPES.get(self.scheme, f"write it like {self.scheme}://host:port{_ENCODED}"))

    def _wrong(self, problem: str) -> ConfigError:
        return ConfigError(f"the URL {self.safe!r} cannot be used: {problem}")


def _known_scheme(text: str) -> str:
    scheme = text.partition(":")[0].lower() if ":" in text else ""
    if scheme in SCHEMES:
        return scheme.removeprefix("redis+")
    known = ", ".join(f"{each}://" for each in SCHEMES)
    if not text.lower().startswith(f"{scheme}://"):  # what is before a colon may be anything, a secret as well
        scheme = ""
    raise ConfigError(f"unknown URL scheme {scheme!r}; there are {known}{_hint(scheme, SCHEMES)}")


def _hint(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word.lower(), known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""
