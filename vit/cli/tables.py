"""Files of results that are written as they come and, after whatever end, continued: .csv, .jsonl, .npy, .parquet.

Each row is appended whole and at once. A process that is killed leaves whole rows and at most a torn one, which is cut
off before the next is written. `<output>.run.json` beside them says how the run was begun.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import InputError, MissingFrameworkError, install_line

if TYPE_CHECKING:
    import numpy as np

fcntl: ModuleType | None = None
with suppress(ImportError):  # not on Windows
    import fcntl

Row = dict[str, Any]
"""What stands in a line: "path", "error", and between them "labels" and "probabilities" where the table is of those."""

CHUNK = 16 * 2**20  # bytes in memory while a Parquet file is written


# === Which files ===


def check(output: Path, suffixes: Sequence[str], resume: bool, force: bool) -> None:
    """Refuse an output that cannot be written, before anything is computed.

    Raises:
        InputError: another kind of file, a folder, a place that does not exist or cannot be written, or a file that
            exists, unless `resume` or `force` says what to do with it.
        MissingFrameworkError: a .parquet file without pyarrow.
    """
    name = f"--output is {str(output)!r}"
    if output.suffix.lower() not in suffixes:
        raise InputError(f"{name}; expected a file name that ends in {', '.join(suffixes)}.")
    if output.is_dir():
        raise InputError(f"{name}, which is a folder; expected a file.")
    if not output.parent.is_dir():
        raise InputError(f"{name}, but {str(output.parent)!r} is not a folder; make it first.")
    if not os.access(output.parent, os.W_OK):
        raise InputError(f"{name}, but {str(output.parent)!r} may not be written; give another place.")
    if (there := existing(output)) and not (resume or force):
        raise InputError(f"{there[0]} exists; --resume continues an interrupted run, --force begins again.")
    if output.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingFrameworkError(f"A .parquet file needs pyarrow. Install it with: {install_line('table')}")


def existing(output: Path) -> list[Path]:
    """Those files of a table that exist, finished or not."""
    part = f"{output.name}.part"
    others = {
        ".npy": [output.with_suffix(".jsonl")],
        ".parquet": [output.with_name(part + suffix) for suffix in (".npy", ".jsonl")],
    }
    return [path for path in (output, *others.get(output.suffix.lower(), ())) if path.exists()]


def make(output: Path, labels: int = 0, shape: tuple[int, ...] = (), dtype: str = "float32") -> Table:
    """The table that an output's name asks for.

    Args:
        output: a .csv, .jsonl, .npy or .parquet file.
        labels: how many each image gets; 0 for vectors.
        shape: of a vector.
        dtype: of a vector.
    """
    import numpy as np

    suffix = output.suffix.lower()
    if suffix == ".csv":
        return Columns(output, labels)
    if suffix == ".jsonl":
        return Lines(output)
    if suffix == ".npy":
        return Vectors(output, shape, np.dtype(dtype))
    journal = output.with_name(f"{output.name}.part.{'jsonl' if labels else 'npy'}")
    return Parquet(output, Lines(journal) if labels else Vectors(journal, shape, np.dtype(dtype)))


class Settings:
    """`<output>.run.json`: what a run was begun with. While it is open, no other process can open it.

    Raises:
        InputError: another process has it open.
    """

    def __init__(self, output: Path) -> None:
        self.output, self.path = output, output.with_name(f"{output.name}.run.json")
        self._file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115  # `close` closes it
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise InputError(f"{output} is being written by another process; wait for it, or stop it.") from None

    def read(self) -> dict[str, Any]:
        """What the output that is there was begun with; nothing if there is no output.

        Raises:
            InputError: there is an output, and nothing is known of it.
        """
        if not existing(self.output):
            return {}
        self._file.seek(0)
        with suppress(ValueError):
            values = json.load(self._file)
            if isinstance(values, dict) and values:
                return values
        raise InputError(
            f"{self.output} cannot be continued: {self.path} does not say how it was begun. --force begins again."
        )

    def check(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Refuse to mix rows of different kinds.

        Raises:
            InputError: a setting differs.
        """
        for name, value in wanted.items():
            if found.get(name) != value:
                raise InputError(
                    f"{self.output} was begun with {name} {found.get(name)}, and now it is {value}; give the same "
                    "options, another --output, or --force to begin again."
                )

    def begin(self, values: Mapping[str, Any]) -> None:
        """Remove the files of an earlier run, and note what this one is begun with."""
        for path in existing(self.output):
            path.unlink()
        self._file.truncate(0)
        self._file.write(json.dumps(values, indent=2) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


# === The files ===


class Lines:
    """A .jsonl file: an object a line."""

    header = b""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.paths = [path]  # what there is of it
        self._file: BinaryIO | None = None

    def encode(self, row: Row) -> bytes:
        return json.dumps(row).encode() + b"\n"

    def decode(self, line: bytes) -> Row:
        return json.loads(line)

    def is_whole(self, record: bytes) -> bool:
        """Whether these lines are a row, and not the beginning of one."""
        return True

    def rows(self, most: int | None = None) -> Iterator[Row]:
        """The rows that are whole, the first `most` of them; when all were taken, the file ends with the last.

        Raises:
            InputError: a line that this table does not write.
        """
        end, number, record = 0, 0, b""
        with open(self.path, "rb") as file:
            start = file.read(len(self.header))
            if start == self.header:
                end = len(start)
            elif not self.header.startswith(start):
                raise InputError(f"{self.path} has other columns than this run would write; --force replaces it.")
            for line in file:
                record += line
                if number == most or not line.endswith(b"\n"):
                    break
                if not self.is_whole(record):
                    continue
                number += 1
                try:
                    row = self.decode(record)
                    yield {**row, "path": row["path"], "error": row["error"]}
                except (ValueError, KeyError, IndexError, TypeError):
                    raise InputError(
                        f"{self.path}: row {number} is none that vit wrote; mend it, or --force begins again."
                    ) from None
                end, record = end + len(record), b""
        os.truncate(self.path, end)

    def append(self, row: Row, vector: np.ndarray | None = None) -> None:
        """Write one more row, after those that are there."""
        if self._file is None:
            self._file = open(self.path, "ab")  # noqa: SIM115  # `close` closes it
            if not self._file.tell():
                self._file.write(self.header)
        self._file.write(self.encode(row))
        self._file.flush()

    def finish(self) -> None:
        """What is to be done once all rows are there."""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Columns(Lines):
    """A .csv file: path, label_1, probability_1, label_2, ..., error."""

    def __init__(self, path: Path, labels: int) -> None:
        super().__init__(path)
        self._labels = labels
        pairs = (name for i in range(1, labels + 1) for name in (f"label_{i}", f"probability_{i}"))
        self.header = self._line(["path", *pairs, "error"])

    def encode(self, row: Row) -> bytes:
        pairs = [value for pair in zip(row["labels"], row["probabilities"], strict=True) for value in pair]
        return self._line([row["path"], *(pairs or [None] * (2 * self._labels)), row["error"]])

    def is_whole(self, record: bytes) -> bool:
        return record.count(b'"') % 2 == 0  # otherwise the newline is one of a file's name

    def decode(self, line: bytes) -> Row:
        (cells,) = csv.reader([line.decode("utf-8", "surrogateescape")])
        if len(cells) != 2 + 2 * self._labels:
            raise ValueError("another number of columns")
        return {"path": cells[0], "error": cells[-1] or None}

    @staticmethod
    def _line(cells: Sequence[Any]) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\r\n").writerow(cells)  # so that either of the two is quoted in a name
        return text.getvalue().removesuffix("\r\n").encode("utf-8", "surrogateescape") + b"\n"


class Vectors:
    """A .npy file, a row an image, NaN for one that could not be used; and beside it .jsonl: whose row it is."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self.index = Lines(path.with_suffix(".jsonl"))
        self.paths = [path, self.index.path]
        self.row_bytes = dtype.itemsize
        for size in shape:
            self.row_bytes *= size
        self._file: BinaryIO | None = None
        self._count = 0

    def header(self, count: int) -> bytes:
        """That of a .npy file of so many rows; NumPy leaves room, so that it is as long for any number."""
        from numpy.lib import format

        file = io.BytesIO()
        description = {"descr": format.dtype_to_descr(self.dtype), "fortran_order": False}
        format.write_array_header_1_0(file, {**description, "shape": (count, *self.shape)})
        return file.getvalue()

    def rows(self) -> Iterator[Row]:
        """As `Lines.rows`: those that are whole in both files."""
        if not self.path.exists() or not self.index.path.exists():  # killed between the two
            for path in self.paths:
                path.unlink(missing_ok=True)
            return
        data = max(self.path.stat().st_size - len(self.header(0)), 0)
        for row in self.index.rows(most=data // self.row_bytes):
            self._count += 1
            yield row
        os.truncate(self.path, len(self.header(0)) + self._count * self.row_bytes if data else 0)

    def append(self, row: Row, vector: np.ndarray | None = None) -> None:
        """Write one more row: the vector first, so that whatever the index names is there."""
        import numpy as np

        if self._file is None:
            self._file = open(self.path, "r+b" if self.path.exists() else "x+b")  # noqa: SIM115  # `close` closes it
            self._file.seek(0, os.SEEK_END)
            if not self._file.tell():
                self._file.write(self.header(0))
        values = np.full(self.shape, np.nan, self.dtype) if vector is None else vector.astype(self.dtype, copy=False)
        self._file.write(np.ascontiguousarray(values).data)
        self._file.flush()
        self.index.append({"path": row["path"], "row": self._count, "error": row["error"]})
        self._count += 1
        self._file.seek(0)
        self._file.write(self.header(self._count))  # the file is whole at every moment
        self._file.seek(0, os.SEEK_END)

    def finish(self) -> None:
        """Nothing: the file is whole."""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self.index.close()


class Parquet:
    """A .parquet file, which cannot be appended to: the rows go to a journal, and into it when all are there.

    Args:
        path: of the file.
        journal: `Lines` or `Vectors`.
    """

    def __init__(self, path: Path, journal: Lines | Vectors) -> None:
        self.path, self.journal = path, journal
        self.paths = [path, *journal.paths]
        self._finished = False

    def rows(self) -> Iterator[Row]:
        """As `Lines.rows`: those of the journal, or of the file when it is finished."""
        self._finished = self.path.exists() and not any(path.exists() for path in self.journal.paths)
        if not self._finished:
            yield from self.journal.rows() if self.journal.paths[-1].exists() else ()
            return
        from pyarrow import parquet

        with parquet.ParquetFile(self.path) as file:
            for batch in file.iter_batches(columns=["path", "error"]):
                yield from batch.to_pylist()

    def append(self, row: Row, vector: np.ndarray | None = None) -> None:
        """Write one more row, into the journal."""
        if self._finished:
            raise InputError(
                f"{self.path} is finished without {row['path']}, and a Parquet file cannot be continued; give another "
                "--output, or --force to begin again."
            )
        self.journal.append({**row, "path": printable(row["path"])}, vector)

    def finish(self) -> None:
        """Write the file from the journal, a piece at a time, and remove the journal."""
        if self._finished:
            return
        from pyarrow import parquet

        beside = self.path.with_name(f"{self.path.name}.part")
        schema = self._schema()
        with parquet.ParquetWriter(beside, schema) as writer:
            for columns in self._pieces(schema):
                writer.write_table(columns)
        os.replace(beside, self.path)
        for path in self.journal.paths:
            path.unlink(missing_ok=True)

    def _schema(self) -> Any:
        import pyarrow as pa

        if isinstance(self.journal, Vectors):
            kind = pa.from_numpy_dtype(self.journal.dtype)
            for size in reversed(self.journal.shape):
                kind = pa.list_(kind, size)
            values = {"vector": kind}
        else:
            values = {"labels": pa.list_(pa.string()), "probabilities": pa.list_(pa.float64())}
        return pa.schema({"path": pa.string(), **values, "error": pa.string()})

    def _pieces(self, schema: Any) -> Iterator[Any]:
        import numpy as np
        import pyarrow as pa

        if isinstance(self.journal, Lines):
            rows = self.journal.rows()
            while piece := list(islice(rows, 4096)):
                yield pa.Table.from_pylist(piece, schema)
            return
        journal = self.journal
        rows, start = journal.index.rows(), len(journal.header(0))
        with open(journal.path, "rb") as file:
            file.seek(start)
            while piece := list(islice(rows, max(CHUNK // journal.row_bytes, 1))):
                values = np.frombuffer(file.read(len(piece) * journal.row_bytes), journal.dtype)
                failed = pa.array([row["error"] is not None for row in piece])
                array = pa.array(values)
                for i, size in reversed(list(enumerate(journal.shape))):
                    array = pa.FixedSizeListArray.from_arrays(array, size, mask=None if i else failed)
                names = ([row[name] for row in piece] for name in ("path", "error"))
                paths, errors = names
                yield pa.Table.from_arrays([pa.array(paths), array, pa.array(errors, pa.string())], schema=schema)

    def close(self) -> None:
        self.journal.close()


Table = Lines | Vectors | Parquet


def printable(path: str) -> str:
    """A path that Parquet takes: what is no UTF-8 in it is shown as such."""
    return os.fsencode(path).decode("utf-8", "replace")
