"""The hub as this machine reaches it: where its files are kept, whether a token is there, whether it answers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Hub(NamedTuple):
    """How models come from the hub here."""

    endpoint: str
    cache: Path
    has_token: bool
    """Whether a token is set; what it is goes nowhere."""
    offline: bool
    """Whether HF_HUB_OFFLINE forbids to ask."""


def hub() -> Hub:
    """The hub client's own settings."""
    from huggingface_hub import constants, get_token

    return Hub(
        constants.ENDPOINT, Path(constants.HF_HUB_CACHE), get_token() is not None, bool(constants.HF_HUB_OFFLINE)
    )


def unreachable(endpoint: str, seconds: float) -> str | None:
    """Why the hub does not answer within so many seconds; None if it does."""
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=seconds, follow_redirects=False)
    except Exception as error:  # whatever the HTTP client raises, it is no answer
        lines = str(error).strip().splitlines()
        return lines[0][:200] if lines else type(error).__name__
    return None
