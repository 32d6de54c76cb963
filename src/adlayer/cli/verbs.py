"""What all verbs share: ``--seed``, ``--json``, progress, messages, mistakes and interruption.

A verb is a function ``(session, …typer parameters…) -> fields``, made a command by :func:`verb`; the fields join the
JSON line of ``--json``. Modules of verbs import nothing heavy at the top, so that ``adlayer --help`` is quick.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NoReturn

import typer

from adlayer import __version__
from adlayer.errors import UserError
from adlayer.progress import Progress

app = typer.Typer(
    name="adlayer",
    help="Discover the atomic structure of surfaces.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
INTERRUPTED = "interrupted; all that was finished is kept: run the same command again to go on"
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # of click, or of typer's own copy of it

# Parameters that several verbs share.
Output = Annotated[str, typer.Option("-o", "--output", help="File to write.")]
Calculator = Annotated[str, typer.Option(help="Energy backend: see adlayer calculators.")]
Select = Annotated[str, typer.Option(help='Rows of a database, in ASE\'s syntax, such as "stage=generated".')]
Fmax = Annotated[float, typer.Option(help="Largest force on a free atom at the end, eV/Å.")]
MaxSteps = Annotated[int, typer.Option(min=0, help="Relaxation steps after which to give up.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; one per core by default.")]
Device = Annotated[str, typer.Option(help="Where the networks run: cpu or cuda.")]
Executor = Annotated[str | None, typer.Option(metavar="URL", help="Dask scheduler that runs the jobs instead.")]
_Seed = Annotated[
    int | None, typer.Option(min=0, help="Random seed: the same gives the same result; 0, or a study file's own.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout at the end, the rest on stderr.")]


@dataclass
class Session:
    """One run of a verb: its seed and the one that was asked for, where its words go, what it wrote and spent."""

    seed: int
    asked_seed: int | None
    json: bool
    outputs: list[str] = field(default_factory=list)
    n_force_calls: int = 0

    def say(self, text: str) -> None:
        """A message to the user; on stderr where stdout carries JSON."""
        typer.echo(text, err=self.json)

    def wrote(self, path: str | os.PathLike[str]) -> None:
        """Record a path that was written."""
        self.outputs.append(str(path))

    def wrote_structures(self, path: str) -> None:
        """The same, with a word on what the format cannot hold."""
        from adlayer.structures.store import keeps_all

        self.wrote(path)
        if not keeps_all(path):
            self.say(f"{path} keeps neither tags, constraints nor window: write .extxyz for what is to go on")

    @contextlib.contextmanager
    def progress(self, label: str) -> Iterator[Progress]:
        """A function ``(done, total)`` that draws a bar with the time left; in a log, a line per tenth."""
        if not sys.stderr.isatty():
            yield _tenths(label)
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as TimeLeftColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeLeftColumn())
        with Progress(*columns, *times, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def counted(n: int, noun: str) -> str:
    """How many of what.

    >>> counted(1, "structure"), counted(2, "structure")
    ('1 structure', '2 structures')
    """
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _tenths(label: str) -> Progress:
    """Progress for a log: a line on stderr whenever another tenth is done."""
    told = -1

    def tell(done: int, total: int) -> None:
        nonlocal told
        tenth = 10 * done // max(total, 1)
        if tenth > told:
            told = tenth
            typer.echo(f"{label}: {done} of {total}", err=True)

    return tell


def verb(
    example: str, name: str | None = None
) -> Callable[[Callable[..., Mapping[str, Any] | None]], Callable[..., None]]:
    """Make a function a command.

    The function's first parameter is the :class:`Session`; its docstring is the help, and ``example`` a command line
    shown below. It returns the verb's own fields for ``--json``.
    """

    def decorate(function: Callable[..., Mapping[str, Any] | None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        _, *own = signature.parameters.values()
        shared = [
            inspect.Parameter("seed", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_Seed),
            inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Json),
        ]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + shared

        @functools.wraps(function)
        def command(*, seed: int | None, as_json: bool, **arguments: Any) -> None:
            session = Session(seed or 0, seed, as_json)
            start = time.monotonic()
            fields = function(session, **arguments) or {}
            if as_json:
                common = {
                    "version": __version__,
                    "seed": session.seed,
                    "wall_s": round(time.monotonic() - start, 3),
                    "n_force_calls": session.n_force_calls,
                    "outputs": session.outputs,
                }
                typer.echo(json.dumps({**common, **fields}))

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        del command.__wrapped__
        app.command(name or function.__name__, epilog=f"\b\nExample:\n  {example}")(command)
        return command

    return decorate


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"adlayer {__version__}")
        raise typer.Exit


_Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
]


@app.callback()
def _options(version: _Version = False) -> None:
    pass


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _run(arguments: Sequence[str]) -> int:
    """The exit status of a command line."""
    try:
        status = app(args=list(arguments), prog_name="adlayer", standalone_mode=False) or 0
    except UserError as error:
        return _complain(str(error), 2)
    except _UsageError as error:
        told, context = error.format_message().rstrip("."), error.ctx  # type: ignore[attr-defined]
        return _complain(f"{told}: see {context.command_path if context else 'adlayer'} --help", 2)
    except OSError as error:
        if error.filename is None:
            raise
        return _complain(f"{error.filename}: {error.strerror}: choose another place, or make room", 2)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    return _complain(INTERRUPTED, 130) if status == 130 else int(status)


def _complain(message: str, status: int) -> int:
    typer.echo(f"adlayer: {' '.join(message.split())}", err=True)
    return status


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line (by default the process's own) and exit with its status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        status = _run(given or ["--help"])
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(status)
