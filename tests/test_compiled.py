"""Kernels compiled on first use: kept, and done without where they cannot be had."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from adlayer import compiled

SOURCE = "REAL half(void) { return (REAL)1 / 2; }\n"
library = compiled.library.__wrapped__  # as if called for the first time
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, not the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "adlayer"


@needs_compiler
def test_compiled_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = library("test", SOURCE, torch.float32)
    made.half.restype = ctypes.c_float
    assert made.half() == 0.5
    assert [file.name[:5] for file in cache.iterdir()] == ["test-"]
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "_compile", lambda *_: pytest.fail("compiled again"))
        assert library("test", SOURCE, torch.float32) is not None
    assert library("test", SOURCE, torch.float64) is not None
    assert library("test", SOURCE + "/* changed */", torch.float32) is not None
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_without_a_compiler_that_works_there_is_no_library(
    compiler: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert library("test", SOURCE, torch.float32) is None
    assert not list(cache.glob("*"))


def test_a_source_with_a_mistake_gives_no_library(cache: Path) -> None:
    assert library("test", SOURCE.replace("}", ""), torch.float32) is None
    assert not list(cache.glob("*"))


def test_a_cache_that_cannot_be_written_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert library("test", SOURCE, torch.float32) is None


def test_no_library_for_other_types() -> None:
    assert library("test", SOURCE, torch.bfloat16) is None


def _no_headers() -> bool:
    raise RuntimeError("Python.h: No such file or directory")


@pytest.mark.parametrize(("works", "expected"), [(lambda: True, True), (lambda: False, False), (_no_headers, False)])
def test_kernels_for_a_gpu_where_one_can_be_had(
    works: Callable[[], bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "adlayer.probe", SimpleNamespace(works=works))
    monkeypatch.setattr(compiled, "_triton", compiled._triton.__wrapped__)
    assert compiled.for_gpu(torch.device("cuda")) is expected
    assert not compiled.for_gpu(torch.device("cpu"))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="there is a GPU")
def test_the_probe_does_what_it_should() -> None:
    pytest.importorskip("triton")
    assert import_module("adlayer.probe").works("cpu")


@pytest.mark.gpu
def test_the_probe_on_a_gpu() -> None:
    assert compiled.for_gpu(torch.device("cuda"))
