"""Licences of the models that went into a merge, as their own files state them, and what follows for the merge.

What stands here is read by rules, and no legal advice: it finds what is plainly missing, forbidden or contradictory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from heterosis.files import parse_yaml

UNKNOWN, OTHER = "unknown", "other"
# Front matter lies at the beginning; a card may hold megabytes of pictures behind it.
HEAD = 65_536

# What a licence's text says of itself -> the hub's identifier. The first that matches decides.
TEXTS = (
    (r"GNU AFFERO GENERAL PUBLIC LICENSE", "agpl-3.0"),
    (r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 3", "lgpl-3.0"),
    (r"GNU GENERAL PUBLIC LICENSE\s+Version 2", "gpl-2.0"),
    (r"GNU GENERAL PUBLIC LICENSE\s+Version 3", "gpl-3.0"),
    (r"Mozilla Public License,? Version 2\.0", "mpl-2.0"),
    (r"Attribution-NonCommercial-NoDerivatives 4\.0", "cc-by-nc-nd-4.0"),
    (r"Attribution-NonCommercial-ShareAlike 4\.0", "cc-by-nc-sa-4.0"),
    (r"Attribution-NonCommercial 4\.0", "cc-by-nc-4.0"),
    (r"Attribution-NoDerivatives 4\.0", "cc-by-nd-4.0"),
    (r"Attribution-ShareAlike 4\.0", "cc-by-sa-4.0"),
    (r"CC0 1\.0", "cc0-1.0"),
    (r"Attribution 4\.0 International", "cc-by-4.0"),
    (r"LLAMA 4 COMMUNITY LICENSE", "llama4"),
    (r"LLAMA 3\.3 COMMUNITY LICENSE", "llama3.3"),
    (r"LLAMA 3\.2 COMMUNITY LICENSE", "llama3.2"),
    (r"LLAMA 3\.1 COMMUNITY LICENSE", "llama3.1"),
    (r"LLAMA 3 COMMUNITY LICENSE", "llama3"),
    (r"LLAMA 2 COMMUNITY LICENSE", "llama2"),
    (r"Gemma Terms of Use", "gemma"),
    (r"Apache License\s+Version 2\.0", "apache-2.0"),
    (r"MIT License|Permission is hereby granted, free of charge", "mit"),
)
PERMISSIVE = re.compile(
    r"apache-2\.0|mit|isc|0bsd|zlib|ncsa|unlicense|wtfpl|ms-pl|postgresql|afl-3\.0|bsl-1\.0|cc0-1\.0|"
    r"bsd(-[\w-]+)?|cc-by-\d\.\d|cdla-permissive-\d\.\d|pddl|ecl-2\.0|artistic-2\.0"
)
SHARE_ALIKE = re.compile(r"(a|l)?gpl(-.*)?|mpl-.*|osl-.*|e[pu]pl-.*|cc-by-(nc-)?sa-.*|cdla-sharing-.*|odbl")
NO_DERIVATIVES = re.compile(r"(^|-)nd(-|$)")
NON_COMMERCIAL = re.compile(r"(^|-)nc(-|$)|non-?commercial")


class Licence(NamedTuple):
    """A model's licence as its own files state it."""

    key: str
    """The hub's identifier, `other`, or `unknown`."""
    name: str | None = None
    """What an `other` one calls itself."""
    link: str | None = None
    texts: tuple[Path, ...] = ()
    """Files that hold its text and notices."""
    doubt: str | None = None
    """What contradicts itself."""

    @property
    def shown(self) -> str:
        """As people read it."""
        return self.name if self.key == OTHER and self.name else self.key


class Assessment(NamedTuple):
    """What the licences of all models mean for their merge."""

    front: dict[str, str]
    """Keys of a card's front matter."""
    problems: list[str]
    """Why the merge should not be published without reading on; empty where all models share one known licence."""


