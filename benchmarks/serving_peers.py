"""The servers beside which `vit serve` is measured, with the same model and image processor: `benchmarks.serving`.

Each is set up as its documentation says for batches: requests are decoded beside the model where it has a place for it.
"""

from __future__ import annotations

import asyncio
import base64
import sys
from typing import Any

import numpy as np

from vit import Forward, ViTImageProcessor

try:
    from litserve import LitAPI
except ImportError:
    LitAPI = object
try:
    from mlserver import MLModel
except ImportError:
    MLModel = object


class Classifier:
    """Bytes of image files -> the most probable label of each, as indices."""

    def __init__(self, checkpoint: str, framework: str) -> None:
        self.processor = ViTImageProcessor.from_pretrained(checkpoint)
        self.forward = Forward(checkpoint, framework)

    def decode(self, image: bytes) -> np.ndarray:
        """(channels, height, width) of an image."""
        return self.processor(image, return_tensors="np", threads=1).pixel_values[0]

    def classify(self, batch: list[np.ndarray]) -> list[int]:
        """Of images that are decoded."""
        return [int(index) for index in self.forward(np.stack(batch)).logits.argmax(axis=1)]


class LitClassifier(LitAPI):
    """LitServe's form of it; a class of the module, as its workers are processes that unpickle it."""

    def __init__(self, checkpoint: str, framework: str, **options: Any) -> None:
        super().__init__(**options)
        self.given = checkpoint, framework

    def setup(self, device: str) -> None:
        """Load the model, in a worker."""
        self.model = Classifier(*self.given)

    def decode_request(self, request: dict[str, str]) -> np.ndarray:
        """One image."""
        return self.model.decode(base64.b64decode(request["image"]))

    def batch(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """As they are."""
        return inputs

    def predict(self, x: list[np.ndarray]) -> list[int]:
        """A batch."""
        return self.model.classify(x)

    def unbatch(self, output: list[int]) -> list[int]:
        """As they are."""
        return output

    def encode_response(self, output: int) -> dict[str, int]:
        """One answer."""
        return {"label": output}


def litserve(checkpoint: str, framework: str, port: int, batch_size: int, delay: float) -> None:
    """LitServe with one worker, as the model fills the cores."""
    from litserve import LitServer

    api = LitClassifier(
        checkpoint, framework, max_batch_size=batch_size, batch_timeout=delay / 1000, api_path="/classify"
    )
    LitServer(api, accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1", port=port, generate_client_file=False, log_level="error"
    )


class MLClassifier(MLModel):
    """MLServer's form of it, which it imports by its name."""

    async def load(self) -> bool:
        """Load the model."""
        extra = self.settings.parameters.extra
        self.model = Classifier(extra["checkpoint"], extra["framework"])
        return True

    async def predict(self, payload: Any) -> Any:
        """A batch."""
        from mlserver.types import InferenceResponse, ResponseOutput

        images = [base64.b64decode(each) for each in payload.inputs[0].data.root]
        labels = await asyncio.get_running_loop().run_in_executor(None, self._compute, images)
        output = ResponseOutput(name="label", datatype="INT64", shape=[len(labels)], data=labels)
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=[output])

    def _compute(self, images: list[bytes]) -> list[int]:
        return self.model.classify([self.model.decode(each) for each in images])


def mlserver(checkpoint: str, framework: str, port: int, batch_size: int, delay: float) -> None:
    """MLServer with adaptive batching, the model in the server's process."""
    from mlserver import MLServer
    from mlserver.settings import ModelParameters, ModelSettings, Settings

    settings = Settings(
        host="127.0.0.1", http_port=port, grpc_port=port + 1, metrics_port=port + 2, parallel_workers=0, debug=False
    )
    parameters = ModelParameters(extra={"checkpoint": checkpoint, "framework": framework})
    model = ModelSettings(
        name="model", implementation="benchmarks.serving_peers.MLClassifier", max_batch_size=batch_size,
        max_batch_time=delay / 1000, parameters=parameters,
    )  # fmt: skip
    asyncio.run(MLServer(settings).start([model]))


def main() -> None:
    """Serve: NAME CHECKPOINT FRAMEWORK PORT BATCH_SIZE DELAY."""
    name, checkpoint, framework, port, batch_size, delay = sys.argv[1:]
    {"litserve": litserve, "mlserver": mlserver}[name](checkpoint, framework, int(port), int(batch_size), float(delay))


if __name__ == "__main__":
    main()
