"""The libraries are there when the tests are run for a decision, so that none is skipped unseen."""

from __future__ import annotations

import importlib.util
import os
import tomllib
from pathlib import Path

import pytest

from .common import CLIENTS

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not os.environ.get("CI"), reason="outside of continuous integration a library may be absent")
@pytest.mark.parametrize("name", CLIENTS)
def test_every_library_is_there(name: str):
    assert importlib.util.find_spec(name) is not None


def test_the_extra_lists_every_library():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    listed = {requirement.partition(">")[0].strip() for requirement in extras["clients"]}
    assert listed == {name.replace("_", "-") for name in CLIENTS}
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert listed <= pinned
