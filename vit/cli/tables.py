"""The formats of results: .csv, .jsonl, .npy, .parquet. How rows of them become durable is `journal`'s."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, MissingFrameworkError, install_line, shown
from ..locks import beside, open_own
from .journal import Journal, cannot, sync

if TYPE_CHECKING:
    import numpy as np

Row = dict[str, Any]
"""What stands in a line: "path", "error", and between them "labels" and "probabilities" where the table is of those."""

CHUNK = 16 * 2**20  # bytes in memory while a Parquet file is written

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What makes a spreadsheet take a cell for a formula, at its beginning."""


# === Which files ===


def files(output: Path) -> list[Path]:
    """All that an output may consist of while it is written."""
    others = {
        ".npy": [output.with_suffix(".jsonl")],
        ".parquet": [beside(output, more) for more in (".part", ".part.npy", ".part.jsonl")],
    }
    return [output, *others.get(output.suffix.lower(), ())]


def check(output: Path, suffixes: Sequence[str], resume: bool, force: bool) -> None:
    """Refuse an output that cannot be written, before anything is computed.

    Raises:
        InputError: another kind of file, a folder, a place that does not exist or cannot be written, or a file that
            exists, unless `resume` or `force` says what to do with it.
        MissingFrameworkError: a .parquet file without pyarrow.
    """
    name = f"--output is {shown(repr(str(output)))}"
    if output.suffix.lower() not in suffixes:
        raise InputError(f"{name}; expected a file name that ends in {', '.join(suffixes)}.")
    if not output.parent.is_dir():
        raise InputError(f"{name}, but {shown(repr(str(output.parent)))} is not a folder; make it first.")
    if not os.access(output.parent, os.W_OK):
        raise InputError(f"{name}, but {shown(repr(str(output.parent)))} may not be written; give another place.")
    for path in files(output):
        if path.is_dir():
            raise InputError(f"{name}, but {shown(path)} is a folder; remove it, or give another place.")
        if os.path.lexists(path) and not (resume or force):
            raise InputError(f"{shown(path)} exists; --resume continues an interrupted run, --force begins again.")
    if output.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingFrameworkError(f"A .parquet file needs pyarrow. Install it with: {install_line('table')}")


