"""Protection against unintended public access: a service without API keys serves this machine only."""

from __future__ import annotations

import ipaddress
import socket

from service.config import Settings
from service.errors import ConfigurationError


def is_loopback(host: str) -> bool:
    """Return whether a server on this address can be reached from this machine only.

    A host name that cannot be resolved counts as reachable by others.
    """
    if host == "localhost":
        return True
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host or "0.0.0.0", None)}  # noqa: S104 - "" is that
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def check_address(settings: Settings, *, any_key: bool) -> None:
    """Raise ConfigurationError if other machines can reach the service and no API key is needed.

    `any_key` says whether the database holds an API key. Keys in the settings and `allow_anyone` also permit any
    address.
    """
    if any_key or settings.api_keys or settings.allow_anyone or is_loopback(settings.host):
        return
    raise ConfigurationError(
        f"other machines can reach {settings.host or 'every address'}, and there is no API key: create one with "
        "`reelsrs keys create NAME --rights read`, or allow access without a key with REELSRS_ALLOW_ANYONE=true"
    )