def read_licence(folder: Path) -> Licence:
    """The licence of a model folder: from the front matter of its README.md, else from the text of its LICENSE."""
    texts = tuple(sorted(path for path in _legal_files(folder) if path.is_file()))
    by_text = next((key for path in texts if (key := _recognised(path)) is not None), None)
    front = front_matter(folder / "README.md")
    given = front.get("license")
    given = given[0] if isinstance(given, list) and len(given) == 1 else given
    name, link = (front[key] if isinstance(front.get(key), str) else None for key in ("license_name", "license_link"))
    if isinstance(given, list) and given:
        return Licence(OTHER, " or ".join(map(str, given)), link, texts)
    if isinstance(given, str) and given.strip().lower() not in ("", UNKNOWN):
        key = given.strip().lower()
        doubt = f"README.md says {key}, the text beside it is {by_text}" if by_text not in (None, key) else None
        return Licence(key, name, link, texts, None if key == OTHER else doubt)
    if by_text is not None:
        return Licence(by_text, None, None, texts)
    return Licence(OTHER, f"the text in {texts[0].name}", None, texts) if texts else Licence(UNKNOWN)


def _legal_files(folder: Path) -> list[Path]:
    return [path for pattern in ("LICEN[CS]E*", "NOTICE*", "USE_POLICY*") for path in folder.glob(pattern)]


def _recognised(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    return next((key for pattern, key in TEXTS if re.search(pattern, head, re.IGNORECASE)), None)


def front_matter(path: Path) -> dict[str, Any]:
    """The YAML at the head of a model card; empty where there is none that can be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            head = file.read(HEAD)
        found = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", head, re.DOTALL)
        content = parse_yaml(found[1]) if found else None
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def assess(licences: Mapping[str, Licence]) -> Assessment:
    """What the models' licences mean for the merge. `licences`: model's name -> its licence."""
    shown = {name: licence.shown for name, licence in licences.items()}
    distinct = sorted(set(shown.values()))
    agreed = len(distinct) == 1
    first = next(iter(licences.values()))
    if agreed and first.key not in (OTHER, UNKNOWN):
        front = {"license": first.key}
    else:
        front = {"license": OTHER, "license_name": "-and-".join(map(_slug, distinct))}
        if agreed and first.link is not None:
            front["license_link"] = first.link
    return Assessment(front, [*_plain_problems(licences), *_conflicts(shown)])


def _plain_problems(licences: Mapping[str, Licence]) -> list[str]:
    unknown = [name for name, licence in licences.items() if licence.key == UNKNOWN]
    found = [f"{name}: {licence.doubt}" for name, licence in licences.items() if licence.doubt]
    if unknown:
        found.append(f"no licence is stated by {', '.join(unknown)}; without one nobody may publish changed copies")
    return found


def _conflicts(shown: Mapping[str, str]) -> list[str]:
    """Problems of known licences, alone and beside each other."""
    found = []
    for licence in sorted(set(shown.values()) - {UNKNOWN}):
        holders = ", ".join(name for name, own in shown.items() if own == licence)
        others = sorted(set(shown.values()) - {licence, UNKNOWN})
        strict = [other for other in others if not PERMISSIVE.fullmatch(other)]
        if NO_DERIVATIVES.search(licence):
            found.append(f"{licence} ({holders}) forbids publishing changed versions")
        elif SHARE_ALIKE.fullmatch(licence) and strict:
            found.append(f"{licence} ({holders}) asks for itself on the whole, which {', '.join(strict)} may not allow")
        elif NON_COMMERCIAL.search(licence) and others:
            found.append(f"{licence} ({holders}) allows no commercial use, and so neither may the merge")
        elif SHARE_ALIKE.fullmatch(licence) and others:
            found.append(f"{licence} ({holders}) asks for itself on the whole merge")
        elif not PERMISSIVE.fullmatch(licence) and not SHARE_ALIKE.fullmatch(licence) and others:
            found.append(f"{licence} ({holders}) has terms of its own, which hold beside {', '.join(others)}")
    return found


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-") or UNKNOWN
