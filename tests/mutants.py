"""A test of the tests: change one token of the core at a time, and see whether the tests of its file notice.

    python -m tests.mutants --count 500 --seed 0 --jobs 2 --output mutants.jsonl

A mutant is one operator, number, truth value or name of a pair (`all` and `any`, `min` and `max`) exchanged, in a copy
of the project. It is caught if the tests that TESTS names for its file fail, or run four times as long as they do
unchanged. Those that live are printed; a second call with the same output goes on where the first one stopped.
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
import sys
import tempfile
import time
import tokenize
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]

_TABLES = json.loads((Path(__file__).parent / "mutants.json").read_text(encoding="utf-8"))

TESTS: dict[str, list[str]] = _TABLES["tests"]
"""{file or folder of the core: its tests, in the order they are run}; the longest name that fits counts."""

EQUIVALENT: dict[str, str] = _TABLES["equivalent"]
"""{"file: line as it is changed": why nothing changes}."""

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
        return f"{self.path}: {self.apply(source).splitlines()[self.line - 1].strip()}"


def mutants(path: str, source: str) -> Iterator[Mutant]:
    """Every mutant of a file; annotations, messages of errors and what only type checkers read are left alone."""
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


def chosen(count: int, seed: int, only: list[str]) -> list[Mutant]:
    """`count` mutants of the core, each token as likely as any other."""
    files = sorted(str(p.relative_to(ROOT)) for folder in ("vit", "conversion") for p in (ROOT / folder).rglob("*.py"))
    found = [m for f in files if not only or any(f.startswith(o) for o in only)
             for m in mutants(f, (ROOT / f).read_text(encoding="utf-8"))]  # fmt: skip
    return random.Random(seed).sample(found, min(count, len(found)))


def run(tests: list[str], copy: Path, limit: float) -> tuple[str, float]:
    """("passed", "failed: TEST" or "slow", seconds of CPU-bound waiting) of the tests in a copy of the project."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=copy, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            return "slow", time.monotonic() - began
        output.seek(0)
        failed = [line for line in output if line.startswith(("FAILED", "ERROR", "E  "))]
    seconds = time.monotonic() - began
    return ("passed" if process.returncode == 0 else f"failed: {(failed or ['at import'])[-1].strip()[:160]}"), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--only", action="append", default=[], help="a file or folder; may be repeated")
    arguments = parser.parse_args()
    known = {}
    if arguments.output.exists():
        rows = [json.loads(line) for line in arguments.output.read_text(encoding="utf-8").splitlines()]
        known = {tuple(row["mutant"]): row for row in rows}
    todo = [m for m in chosen(arguments.count, arguments.seed, arguments.only) if tuple(m) not in known]
    times: dict[str, float] = {}

    def one(mutant: Mutant, copy: Path) -> dict[str, Any]:
        file, tests = copy / mutant.path, tests_of(mutant.path)
        source = file.read_text(encoding="utf-8")
        key = " ".join(tests)
        if key not in times:
            verdict, times[key] = run(tests, copy, 1800)
            assert verdict == "passed", f"{key}: {verdict}, unchanged"
        row = {"mutant": list(mutant), "key": mutant.key(source)}
        if row["key"] in EQUIVALENT:
            return {**row, "verdict": "equivalent"}
        try:
            file.write_text(mutant.apply(source), encoding="utf-8")
            verdict, _ = run(tests, copy, 4 * times[key] + 30)
        finally:
            file.write_text(source, encoding="utf-8")
        return {**row, "verdict": verdict}

    with tempfile.TemporaryDirectory(prefix="trivit-mutants-") as folder:
        copies = []
        for job in range(arguments.jobs):
            copies.append(Path(folder) / str(job))
            listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
            for name in filter(None, listed.decode().split("\0")):
                target = copies[-1] / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)
        free = list(copies)

        def work(mutant: Mutant) -> None:
            copy = free.pop()
            try:
                row = one(mutant, copy)
            finally:
                free.append(copy)
            known[tuple(mutant)] = row
            with arguments.output.open("a", encoding="utf-8") as output:
                output.write(json.dumps(row) + "\n")
            changed = row["key"].split(": ", 1)[1]
            print(f"{len(known):4}  {row['verdict'][:60]:60}  {mutant.path}:{mutant.line}  {changed[:80]}", flush=True)

        todo.sort(key=lambda mutant: (tests_of(mutant.path), mutant.path))
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(work, todo))
    lived = [row for row in known.values() if row["verdict"] == "passed"]
    counted = [row for row in known.values() if row["verdict"] != "equivalent"]
    print(f"{len(counted) - len(lived)} of {len(counted)} caught; {len(known) - len(counted)} change nothing.")
    for row in lived:
        print("lives:", row["mutant"][0], row["mutant"][1], row["key"])


if __name__ == "__main__":
    main()
