"""A PyTorch model as exports have it: one input, and outputs by the names that every export has.

Side by side with vit/tf/export.py and vit/flax/export.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..image_processing.steps import Steps
from .preprocessing import preprocess

if TYPE_CHECKING:
    from ..exporting import Job


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


class ServedImages(nn.Module):
    """What a model computes for a task of images of any one size, which the image processor's steps bring to its own.

    Args:
        served: the model.
        steps: of its image processor.
    """

    def __init__(self, served: Served, steps: Steps) -> None:
        super().__init__()
        self.served, self.steps = served, steps

    def forward(self, image_uint8: Tensor) -> dict[str, Tensor]:
        """As that of `Served`, of (batch, height, width, channels) uint8."""
        return self.served(preprocess(image_uint8, self.steps))


def exported(job: Job, **options: Any) -> torch.export.ExportedProgram:
    """The program of a job, for batches of any size.

    Args:
        job: what is to be exported.
        **options: of `from_pretrained`.
    """
    served: nn.Module = Served(job.model("pt", **options), job.task, job.pool)
    batch = torch.export.Dim("batch")
    example, shapes = torch.zeros(2, *job.image), {0: batch}  # of one image, 1 would be taken for fixed
    if job.images:
        served = ServedImages(served, Steps.of(job.processor))
        example = torch.zeros(2, 37, 53, job.image[0], dtype=torch.uint8)
        shapes |= {1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    (name,) = job.inputs
    with torch.no_grad():
        return torch.export.export(served, (), {name: example}, dynamic_shapes={name: shapes})
