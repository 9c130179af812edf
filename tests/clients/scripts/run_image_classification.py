"""Train a classifier on a folder of images with the Trainer, as transformers' example of this name does.

    run_image_classification.py --model_name_or_path NAME --train_dir FOLDER --output_dir FOLDER --do_train --do_eval

A folder of images has a folder for each label. The output is a checkpoint that any from_pretrained reads, with its
image processor, the metrics as JSON and a model card.
"""

import os
import random
import sys
from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import load_dataset
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint


@dataclass
class DataArguments:
    """The images."""

    dataset_name: str | None = field(default=None, metadata={"help": "A data set on the hub."})
    train_dir: str | None = field(default=None, metadata={"help": "Images to train on, a folder for each label."})
    validation_dir: str | None = field(default=None, metadata={"help": "Images to evaluate on."})
    train_val_split: float = field(default=0.15, metadata={"help": "The share of train that evaluates otherwise."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many."})
    image_column_name: str = field(default="image", metadata={"help": "The column of images."})
    label_column_name: str = field(default="label", metadata={"help": "The column of labels."})

    def __post_init__(self) -> None:
        if not (self.dataset_name or self.train_dir or self.validation_dir):
            raise ValueError("Name a data set, or a folder to train or evaluate on.")


@dataclass
class ModelArguments:
    """The checkpoint to begin with."""

    model_name_or_path: str = field(default="google/vit-base-patch16-224-in21k", metadata={"help": "Where it is."})
    config_name: str | None = field(default=None, metadata={"help": "Its configuration, if elsewhere."})
    image_processor_name: str | None = field(default=None, metadata={"help": "Its image processor, if elsewhere."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where what is downloaded is kept."})
    model_revision: str = field(default="main", metadata={"help": "A branch, tag or commit."})
    token: str | None = field(default=None, metadata={"help": "Of the hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that a checkpoint brings."})
    ignore_mismatched_sizes: bool = field(default=False, metadata={"help": "Start a head of another size fresh."})


def augmented(image: Image.Image, size: dict[str, int]) -> Image.Image:
    """A random crop of a random side."""
    width, height = image.size
    share = random.uniform(0.6, 1.0)
    w, h = max(1, int(width * share)), max(1, int(height * share))
    left, top = random.randint(0, width - w), random.randint(0, height - h)
    image = image.crop((left, top, left + w, top + h)).resize((size["width"], size["height"]), Image.BILINEAR)
    return image.transpose(Image.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


def main() -> None:
    """Read the arguments, train, evaluate, write."""
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        model_args, data_args, args = parser.parse_json_file(json_file=os.path.abspath(sys.argv[1]))
    else:
        model_args, data_args, args = parser.parse_args_into_dataclasses()

    last_checkpoint = None
    if os.path.isdir(args.output_dir) and args.do_train and not args.overwrite_output_dir:
        last_checkpoint = get_last_checkpoint(args.output_dir)
        if last_checkpoint is None and os.listdir(args.output_dir):
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

    labels = dataset["train"].features[data_args.label_column_name].names
    hub = {
        "cache_dir": model_args.cache_dir,
        "revision": model_args.model_revision,
        "token": model_args.token,
        "trust_remote_code": model_args.trust_remote_code,
    }
    config = AutoConfig.from_pretrained(
        model_args.config_name or model_args.model_name_or_path,
        num_labels=len(labels),
        label2id={label: str(i) for i, label in enumerate(labels)},
        id2label={str(i): label for i, label in enumerate(labels)},
        finetuning_task="image-classification",
        **hub,
    )
    model = AutoModelForImageClassification.from_pretrained(
        model_args.model_name_or_path,
        from_tf=bool(".ckpt" in model_args.model_name_or_path),
        config=config,
        ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
        **hub,
    )
    processor = AutoImageProcessor.from_pretrained(
        model_args.image_processor_name or model_args.model_name_or_path, **hub
    )

    def transform(training: bool):
        def of_batch(batch: dict) -> dict:
            images = [image.convert("RGB") for image in batch[data_args.image_column_name]]
            if training:
                images = [augmented(image, processor.size) for image in images]
            return {**processor(images, return_tensors="pt"), "labels": batch[data_args.label_column_name]}

        return of_batch

    def collate(examples: list[dict]) -> dict:
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": torch.tensor([example["labels"] for example in examples]),
        }

    limits = {"train": data_args.max_train_samples, "validation": data_args.max_eval_samples}
    for name, limit in limits.items():
        if name in dataset and limit is not None:
            dataset[name] = dataset[name].shuffle(seed=args.seed).select(range(limit))
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=dataset["train"].with_transform(transform(training=True)) if args.do_train else None,
        eval_dataset=dataset["validation"].with_transform(transform(training=False)) if args.do_eval else None,
        compute_metrics=lambda p: {"accuracy": float((np.argmax(p.predictions, axis=1) == p.label_ids).mean())},
        processing_class=processor,
        data_collator=collate,
    )

    if args.do_train:
        result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or last_checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    if args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    card = {
        "finetuned_from": model_args.model_name_or_path,
        "tasks": "image-classification",
        "dataset": data_args.dataset_name,
        "tags": ["image-classification", "vision"],
    }
    if args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)


if __name__ == "__main__":
    main()
