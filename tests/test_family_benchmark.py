"""The suite of the families: every family has a row, and a row is measured beside what it is held against."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import families as suite
from benchmarks import harness
from benchmarks.harness import Options
from vit import checkpoint, families

from .test_benchmarks import Here, here  # noqa: F401
from .tiny import tiny_checkpoint


def test_every_family_has_a_row():
    assert {row.model_type for row in suite.ROWS} >= families.CONFIGS.keys() - {"vit"}


@pytest.mark.usefixtures("here")
def test_each_row_is_measured_beside_what_computes_the_same_or_is_as_long(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(harness, "TURN", 0.01)
    monkeypatch.setattr(harness, "PAUSE", 0.0)
    written = {}

    def folder(options: Options, row: suite.Row, model_type: str, head: str | None) -> str:
        path = tmp_path / f"{model_type}-{head}-{row.model_type}"
        keys = dict(row.options) if model_type == row.model_type else {}
        written[path.name] = tiny_checkpoint(path, model_type, head, image_size=16, **keys)
        return str(path)

    monkeypatch.setattr(suite, "folder", folder)
    monkeypatch.setattr(suite, "ROWS", [row._replace(image=16, beside=16) for row in suite.ROWS])
    options = Options(tmp_path, tmp_path, seconds=0.01, batch_sizes=[1])
    lines = [line for line in suite.run(options).splitlines() if re.match(r"\| \w+, \w+ \|", line)]
    assert not options.absent
    assert len(lines) == 3 * len(suite.ROWS)
    for line in lines:
        *_, rate, beside, _ = line.split("|")
        assert float(rate) > 0
        assert re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\)", beside.strip())


def test_checkpoints_have_the_published_sizes_and_the_class_that_is_measured(tmp_path: Path, monkeypatch):
    asked = []
    monkeypatch.setattr(suite, "random_checkpoint", lambda path, config, head: asked.append((config, head)))
    for row in suite.ROWS:
        suite.folder(Options(tmp_path, tmp_path, "B/16"), row, row.model_type, row.head)
        suite.folder(Options(tmp_path, tmp_path, "B/16"), row, "vit", "classifier")
        (own, _), (beside, _) = asked[-2:]
        assert own.hidden_size == beside.hidden_size == 768
        seen = own.replace(image_size=row.image)
        tokens = seen.prefix_tokens + seen.num_patches
        if row.model_type == "vit_mae":
            tokens = 1 + own.kept(own.num_patches)
        assert 0 <= tokens - (beside.num_patches + 1) <= 4


def test_a_checkpoint_that_the_harness_writes_is_of_the_class_that_is_said(tmp_path: Path):
    config = families.config_class("beit")(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, vocab_size=5
    )
    harness.random_checkpoint(tmp_path, config, head="lm_head")
    opened = checkpoint.Checkpoint(tmp_path)
    assert opened.config.architectures == ("BeitForMaskedImageModeling",)
    assert "lm_head.weight" in opened.tensors
