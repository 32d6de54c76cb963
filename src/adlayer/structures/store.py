"""Reading and writing structures, and the database that every stage shares.

A database is an ASE database (SQLite file, or a PostgreSQL URL through ASE's own backend). A row holds one structure
with its energy and forces, the backend in ASE's ``calculator`` column (version and settings in
``calculator_parameters``) and the keys

======================  ====================================================================================
``stage``               ``search``, ``generated``, ``relaxed`` or ``reference``
``overlayer``           formula of the overlayer (ASE reserves ``formula`` for the whole structure)
``seed``, ``sample``    the random stream: the seed given and the structure's number in it
``n_force_calls``       calculator calls spent on it
``cpu_s``               processor time spent on it, s; a generated structure has its share of its block
``n_steps``             relaxation steps
``converged``           whether the relaxation met its criterion
``parent``              row it came from
``model``               hash of the generating model
``task``                fingerprint of the job that wrote it: what a resumed run looks for
======================  ====================================================================================

ASE drops ``atoms.info`` in databases; the store keeps it in the row's ``data``, and beside it the relaxation path as
``path_positions``, ``path_energies`` and ``path_forces``.
"""

from __future__ import annotations

import atexit
import contextlib
import csv
import hashlib
import json
import lzma
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.db.core import Database
from ase.db.row import AtomsRow
from ase.io.formats import UnknownFileTypeError, filetype, ioformats

from adlayer.errors import UserError

DATABASE_SUFFIXES = {".db", ".json", ".aselmdb"}
COMPLETE_SUFFIXES = {".extxyz", ".xyz", ".traj"}  # of structure files that keep tags, constraints and info
COMPRESSED = ".xz"


def is_database(name: str | os.PathLike[str]) -> bool:
    """Whether a name stands for a database (by suffix or PostgreSQL URL) rather than a structure file."""
    suffix = Path(str(name).removesuffix(COMPRESSED)).suffix
    return str(name).startswith("postgresql://") or suffix in DATABASE_SUFFIXES


