"""Pretrain by masked image modelling (SimMIM) with the Trainer, as transformers' example of this name does.

    run_mim.py --model_type vit --train_dir FOLDER --output_dir FOLDER --do_train --remove_unused_columns False

The output is a checkpoint that any from_pretrained reads, with its image processor, the metrics and a model card.
"""

import math
import os
import sys
from dataclasses import dataclass, field

import torch
from datasets import load_dataset
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForMaskedImageModeling,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    ViTImageProcessor,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint


@dataclass
class DataArguments:
    """The images, and what of them is masked."""

    dataset_name: str | None = field(default=None, metadata={"help": "A data set on the hub."})
    image_column_name: str | None = field(default=None, metadata={"help": "The column of images."})
    train_dir: str | None = field(default=None, metadata={"help": "A folder of images to train on."})
    validation_dir: str | None = field(default=None, metadata={"help": "A folder of images to evaluate on."})
    train_val_split: float = field(default=0.15, metadata={"help": "The share of train that evaluates otherwise."})
    mask_patch_size: int = field(default=32, metadata={"help": "Height and width of what is masked at once."})
    mask_ratio: float = field(default=0.6, metadata={"help": "The share that is masked."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many."})


@dataclass
class ModelArguments:
    """The checkpoint to begin with, or the kind of model to begin from nothing."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A checkpoint; none for fresh weights."})
    model_type: str | None = field(default=None, metadata={"help": "vit, deit: the kind of model without one."})
    config_name_or_path: str | None = field(default=None, metadata={"help": "A configuration, if elsewhere."})
    config_overrides: str | None = field(default=None, metadata={"help": "key=value,... of a fresh configuration."})
    image_processor_name: str | None = field(default=None, metadata={"help": "An image processor, if elsewhere."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where what is downloaded is kept."})
    image_size: int | None = field(default=None, metadata={"help": "Of the model; the configuration's otherwise."})
    patch_size: int | None = field(default=None, metadata={"help": "Of the model; the configuration's otherwise."})
    encoder_stride: int | None = field(default=None, metadata={"help": "Of the decoder; the configuration's."})


class MaskGenerator:
    """Draws masks of squares of `mask_patch_size` pixels, told apart to the model's patches.

    Args:
        image_size: height and width, a multiple of `mask_patch_size`.
        mask_patch_size: a multiple of `patch_size`.
    """

    def __init__(self, image_size: int, mask_patch_size: int, patch_size: int, mask_ratio: float) -> None:
        if image_size % mask_patch_size or mask_patch_size % patch_size:
            raise ValueError("image_size has to be a multiple of mask_patch_size, and that of patch_size.")
        self.side, self.scale = image_size // mask_patch_size, mask_patch_size // patch_size
        self.masked = math.ceil(self.side**2 * mask_ratio)

    def __call__(self) -> torch.Tensor:
        """(patches,), 1 where a patch is masked."""
        mask = torch.zeros(self.side**2, dtype=torch.int64)
        mask[torch.randperm(self.side**2)[: self.masked]] = 1
        mask = mask.reshape(self.side, self.side).repeat_interleave(self.scale, 0).repeat_interleave(self.scale, 1)
        return mask.flatten()


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
        dataset = load_dataset(data_args.dataset_name, cache_dir=model_args.cache_dir)
    else:
        folders = {"train": data_args.train_dir, "validation": data_args.validation_dir}
        files = {split: os.path.join(folder, "**") for split, folder in folders.items() if folder}
        dataset = load_dataset("imagefolder", data_files=files, cache_dir=model_args.cache_dir)
    if "validation" not in dataset and data_args.train_val_split > 0:
        split = dataset["train"].train_test_split(data_args.train_val_split, seed=args.seed)
        dataset["train"], dataset["validation"] = split["train"], split["test"]

    name = model_args.config_name_or_path or model_args.model_name_or_path
    if name:
        config = AutoConfig.from_pretrained(name, cache_dir=model_args.cache_dir)
    else:
        config = AutoConfig.for_model(model_args.model_type)
        if model_args.config_overrides:
            config.update_from_string(model_args.config_overrides)
    if hasattr(config, "decoder_type"):
        config.decoder_type = "simmim"
    sizes = {key: getattr(model_args, key) or getattr(config, key) for key in ("image_size", "patch_size")}
    config.update({**sizes, "encoder_stride": model_args.encoder_stride or config.encoder_stride})

    if model_args.image_processor_name or model_args.model_name_or_path:
        processor = AutoImageProcessor.from_pretrained(
            model_args.image_processor_name or model_args.model_name_or_path, cache_dir=model_args.cache_dir
        )
    else:
        processor = ViTImageProcessor(size={"height": config.image_size, "width": config.image_size})
    if model_args.model_name_or_path:
        model = AutoModelForMaskedImageModeling.from_pretrained(
            model_args.model_name_or_path, config=config, cache_dir=model_args.cache_dir
        )
    else:
        model = AutoModelForMaskedImageModeling.from_config(config)

    columns = dataset["train"].column_names
    column = data_args.image_column_name or next((each for each in ("image", "img") if each in columns), columns[0])
    draw = MaskGenerator(config.image_size, data_args.mask_patch_size, config.patch_size, data_args.mask_ratio)

    def transform(batch: dict) -> dict:
        images = [image.convert("RGB") for image in batch[column]]
        return {**processor(images, return_tensors="pt"), "mask": [draw() for _ in images]}

    def collate(examples: list[dict]) -> dict:
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "bool_masked_pos": torch.stack([example["mask"] for example in examples]),
        }

    limits = {"train": data_args.max_train_samples, "validation": data_args.max_eval_samples}
    for split_name, limit in limits.items():
        if limit is not None:
            dataset[split_name] = dataset[split_name].shuffle(seed=args.seed).select(range(limit))
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=dataset["train"].with_transform(transform) if args.do_train else None,
        eval_dataset=dataset["validation"].with_transform(transform) if args.do_eval else None,
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
        "tasks": "masked-image-modeling",
        "dataset": data_args.dataset_name,
        "tags": ["masked-image-modeling"],
    }
    if args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)


if __name__ == "__main__":
    main()
