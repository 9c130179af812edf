"""The command, as a user types it, in this process."""

from __future__ import annotations

from typing import Any

import pytest

from vit import cli


def vit(*arguments: Any) -> int:
    """Its exit status."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(each) for each in arguments])
    return int(end.value.code or 0)