def _unpack(path: Path) -> Path:
    """A compressed database as a plain one, in a folder that goes when the program ends."""
    folder = tempfile.TemporaryDirectory(prefix="adlayer-")
    atexit.register(folder.cleanup)
    plain = Path(folder.name) / path.stem
    with lzma.open(path) as packed, plain.open("wb") as file:
        shutil.copyfileobj(packed, file)
    return plain


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise :class:`UserError` before any work is done if ``path`` cannot be written; makes its folder."""
    if str(path).startswith("postgresql://"):
        return
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output {path} cannot be written ({error.strerror}): choose another place") from error
    if target.is_dir():
        raise UserError(f"output {path} is a folder: give the name of a file")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise UserError(f"output {path} cannot be written (permission denied): choose another place")
    try:  # some folders let nobody make a file, whatever their permissions say
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise UserError(f"output {path} cannot be written ({error.strerror}): choose another place") from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file of the same suffix beside ``path`` to write to; at the end of the block it takes its place, atomically.

    If the block fails, ``path`` is as it was.
    """
    target = Path(path)
    partial = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_csv(path: str | os.PathLike[str], header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a table, atomically."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def check_structure_file(path: str | os.PathLike[str]) -> None:
    """Raise :class:`UserError` before any work is done if structures cannot be written to ``path``."""
    try:
        writable = ioformats[filetype(str(path), read=False)].can_write
    except (UnknownFileTypeError, KeyError):
        writable = False
    if not writable:
        raise UserError(f"output {path} has no format that ASE can write: end its name in .extxyz or .traj")
    if is_database(path) and Path(path).exists():
        raise UserError(f"output {path} is a database, whose rows would be lost: give the name of a structure file")
    check_writable(path)


def keeps_all(path: str | os.PathLike[str]) -> bool:
    """Whether a file of this name holds tags, constraints and info beside the positions."""
    return is_database(path) or Path(path).suffix in COMPLETE_SUFFIXES


def connect(name: str | os.PathLike[str], *, must_exist: bool = False) -> Database:
    """The ASE database of that name; one compressed with xz (``.db.xz``) can be read, not written.

    Raises
    ------
    UserError
        If it must exist and does not, is no database, or is compressed and to be written.
    """
    compressed = str(name).endswith(COMPRESSED)
    if compressed and not must_exist:
        raise UserError(f"{name} is compressed and cannot be written to: unpack it with xz -d or name another")
    if must_exist and not str(name).startswith("postgresql://") and not Path(name).is_file():
        raise UserError(f"there is no database {name}: make one with adlayer search")
    if not is_database(name):
        raise UserError(f"{name} is not the name of a database: give a .db file or a PostgreSQL URL")
    if not must_exist:
        check_writable(name)
    try:
        if compressed:
            name = _unpack(Path(name))
        if Path(name).suffix == ".db" and not _holds_structures(Path(name)):
            raise ValueError("it holds something else")
        # SQLite locks by itself; ASE's lock file would outlive a killed run and block the next one for ever.
        database = ase.db.connect(str(name), use_lock_file=Path(name).suffix != ".db")
        database.count()
    except Exception as error:
        raise UserError(
            f"{name} is not a readable ASE database ({error}): give a .db file or a PostgreSQL URL"
        ) from error
    return database


def _holds_structures(path: Path) -> bool:
    """Whether an SQLite file is ASE's, or will be."""
    if not path.is_file() or path.stat().st_size == 0:
        return True
    with contextlib.closing(sqlite3.connect(f"file:{path.absolute().as_posix()}?mode=ro", uri=True)) as file:
        return file.execute("SELECT count(*) FROM sqlite_master WHERE name = 'systems'").fetchone()[0] > 0


def output_database(output: str | os.PathLike[str]) -> tuple[Database, Path | None]:
    """The database that a stage writes to: the output itself, or for a structure file a hidden one beside it.

    The second value is the hidden file, to be removed when the output is complete.
    """
    if is_database(output):
        return connect(output), None
    check_structure_file(output)
    hidden = Path(output).with_name(f".{Path(output).name}.db")
    return connect(hidden), hidden


def write_row(database: Database, atoms: Atoms, keys: dict[str, Any], path: Any | None = None) -> int:
    """Write one structure with its keys, info and (optional) relaxation path in one transaction; returns the row id."""
    data: dict[str, Any] = {"info": plain_info(atoms)}
    if path is not None:
        data["path_positions"] = np.asarray(path.positions, dtype=np.float32)
        data["path_energies"] = np.asarray(path.energies, dtype=np.float64)
        data["path_forces"] = np.asarray(path.forces, dtype=np.float32)
    keys = {k: (bool(v) if isinstance(v, np.bool_) else v) for k, v in keys.items() if v is not None}
    return int(database.write(atoms, key_value_pairs=keys, data=data))


def plain_info(atoms: Atoms) -> dict[str, Any]:
    """``atoms.info`` with NumPy values turned into plain Python, so that every format can hold it."""
    plain = {}
    for key, value in atoms.info.items():
        if isinstance(value, np.ndarray | np.generic):
            value = value.tolist()
        plain[key] = value
    return plain


def row_atoms(row: AtomsRow) -> Atoms:
    """The structure of a row, with tags, constraints, energy and info.

    ``info["row"]`` holds the row's ``id`` and keys, and as ``calculator`` the record of the backend (see
    :func:`adlayer.energies.calculators.identify`) where there is one.
    """
    atoms: Atoms = row.toatoms()
    atoms.info = dict(row.data.get("info", {}))
    atoms.info["row"] = {"id": row.id, **row.key_value_pairs}
    if row.get("calculator"):
        settings = dict(row.get("calculator_parameters", {}))
        atoms.info["row"]["calculator"] = backend_record({"name": row.get("calculator"), **settings})
        if atoms.calc is not None:  # written again, the energy keeps its backend's version and settings
            atoms.calc.parameters.update(settings)
    return atoms


def backend_record(identity: dict[str, Any]) -> dict[str, Any]:
    """A backend's record with its settings as a table: quotes within quotes do not survive extended XYZ.

    >>> backend_record({"name": "sevennet", "settings": '{"model": "7net-0"}'})
    {'name': 'sevennet', 'settings': {'model': '7net-0'}}
    """
    return {k: json.loads(v) if k == "settings" and isinstance(v, str) else v for k, v in identity.items()}


def backend_text(record: dict[str, Any]) -> str:
    """A backend's record as words.

    >>> backend_text({"name": "sevennet", "version": "0.13.0", "settings": {"model": "7net-0"}})
    'sevennet 0.13.0 model=7net-0'
    """
    settings = (f"{key}={value}" for key, value in record.get("settings", {}).items())
    return " ".join(filter(None, [str(record["name"]), record.get("version", ""), *settings]))


def task_fingerprint(atoms: Atoms, *settings: object) -> str:
    """Key of a job on a structure: the same structure and settings (JSON values) give the same text."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for array in (atoms.numbers, atoms.positions.round(6), atoms.cell.array.round(6), atoms.get_tags()):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(json.dumps(plain_info(atoms).get("confinement")).encode())
    return "t" + digest.hexdigest()[:16]  # a letter first: ASE refuses keys that read as numbers


def rows_in_order(database: Database, selection: str = "") -> Iterator[AtomsRow]:
    """Rows sorted by overlayer, seed and sample: an order that does not depend on which worker finished first."""
    rows = list(database.select(selection or None))
    rows.sort(
        key=lambda r: (str(r.get("overlayer", "")), r.get("seed", -1), r.get("sample", -1), r.get("task", ""), r.id)
    )
    return iter(rows)


def check_selection(selection: str, sources: Iterable[object]) -> None:
    """Raise :class:`UserError` for a selection of rows where no source is a database."""
    files = [source for source in sources if isinstance(source, str | os.PathLike)]
    if selection and files and not any(map(is_database, files)):
        names = ", ".join(map(str, files))
        raise UserError(f'"{selection}" selects rows of a database, and {names} is none: leave the selection out')


def read_structures(name: str | os.PathLike[str], selection: str = "", *, broken: bool = False) -> list[Atoms]:
    """All structures of a structure file, or those of a database that are selected.

    ``broken`` ones, whose positions are no numbers, only if asked for.

    Raises
    ------
    UserError
        If the file is missing, unreadable or empty, or a structure is broken.
    """
    if is_database(name):
        database = connect(name, must_exist=True)
        try:
            rows = list(rows_in_order(database, selection))
        except (ValueError, KeyError, AssertionError) as error:
            raise UserError(
                f'selection "{selection}" is not understood ({error}): write it like "stage=search"'
            ) from error
        structures = [row_atoms(row) for row in rows]
    else:
        if not Path(name).is_file():
            raise UserError(f"there is no file {name}: give a structure file or a database")
        try:
            structures = list(ase.io.iread(str(name), index=":"))
        except Exception as error:
            raise UserError(f"{name} cannot be read as a structure ({error}): give a file that ASE reads") from error
    if not structures:
        raise UserError(
            f"{name} holds no structures" + (f' that match "{selection}"' if selection else "") + ": fill it first"
        )
    for number, atoms in enumerate(structures):
        if not (broken or np.isfinite(atoms.positions).all()):
            raise UserError(f"structure {number} of {name} has positions that are no numbers: take it out first")
        atoms.info = plain_info(atoms)
    return structures


def write_structures(name: str | os.PathLike[str], structures: Sequence[Atoms]) -> None:
    """Write structures to a file in the format of its suffix, atomically."""
    check_writable(name)
    with replacing(name) as partial:
        try:
            ase.io.write(str(partial), list(structures))
        except Exception as error:
            raise UserError(
                f"output {name} cannot be written ({error}): use .extxyz, .traj or another format of ASE"
            ) from error
