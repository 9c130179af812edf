"""What every test shares: a quiet and isolated process, the reference checkpoints, and small random ones."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

with suppress(ImportError):  # of PyTorch's CUDA builds, which has to come before TensorFlow: vit/tf/__init__.py
    import triton  # noqa: F401

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

import pytest  # noqa: E402

from vit.families.vit import ViTConfig  # noqa: E402

from . import equivalence  # noqa: E402


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of the reference checkpoints; its README.md says what they hold."""
    return Path(__file__).parent / "reference"


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ViTConfig]:
    """A factory of small configurations: any key of ViTConfig overrides."""
    return equivalence.tiny_config


@pytest.fixture
def narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rich prints goes to a terminal of colours and 60 columns."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "60"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def random_checkpoint() -> Callable[..., Path]:
    """A writer of checkpoints in which every parameter is random; see `equivalence.random_checkpoint`."""
    return equivalence.random_checkpoint
