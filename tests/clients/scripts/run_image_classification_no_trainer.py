"""Train a classifier on a folder of images with a loop of one's own and Accelerate, as transformers' example does.

    run_image_classification_no_trainer.py --model_name_or_path NAME --train_dir FOLDER --output_dir FOLDER

The output is a checkpoint that any from_pretrained reads, with its image processor and all_results.json; with
--checkpointing_steps, folders to resume from.
"""

import argparse
import json
import math
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    SchedulerType,
    get_scheduler,
)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset_name")
    parser.add_argument("--train_dir")
    parser.add_argument("--validation_dir")
    parser.add_argument("--max_train_samples", type=int)
    parser.add_argument("--max_eval_samples", type=int)
    parser.add_argument("--train_val_split", type=float, default=0.15)
    parser.add_argument("--model_name_or_path", default="google/vit-base-patch16-224-in21k")
    parser.add_argument("--per_device_train_batch_size", type=int, default=8)
    parser.add_argument("--per_device_eval_batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--weight_decay", type=float, default=0.0)
    parser.add_argument("--num_train_epochs", type=int, default=3)
    parser.add_argument("--max_train_steps", type=int)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--lr_scheduler_type", type=SchedulerType, default="linear")
    parser.add_argument("--num_warmup_steps", type=int, default=0)
    parser.add_argument("--output_dir")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--trust_remote_code", action="store_true")
    parser.add_argument("--checkpointing_steps", help="'epoch', or a number of steps")
    parser.add_argument("--resume_from_checkpoint")
    parser.add_argument("--with_tracking", action="store_true")
    parser.add_argument("--report_to", default="all")
    parser.add_argument("--ignore_mismatched_sizes", action="store_true")
    args = parser.parse_args()
    if not (args.dataset_name or args.train_dir or args.validation_dir):
        raise ValueError("Name a data set, or a folder to train or evaluate on.")
    if args.with_tracking and args.output_dir is None:
        raise ValueError("--with_tracking needs an --output_dir.")
    return args


