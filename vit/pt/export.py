"""A PyTorch model as exports have it: one input, and outputs by the names that every export has.

Side by side with vit/tf/export.py and vit/flax/export.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Served(nn.Module):
    """What a model computes for a task.

    Args:
        model: with a classification head, or without a head for embeddings.
        task: "classify" or "embed".
        pool: what the embedding is: "cls", "mean", "pooler" or "patches".
    """

    def __init__(self, model: nn.Module, task: str, pool: str = "cls") -> None:
        super().__init__()
        self.model, self.task, self.pool = model, task, pool

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """{output: float32} of (batch, channels, height, width); `labels` are int64."""
        config: Any = self.model.config
        fixed = {
            name: torch.from_numpy(array).expand(pixel_values.shape[0], -1)  # the same for every image
            for name, array in config.fixed_inputs((1, *pixel_values.shape[1:])).items()
        }
        outputs = self.model(pixel_values, **fixed, return_dict=True)
        if self.task == "embed":
            return {"embedding": pooled(outputs, self.pool, config.prefix_tokens).float()}
        logits = outputs["logits"].float()
        several = config.problem_type == "multi_label_classification"
        probabilities = logits.sigmoid() if several else logits.softmax(-1)
        return {"logits": logits, "probabilities": probabilities, "labels": logits.argmax(-1)}


def pooled(outputs: Any, pool: str, prefix: int) -> Tensor:
    """What `vit.pipeline.POOLS` makes of the outputs of a base model, of which `prefix` tokens precede the patches."""
    if pool == "pooler":
        return outputs["pooler_output"]
    tokens = outputs["last_hidden_state"]  # (batch, tokens, hidden_size)
    if pool == "cls":
        return tokens[:, 0]
    return tokens[:, prefix:].mean(1) if pool == "mean" else tokens[:, prefix:]


def exported(served: Served, image: tuple[int, ...]) -> torch.export.ExportedProgram:
    """The program of a model for batches of any size of (channels, height, width)."""
    example = {"pixel_values": torch.zeros(2, *image)}  # of one image, 1 would be taken for fixed
    with torch.no_grad():
        return torch.export.export(served, (), example, dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}})
