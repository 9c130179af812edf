"""A test of the tests: change one token of the core at a time, and see whether a test notices.

    python -m tests.mutants --count 500 --seed 0 --output mutants.jsonl

A mutant is one operator, number, truth value or name of a pair (`all` and `any`, `min` and `max`) exchanged, in a copy
of the project. First the tests are run unchanged, to learn which lines each of them runs. Then each mutant meets those
that run its line, the quick ones first, as many as BUDGET allows; it is caught if one fails, or takes many times as
long as all of them unchanged. The order is a random one, so that what is known after any number of mutants is a fair
sample. Those that live are printed; a second call with the same output goes on where the first one stopped.
EQUIVALENT names the mutants that change nothing that a caller could see, each with its reason.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import random
import shutil
import subprocess
import tempfile
import tokenize
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from .forked import Runner

ROOT = Path(__file__).parents[1]

_TABLES = json.loads((Path(__file__).parent / "mutants.json").read_text(encoding="utf-8"))

TESTS: dict[str, list[str]] = _TABLES["tests"]
"""{file or folder of the core: its files of tests, or single tests}; the longest name that fits counts."""

EQUIVALENT: dict[str, str] = _TABLES["equivalent"]
"""{"file: line as it is changed": why nothing changes}."""

BUDGET = 30.0
"""Seconds of CPU, unchanged, of the tests that a mutant meets."""

EXCHANGED = {
    "+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "*", "**": "*", "<<": ">>", ">>": "<<", "&": "|", "|": "&",
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "+=": "-=", "-=": "+=", "*=": "/=",
    "and": "or", "or": "and", "True": "False", "False": "True",
    "all": "any", "any": "all", "min": "max", "max": "min", "break": "continue", "continue": "break",
}  # fmt: skip


class Mutant(NamedTuple):
    """One token of one file, replaced."""

    path: str
    line: int
    column: int
    old: str
    new: str

    def apply(self, source: str) -> str:
        lines = source.splitlines(keepends=True)
        line = lines[self.line - 1]
        assert line[self.column :].startswith(self.old)
        lines[self.line - 1] = line[: self.column] + self.new + line[self.column + len(self.old) :]
        return "".join(lines)

    def key(self, source: str) -> str:
        """The file and the line as it is changed; where several lines are the same, which of them."""
        lines = [line.strip() for line in source.splitlines()]
        line = lines[self.line - 1]
        which = f" ({lines[: self.line].count(line)})" if lines.count(line) > 1 else ""
        return f"{self.path}: {self.apply(source).splitlines()[self.line - 1].strip()}{which}"


def mutants(path: str, source: str) -> Iterator[Mutant]:
    """Every mutant of a file; annotations, messages of errors, assertions and what only type checkers read are left."""
    lines = source.splitlines(keepends=True)
    starts = [0, *accumulate(map(len, lines))]

    def characters(line: int, bytes_: int) -> int:
        return len(lines[line - 1].encode()[:bytes_].decode())  # the syntax tree counts bytes

    left_alone: set[int] = set()
    for node in ast.walk(tree := ast.parse(source)):
        spans: list[Any] = []
        if isinstance(node, ast.AnnAssign | ast.arg):
            spans = [node.annotation]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            spans = [node.returns]
        elif isinstance(node, ast.Raise | ast.JoinedStr) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            spans = [node]
        elif isinstance(node, ast.Assign) and "|" in lines[node.lineno - 1] and node in tree.body:
            spans = [node]  # an alias of a type
        elif isinstance(node, ast.keyword) and node.arg == "strict":
            spans = [node.value]  # of zip: an assertion of what is so
        for span in filter(None, spans):
            begin = starts[span.lineno - 1] + characters(span.lineno, span.col_offset)
            end = starts[span.end_lineno - 1] + characters(span.end_lineno, span.end_col_offset)
            left_alone.update(range(begin, end))
    previous, signed = "", False
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        (line, column), text = token.start, token.string
        new: str | None = None
        if token.type in (tokenize.OP, tokenize.NAME):
            unpacks = text in ("*", "**", "/") and previous.strip() in ("", *"(,[{=:", "for", "return")
            new = None if unpacks or (previous == "." and text in ("all", "any")) else EXCHANGED.get(text)
            if text == "not" and previous != "is":
                new = ""
            elif text == "is":
                new = "is not"
                if lines[line - 1][column + 2 :].lstrip().startswith("not "):
                    new = None
        elif token.type == tokenize.NUMBER:
            new = str(int(text) + 1) if text.isdecimal() else f"{text}1" if "e" in text or "." in text else None
            if new and "." in text and "e" not in text:
                new = f"({text} + 0.5)"
        if text == "1" and previous == "-" and signed:
            new = None  # an axis or a size that counts from the end: its sign is exchanged, and NumPy takes -2 for -1
        if new is not None and starts[line - 1] + column not in left_alone:
            yield Mutant(path, line, column, text, new)
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            signed = text == "-" and previous in ("(", "[", "{", ",", "=", ":", "return", "+", "-", "*", "/")
            previous = text


def tests_of(path: str) -> list[str]:
    """The tests of a file of the core."""
    names = [name for name in TESTS if path == name or path.startswith(name.rstrip("/") + "/")]
    if not names:
        raise SystemExit(f"{path} has no tests in tests/mutants.json; add a row.")
    return TESTS[max(names, key=len)]


def shuffled(root: Path, seed: int, only: list[str]) -> list[Mutant]:
    """Every mutant of the core of a project, in a random order."""
    files = sorted(str(p.relative_to(root)) for folder in ("vit", "conversion") for p in (root / folder).rglob("*.py"))
    found = [m for f in files if not only or any(f.startswith(o) for o in only)
             for m in mutants(f, (root / f).read_text(encoding="utf-8"))]  # fmt: skip
    random.Random(seed).shuffle(found)
    return found


# === Which tests a mutant meets ===

Measured = dict[str, dict[str, Any]]
"""{test: what it takes}; see `Runner.measure`."""


def statement(source: str, line: int) -> range:
    """The lines of the statement that a line belongs to; of one that holds others, those of its head."""
    best = range(line, line + 1)
    for node in ast.walk(ast.parse(source)):  # from the outside to the inside
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno):
            body = getattr(node, "body", None)
            end = max(body[0].lineno - 1, node.lineno) if body else node.end_lineno or node.lineno
            best = range(node.lineno, end + 1) if line <= end else best
    return best


def meets(mutant: Mutant, source: str, measured: Measured, budget: float = BUDGET) -> list[str]:
    """The tests to run: those that run the line, then, of the file's own, those that start processes, then the others.

    Of each kind the quick ones are first, and of those that take the same time one of each function.
    """
    lines = set(statement(source, mutant.line))
    own = tuple(tests_of(mutant.path))
    kinds: list[list[str]] = [[], [], [], []]
    for name, test in measured.items():
        is_own = name.startswith(own)
        if lines.intersection(test["lines"].get(mutant.path, ())):
            kinds[0 if is_own else 1].append(name)
        elif is_own:
            kinds[2 if test["starts"] else 3].append(name)
    order = [name for kind in kinds for name in _in_turns(kind, measured)]
    spent = accumulate(measured[name]["seconds"] for name in order)
    return [name for name, seconds in zip(order, spent, strict=True) if seconds <= budget] or order[:1]


def _in_turns(names: Iterable[str], measured: Measured) -> list[str]:
    """By their time, times how many of its function are quicker."""
    turn: dict[str, int] = {}
    ordered = []
    for name in sorted(names, key=lambda name: measured[name]["seconds"]):
        function = name.split("[")[0]
        turn[function] = turn.get(function, 0) + 1
        ordered.append((turn[function] * measured[name]["seconds"], name))
    return [name for _, name in sorted(ordered)]


# === The campaign ===


def copied(folder: Path) -> Path:
    """A copy of the project's files."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def measure(runner: Runner, copy: Path, kept: Path) -> Measured:
    """What each test of the table takes, unchanged; `kept` is a folder of what is known already."""
    kept.mkdir(parents=True, exist_ok=True)
    rows = {test for row in TESTS.values() for test in row}
    files = {
        str(f.relative_to(copy))
        for row in rows
        for f in ((copy / row).glob("test_*.py") if "." not in row else [copy / row])
    }
    measured: Measured = {}
    for file in sorted(files):
        known = kept / (file.replace("/", "-") + ".json")
        if not known.exists():
            found = runner.measure(file, ["vit", "conversion"])
            known.write_text(json.dumps(found), encoding="utf-8")
            seconds = sum(test["seconds"] for test in found.values())
            print(f"{file}: {len(found)} tests pass, in {seconds:.0f} s of CPU", flush=True)
        measured |= json.loads(known.read_text(encoding="utf-8"))
    return measured


