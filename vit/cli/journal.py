"""What is durable of an output: a SQLite database beside its files, which each of its rows is in before it counts.

Whatever the format, rows are appended to the files first and then committed to the journal, with the length and the
checksum of what each row takes in each file. So a process that is killed anywhere leaves files that begin with the rows
of the journal; what follows is cut off when the run goes on. `locked` keeps other processes from all of these files.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import InputError, shown
from ..locks import beside, is_at, open_own

INTERVAL = 0.05
"""Seconds that rows may wait for others, to be written together; a kill costs so much work at most."""

SIZE = 8 * 2**20
"""Bytes of rows that do not wait."""


# === Files ===


def _write(file: int, path: Path, data: bytes | bytearray, offset: int) -> None:
    """Write all of it.

    Raises:
        InputError: the disk is full, or whatever else keeps it from that.
    """
    try:
        os.lseek(file, offset, os.SEEK_SET)
        done = 0
        while done < len(data):
            done += os.write(file, data[done:] if done else data)
    except OSError as error:
        raise InputError(cannot(path, error.strerror)) from None


def _truncate(file: int, path: Path, size: int) -> None:
    try:
        os.ftruncate(file, size)
    except OSError as error:
        raise InputError(cannot(path, error.strerror)) from None


def sync(path: Path) -> None:
    """Wait until a file, or the names of a folder, are on the disk."""
    with suppress(PermissionError):  # a folder, on Windows
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        except OSError as error:
            raise InputError(cannot(path, error.strerror)) from None
        finally:
            os.close(file)


def cannot(path: Path, reason: object) -> str:
    """What is said of a file that cannot be written to."""
    return f"{shown(path)} cannot be written: {reason}. --resume goes on from the rows before, when that is mended."


# === The journal ===


class Journal:
    """The rows of an output, in its files and in `<output>.run`. Its files are locked by who makes it.

    Args:
        output: what the user named.
    """

    def __init__(self, output: Path) -> None:
        self.output, self.path = output, beside(output, ".run")
        self._database: sqlite3.Connection | None = None
        self._own = -1  # the journal's file, to know it by
        self._headers: Callable[[int], Sequence[bytes]] = lambda count: ()
        self._files: list[tuple[Path, int]] = []
        self._ends: list[int] = []  # of the rows in each file
        self._begins: list[bytes] = []  # of each file, as it is
        self._count = 0
        self._waiting: list[tuple[int, bytes, bytes | None, str]] = []
        self._bytes: list[bytearray] = []  # of the rows that wait
        self._flushed = 0.0
        self._done = False  # whether all of the files is rows

    # --- How a run was begun ---

    def settings(self, paths: Sequence[Path]) -> dict[str, Any]:
        """What the run was begun with whose files are there; nothing where there are none.

        Raises:
            InputError: there are, and nothing is known of them.
        """
        if not any(map(os.path.lexists, paths)):
            return {}
        with suppress(sqlite3.Error, ValueError, TypeError):
            if os.path.lexists(self.path):
                self._connect()
                ((values,),) = self._sql("SELECT settings FROM run")
                return json.loads(values)
        self.close()
        raise InputError(
            f"{shown(self.output)} cannot be continued: {shown(self.path)} does not say how it was begun. --force "
            "begins again."
        )

    def check(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Refuse to mix rows of different kinds.

        Raises:
            InputError: a setting differs.
        """
        for name, value in wanted.items():
            if found.get(name) != value:
                raise InputError(
                    f"{shown(self.output)} was begun with {name} {shown(found.get(name))}, and now it is "
                    f"{shown(value)}; give the same options, another --output, or --force to begin again."
                )

    def begin(
        self,
        paths: Sequence[Path],
        headers: Callable[[int], Sequence[bytes]],
        settings: Mapping[str, Any],
        remove: Sequence[Path],
    ) -> None:
        """Note what a run is begun with, and make its files.

        Args:
            paths: of the files that rows are appended to.
            headers: number of rows -> what each of them begins with; as long for any number.
            settings: of JSON.
            remove: what may be there of an earlier run.

        Raises:
            InputError: a file cannot be made.
        """
        self.close()
        for path in (*remove, *(beside(self.path, more) for more in ("", "-wal", "-shm", "-journal"))):
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise InputError(f"{shown(path)} cannot be removed: {error.strerror}.") from None
        os.close(open_own(self.path, os.O_CREAT | os.O_EXCL))
        with self._refusing():
            self._connect()
            self._sql("BEGIN")
            self._sql("CREATE TABLE run (settings TEXT, phase TEXT)")
            self._sql("CREATE TABLE rows (number INTEGER PRIMARY KEY, path BLOB, error BLOB, pieces TEXT)")
            self._sql("INSERT INTO run VALUES (?, 'rows')", json.dumps(settings))
            self._sql("COMMIT")  # not waited for: there is nothing to lose yet
        for path in paths:
            self._files.append((path, open_own(path, os.O_CREAT | os.O_EXCL)))
        self._ready(headers, 0, [len(header) for header in headers(0)])

    @property
    def phase(self) -> str:
        """Where the run is: "rows" that come, or what `enter` was given: "publishing", "done"."""
        with self._reading():
            ((phase,),) = self._sql("SELECT phase FROM run")
        return phase

    def enter(self, phase: str, durable: bool) -> None:
        """Note where the run is; on the disk at once, if it is durable, or with `close`."""
        with self._refusing():
            if durable:
                self._sql("PRAGMA synchronous=FULL")
            self._sql("UPDATE run SET phase = ?", phase)
            self._sql("PRAGMA synchronous=NORMAL")

    # --- Rows ---

    def names(self) -> Iterator[tuple[str, str | None]]:
        """The path and the error of each row."""
        for path, error, _ in self._stored():
            yield path, error

    def _stored(self) -> Iterator[tuple[str, str | None, list[int]]]:
        """The path and the error of each row, and what it takes in each file: lengths and checksums in turn."""
        with self._reading():
            rows = self._sql("SELECT path, error, pieces FROM rows ORDER BY number")
        while True:
            with self._reading():
                if (row := next(rows, None)) is None:
                    return
                path, error, pieces = row
                found = os.fsdecode(path), None if error is None else error.decode("utf-8", "surrogatepass")
                numbers = list(map(int, pieces.split()))
                if min(numbers, default=-1) < 0:
                    raise ValueError
            yield *found, numbers

    def go_on(
        self, paths: Sequence[Path], headers: Callable[[int], Sequence[bytes]]
    ) -> Iterator[tuple[str, str | None]]:
        """`names` of the rows that the files hold; when all were taken, the files end with the last.

        Raises:
            InputError: a file is gone, or has been changed.
        """
        self._done = self.phase == "done"
        rows = self._stored()
        first = next(rows, None)
        for path in paths:
            if first is not None and not os.path.lexists(path):
                raise InputError(
                    f"{shown(path)} is not there, and it has rows of the run that goes on: put it back, or --force "
                    "begins again."
                )
            self._files.append((path, open_own(path, os.O_CREAT)))
        count, whole = 0, True
        ends = [len(header) for header in headers(0)]
        with ExitStack() as stack:
            streams = [stack.enter_context(open(file, "rb", closefd=False)) for _, file in self._files]
            for path, stream, header, later in zip(paths, streams, headers(0), headers(1), strict=True):
                begin = stream.read(len(header))
                whole &= len(begin) == len(header)
                if header == later and not header.startswith(begin):
                    raise InputError(f"{shown(path)} does not begin as it was written; --force begins again.")
            sizes = [os.fstat(file).st_size for _, file in self._files]
            for name, error, numbers in chain([] if first is None else [first], rows):
                lengths, sums = numbers[::2], numbers[1::2]
                if len(lengths) != len(streams) or len(sums) != len(streams):
                    raise self._damaged()
                # No more than there is: what is asked for is allocated.
                found = [stream.read(min(pair)) for stream, *pair in zip(streams, lengths, sizes, strict=True)]
                if not whole or [len(each) for each in found] != lengths:
                    whole = False  # cut since: a disk that was full, a power failure, or by hand
                    break
                for path, end, piece, expected in zip(paths, ends, found, sums, strict=True):
                    if zlib.crc32(piece) != expected:
                        raise InputError(
                            f"{shown(path)}: row {count + 1} has been changed since it was written. --force begins "
                            f"again; to keep the rows before it, cut the file to {end} bytes."
                        )
                yield name, error
                count += 1
                ends = [end + length for end, length in zip(ends, lengths, strict=True)]
        for (path, file), end in zip(self._files, ends, strict=True):
            if self._done and whole and os.fstat(file).st_size > end:
                raise InputError(
                    f"{shown(path)} was finished, and has more after its last row now: cut it to {end} bytes, or "
                    "--force begins again."
                )
        if not whole:
            with self._refusing():
                self._sql("DELETE FROM rows WHERE number >= ?", count)
        self._ready(headers, count, ends)

    def _ready(self, headers: Callable[[int], Sequence[bytes]], count: int, ends: list[int]) -> None:
        """Let the files be of so many rows."""
        self._sql("PRAGMA synchronous=NORMAL")
        self._headers, self._count, self._ends = headers, count, ends
        self._bytes = [bytearray() for _ in ends]
        self._begins = []
        for (_, file), header in zip(self._files, headers(0), strict=True):
            os.lseek(file, 0, os.SEEK_SET)
            self._begins.append(os.read(file, len(header)))
        self._write_headers(count)
        for (path, file), end in zip(self._files, ends, strict=True):
            if os.fstat(file).st_size != end:
                _truncate(file, path, end)

    def append(self, path: str, error: str | None, pieces: Sequence[bytes]) -> None:
        """Take one more row, of which `pieces` go to the files; it is written with the next `flush`."""
        sums = " ".join([f"{len(piece)} {zlib.crc32(piece)}" for piece in pieces])
        reason = None if error is None else error.encode("utf-8", "surrogatepass")
        self._waiting.append((self._count + len(self._waiting), os.fsencode(path), reason, sums))
        for taken, piece in zip(self._bytes, pieces, strict=True):
            taken += piece
        if sum(map(len, self._bytes)) > SIZE:
            self.flush()

    @property
    def count(self) -> int:
        """How many rows there are, with those that wait."""
        return self._count + len(self._waiting)

    @property
    def is_due(self) -> bool:
        """Whether rows have waited long enough."""
        return time.monotonic() - self._flushed >= INTERVAL

    def flush(self) -> None:
        """Write the rows that wait, into the files and then into the journal.

        Raises:
            InputError: a disk is full, or a file is gone; the files then end with the rows before.
        """
        if not self._waiting:
            return
        try:
            self.look()
            if self._done:  # first, because what follows the last row of a finished file is not ours to cut off
                with self._refusing():
                    self._sql("UPDATE run SET phase = 'rows'")
                self._done = False
            for (path, file), data, end in zip(self._files, self._bytes, self._ends, strict=True):
                _write(file, path, data, end)
            self._write_headers(self.count)
            with self._refusing():
                self._sql("BEGIN")
                self._open.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", self._waiting)
                self._sql("COMMIT")
        except BaseException:
            self._waiting = []
            with suppress(OSError, InputError):
                for (_, file), end in zip(self._files, self._ends, strict=True):
                    os.ftruncate(file, end)
                self._write_headers(self._count)
            raise
        self._count = self.count
        self._ends = [end + len(data) for end, data in zip(self._ends, self._bytes, strict=True)]
        self._waiting, self._bytes = [], [bytearray() for _ in self._ends]
        self._flushed = time.monotonic()

    def look(self) -> None:
        """Refuse to go on where a file is not what its path names.

        Raises:
            InputError: one was removed or replaced.
        """
        for path, file in (*self._files, (self.path, self._own)):
            if not is_at(file, path):
                raise InputError(
                    f"{shown(path)} was removed or replaced while it was written, so its rows are lost; begin again "
                    "with --force."
                )

    def sync(self) -> None:
        """Write what waits, and wait until all of it is on the disk."""
        self.flush()
        self.look()
        for path, _ in self._files:
            sync(path)
        sync(self.output.parent)

    def close(self) -> None:
        """Write what waits, and let go of the files."""
        try:
            self.flush()
        finally:
            if self._database is not None:
                with suppress(sqlite3.Error):
                    self._database.close()
            for _, file in (*self._files, *([(self.path, self._own)] if self._own >= 0 else [])):
                os.close(file)
            self._database, self._files, self._own = None, [], -1

    # --- The database ---

    def _connect(self) -> None:
        self._own = open_own(self.path)
        uri = f"{self.path.absolute().as_uri()}?mode=rw"
        self._database = sqlite3.connect(uri, uri=True, isolation_level=None)
        if not is_at(self._own, self.path):  # a link that came in between
            raise InputError(f"{shown(self.path)} was replaced while it was opened; try again.")
        for pragma in ("trusted_schema=OFF", "locking_mode=EXCLUSIVE", "synchronous=OFF", "journal_mode=WAL"):
            self._sql(f"PRAGMA {pragma}")

    @property
    def _open(self) -> sqlite3.Connection:
        assert self._database is not None, "the journal is closed"
        return self._database

    def _sql(self, statement: str, *values: Any) -> sqlite3.Cursor:
        return self._open.execute(statement, values)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise InputError(cannot(self.path, error)) from None

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """What a damaged journal raises, as one error."""
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError, AttributeError):
            raise self._damaged() from None

    def _damaged(self) -> InputError:
        return InputError(f"{shown(self.path)} is damaged, so nothing can go on from it; --force begins again.")

    def _write_headers(self, count: int) -> None:
        for i, header in enumerate(self._headers(count)):
            if header != self._begins[i]:
                path, file = self._files[i]
                _write(file, path, header, 0)
                self._begins[i] = header
