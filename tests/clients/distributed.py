"""Trains one step in two processes with DDP, FSDP 1 and FSDP 2, and saves: distributed.py CHECKPOINT FOLDER

Each process has half of the batch. `FOLDER/KIND.npy` is the mean loss, `FOLDER/KIND` the checkpoint that was saved.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

import vit

WORLD = 2


def wrapped(kind: str, model: Any) -> Any:
    """The model as the kind distributes it."""
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
    from torch.nn.parallel import DistributedDataParallel

    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "fsdp1":
        return FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), use_orig_params=True, sharding_strategy=ShardingStrategy.FULL_SHARD
        )
    for layer in model.vit.encoder.layer:
        fully_shard(layer)
    return fully_shard(model)


def work(rank: int, source: str, target: str) -> None:
    """One process."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{target}/store", WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.standard_normal((4, 3, 16, 16), dtype=np.float32))[rank * 2 : rank * 2 + 2]
    labels = (torch.arange(4) % 3)[rank * 2 : rank * 2 + 2]
    for kind in ("ddp", "fsdp1", "fsdp2"):
        model = wrapped(kind, vit.ViTForImageClassification.from_pretrained(source).train())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        outputs = model(pixel_values=pixels, labels=labels)
        outputs.loss.backward()  # an output with its names, whoever wrapped the model
        assert outputs["logits"] is outputs.logits
        optimizer.step()
        mean = outputs.loss.detach().clone()
        dist.all_reduce(mean)
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        if rank == 0:
            np.save(f"{target}/{kind}.npy", mean.item() / WORLD)
            vit.ViTForImageClassification.from_pretrained(source).save_pretrained(Path(target) / kind, state_dict=state)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(work, tuple(sys.argv[1:]), nprocs=WORLD)
