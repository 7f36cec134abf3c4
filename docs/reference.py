"""Write the reference of study files from the program's own schema: `python docs/reference.py > docs/study-file.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from heterosis.config import Study

INTRO = """# The study file, key by key

Written by [reference.py](reference.py) from the schema that the program validates with (`heterosis schema` prints it
for editors). Unknown keys are refused with the nearest name. Paths are relative to the study file, but
`output` is relative to the working directory.
"""
# In the order in which a reader meets them.
SECTIONS = {
    "Study": "The whole file",
    "Model": "A model: `base`, `parents.NAME`",
    "TaskConfig": "A task: `tasks[]`",
    "SpaceConfig": "The search space: `space`, or a file of its own",
    "Gene": "A gene: `space.weight`, `space.density`, …",
    "Knots": "Depth by knots: `depth: {knots: …}`",
    "Blocks": "Depth by blocks: `depth: {blocks: …}`",
    "SplitsConfig": "`splits`",
    "OptimizerConfig": "`optimizer`",
    "BudgetConfig": "`budget`",
    "RacingConfig": "`racing`",
    "AnchorsConfig": "`anchors`",
    "StageConfig": "A stage: `stages[]`",
    "WarmStartConfig": "`warm_start`",
    "ConstraintConfig": "A constraint: `constraints[]`",
    "EngineConfig": "`engine`",
    "DataConfig": "`data`",
}


def reference() -> str:
    """The page."""
    schema = Study.model_json_schema()
    kinds = {"Study": schema, **schema["$defs"]}
    missing = kinds.keys() ^ SECTIONS.keys()
    if missing:
        raise SystemExit(f"docs/reference.py: SECTIONS and the schema differ in {', '.join(sorted(missing))}.")
    return INTRO + "".join("\n" + "\n".join(_section(title, kinds[kind])) + "\n" for kind, title in SECTIONS.items())


def _section(title: str, kind: dict[str, Any]) -> Iterator[str]:
    yield f"## {title}\n"
    yield " ".join(kind.get("description", "").split()) + "\n"
    yield "| key | type | default | |"
    yield "|---|---|---|---|"
    for name, about in kind["properties"].items():
        required = name in kind.get("required", ())
        default = "**required**" if required else _code(about.get("default"))
        meaning = " ".join(about.get("description", "").split()).replace("|", "\\|")
        yield f"| `{name}` | {_type(about)} | {default} | {meaning} |"


def _type(about: dict[str, Any]) -> str:
    """The type in words."""
    if "anyOf" in about:
        return " or ".join(_type(each) for each in about["anyOf"] if each.get("type") != "null")
    if "$ref" in about:
        kind = about["$ref"].rsplit("/", 1)[-1]
        return kind.removesuffix("Config").lower()
    if "enum" in about or "const" in about:
        values = about.get("enum", [about.get("const")])
        return ", ".join(f"`{value}`" for value in values)
    if about.get("type") == "array":
        return f"list of {_type(about['items'])}" if "items" in about else "list"
    if about.get("type") == "object":
        inner = about.get("additionalProperties")
        return f"name → {_type(inner)}" if isinstance(inner, dict) else "keys and values"
    return _words(about.get("type", "anything")) + _bounds(about)


def _words(kind: str) -> str:
    return {"string": "text", "boolean": "true, false"}.get(kind, kind)


def _bounds(about: dict[str, Any]) -> str:
    marks = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{mark} {about[key]:g}" for key, mark in marks.items() if key in about]
    return f" {', '.join(found)}" if found else ""


def _code(value: Any) -> str:
    if isinstance(value, dict):
        value = {key: inner for key, inner in value.items() if inner not in (None, False)}
    return "" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
