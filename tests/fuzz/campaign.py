"""Mutants of every reader's seeds, one after the other, until a number or a time is reached."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from .mutations import MUTATIONS
from .readers import Reader, readers
from .worker import Verdict, Worker


def inputs(name: str, reader: Reader, folder: Path, seed: int) -> Iterator[Path]:
    """Mutants of a reader, without end; each is at one place in `folder`, until the next is asked for.

    Args:
        name: of the reader.
        reader: it.
        folder: for the mutants.
        seed: of the generator: the same mutants for the same seed.
    """
    rng = random.Random(f"{name} {seed}")
    while True:
        whole = rng.choice(reader.seeds)
        place = folder / whole.name
        shutil.rmtree(place, ignore_errors=True)
        if whole.is_dir():
            shutil.copytree(whole, place)
            file = rng.choice(sorted(place.glob(reader.mutated)))
        else:
            file = place
            shutil.copyfile(whole, file)
        data = file.read_bytes()
        file.unlink()
        file.write_bytes(MUTATIONS[rng.choice(reader.mutations)](data, rng))
        yield place


def run(
    folder: Path,
    each: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    only: str = "",
    told: Callable[[str, int, Verdict], None] | None = None,
) -> tuple[Counter[tuple[str, str]], list[tuple[str, int, Verdict]]]:
    """Give every reader mutants, turn by turn.

    Args:
        folder: for seeds and mutants; what fails is kept in `folder`/failed.
        each: mutants of a reader; without end when None.
        minutes: after which it ends.
        seed: of the generators.
        only: readers whose name holds this.
        told: of each failure, as it comes.

    Returns:
        (reader, verdict) -> how many; and the failures: reader, number of the mutant, verdict.
    """
    table = {name: reader for name, reader in readers(folder / "seeds").items() if only in name}
    (folder / "mutants").mkdir(exist_ok=True)
    mutants = {name: inputs(name, reader, folder / "mutants", seed) for name, reader in table.items()}
    counts: Counter[tuple[str, str]] = Counter()
    failures: list[tuple[str, int, Verdict]] = []
    end = None if minutes is None else time.monotonic() + 60 * minutes
    number = 0
    with Worker(folder / "seeds") as worker:
        while each is None or number < each:
            for name, mutant in mutants.items():
                if end is not None and time.monotonic() > end:
                    return counts, failures
                place = next(mutant)
                verdict = worker.judge(name, place)
                counts[name, verdict.kind] += 1
                counts[name, "checked"] += verdict.checked
                if verdict.failed:
                    failures.append((name, number, verdict))
                    kept = folder / "failed" / f"{len(failures)}"
                    kept.mkdir(parents=True, exist_ok=True)
                    (shutil.copytree if place.is_dir() else shutil.copyfile)(place, kept / place.name)
                    if told is not None:
                        told(name, number, verdict)
            number += 1
    return counts, failures
