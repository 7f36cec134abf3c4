"""Passwords and tokens, kept out of everything that is written for others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SECRET_KEY = re.compile(r"(^|[_-])(token|password|secret|api_?key)$", re.IGNORECASE)
SECRET_QUERY = re.compile(r"\b((?:password|token|secret|api_?key)=)[^&\s\"']+", re.IGNORECASE)
USER_INFO = re.compile(r"://[^:/@\s]*(?::\S*)?@")  # as SQLAlchemy reads it: the password may hold anything


def masked(content: Any) -> Any:
    """The same content without passwords and tokens."""
    if isinstance(content, Mapping):
        return {
            key: "***" if isinstance(value, str) and SECRET_KEY.search(str(key)) else masked(value)
            for key, value in content.items()
        }
    if isinstance(content, list | tuple):
        return [masked(value) for value in content]
    return SECRET_QUERY.sub(r"\1***", USER_INFO.sub("://***@", content)) if isinstance(content, str) else content