def share(caught: int, of: int) -> str:
    """A share with the interval that holds it with 95% (Wilson)."""
    z, of = 1.96, max(of, 1)
    middle = (caught + z * z / 2) / (of + z * z)
    half = z / (of + z * z) * (caught * (of - caught) / of + z * z / 4) ** 0.5
    return f"{caught / of:.1%} ({middle - half:.1%} to {middle + half:.1%})"


def verdict_of(mutant: Mutant, copy: Path, runner: Runner, measured: Measured) -> str:
    """What the tests say of a mutant of the copy, which is then as it was."""
    file = copy / mutant.path
    source, stat = file.read_text(encoding="utf-8"), file.stat()
    tests = meets(mutant, source, measured)
    try:
        file.write_text(mutant.apply(source), encoding="utf-8")
        seconds = 20 + 4 * sum(measured[test]["seconds"] for test in tests)
        return runner.verdict(tests, [name for name in measured if name not in set(tests)], seconds)
    finally:
        file.write_text(source, encoding="utf-8")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # what was compiled of it counts again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--only", action="append", default=[], help="a file or folder; may be repeated")
    arguments = parser.parse_args()
    known: dict[tuple[Any, ...], dict[str, Any]] = {}
    if arguments.output.exists():
        rows = map(json.loads, arguments.output.read_text(encoding="utf-8").splitlines())
        known = {tuple(row["mutant"]): row for row in rows}
    with tempfile.TemporaryDirectory(prefix="trivit-mutants-") as folder:
        copy = copied(Path(folder) / "copy")
        with Runner(copy) as runner:
            measured = measure(runner, copy, arguments.output.with_suffix(".measured"))
            runner.compile(sorted({name.split("::")[0] for name in measured}))
            for mutant in shuffled(copy, arguments.seed, arguments.only)[: arguments.count]:
                if tuple(mutant) in known:
                    continue
                key = mutant.key((copy / mutant.path).read_text(encoding="utf-8"))
                verdict = "equivalent" if key in EQUIVALENT else verdict_of(mutant, copy, runner, measured)
                known[tuple(mutant)] = row = {"mutant": list(mutant), "key": key, "verdict": verdict}
                with arguments.output.open("a", encoding="utf-8") as output:
                    output.write(json.dumps(row) + "\n")
                changed = key.split(": ", 1)[1]
                print(f"{len(known):4}  {verdict[:60]:60}  {mutant.path}:{mutant.line}  {changed[:80]}", flush=True)
    counted = [row for row in known.values() if row["verdict"] != "equivalent" and row["key"] not in EQUIVALENT]
    lived = [row for row in counted if row["verdict"] == "passed"]
    caught = len(counted) - len(lived)
    print(
        f"{caught} of {len(counted)} caught, {share(caught, len(counted))}; {len(known) - len(counted)} change nothing."
    )
    for row in lived:
        print("lives:", row["mutant"][0], row["mutant"][1], row["key"])


if __name__ == "__main__":
    main()
