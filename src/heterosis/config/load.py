"""Reading a study file: parsed, checked, its space found, every fault one line that says what to do."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from heterosis.config.schema import Study
from heterosis.config.spaces import Config, SpaceConfig
from heterosis.errors import StudyError
from heterosis.files import parse_yaml

ConfigT = TypeVar("ConfigT", bound=Config)


def load_study(path: Path) -> Study:
    """Read a study file with its space resolved. StudyError says what is wrong in one line."""
    content = read_yaml(path)
    study = _validate(Study, content, path)
    space = study.space
    if "space" not in content and study.method is not None:
        space = SpaceConfig(method=study.method)
    if isinstance(space, str):
        found = find_space(space, path.parent)
        space = _validate(SpaceConfig, read_yaml(found), found)
    if study.method is not None and study.method != space.method:
        inline = content["space"]
        if not isinstance(inline, dict) or "method" in inline:
            raise StudyError(f"{path}: method is {study.method}, its space is for {space.method}. Drop one of them.")
        space = space.model_copy(update={"method": study.method})
    return study.model_copy(update={"space": space, "method": space.method})


def find_space(name: str, relative_to: Path) -> Path:
    """A space file beside the study, in the working directory, or among those that ship with the program."""
    for candidate in (relative_to / name, Path(name), *(folder / f"{name}.yaml" for folder in space_folders())):
        if candidate.is_file():
            return candidate
    shipped = sorted(path.stem for folder in space_folders() if folder.is_dir() for path in folder.glob("*.yaml"))
    hint = difflib.get_close_matches(name, shipped, 1)
    raise StudyError(f"space: no file {name}" + (f"; did you mean {hint[0]}?" if hint else f"; shipped: {shipped}"))


def space_folders() -> tuple[Path, ...]:
    """Where shipped spaces lie: in a checkout, or in an installation."""
    return (
        Path(__file__).resolve().parents[3] / "search_spaces",
        Path(sys.prefix) / "share" / "heterosis" / "search_spaces",
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise StudyError(f"{path}: is a folder. Give the file itself.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read ({error}).") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise StudyError(f"{path}: not YAML ({' '.join(str(error).split())}).") from error
    if content is None:
        raise StudyError(f"{path}: is empty. `heterosis init` writes a study file to start from.")
    if not isinstance(content, dict):
        raise StudyError(f"{path}: must hold keys and values, not {type(content).__name__}. See `heterosis schema`.")
    return content


def _validate(kind: type[ConfigT], content: Mapping[str, Any], path: Path) -> ConfigT:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise StudyError(f"{path}: {explain(error, kind)}") from None


def explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first fault of a validation in one line, with the nearest valid name for a key that is unknown."""
    faults = error.errors(include_url=False)
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    *above, last = first["loc"] or ("study",)
    parts = [str(part) for part in above if part not in _UNION_TAGS and "[" not in str(part)]
    if first["type"] in ("extra_forbidden", "missing") or not (last in _UNION_TAGS or "[" in str(last)):
        parts.append(str(last))
    where = ".".join(parts)
    if first["type"] == "extra_forbidden":
        known = _fields_at(kind, parts[:-1])
        near = difflib.get_close_matches(parts[-1], known, 1)
        advice = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return f"{where}: unknown key; {advice}"
    if first["type"] == "missing":
        return f"{where}: missing. Add it; `heterosis schema` describes every key."
    given = f" (given: {first['input']!r})" if isinstance(first.get("input"), str | int | float | bool) else ""
    return f"{where or 'study'}: {first['msg'].removeprefix('Value error, ')}{given}"


_UNION_TAGS = {"SpaceConfig", "RacingConfig", "Gene", "float", "int", "str", "bool", "Knots", "Blocks"}


def _fields_at(kind: type[BaseModel], place: list[str]) -> list[str]:
    current: type[BaseModel] | None = kind
    for part in place:
        if part.isdigit() or current is None:
            continue
        field = current.model_fields.get(part)
        if field is None:
            continue  # the key of a mapping: its values share one type
        current = next((model for model in _models_in(field.annotation)), None)
    return sorted(current.model_fields) if current is not None else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
