"""Train a classifier on a folder of images in TensorFlow with Keras's fit, as transformers' example of this kind does.

    run_image_classification_tf.py --model_name_or_path NAME --train_dir FOLDER --output_dir FOLDER --do_train --do_eval

The output is a checkpoint with its image processor, and all_results.json.
"""

import json
import os
import sys
from dataclasses import dataclass, field

import tensorflow as tf
import tf_keras as keras
from datasets import load_dataset
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    DefaultDataCollator,
    HfArgumentParser,
    TFAutoModelForImageClassification,
    TFTrainingArguments,
    set_seed,
)


@dataclass
class DataArguments:
    """The images."""

    dataset_name: str | None = field(default=None, metadata={"help": "A data set on the hub."})
    train_dir: str | None = field(default=None, metadata={"help": "Images to train on, a folder for each label."})
    validation_dir: str | None = field(default=None, metadata={"help": "Images to evaluate on."})
    train_val_split: float = field(default=0.15, metadata={"help": "The share of train that evaluates otherwise."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many."})


@dataclass
class ModelArguments:
    """The checkpoint to begin with."""

    model_name_or_path: str = field(default="google/vit-base-patch16-224-in21k", metadata={"help": "Where it is."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where what is downloaded is kept."})
    model_revision: str = field(default="main", metadata={"help": "A branch, tag or commit."})
    token: str | None = field(default=None, metadata={"help": "Of the hub."})
    ignore_mismatched_sizes: bool = field(default=False, metadata={"help": "Start a head of another size fresh."})
    from_pt: bool = field(default=True, metadata={"help": "Read the weights that PyTorch wrote."})


def main() -> None:
    """Read the arguments, train, evaluate, write."""
    parser = HfArgumentParser((ModelArguments, DataArguments, TFTrainingArguments))
    model_args, data_args, args = parser.parse_args_into_dataclasses()
    if not (args.do_train or args.do_eval):
        sys.exit("Say --do_train or --do_eval.")
    if os.path.isdir(args.output_dir) and os.listdir(args.output_dir) and not args.overwrite_output_dir:
        raise ValueError(f"{args.output_dir} is not empty; --overwrite_output_dir trains all the same.")
    set_seed(args.seed)

    if data_args.dataset_name:
        dataset = load_dataset(data_args.dataset_name, cache_dir=model_args.cache_dir, token=model_args.token)
    else:
        folders = {"train": data_args.train_dir, "validation": data_args.validation_dir}
        files = {split: os.path.join(folder, "**") for split, folder in folders.items() if folder}
        dataset = load_dataset("imagefolder", data_files=files, cache_dir=model_args.cache_dir)
    if "validation" not in dataset and data_args.train_val_split > 0:
        split = dataset["train"].train_test_split(data_args.train_val_split, seed=args.seed)
        dataset["train"], dataset["validation"] = split["train"], split["test"]
    limits = {"train": data_args.max_train_samples, "validation": data_args.max_eval_samples}
    for name, limit in limits.items():
        if limit is not None:
            dataset[name] = dataset[name].shuffle(seed=args.seed).select(range(limit))

    labels = dataset["train"].features["label"].names
    hub = {"cache_dir": model_args.cache_dir, "revision": model_args.model_revision, "token": model_args.token}
    config = AutoConfig.from_pretrained(
        model_args.model_name_or_path,
        num_labels=len(labels),
        label2id={label: str(i) for i, label in enumerate(labels)},
        id2label={str(i): label for i, label in enumerate(labels)},
        finetuning_task="image-classification",
        **hub,
    )
    processor = AutoImageProcessor.from_pretrained(model_args.model_name_or_path, **hub)

    def transform(batch: dict) -> dict:
        images = [image.convert("RGB") for image in batch["image"]]
        return {**processor(images, return_tensors="np"), "labels": batch["label"]}

    def batches(split: str, batch_size: int, shuffle: bool) -> tf.data.Dataset:
        return dataset[split].with_transform(transform).to_tf_dataset(
            columns=["pixel_values"],
            label_cols=["labels"],
            batch_size=batch_size,
            shuffle=shuffle,
            drop_remainder=shuffle,
            collate_fn=DefaultDataCollator(return_tensors="np"),
        )  # fmt: skip

    train = batches("train", args.per_device_train_batch_size, shuffle=True)
    validation = batches("validation", args.per_device_eval_batch_size, shuffle=False)
    with args.strategy.scope():
        model = TFAutoModelForImageClassification.from_pretrained(
            model_args.model_name_or_path,
            config=config,
            from_pt=model_args.from_pt,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
            **hub,
        )
        steps = max(1, len(train) * int(args.num_train_epochs))
        rate = keras.optimizers.schedules.PolynomialDecay(args.learning_rate, steps, end_learning_rate=0.0)
        optimizer = keras.optimizers.AdamW(rate, weight_decay=args.weight_decay)
        model.compile(optimizer=optimizer, jit_compile=args.xla, metrics=["accuracy"])

    results = {}
    if args.do_train:
        history = model.fit(train, epochs=int(args.num_train_epochs), verbose=2).history
        results |= {f"train_{name}": float(values[-1]) for name, values in history.items()}
    if args.do_eval:
        metrics = model.evaluate(validation, return_dict=True, verbose=2)
        results |= {f"eval_{name}": float(value) for name, value in metrics.items()}
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    with open(os.path.join(args.output_dir, "all_results.json"), "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