def main() -> None:
    """Train, evaluate after each epoch, write."""
    args = parse_args()
    tracking = {"log_with": args.report_to, "project_dir": args.output_dir} if args.with_tracking else {}
    accelerator = Accelerator(gradient_accumulation_steps=args.gradient_accumulation_steps, **tracking)
    if args.seed is not None:
        set_seed(args.seed)
    if accelerator.is_main_process and args.output_dir is not None:
        os.makedirs(args.output_dir, exist_ok=True)
    accelerator.wait_for_everyone()

    if args.dataset_name:
        dataset = load_dataset(args.dataset_name)
    else:
        folders = {"train": args.train_dir, "validation": args.validation_dir}
        files = {split: os.path.join(folder, "**") for split, folder in folders.items() if folder}
        dataset = load_dataset("imagefolder", data_files=files)
    if "validation" not in dataset and args.train_val_split > 0:
        split = dataset["train"].train_test_split(args.train_val_split, seed=args.seed)
        dataset["train"], dataset["validation"] = split["train"], split["test"]
    labels = dataset["train"].features["label"].names

    config = AutoConfig.from_pretrained(
        args.model_name_or_path,
        num_labels=len(labels),
        id2label={str(i): label for i, label in enumerate(labels)},
        label2id={label: str(i) for i, label in enumerate(labels)},
        finetuning_task="image-classification",
        trust_remote_code=args.trust_remote_code,
    )
    processor = AutoImageProcessor.from_pretrained(args.model_name_or_path, trust_remote_code=args.trust_remote_code)
    model = AutoModelForImageClassification.from_pretrained(
        args.model_name_or_path,
        from_tf=bool(".ckpt" in args.model_name_or_path),
        config=config,
        ignore_mismatched_sizes=args.ignore_mismatched_sizes,
        trust_remote_code=args.trust_remote_code,
    )

    def transform(batch: dict) -> dict:
        images = [image.convert("RGB") for image in batch["image"]]
        return {**processor(images, return_tensors="pt"), "labels": batch["label"]}

    def collate(examples: list[dict]) -> dict:
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": torch.tensor([example["labels"] for example in examples]),
        }

    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples}
    with accelerator.main_process_first():
        for name, limit in limits.items():
            if limit is not None:
                dataset[name] = dataset[name].shuffle(seed=args.seed).select(range(limit))
    if args.seed is not None:
        set_seed(args.seed)  # the order of the images does not hang on what was drawn for the model
    train = DataLoader(
        dataset["train"].with_transform(transform),
        shuffle=True,
        collate_fn=collate,
        batch_size=args.per_device_train_batch_size,
    )
    validation = DataLoader(
        dataset["validation"].with_transform(transform), collate_fn=collate, batch_size=args.per_device_eval_batch_size
    )

    undecayed = ("bias", "layernorm")
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if not any(u in n for u in undecayed)], "weight_decay": args.weight_decay},
        {"params": [p for n, p in named if any(u in n for u in undecayed)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate)
    steps_per_epoch = math.ceil(len(train) / args.gradient_accumulation_steps)
    max_steps = args.max_train_steps or args.num_train_epochs * steps_per_epoch
    scheduler = get_scheduler(
        name=args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=args.num_warmup_steps * accelerator.num_processes,
        num_training_steps=max_steps * accelerator.num_processes,
    )
    model, optimizer, train, validation, scheduler = accelerator.prepare(model, optimizer, train, validation, scheduler)
    if args.with_tracking:
        settings = {key: value for key, value in vars(args).items() if isinstance(value, int | float | str)}
        accelerator.init_trackers("image_classification_no_trainer", settings)

    every = int(args.checkpointing_steps) if (args.checkpointing_steps or "").isdigit() else args.checkpointing_steps
    done, first_epoch = 0, 0
    if args.resume_from_checkpoint:
        accelerator.load_state(args.resume_from_checkpoint)
        kind, _, number = Path(args.resume_from_checkpoint).name.partition("_")
        first_epoch = int(number) + 1 if kind == "epoch" else int(number) // steps_per_epoch
        done = first_epoch * steps_per_epoch if kind == "epoch" else int(number)

    accuracy = None
    for epoch in range(first_epoch, math.ceil(max_steps / steps_per_epoch)):
        model.train()
        skipped = (done - epoch * steps_per_epoch) * args.gradient_accumulation_steps
        total = 0.0
        for batch in accelerator.skip_first_batches(train, skipped) if skipped else train:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                total += loss.detach().float()
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                done += 1
                if isinstance(every, int) and done % every == 0:
                    accelerator.save_state(os.path.join(args.output_dir or "", f"step_{done}"))
            if done >= max_steps:
                break

        model.eval()
        correct = count = 0
        for batch in validation:
            with torch.no_grad():
                predictions = model(**batch).logits.argmax(dim=-1)
            predictions, references = accelerator.gather_for_metrics((predictions, batch["labels"]))
            correct, count = correct + int((predictions == references).sum()), count + len(references)
        accuracy = correct / count
        accelerator.print(f"epoch {epoch}: accuracy {accuracy}")
        if args.with_tracking:
            values = {"accuracy": accuracy, "train_loss": float(total) / len(train), "epoch": epoch}
            accelerator.log(values, step=done)
        if every == "epoch":
            accelerator.save_state(os.path.join(args.output_dir or "", f"epoch_{epoch}"))

    if args.output_dir is not None:
        accelerator.wait_for_everyone()
        accelerator.unwrap_model(model).save_pretrained(
            args.output_dir, is_main_process=accelerator.is_main_process, save_function=accelerator.save
        )
        if accelerator.is_main_process:
            processor.save_pretrained(args.output_dir)
            with open(os.path.join(args.output_dir, "all_results.json"), "w") as file:
                json.dump({"eval_accuracy": accuracy}, file)
    accelerator.end_training()


if __name__ == "__main__":
    main()
