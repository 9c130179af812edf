"""`python -m tests.fuzz --minutes N`: mutants of every reader for so long; what fails is printed and kept."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from .campaign import run
from .worker import Verdict


def main() -> None:
    """Run, print a table, and exit with 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1, help="0 is what the test suite runs")
    parser.add_argument("--only", default="", metavar="NAME", help="readers whose name holds this")
    parser.add_argument("--folder", type=Path, help="where seeds, mutants and failures go")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="vit-fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)

    def told(name: str, number: int, verdict: Verdict) -> None:
        print(f"{name}, mutant {number}: {verdict.kind}: {verdict.detail}", flush=True)

    counts, failures = run(folder, minutes=options.minutes, seed=options.seed, only=options.only, told=told)
    kinds = ("read", "checked", "refused", "other error", "crash", "hang", "memory", "wrong")
    print(f"{'reader':<20}" + "".join(f"{kind:>12}" for kind in kinds))
    total: Counter[str] = Counter()
    for name in dict.fromkeys(name for name, _ in counts):
        print(f"{name:<20}" + "".join(f"{counts[name, kind]:>12,}" for kind in kinds))
        total.update({kind: counts[name, kind] for kind in kinds})
    print(f"{'all':<20}" + "".join(f"{total[kind]:>12,}" for kind in kinds))
    if failures:
        print(f"what failed is in {folder / 'failed'}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
