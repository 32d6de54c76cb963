"""The tutorial is true: every command and snippet of docs/tutorial.md runs, and prints what it says it prints.

Below a command stand lines of its output, below a snippet a block of text with lines of its; see :func:`missing`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorial.md"
DATA = ROOT / "examples" / "silver_oxide"

Run = Callable[..., tuple[int, str, str]]


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(block: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a console block with the lines of output that stand below it."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, *lines = part.splitlines()
        yield command, lines


def missing(promised: list[str], output: str) -> list[str]:
    """Promised lines that the output lacks, or has in another order; "…" stands for anything within a line."""
    printed, lacking = iter(output.splitlines()), []
    for line in promised:
        pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
        if not any(pattern.fullmatch(given) for given in printed):
            lacking.append(line)
    return lacking


def test_promised_lines_are_looked_for() -> None:
    output = "a: 1\nb: 2 of 3\nc\n"
    assert not missing([], output)
    assert not missing(["a: 1", "b: … of …"], output)
    assert missing(["b: …", "a: 1"], output) == ["a: 1"]
    assert missing(["b: 2"], output) == ["b: 2"]
    assert list(commands("$ one\nx\ny\n$ two\n")) == [("one", ["x", "y"]), ("two", [])]
    assert blocks("text\n```console\n$ a\n```\n```python\nb\nc\n```\n") == [("console", "$ a\n"), ("python", "b\nc\n")]


def test_every_picture_and_page_is_there() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"


def test_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adlayer: Run) -> None:
    pytest.importorskip("sevenn")
    for data in DATA.glob("*.db.xz"):
        shutil.copy(data, tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    output, n_run = "", 0
    for language, content in blocks(TUTORIAL.read_text(encoding="utf-8")):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(content, str(TUTORIAL), "exec"), names)
            output = printed.getvalue()
        elif language == "text":
            assert not missing(content.splitlines(), output), output
        else:
            assert language == "console"
            for command, promised in commands(content):
                output = run_command(shlex.split(command), adlayer)
                assert not missing(promised, output), f"{command}\n{output}"
                n_run += 1
    assert n_run == TUTORIAL.read_text(encoding="utf-8").count("\n$ ")
    assert Path("generated.csv").is_file()


def run_command(words: list[str], adlayer: Run) -> str:
    """The output of a command that must succeed, and leave the output that it names."""
    if words[0] != "adlayer":
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout
    status, output, errors = adlayer(*words[1:])
    assert status == 0, errors
    for target in (Path(after) for word, after in itertools.pairwise(words) if word == "-o"):
        assert target.exists(), target
        assert any(target.iterdir()) if target.is_dir() else target.stat().st_size, target
    return output
