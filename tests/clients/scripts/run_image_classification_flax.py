"""Train a classifier on a folder of images in JAX with a TrainState and optax, as transformers' example of this kind.

    run_image_classification_flax.py --model_name_or_path NAME --train_dir FOLDER --validation_dir FOLDER
                                     --output_dir FOLDER --do_train --do_eval

transformers' Flax models carry their parameters beside a linen module; here the model is an NNX module, so the two
lines that take the parameters out of it and put them back are NNX's. The rest is that of the example: a pure loss of
parameters and a batch, `jax.value_and_grad`, a `TrainState`, a warmed-up and linearly decayed AdamW.

The output is a checkpoint with its image processor, and all_results.json.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import optax
from datasets import load_dataset
from flax import nnx
from flax.training import train_state
from transformers import HfArgumentParser

from vit import AutoConfig, AutoImageProcessor, FlaxAutoModelForImageClassification


@dataclass
class TrainingArguments:
    """How to train."""

    output_dir: str = field(metadata={"help": "Where the checkpoint goes."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Even where something is."})
    do_train: bool = field(default=False, metadata={"help": "Train."})
    do_eval: bool = field(default=False, metadata={"help": "Evaluate."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Images of a step, for each device."})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Images evaluated at once."})
    learning_rate: float = field(default=5e-5, metadata={"help": "At the end of the warm-up."})
    weight_decay: float = field(default=0.0, metadata={"help": "Of AdamW."})
    adam_beta1: float = field(default=0.9, metadata={"help": "Of AdamW."})
    adam_beta2: float = field(default=0.999, metadata={"help": "Of AdamW."})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "Of AdamW."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "How often every image is seen."})
    warmup_steps: int = field(default=0, metadata={"help": "Steps until the learning rate is reached."})
    seed: int = field(default=42, metadata={"help": "Of the order and dropout."})


@dataclass
class ModelArguments:
    """The checkpoint to begin with."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A checkpoint; none for fresh weights."})
    config_name: str | None = field(default=None, metadata={"help": "A configuration, if elsewhere."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where what is downloaded is kept."})
    dtype: str = field(default="float32", metadata={"help": "float32, float16 or bfloat16."})


@dataclass
class DataArguments:
    """The images."""

    train_dir: str = field(metadata={"help": "Images to train on, a folder for each label."})
    validation_dir: str = field(metadata={"help": "Images to evaluate on, a folder for each label."})
    image_size: int = field(default=224, metadata={"help": "Height and width that the model sees."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many."})


def learning_rate(args: TrainingArguments, steps: int) -> optax.Schedule:
    """Up over the first `warmup_steps`, then down to nothing at `steps`."""
    up = optax.linear_schedule(0.0, args.learning_rate, args.warmup_steps)
    down = optax.linear_schedule(args.learning_rate, 0.0, steps - args.warmup_steps)
    return optax.join_schedules([up, down], [args.warmup_steps])


def main() -> None:
    """Read the arguments, train, evaluate, write."""
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    model_args, data_args, args = parser.parse_args_into_dataclasses()
    if os.path.isdir(args.output_dir) and os.listdir(args.output_dir) and not args.overwrite_output_dir:
        raise ValueError(f"{args.output_dir} is not empty; --overwrite_output_dir trains all the same.")

    folders = {"train": data_args.train_dir, "validation": data_args.validation_dir}
    files = {split: os.path.join(folder, "**") for split, folder in folders.items()}
    dataset = load_dataset("imagefolder", data_files=files, cache_dir=model_args.cache_dir)
    limits = {"train": data_args.max_train_samples, "validation": data_args.max_eval_samples}
    for name, limit in limits.items():
        if limit is not None:
            dataset[name] = dataset[name].shuffle(seed=args.seed).select(range(limit))
    labels = dataset["train"].features["label"].names

    config = AutoConfig.from_pretrained(
        model_args.config_name or model_args.model_name_or_path,
        num_labels=len(labels),
        id2label={str(i): label for i, label in enumerate(labels)},
        label2id={label: str(i) for i, label in enumerate(labels)},
        image_size=data_args.image_size,
        cache_dir=model_args.cache_dir,
    )
    dtype = getattr(jnp, model_args.dtype)
    if model_args.model_name_or_path:
        model = FlaxAutoModelForImageClassification.from_pretrained(
            model_args.model_name_or_path, config=config, dtype=dtype
        )
    else:
        model = FlaxAutoModelForImageClassification.from_config(config, rngs=nnx.Rngs(args.seed))
    size = {"height": data_args.image_size, "width": data_args.image_size}
    processor = AutoImageProcessor.from_pretrained(
        model_args.config_name or model_args.model_name_or_path, size=size, cache_dir=model_args.cache_dir
    )

    def batches(split: str, batch_size: int, order: np.ndarray | None = None) -> Iterator[dict]:
        images = dataset[split]
        order = np.arange(len(images)) if order is None else order[: len(order) // batch_size * batch_size]
        for first in range(0, len(order), batch_size):
            rows = images[order[first : first + batch_size]]
            pixels = processor([image.convert("RGB") for image in rows["image"]], return_tensors="np").pixel_values
            yield {"pixel_values": pixels, "labels": np.array(rows["label"])}

    train_batch = args.per_device_train_batch_size
    epochs = int(args.num_train_epochs)
    steps = max(1, len(dataset["train"]) // train_batch * epochs)
    model.train()
    graphdef, params = nnx.split(model, nnx.Param)  # NNX: the parameters out of the model ...
    state = train_state.TrainState.create(
        apply_fn=lambda params, **inputs: nnx.merge(graphdef, params)(**inputs),
        params=params,
        tx=optax.adamw(
            learning_rate(args, steps), args.adam_beta1, args.adam_beta2, args.adam_epsilon,
            weight_decay=args.weight_decay,
        ),
    )  # fmt: skip

    @jax.jit
    def train_step(state: train_state.TrainState, batch: dict, key: jax.Array) -> tuple:
        def loss_of(params: nnx.State) -> jax.Array:
            logits = state.apply_fn(params, pixel_values=batch["pixel_values"], rngs=nnx.Rngs(dropout=key)).logits
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()

        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        return state.apply_gradients(grads=gradients), loss

    @jax.jit
    def eval_step(logits_of: nnx.State, batch: dict) -> tuple:
        logits = nnx.merge(eval_graphdef, logits_of)(batch["pixel_values"]).logits
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        return losses.sum(), (logits.argmax(axis=-1) == batch["labels"]).sum()

    results: dict[str, float] = {}
    key = jax.random.key(args.seed)
    if args.do_train:
        rng = np.random.default_rng(args.seed)
        losses = []
        for _ in range(epochs):
            for batch in batches("train", train_batch, rng.permutation(len(dataset["train"]))):
                key, dropout = jax.random.split(key)
                state, loss = train_step(state, batch, dropout)
                losses.append(float(loss))
        results["train_loss"] = float(np.mean(losses))
    nnx.update(model, state.params)  # ... and back into it
    model.eval()
    if args.do_eval:
        eval_graphdef, evaluated = nnx.split(model)
        sums = [eval_step(evaluated, batch) for batch in batches("validation", args.per_device_eval_batch_size)]
        loss, correct = (float(sum(each)) / len(dataset["validation"]) for each in zip(*sums, strict=True))
        results |= {"eval_loss": loss, "eval_accuracy": correct}
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    with open(os.path.join(args.output_dir, "all_results.json"), "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
