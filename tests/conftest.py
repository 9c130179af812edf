"""What every test shares: a quiet and isolated process, the reference checkpoints, and small random ones."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_hub_home = tempfile.TemporaryDirectory(prefix="trivit-tests-hub-")  # kept alive until the tests end

# Before any framework is imported, because each reads these once.
for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_CACHE", "JAX_ENABLE_X64"):
    os.environ.pop(_name, None)
os.environ |= {
    "HF_HOME": _hub_home.name,  # nobody's own models or token
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "KERAS_BACKEND": "tensorflow",
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # every run compiles what it tests
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",  # simulated devices, for sharding
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "GRPC_VERBOSITY": "ERROR",
    "GLOG_minloglevel": "3",
    # Three frameworks, each with a thread pool of its own, share the cores.
    "OMP_NUM_THREADS": "2",
    "MKL_NUM_THREADS": "2",
    "OPENBLAS_NUM_THREADS": "2",
    "TF_NUM_INTRAOP_THREADS": "2",
    "TF_NUM_INTEROP_THREADS": "1",
}

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from vit import checkpoint, weights  # noqa: E402
from vit.config import ViTConfig  # noqa: E402


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of the reference checkpoints; its README.md says what they hold."""
    return Path(__file__).parent / "reference"


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ViTConfig]:
    """A factory of small configurations: any key of ViTConfig overrides."""

    def make(**overrides: Any) -> ViTConfig:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        images = {"image_size": 16, "patch_size": 4, "num_channels": 3}
        images["encoder_stride"] = overrides.get("patch_size", images["patch_size"])
        labels = {} if {"id2label", "label2id"} & overrides.keys() else {"num_labels": 5}
        return ViTConfig(**{**sizes, **images, **labels, **overrides})

    return make


@pytest.fixture(scope="session")
def random_checkpoint() -> Callable[..., Path]:
    """A writer of checkpoints in which every parameter is random.

    `random_checkpoint(folder, config, head=None, add_pooling_layer=None, use_mask_token=None, seed=0,
    dtype="float32", max_shard_size="5GB")` returns the folder. Without a head there is a pooler, and with the decoder a
    mask token, unless the arguments say otherwise. No framework is needed.
    """

    def make(
        folder: str | os.PathLike[str],
        config: ViTConfig,
        head: str | None = None,
        add_pooling_layer: bool | None = None,
        use_mask_token: bool | None = None,
        seed: int = 0,
        dtype: Any = "float32",
        max_shard_size: int | str = "5GB",
    ) -> Path:
        parts = {
            "add_pooling_layer": head is None if add_pooling_layer is None else add_pooling_layer,
            "use_mask_token": head == "decoder" if use_mask_token is None else use_mask_token,
        }
        dtype = checkpoint.dtype_of(dtype)
        shapes = weights.parameter_shapes(config, head=head, **parts)
        rng = np.random.default_rng(seed)
        arrays = {}
        for name, shape in shapes.items():
            is_matrix = len(shape) in (2, 4)
            values = rng.standard_normal(shape) * (np.prod(shape[1:]) ** -0.5 if is_matrix else 0.3)
            if "layernorm" in name and name.endswith(".weight"):
                values += 1
            arrays[name if head else name.removeprefix(weights.BASE)] = values.astype(dtype)
        tensors = {name: (array.shape, dtype) for name, array in arrays.items()}
        architecture = {None: "ViTModel", "classifier": "ViTForImageClassification",
                        "decoder": "ViTForMaskedImageModeling"}[head]  # fmt: skip
        config = config.replace(architectures=(architecture,), dtype=dtype.name)
        checkpoint.write(folder, config, tensors, arrays.__getitem__, max_shard_size)
        return Path(folder)

    return make
