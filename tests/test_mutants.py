"""The campaign of mutants: what it changes, and that every file of the core has tests in its table."""

from __future__ import annotations

from pathlib import Path

from . import mutants

SOURCE = """
def share(values: list[int | None], *rest, most=3):
    if not values or len(values) > most and all(values):
        raise ValueError(f"{len(values)} of {most + 1}")
    return max(values[-1], -2) + 0.5 * sum(rest)
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
            assert all((mutants.ROOT / test).exists() for test in tests)


def test_a_mutant_is_caught_where_a_test_fails(tmp_path: Path) -> None:
    (tmp_path / "test_share.py").write_text("from share import share\n\n\ndef test_share():\n    assert share() == 2\n")
    for source, expected in (("def share(): return 1 + 1", "passed"), ("def share(): return 1 - 1", "failed")):
        (tmp_path / "share.py").write_text(source)
        verdict, _ = mutants.run(["test_share.py"], tmp_path, limit=300)
        assert verdict.startswith(expected)
