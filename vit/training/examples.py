"""What is trained on: images and their labels, from folders, tables or the `datasets` library, and how they split."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, install_line, quoted, shown, summary
from ..files import IMAGES

TRAINING, VALIDATION = ("train", "training"), ("val", "valid", "validation", "test")
"""How the folders, splits and values of a column "split" are called."""
SAME = (TRAINING, ("val", "valid", "validation"))
"""Names of one part, the first of which it has then."""
TABLES = (".csv", ".jsonl", ".parquet")
PATHS, LABELS = ("path", "image", "file", "file_name", "filename"), ("label", "labels", "class", "target", "targets")
"""The columns of a table that are looked for, in this order."""
WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@dataclass(frozen=True)
class Examples:
    """Images and their targets.

    Attributes:
        images: a path each, or what the image processor takes.
        targets: (N, num_labels) float32: 1 for a label that an image has, or the numbers of a regression.
        names: of the labels; of the numbers, where they have any.
        problem_type: of config.json.
    """

    images: Sequence[Any]
    targets: np.ndarray
    names: tuple[str, ...]
    problem_type: str = SINGLE

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int] | np.ndarray) -> Examples:
        """Those at some indices."""
        images = (
            self.images.take(indices) if isinstance(self.images, Column) else [self.images[int(i)] for i in indices]
        )
        return replace(self, images=images, targets=self.targets[indices])

    def named_images(self) -> list[str]:
        """The images by their paths or kinds; nothing of those that would have to be decoded for it."""
        if isinstance(self.images, Column):
            return []
        return [Path(image).name if isinstance(image, str) else type(image).__name__ for image in self.images]

    def name_of(self, index: int) -> str:
        """What an image is called: its path, or its number."""
        image = None if isinstance(self.images, Column) else self.images[index]
        return image if isinstance(image, str) else f"image {index}"

    def files(self) -> list[str]:
        """The paths among the images."""
        return [] if isinstance(self.images, Column) else [each for each in self.images if isinstance(each, str)]

    def renamed(self, names: Sequence[str]) -> Examples:
        """With the labels in another order of the same names."""
        order = [self.names.index(name) for name in names]
        return replace(self, targets=self.targets[:, order], names=tuple(names))


@dataclass(frozen=True)
class Split:
    """What a run trains on and what it is evaluated on; `skipped` files and why, and what the user should know."""

    training: Examples
    validation: Examples
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What a resumed run has to find again: how many there are, and a digest of names, order and labels."""
        digest = hashlib.sha256()
        for examples in (self.training, self.validation):
            digest.update("\\0".join([*examples.names, "", *examples.named_images()]).encode())
            digest.update(np.ascontiguousarray(examples.targets).tobytes())
        return {"training": len(self.training), "validation": len(self.validation), "sha256": digest.hexdigest()}


def read(data: Any, validation: float, seed: int, *, labelled: bool = True) -> Split:
    """Read and split a data set.

    Args:
        data: a folder with one folder a class, or with the folders train and val of these; a .csv, .jsonl or .parquet
            file of paths and labels; a `datasets` data set, saved or loaded or by its name.
        validation: part that is held out of what has no split of its own, every class in proportion.
        seed: of that split.
        labelled: whether labels are needed; otherwise a folder may hold images at once.

    Raises:
        InputError: nothing of the kind is there, or too little.
    """
    notes: list[str] = []
    skipped: dict[str, str] = {}
    if isinstance(data, Split):
        return data
    if isinstance(data, Examples):
        parts = {"": data}
    elif not isinstance(data, str | Path):
        parts = _from_datasets(data, notes)
    elif (path := Path(data)).is_dir() and any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        parts = _from_datasets(_loaded("load_from_disk", str(path)), notes)
    elif path.is_dir():
        parts = _from_folder(path, labelled, skipped, notes)
    elif path.suffix.lower() in TABLES and path.is_file():
        parts = _from_table(path)
    elif path.exists():
        raise InputError(f"{shown(path)} is no folder and no {', '.join(TABLES)} file.")
    elif str(data).startswith((".", "/", "~")) or path.suffix:
        raise InputError(f"{shown(path)} does not exist; expected a folder, a table or the name of a data set.")
    else:
        parts = _from_datasets(_loaded("load_dataset", str(data)), notes)
    chosen = [next((name for name in names if name in parts), None) for names in ((*TRAINING, ""), VALIDATION)]
    if unused := [name for name in parts if name not in chosen]:
        notes.append(f"Of the data these parts are not used: {summary(map(shown, unused))}.")
    training, held_out = (None if name is None else parts[name] for name in chosen)
    if training is None or not len(training):
        raise InputError(f"{shown(data)} has no training images.")
    if held_out is not None and held_out.problem_type != training.problem_type:
        kinds = f"of a {training.problem_type} to train on, and of a {held_out.problem_type} to validate"
        raise InputError(f"{shown(data)} has labels {kinds}; expected the same.")
    if held_out is not None and held_out.names != training.names:
        odd = sorted(set(held_out.names) ^ set(training.names))
        raise InputError(f"Training and validation have different labels: {summary(map(shown, odd))}.")
    if held_out is None:
        training, held_out = split(training, validation, seed, notes)
    notes += shared(training, held_out)
    if not len(held_out) and validation and labelled:
        raise InputError(f"{len(training)} images are too few to hold some out; add some, or give --validation 0.")
    if labelled and training.problem_type == SINGLE and len(training.names) == 1:
        raise InputError(f"All images have the label {shown(training.names[0])}; classification needs another one.")
    if (files := training.files()) and not any(Path(each).is_file() for each in files):
        raise InputError(f"{shown(data)} names images that are not there, such as {shown(files[0])}.")
    return Split(training, held_out, skipped, tuple(notes))


