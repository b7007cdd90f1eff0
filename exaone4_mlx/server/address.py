"""Where a server listens, and the names that it answers to.

A server answers requests for an IP address, for localhost, and for the names that the user gave. So no other site can
give this computer a name of its own (DNS rebinding).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Address:
    """Where a server listens, and the names that it answers to."""

    host: str = "127.0.0.1"
    port: int | None = None
    names: frozenset[str] = frozenset({"localhost"})
    is_local: bool = True

    @classmethod
    def checked(cls, host: str, port: int | None, names: Sequence[str] = ()) -> Address:
        """Raises ValueError for an address on which this computer cannot listen, and for malformed `names`."""
        if port is not None and not 1 <= port <= 65535:
            raise ValueError(f"--port is {port}, and must be from 1 to 65535")
        if wrong := [name for name in names if not name or set(name) & set(":/@ ")]:
            raise ValueError(f"--allowed-host is {wrong[0]!r}, and must be a name such as mac.local, without a port")
        try:
            found = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            raise ValueError(f"--host {host} is neither an IP address nor a name that this computer knows") from error
        family, kind, _, _, place = found[0]
        with socket.socket(family, kind) as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                attempt.bind(place)
            except OSError as error:
                if port is not None and error.errno == errno.EADDRINUSE:
                    raise ValueError(f"port {port} is in use; leave --port out for the first free one") from error
                raise ValueError(f"this computer cannot listen on {host}: {error.strerror}") from error
        local = ipaddress.ip_address(str(place[0]).split("%")[0]).is_loopback
        return cls(host, port, frozenset({"localhost", host.lower(), *map(str.lower, names)}), local)

    @property
    def listens_everywhere(self) -> bool:
        return self.host in ("0.0.0.0", "::")

    def answers_to(self, authority: str) -> bool:
        """Whether a request for this "host" or "host:port" is answered: an IP address, or a known name."""
        try:
            name = urlsplit(f"//{authority}").hostname or ""
        except ValueError:
            return False
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(name.split("%")[0]))
        return name in self.names
