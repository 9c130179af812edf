"""One of several processes that train together: processes.py FRAMEWORK DATA MODEL FOLDER

Their launcher says which of them this is. It trains into FOLDER/whole, which the second stops and all resume, and into
FOLDER/sharded; and writes to FOLDER/<rank>.json what it found, and how many bytes of parameters and moments it held in
shards.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from vit.training import Recipe
from vit.training.processes import place
from vit.training.run import train

RECIPE = Recipe(
    batch_size=8, steps=10, accumulate=2, learning_rate=1e-3, evaluate_every=1, validation=0.25, log_every=2, mixup=0.5,
    cutmix=0.5, ema=0.9, crop_scale=0.3, randaugment=1, erasing=0.2,
)  # fmt: skip


def held_pt(trainer: Any) -> tuple[int, int]:
    """Bytes of this process: of parameters, and of moments."""
    moments = [each for state in trainer.optimizer.state.values() for each in state.values() if each.ndim]
    parameters, moments = ([each.to_local() for each in group] for group in (trainer.model.parameters(), moments))
    return tuple(sum(each.nbytes for each in group) for group in (parameters, moments))  # type: ignore[return-value]


def held_flax(trainer: Any) -> tuple[int, int]:
    """Bytes of this process: of parameters, and of moments."""
    import jax

    return tuple(  # type: ignore[return-value]
        sum(shard.data.nbytes for leaf in jax.tree.leaves(part) for shard in leaf.addressable_shards)
        for part in (trainer.state[0], trainer.state[1]["opt_state"])
    )


def main(framework: str, data: str, model: str, folder: str) -> None:
    room, rank = import_module(f"vit.{framework}.training"), place(framework)[0]
    trainers: list[Any] = []

    class Kept(room.Trainer):  # type: ignore[misc, name-defined]
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            trainers.append(self)

    room.Trainer = Kept
    found: dict[str, Any] = {}
    asked = iter([False, False, rank == 1])
    stopped = train(data, model, f"{folder}/whole", framework, RECIPE, should_stop=lambda: next(asked))
    found["stopped"] = stopped.step
    for name in ("whole", "sharded") if framework != "tf" else ("whole",):
        rows: list[Any] = []
        go_on, shard = name == "whole", name == "sharded"
        run = train(data, model, f"{folder}/{name}", framework, None if go_on else RECIPE, resume=go_on, shard=shard,
                    report=rows.append, workers=1)  # fmt: skip
        found[name] = {"metrics": run.metrics, "is_first": run.is_first, "steps": [row["step"] for row in rows],
                       "broken": sorted(run.broken)}  # fmt: skip
        if shard:
            found["held"] = {"pt": held_pt, "flax": held_flax}[framework](trainers[-1])
    for name, where, recipe in (("again", "whole", RECIPE), ("odd", "odd", RECIPE.replace(batch_size=6))):
        try:
            train(data, model, f"{folder}/{where}", framework, recipe)
        except ValueError as error:
            found[name] = str(error)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
