"""docs/configuration.md has a row for every field that can be set, with its default."""

import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

import pytest

from hisparse_sidecar.config import ModelShape, SelectionConfig, SidecarConfig, TiersConfig
from tests.repo.repository import ROOT

SECTIONS = {
    "## Model": ModelShape,
    "## Capacity": SidecarConfig,
    "## Selection": SelectionConfig,
    "## Lower tiers": TiersConfig,
}
_BYTES = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_WORDS = {"none": None, "off": False, "empty": ""}
_NESTED = {"model", "selection", "tiers"}


def documented(heading: str) -> Iterator[tuple[str, str]]:
    """Each field of the first table of a section, and what stands in the second column."""
    text = (ROOT / "docs/configuration.md").read_text().split(f"\n{heading}", 1)[1]
    table = text.split("| --- ", 1)[1].split("\n\n")[0]
    for row in table.splitlines()[1:]:
        names, told = (cell.strip() for cell in row.split("|")[1:3])
        defaults = told.split(", ") if ", " in names else [told]
        yield from zip(re.findall(r"`(\w+)`", names), defaults, strict=True)


def value_of(told: str) -> Any:
    """The default that a cell tells; a rule in words stands for None, a field that is not set."""
    if (number := re.fullmatch(r"([\d.]+)(?: (\w+))?", told)) is not None:
        return float(number[1]) * _BYTES.get(number[2], 1)
    if (name := re.fullmatch(r"`(\w+)`", told)) is not None:
        return name[1]
    return _WORDS.get(told)


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_field_is_documented_with_its_default(heading: str) -> None:
    found = dict(documented(heading))
    known = {field.name: field.default for field in fields(SECTIONS[heading])}
    assert found.keys() == known.keys() - _NESTED
    for name, told in found.items():
        if known[name] is not MISSING:
            assert value_of(told) == known[name], name