class Output:
    """An --output: rows that are appended to a format's files, by way of a journal. `files` are locked meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path, self._journal = path, Journal(path)
        self._format: Format

    def settings(self) -> dict[str, Any]:
        """As `Journal.settings`."""
        return self._journal.settings(files(self.path))

    def begin(self, format: Format, settings: Mapping[str, Any]) -> None:
        """Make the files anew."""
        self._format = format
        self._journal.begin(format.paths, format.headers, settings, remove=files(self.path))

    def go_on(self, format: Format, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[Row]:
        """The rows that are there, with "path" and "error"; to be taken to the end.

        Raises:
            InputError: they were begun otherwise, or have been changed since.
        """
        self._format = format
        self._journal.check(found, wanted)
        names = format.go_on(self._journal)
        return ({"path": path, "error": error} for path, error in names)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self._journal.count

    def append(self, row: Row, vector: np.ndarray | None = None) -> None:
        """Take one more row, which `flush` writes."""
        self._journal.append(row["path"], row["error"], self._format.encode(row, vector, self._journal.count))

    def flush(self) -> None:
        """Write the rows that wait, if they have waited long enough."""
        if self._journal.is_due:
            self._journal.flush()

    def finish(self) -> None:
        """What is to be done once all rows are there; then they are on the disk."""
        self._journal.sync()
        if self._journal.phase != "done":
            self._format.publish(self._journal)
            self._journal.enter("done", durable=self._format.cleans)
            self._format.clean()

    def close(self) -> None:
        """Write what waits."""
        self._journal.close()


# === The formats ===


class Format(ABC):
    """Files that a row is appended to.

    Attributes:
        paths: of these files.
        cleans: whether they are removed when the output is whole.
    """

    paths: list[Path]
    cleans = False

    @abstractmethod
    def headers(self, count: int) -> list[bytes]:
        """What each file begins with when there are so many rows; as long for any number."""

    @abstractmethod
    def encode(self, row: Row, vector: np.ndarray | None, number: int) -> list[bytes]:
        """What a row is in each file."""

    def go_on(self, journal: Journal) -> Iterator[tuple[str, str | None]]:
        """The path and the error of each row that is there."""
        return journal.go_on(self.paths, self.headers)

    def publish(self, journal: Journal) -> None:
        """Make the output of the files, where it is not they."""
        return

    def clean(self) -> None:
        """Remove the files that the output does not consist of."""
        return


class Lines(Format):
    """A .jsonl file: an object a line."""

    def __init__(self, path: Path) -> None:
        self.paths = [path]

    def headers(self, count: int) -> list[bytes]:
        return [b""]

    def encode(self, row: Row, vector: np.ndarray | None, number: int) -> list[bytes]:
        return [json.dumps(row).encode() + b"\n"]


class Columns(Lines):
    """A .csv file: path, label_1, probability_1, label_2, ..., error.

    Args:
        labels: how many each image gets.
        spreadsheet: put an apostrophe before cells that a spreadsheet would take for a formula.
    """

    def __init__(self, path: Path, labels: int, spreadsheet: bool) -> None:
        super().__init__(path)
        self._labels, self._spreadsheet = labels, spreadsheet

    def headers(self, count: int) -> list[bytes]:
        pairs = (name for i in range(1, self._labels + 1) for name in (f"label_{i}", f"probability_{i}"))
        return [self._line(["path", *pairs, "error"])]

    def encode(self, row: Row, vector: np.ndarray | None, number: int) -> list[bytes]:
        pairs = [value for pair in zip(row["labels"], row["probabilities"], strict=True) for value in pair]
        return [self._line([row["path"], *(pairs or [None] * (2 * self._labels)), row["error"]])]

    def _line(self, cells: Sequence[Any]) -> bytes:
        if self._spreadsheet:
            cells = [f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell for cell in cells]
        file = io.StringIO()
        csv.writer(file, lineterminator="\r\n").writerow(cells)  # so that either of the two is quoted in a name
        text = file.getvalue().removesuffix("\r\n")
        try:
            return text.encode("utf-8", "surrogateescape") + b"\n"  # the bytes of a file's name
        except UnicodeEncodeError:  # a label that is no text
            return text.encode("utf-8", "replace") + b"\n"


class Vectors(Format):
    """A .npy file, a row an image, NaN for one that could not be used; and beside it .jsonl: whose row it is.

    Args:
        shape: of a vector.
        dtype: of a vector.
        index: whether there is the .jsonl file.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype, index: bool = True) -> None:
        self.shape, self.dtype = shape, dtype
        self.paths = [path, path.with_suffix(".jsonl")][: 1 + index]
        self.row_bytes = dtype.itemsize
        for size in shape:
            self.row_bytes *= size

    def headers(self, count: int) -> list[bytes]:
        """Of a .npy file of so many rows: it is whole at every moment. NumPy leaves room for any number."""
        from numpy.lib import format

        file = io.BytesIO()
        description = {"descr": format.dtype_to_descr(self.dtype), "fortran_order": False}
        format.write_array_header_1_0(file, {**description, "shape": (count, *self.shape)})
        return [file.getvalue(), b""][: len(self.paths)]

    def encode(self, row: Row, vector: np.ndarray | None, number: int) -> list[bytes]:
        import numpy as np

        values = np.full(self.shape, np.nan, self.dtype) if vector is None else vector.astype(self.dtype, copy=False)
        line = {"path": row["path"], "row": number, "error": row["error"]}
        return [values.tobytes(), json.dumps(line).encode() + b"\n"][: len(self.paths)]


