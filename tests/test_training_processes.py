"""Several processes train one model: they equal one process, hold their parts alone, and stop and fail together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit import ViTImageProcessor, checkpoint, families
from vit.errors import FRAMEWORKS, ConfigError, InputError
from vit.training import Recipe
from vit.training.processes import Processes, place
from vit.training.run import train

from .equivalence import random_checkpoint, tiny_config
from .processes import RECIPE
from .tiny import HEADS, tiny_checkpoint

SCRIPT = Path(__file__).with_name("processes.py")
WORLD = 2


@pytest.fixture(scope="module")
def photos(tmp_path_factory: Any) -> Path:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, colour in (("blue", (40, 60, 200)), ("red", (200, 40, 50))):
        (folder / name).mkdir()
        for i in range(13):
            pixels = np.clip(rng.normal(colour, 60, (20 + i, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    (folder / "blue" / "3.png").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("model")
    random_checkpoint(folder, tiny_config(), "classifier")
    ViTImageProcessor(size=16).save_pretrained(folder)
    return folder


def ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens to."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return found


def launched(framework: str, *arguments: Any) -> None:
    """Run the script in two processes, as the framework's users launch them."""
    script = [str(SCRIPT.relative_to(SCRIPT.parents[1])), framework, *map(str, arguments)]
    everyone = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    first, second = ports(WORLD)
    if framework == "pt":
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(WORLD), "--master-port", str(first)]
        commands, variables = [[sys.executable, *launcher, "-m", "tests.processes", *script[1:]]], [{}]
    elif framework == "tf":
        cluster = {"worker": [f"127.0.0.1:{first}", f"127.0.0.1:{second}"]}
        tasks = [{"type": "worker", "index": rank} for rank in range(WORLD)]
        variables = [{"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})} for task in tasks]
    else:
        everyone["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        address = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{first}", "JAX_NUM_PROCESSES": str(WORLD)}
        address["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"  # of each process
        variables = [{**address, "JAX_PROCESS_ID": str(rank)} for rank in range(WORLD)]
    if framework != "pt":
        commands = [[sys.executable, "-m", "tests.processes", *script[1:]]] * WORLD
    children = [
        subprocess.Popen(command, env={**everyone, **own}, cwd=SCRIPT.parents[1], stderr=subprocess.PIPE, text=True)
        for command, own in zip(commands, variables, strict=True)
    ]
    errors = [child.communicate(timeout=600)[1] for child in children]
    assert [child.returncode for child in children] == [0] * len(children), "\n".join(errors)[-6000:]


def weights(folder: Path) -> dict[str, np.ndarray]:
    opened = checkpoint.Checkpoint(folder)
    return {name: opened.read(name) for name in opened.tensors}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_two_processes_are_one_stop_together_and_hold_their_parts(
    framework: str, photos: Path, model: Path, tmp_path: Path
) -> None:
    launched(framework, photos, model, tmp_path)
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORLD)]
    alone = train(photos, model, tmp_path / "alone", framework, RECIPE)
    assert len(alone.broken) == 1
    expected = weights(alone.folder / "last")
    for name, steps in (("whole", [4, 6, 8, 10]), ("sharded", [2, 4, 6, 8, 10])):
        if (framework, name) == ("tf", "sharded"):
            continue
        for part in ("last", "best"):
            expected = weights(alone.folder / part)
            for key, array in weights(tmp_path / name / part).items():
                assert np.abs(array - expected[key]).max() <= 1e-5, (name, part, key)
        assert [each[name]["is_first"] for each in told] == [True, False]
        assert [each[name]["steps"] for each in told] == [steps, []]
        assert told[0][name]["metrics"] == told[1][name]["metrics"] == pytest.approx(alone.metrics, abs=1e-5)
        assert told[0][name]["broken"] == told[1][name]["broken"] == sorted(alone.broken)
    sizes = [array.nbytes for array in expected.values()]
    for each in told:
        assert each["stopped"] == 3
        assert "holds a run; give --resume to go on" in each["again"]
        assert "batch_size is 6, which 2 processes cannot share; expected a multiple of " in each["odd"]
        if framework != "tf":
            parameters, moments = each["held"]
            assert parameters <= sum(sizes) / WORLD + max(sizes)
            assert moments <= 2 * (sum(sizes) / WORLD + max(sizes))


def test_tensorflow_has_no_shards(photos: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot shard.* train in PyTorch or Flax"):
        train(photos, model, tmp_path / "run", "tf", RECIPE, shard=True)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    """A process group of PyTorch's of this process alone."""
    import torch
    from torch import distributed

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as its threads wait for each other, they would slow models of this size
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(("model_type", "head"), [(m, h) for m, h in HEADS if h in ("classifier", "decoder")])
def test_every_family_trains_in_shards_as_it_does_whole(model_type: str, head: str, tmp_path: Path) -> None:
    from vit.pt.training import Trainer

    objective = "classification" if head == "classifier" else "reconstruction"
    recipe = Recipe(batch_size=4, objective=objective, ema=0.5)
    tiny_checkpoint(tmp_path, model_type, head)
    found = []
    for shard in (False, True):
        cls = families.model_class("pt", model_type, head)
        model = cls.from_pretrained(tmp_path, problem_type="single_label_classification")
        config, rng = model.config, np.random.default_rng(0)
        batch = {"pixel_values": rng.standard_normal((4, 3, 16, 12), np.float32)}
        if objective == "classification":
            batch["targets"] = rng.dirichlet(np.ones(config.num_labels), 4).astype(np.float32)
        elif model_type == "vit_mae":
            batch["noise"] = rng.random((4, config.num_patches), np.float32)
        else:
            batch["bool_masked_pos"] = rng.random((4, config.num_patches)) < 0.5
        trainer = Trainer(model, recipe, None, 0, Processes(0, 1 + shard), shard)
        for step in range(3):
            trainer.step(batch, step, 1e-2)
        answers = {}
        if objective == "classification":
            with trainer.averaged():
                answers["averaged"] = trainer.logits(batch["pixel_values"])
            answers["itself"] = trainer.logits(batch["pixel_values"])
        tensors = trainer.tensors()
        trainer.gather()
        trainer.save(tmp_path / str(shard))
        trainer._restore({name: 2 * array for name, array in tensors.items()}, 3)
        doubled = {f"doubled {name}": array / 2 for name, array in trainer.tensors().items()}
        found.append({**answers, **tensors, **doubled, **weights(tmp_path / str(shard))})
    assert found[0].keys() == found[1].keys()
    for name, expected in found[0].items():
        assert np.abs(found[1][name] - expected).max() <= 1e-6, name


# === What launchers say ===

SAID = [
    ("pt", {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, (1, 4)),
    ("pt", {"RANK": "4", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, None),
    ("pt", {"RANK": "one", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, None),
    ("pt", {"RANK": "1", "WORLD_SIZE": "4"}, None),
    ("pt", {}, (0, 1)),
    ("tf", {"TF_CONFIG": '{"cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"]}, "task": '
                         '{"type": "worker", "index": 1}}'}, (2, 3)),
    ("tf", {"TF_CONFIG": '{"cluster": {"worker": ["b:1", "c:1"]}, "task": {"type": "worker", "index": "0"}}'}, (0, 2)),
    ("tf", {"TF_CONFIG": '{"cluster": {"worker": ["b:1"]}, "task": {"type": "worker", "index": 1}}'}, None),
    ("tf", {"TF_CONFIG": "worker 1"}, None),
    ("tf", {"TF_CONFIG": "[]"}, None),
    ("flax", {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, (1, 2)),
    ("flax", {"JAX_COORDINATOR_ADDRESS": "a:1"}, None),
]  # fmt: skip


@pytest.mark.parametrize(("framework", "variables", "expected"), SAID)
def test_a_launcher_says_which_process_this_is(
    framework: str, variables: dict[str, str], expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TF_CONFIG", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if expected is not None:
        assert place(framework) == expected
        return
    with pytest.raises(ConfigError, match="as a launcher of several processes sets them"):
        place(framework)


def test_what_fails_in_the_first_process_fails_in_all() -> None:
    class Second(Processes):
        def gather(self, array: np.ndarray) -> np.ndarray:
            return np.stack([said.pop(0), array])

    text = json.dumps("the disk is full").encode()
    said = [np.array([len(text)], np.int32), np.frombuffer(text, np.uint8).astype(np.int32)]
    with pytest.raises(InputError, match="the disk is full"):
        Second(1, 2).by_first(lambda: pytest.fail("the second does nothing"))
