"""The campaign of mutants: what it changes, and that every file of the core has tests in its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import forked, mutants

SOURCE = """
def share(values: list[int | None], *rest, most=3):
    if not values or len(values) > most and all(values):
        raise ValueError(f"{len(values)} of {most + 1}")
    return max(values[-1], -2) + 0.5 * sum(a for a, _ in zip(rest, rest, strict=True))
"""


def test_operators_numbers_truth_and_pairs_are_exchanged_and_messages_are_not() -> None:
    changed = [(each.old, each.new) for each in mutants.mutants("file.py", SOURCE)]
    assert changed == [
        ("3", "4"), ("not", ""), ("or", "and"), (">", ">="), ("and", "or"), ("all", "any"), ("max", "min"), ("-", "+"),
        ("-", "+"), ("2", "3"), ("+", "-"), ("0.5", "(0.5 + 0.5)"), ("*", "/"),
    ]  # fmt: skip


def test_a_mutant_changes_its_token_alone() -> None:
    for each in mutants.mutants("file.py", SOURCE):
        before, after = SOURCE.splitlines(), each.apply(SOURCE).splitlines()
        assert [i for i, (old, new) in enumerate(zip(before, after, strict=True), 1) if old != new] == [each.line]
        compile(each.apply(SOURCE), "file.py", "exec")


def test_every_file_of_the_core_has_tests_that_exist() -> None:
    for folder in ("vit", "conversion"):
        for path in (mutants.ROOT / folder).rglob("*.py"):
            tests = mutants.tests_of(str(path.relative_to(mutants.ROOT)))
            assert tests
            assert all((mutants.ROOT / test.split("::")[0]).exists() for test in tests)


def test_every_mutant_that_is_said_to_change_nothing_is_one() -> None:
    for key in mutants.EQUIVALENT:
        path = key.partition(": ")[0]
        source = (mutants.ROOT / path).read_text(encoding="utf-8")
        assert key in {each.key(source) for each in mutants.mutants(path, source)}, key


# === Which tests a mutant meets ===


def test_a_line_belongs_to_its_statement_and_a_head_to_no_line_of_its_body() -> None:
    source = "a = (\n    1,\n    2,\n)\nif (\n    a\n):\n    b = 1\n    c = 2\n"
    found = [mutants.statement(source, line) for line in range(1, 10)]
    assert found == [range(1, 5)] * 4 + [range(5, 8)] * 3 + [range(8, 9), range(9, 10)]


def test_the_quick_tests_of_a_line_come_first_and_one_of_each_function() -> None:
    mutant = mutants.Mutant("vit/posemb.py", 2, 0, "1", "2")

    def takes(seconds: float, *lines: int, starts: bool = False) -> dict[str, Any]:
        return {"seconds": seconds, "starts": starts, "lines": {"vit/posemb.py": list(lines)}}

    measured = {
        "tests/test_cli.py::other": takes(0.1, 2),
        "tests/test_posemb.py::starts": takes(0.1, starts=True),
        "tests/test_posemb.py::none": takes(0.1, 1),
        "tests/test_posemb.py::slow": takes(3, 2),
        "tests/test_posemb.py::quick[1]": takes(1, 1, 2),
        "tests/test_posemb.py::quick[2]": takes(2, 2),
    }
    order = [name.split("::")[1] for name in mutants.meets(mutant, "1\n2\n", measured)]
    assert order == ["quick[1]", "slow", "quick[2]", "other", "starts", "none"]
    assert len(mutants.meets(mutant, "1\n2\n", measured, budget=4)) == 2


def test_a_share_has_its_interval() -> None:
    assert mutants.share(95, 100) == "95.0% (88.8% to 97.8%)"


SHARE = """
import functools
import subprocess
import sys

import pytest

import share


@pytest.mark.parametrize("value", share.VALUES)
def test_share(value):
    assert share.double(value) == 2 * value


def test_start():
    subprocess.run([sys.executable, "-c", ""], check=True)


def test_fails():
    assert not share.double(2)
"""


def test_a_mutant_is_caught_where_a_test_fails_and_left_where_none_does(tmp_path: Path) -> None:
    source = "VALUES = [1, 2]\n\n\ndef double(value):\n    if value < 0:\n        return 3\n    return 2 * value\n"
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "share.py").write_text(source)
    (tmp_path / "conftest.py").write_text("import sys\nsys.path.insert(0, 'core')\n")
    (tmp_path / "test_share.py").write_text(SHARE)
    with forked.Runner(tmp_path, warm=["json", "no_such_module"]) as runner:
        measured = runner.measure("test_share.py", ["core"])
        assert {name.split("::")[1]: (test["starts"], test["lines"]) for name, test in measured.items()} == {
            "test_share[1]": (False, {"core/share.py": [5, 7]}),
            "test_share[2]": (False, {"core/share.py": [5, 7]}),
            "test_start": (True, {}),
        }
        for old, new, verdict in (
            ("2 * value", "2 * value", "passed"),
            ("2 * value", "3 * value", "failed: test_share.py::test_share[2]"),
            ("2 * value", "2 * missing", "failed: test_share.py::test_share[2]"),
            ("VALUES = [1, 2]", "VALUES = [1, 3]", "passed"),
            ("VALUES = [1, 2]", "VALUES = [1, 'a']", "failed: test_share.py::test_share[a]"),
            ("2 * value", "2 * value +", "failed: test_share.py cannot be imported"),
            ("return 3", "return 4", "passed"),
            ("if value < 0:\n        return 3", "while True:\n        value += 1", "slow"),
        ):
            (tmp_path / "core" / "share.py").write_text(source.replace(old, new))
            tests = ["test_share.py::test_share[2]"]
            known = ["test_share.py::test_share[1]", "test_share.py::test_start"]
            assert runner.verdict(tests, known, seconds=1).startswith(verdict), (old, new)