class Parquet(Format):
    """A .parquet file, which cannot be appended to: the rows go to .part files, and into it when all are there.

    Args:
        path: of the file.
        rows: the format of the .part file.
    """

    cleans = True

    def __init__(self, path: Path, rows: Lines | Vectors) -> None:
        self.path, self.paths, self._rows = path, rows.paths, rows
        self._done = False

    def headers(self, count: int) -> list[bytes]:
        return self._rows.headers(count)

    def encode(self, row: Row, vector: np.ndarray | None, number: int) -> list[bytes]:
        if self._done:
            raise InputError(
                f"{shown(self.path)} is finished without {shown(row['path'])}, and a Parquet file cannot be continued; "
                "give another --output, or --force to begin again."
            )
        return self._rows.encode(row, vector, number)

    def go_on(self, journal: Journal) -> Iterator[tuple[str, str | None]]:
        self._done = journal.phase == "done"
        there = os.path.lexists(self.path)
        if self._done and not there:
            raise InputError(
                f"{shown(self.path)} was finished, and is not there: put it back, or --force begins again."
            )
        if self._done:
            self.clean()
            return journal.names()
        if there and journal.phase == "rows":
            raise self._foreign()
        return journal.go_on(self.paths, self.headers)

    def publish(self, journal: Journal) -> None:
        # a piece at a time
        from pyarrow import parquet

        if journal.phase == "rows" and os.path.lexists(self.path):
            raise self._foreign()
        new = beside(self.path, ".part")
        new.unlink(missing_ok=True)
        schema = self._schema()
        try:
            own = os.fdopen(open_own(new, os.O_CREAT | os.O_EXCL), "wb")
            with own, parquet.ParquetWriter(own, schema) as writer:
                for columns in self._pieces(schema, journal):
                    writer.write_table(columns)
            sync(new)
            journal.enter("publishing", durable=True)  # from here on what has the name is ours
            os.replace(new, self.path)
            sync(self.path.parent)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise InputError(cannot(self.path, error.strerror or error)) from None

    def clean(self) -> None:
        for path in files(self.path)[1:]:
            path.unlink(missing_ok=True)

    def _foreign(self) -> InputError:
        return InputError(
            f"{shown(self.path)} is there, and not of the run that goes on: move it away, or --force begins again."
        )

    def _schema(self) -> Any:
        import pyarrow as pa

        if isinstance(self._rows, Vectors):
            kind = pa.from_numpy_dtype(self._rows.dtype)
            for size in reversed(self._rows.shape):
                kind = pa.list_(kind, size)
            values = {"vector": kind}
        else:
            values = {"labels": pa.list_(pa.string()), "probabilities": pa.list_(pa.float64())}
        return pa.schema({"path": pa.string(), **values, "error": pa.string()})

    def _pieces(self, schema: Any, journal: Journal) -> Iterator[Any]:
        import numpy as np
        import pyarrow as pa

        rows = self._rows
        names = ((printable(path), None if error is None else printable(error)) for path, error in journal.names())
        with open(self.paths[0], "rb") as file:
            if not isinstance(rows, Vectors):
                while piece := list(islice(names, 4096)):
                    lines = [json.loads(line) for line in islice(file, len(piece))]
                    labels = [list(map(printable, line["labels"])) for line in lines]
                    paths, errors = zip(*piece, strict=True)
                    columns = (paths, labels, [line["probabilities"] for line in lines], errors)
                    yield pa.Table.from_arrays(
                        [pa.array(values, kind) for values, kind in zip(columns, schema.types, strict=True)],
                        schema=schema,
                    )
                return
            file.seek(len(self.headers(0)[0]))
            while piece := list(islice(names, max(CHUNK // rows.row_bytes, 1))):
                paths, errors = zip(*piece, strict=True)
                failed = pa.array([error is not None for error in errors])
                array = pa.array(np.frombuffer(file.read(len(piece) * rows.row_bytes), rows.dtype))
                for i, size in reversed(list(enumerate(rows.shape))):
                    array = pa.FixedSizeListArray.from_arrays(array, size, mask=None if i else failed)
                yield pa.Table.from_arrays([pa.array(paths), array, pa.array(errors, pa.string())], schema=schema)


def make(
    output: Path, labels: int = 0, spreadsheet: bool = False, shape: tuple[int, ...] = (), dtype: str = "float32"
) -> Format:
    """The format that an output's name asks for.

    Args:
        output: a .csv, .jsonl, .npy or .parquet file.
        labels: how many each image gets; 0 for vectors.
        spreadsheet: as of `Columns`.
        shape: of a vector.
        dtype: of a vector.
    """
    import numpy as np

    suffix = output.suffix.lower()
    if suffix == ".csv":
        return Columns(output, labels, spreadsheet)
    if suffix == ".jsonl":
        return Lines(output)
    if suffix == ".npy":
        return Vectors(output, shape, np.dtype(dtype))
    part = beside(output, f".part.{'jsonl' if labels else 'npy'}")
    return Parquet(output, Lines(part) if labels else Vectors(part, shape, np.dtype(dtype), index=False))


def printable(text: str) -> str:
    """Text that Parquet takes: what is no UTF-8 in it is shown as such."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
