"""Whether a tracking server is there at all: known in seconds, where MLflow's own retries take minutes."""

from __future__ import annotations

import socket
import urllib.request
from urllib.parse import urlsplit

from heterosis.errors import RecordError
from heterosis.ledger.redact import masked

SECONDS = 5.0
PORTS = {"http": 80, "https": 443}


def check_answers(uri: str) -> None:
    """RecordError where an HTTP server refuses connections; any other URI, and one behind a proxy, passes."""
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise RecordError(f"lineage: {masked(uri)} is no address of a server ({error}). Correct it.") from error
    if parts.scheme not in PORTS or host is None:
        return
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return
    try:
        socket.create_connection((host, port or PORTS[parts.scheme]), SECONDS).close()
    except OSError as error:
        raise RecordError(
            f"lineage: no MLflow server answers at {masked(uri)} ({error.strerror or error}). Start it, or correct its "
            "URI."
        ) from error