def split(examples: Examples, part: float, seed: int, notes: list[str]) -> tuple[Examples, Examples]:
    """Hold a part out, of every class in proportion; a class of one image is trained on, and noted."""
    rng = np.random.default_rng([seed, 7])
    held: list[int] = []
    is_single = examples.problem_type == SINGLE and examples.targets.shape[1] > 0
    classes = examples.targets.argmax(axis=1) if is_single else np.zeros(len(examples), int)
    for label in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == label))
        count = round(part * len(members)) or int(part > 0 and len(members) > 1)
        held += members[: min(count, len(members) - 1)].tolist()
        if len(members) == 1 and part and is_single:
            notes.append(f"The class {shown(examples.names[label])} has one image; it is trained on, never evaluated.")
    is_held = np.isin(np.arange(len(examples)), held)
    return examples.take(np.flatnonzero(~is_held)), examples.take(np.flatnonzero(is_held))


def one_hot(labels: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """(N, names) float32 of the label of each image."""
    places = {name: i for i, name in enumerate(names)}
    targets = np.zeros((len(labels), len(names)), np.float32)
    targets[np.arange(len(labels)), [places[label] for label in labels]] = 1
    return targets


# === Folders ===


def _from_folder(path: Path, labelled: bool, skipped: dict[str, str], notes: list[str]) -> dict[str, Examples]:
    folders = {each.name.lower(): each for each in sorted(path.iterdir()) if each.is_dir()}
    parts = {name: folders[name] for name in (*TRAINING, *VALIDATION) if name in folders}
    if not any(name in parts for name in TRAINING):
        parts = {"": path}
    elif beside := sorted(name for name in folders.keys() - parts.keys() if not name.startswith(".")):
        notes.append(
            f"Beside {TRAINING[0]} and {VALIDATION[0]} these folders are not read: {summary(map(shown, beside))}."
        )
    first = next(iter(parts.values()))
    names = sorted(each.name for each in first.iterdir() if each.is_dir() and not each.name.startswith("."))
    if labelled and not names:
        raise InputError(
            f"{shown(first)} has no folders; expected one folder a class, or train and val with one folder a class "
            "each, or a .csv, .jsonl or .parquet file of paths and labels."
        )
    found = {}
    for part, folder in parts.items():
        labels: list[str] = []
        images: list[str] = []
        others = {each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")}
        if odd := sorted(others - set(names)):
            raise InputError(f"{shown(folder)} has classes that {shown(first)} has not: {summary(map(shown, odd))}.")
        for name in names or [""]:
            before = len(images)
            for file in sorted((folder / name).rglob("*")):
                if file.is_dir() or any(each.startswith(".") for each in file.relative_to(folder).parts):
                    continue
                if not file.name.lower().endswith(IMAGES):
                    skipped[str(file)] = "is no image file, by its name"
                    continue
                images.append(str(file))
                labels.append(name)
            if len(images) == before and name:
                notes.append(f"The class {shown(name)} has no images in {shown(folder)}.")
        found[part] = (images, labels)
    trained = next(iter(found.values()))[1]
    names = [name for name in names if name in trained]  # an empty class cannot be learnt
    if odd := sorted({label for _, labels in found.values() for label in labels} - set(names) - {""}):
        raise InputError(f"Classes without training images: {summary(map(shown, odd))}.")
    return {part: Examples(images, one_hot(labels, names) if names else np.zeros((len(images), 0), np.float32),
                           tuple(names)) for part, (images, labels) in found.items()}  # fmt: skip


def shared(training: Examples, held_out: Examples) -> list[str]:
    """A note of the files that both sets hold, by their content; only files of the same size are read."""
    if not len(held_out):
        return []
    files = [each.files() for each in (training, held_out)]
    sizes: list[dict[str, int]] = [{f: s for f in each if (s := _size(f)) is not None} for each in files]
    both = set(sizes[0].values()) & set(sizes[1].values())
    digests = [{_digest(f): f for f, size in each.items() if size in both} for each in sizes]
    twice = [digests[1][key] for key in digests[1].keys() & digests[0].keys()]
    if not twice:
        return []
    return [f"{len(twice)} of the validation images are training images, too: {summary(map(shown, sorted(twice)), 3)}."]


def _size(file: str) -> int | None:
    try:
        return Path(file).stat().st_size
    except OSError:
        return None


def _digest(file: str) -> str:
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return file


# === Tables ===


def _from_table(path: Path) -> dict[str, Examples]:
    rows = _rows(path)
    if not rows:
        raise InputError(f"{shown(path)} has no rows.")
    image = next((name for name in PATHS if name in rows[0]), None)
    label = next((name for name in LABELS if name in rows[0]), None)
    if image is None or label is None:
        what, expected = ("images", PATHS) if image is None else ("labels", LABELS)
        raise InputError(f"{shown(path)} has no column of {what}; expected one called {', '.join(expected)}.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get(image), str) or row.get(label) in (None, ""):
            raise InputError(f"{shown(path)}: row {number} has no {image} or no {label}.")
    images = [str(path.parent / row[image]) for row in rows]
    targets, names, problem_type = _targets([row[label] for row in rows], path)
    found = Examples(images, targets, names, problem_type)
    parts = np.array([str(row.get("split") or "").lower() for row in rows])
    if odd := sorted(set(parts.tolist()) - {"", *TRAINING, *VALIDATION}):
        allowed = ", ".join((*TRAINING, *VALIDATION))
        raise InputError(f"{shown(path)} has the split {shown(odd[0])}; expected one of {allowed}.")
    if "" in parts and not {*parts.tolist()}.isdisjoint(TRAINING):
        row = parts.tolist().index("") + 1
        raise InputError(f"{shown(path)}: row {row} has no split, and others have; write train or val into every row.")
    parts = np.array([next((names[0] for names in SAME if part in names), part) for part in parts.tolist()])
    return {part: found.take(np.flatnonzero(parts == part)) for part in dict.fromkeys(parts.tolist())}


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix.lower() == ".csv":
            with open(path, encoding="utf-8-sig", newline="") as file:
                return list(csv.DictReader(file))
        if path.suffix.lower() == ".jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise InputError(f"{shown(path)} has a line that is no JSON object.")
            return rows
        try:
            from pyarrow import parquet
        except ModuleNotFoundError:
            raise InputError(f"{shown(path)} needs pyarrow. Install it with: {install_line('table')}") from None
        return parquet.read_table(path).to_pylist()
    except InputError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # of encodings, of JSON, pyarrow's
        raise InputError(f"{shown(path)} cannot be read: {shown(error)}.") from None


def _targets(values: list[Any], where: Any) -> tuple[np.ndarray, tuple[str, ...], str]:
    """(targets, names, problem_type) of labels as a table writes them.

    Text and whole numbers are classes; a list of texts, or texts joined by "|", is several labels, and so is a list of
    zeros and ones, as many in each; numbers with a fraction, or lists of them, are a regression.
    """
    words = [str(value) for value in values]
    values = [_number(value) for value in values]
    if _are_fractions(values):
        return _regression([[value] for value in values], where), ("value",), REGRESSION
    if any(isinstance(value, list | tuple) or (isinstance(value, str) and "|" in value) for value in values):
        lists = [_listed(value) for value in values]
        items = [each for several in lists for each in several]
        width = len(lists[0]) if len({len(several) for several in lists}) == 1 else 0
        if width and _are_fractions([_number(each) for each in items]):
            return _regression(lists, where), tuple(f"value {i}" for i in range(width)), REGRESSION
        if items and all(isinstance(each, int | float) for each in items):
            if width > 1 and set(items) <= {0, 1}:
                return np.array(lists, np.float32), tuple(map(str, range(width))), MULTI
            raise InputError(
                f"{shown(where)} has lists of numbers, which may be labels or a regression; write labels as texts, and "
                "numbers with a fraction, as 1.0, as many in each list."
            )
        names = tuple(sorted(set(map(str, items))))
        return many_hot([list(map(str, several)) for several in lists], names), names, MULTI
    numeric = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    names = tuple(sorted(set(words), key=int if numeric else str))
    return one_hot(words, names), names, SINGLE


def many_hot(labels: Sequence[Sequence[str]], names: Sequence[str]) -> np.ndarray:
    """(N, names) float32 of the labels of each image."""
    places = {name: i for i, name in enumerate(names)}
    targets = np.zeros((len(labels), len(names)), np.float32)
    for row, several in zip(targets, labels, strict=True):
        row[[places[each] for each in several]] = 1
    return targets


def _regression(numbers: list[list[Any]], where: Any) -> np.ndarray:
    with np.errstate(over="ignore"):
        targets = np.array([list(map(float, row)) for row in numbers]).astype(np.float32)
    if odd := int((~np.isfinite(targets)).any(axis=1).sum()):
        raise InputError(
            f"{shown(where)} has {odd:,} rows whose numbers are NaN, infinite or too large; leave them out."
        )
    return targets


def _are_fractions(values: list[Any]) -> bool:
    """Whether all are numbers, one of them with a fraction."""
    numerals = (isinstance(value, int | float) or WHOLE.fullmatch(str(value)) for value in values)
    return any(isinstance(value, float) for value in values) and all(numerals)


def _number(value: Any) -> Any:
    """The number that a text is; "007" and "+1" stay names, and so does "1_0", which Python would read as 10."""
    if not isinstance(value, str) or "_" in value:
        return value
    with suppress(ValueError):
        if not WHOLE.fullmatch(value):
            return float(value)
        return int(value) if str(int(value)) == value else value
    return value


def _listed(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return list(value)
    return [each for each in value.split("|") if each] if isinstance(value, str) else [value]


# === The datasets library ===


def _loaded(function: str, name: str) -> Any:
    """What a function of the datasets library loads: a saved data set, or one of a name, which may be a path's slip."""
    nothing = f"There is no folder or table {shown(name)} here"
    try:
        import datasets
    except ModuleNotFoundError:
        if function == "load_dataset":
            raise InputError(f"{nothing}; for a data set of that name, pip install datasets") from None
        raise InputError("A saved data set needs the datasets library: pip install datasets") from None
    try:
        return getattr(datasets, function)(name)
    except Exception as error:  # of whatever the library asks: the hub, files, pyarrow
        said = shown((str(error).strip() or type(error).__name__).splitlines()[0], 300)
        if function == "load_dataset":
            raise InputError(f"{nothing}, and no data set of that name can be read: {said}") from None
        raise InputError(f"{shown(name)} cannot be read as a saved data set: {said}") from None


class Column(Sequence[Any]):
    """The images of a data set, decoded when they are asked for."""

    def __init__(self, rows: Any, name: str) -> None:
        self.rows, self.name = rows, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.rows[int(index)][self.name]
        except Exception as error:  # of the library and of Pillow, of which a broken image has many
            raise InputError(f"cannot be decoded: {shown(error)}") from None

    def take(self, indices: Sequence[int] | np.ndarray) -> Column:
        """Those at some indices, none of which is decoded."""
        return Column(self.rows.select([int(i) for i in indices]), self.name)


def _from_datasets(data: Any, notes: list[str]) -> dict[str, Examples]:
    parts: Mapping[str, Any] = data if isinstance(data, Mapping) else {"": data}
    found = {}
    for part, rows in parts.items():
        if not (hasattr(rows, "features") and hasattr(rows, "column_names")):
            raise InputError(f"data is {quoted(data)}; expected a path, the name of a data set, or a loaded one.")
        if not hasattr(rows, "select"):
            raise InputError("The data set is streamed, and training goes through it in any order: load all of it.")
        image = next((name for name in (*PATHS, "img") if name in rows.column_names), None)
        label = next((name for name in (*LABELS, "fine_label") if name in rows.column_names), None)
        if image is None or label is None:
            what, expected = ("images", (*PATHS, "img")) if image is None else ("labels", (*LABELS, "fine_label"))
            raise InputError(
                f"The data set has the columns {', '.join(rows.column_names)}, none of {what}; expected one called "
                f"{', '.join(expected)}. In Python, rename_column renames one."
            )
        names = getattr(rows.features[label], "names", None)
        several = getattr(getattr(rows.features[label], "feature", None), "names", None)  # of a list of labels
        values = list(rows[label])
        without = sum(value is None or (names is not None and value < 0) for value in values)
        if without == len(values) and len(parts) > 1:
            notes.append(f"The images of {shown(part)} have no labels; they are left out.")
            continue
        if without:
            raise InputError(f"{without:,} of the {len(values):,} images of the data set have no label; filter them.")
        if names is not None:
            targets, problem_type = one_hot([names[value] for value in values], names), SINGLE
        elif several is not None:
            names, problem_type = several, MULTI
            targets = many_hot([[names[each] for each in value] for value in values], names)
        else:
            targets, names, problem_type = _targets(values, "The data set")
        found[part.lower()] = Examples(Column(rows, image), targets, tuple(names), problem_type)
    return found
