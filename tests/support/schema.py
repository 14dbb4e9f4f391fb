# SPDX-License-Identifier: LGPL-2.1-or-later
"""As much of JSON Schema as our own schemas use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import remus_native.watching

HERE = Path(remus_native.watching.__file__).parent
KINDS: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "number": (int, float),
    "integer": int,
}
SAYS_NOTHING = {"$schema", "$defs", "title", "description"}


def load(name: str) -> dict[str, Any]:
    """A schema of the package."""
    schema: dict[str, Any] = json.loads((HERE / f"{name}.schema.json").read_text())
    return schema


def faults(
    value: object, schema: dict[str, Any], root: dict[str, Any], at: str = "$"
) -> Iterator[str]:
    """What is wrong with ``value``; a word of a schema that is not known is, too."""
    for word, rule in schema.items():
        if word in SAYS_NOTHING:
            continue
        found: list[str] = []
        if word == "$ref":
            found += faults(value, root["$defs"][rule.split("/")[-1]], root, at)
        elif word == "anyOf":
            tries = [list(faults(value, one, root, at)) for one in rule]
            if all(tries):
                found += min(tries, key=len)
        elif word == "type":
            kinds = [rule] if isinstance(rule, str) else rule
            right = any(isinstance(value, KINDS[kind]) for kind in kinds)
            if not right or (isinstance(value, bool) and "boolean" not in kinds):
                found.append(f"{at}: {value!r} is no {rule}")
        elif word == "enum":
            if value not in rule:
                found.append(f"{at}: {value!r} is none of {rule}")
        elif word == "minimum":
            if isinstance(value, int | float) and value < rule:
                found.append(f"{at}: {value} is less than {rule}")
        elif word == "required":
            if isinstance(value, dict):
                found += [f"{at}: no {key}" for key in rule if key not in value]
        elif word == "properties":
            if isinstance(value, dict):
                for key, inner in rule.items():
                    if key in value:
                        found += faults(value[key], inner, root, f"{at}.{key}")
        elif word == "additionalProperties":
            more = (
                set(value) - set(schema.get("properties", ()))
                if isinstance(value, dict)
                else set()
            )
            if rule is False:
                found += [f"{at}: {key} is not known" for key in sorted(more)]
            else:
                for key in more:
                    found += faults(value[key], rule, root, f"{at}.{key}")  # type: ignore[index]
        elif word == "items":
            if isinstance(value, list):
                for i, one in enumerate(value):
                    found += faults(one, rule, root, f"{at}[{i}]")
        else:
            found.append(f"the schema says {word}, which is not known here")
        yield from found


def check(value: object, name: str) -> None:
    """``value`` is what the schema ``name`` describes."""
    schema = load(name)
    assert list(faults(value, schema, schema)) == []
