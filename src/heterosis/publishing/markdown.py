"""Text of others inside Markdown: it stays text."""

from __future__ import annotations


def escaped(text: str) -> str:
    """One line in which no HTML, link or table begins."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return plain.replace("|", r"\|").replace("[", r"\[").replace("*", r"\*").replace("`", r"\`")


def sentence(text: str) -> str:
    """A capital at the beginning, a full stop at the end."""
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")
