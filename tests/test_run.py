"""A whole study from its file, at reduced size, with real SevenNet-0 energies; and what the study file refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.db
import pytest

from adlayer.config import read_study
from adlayer.errors import UserError
from adlayer.study import pipeline

EXAMPLES = Path(__file__).parents[1] / "examples" / "silver_oxide"


Run = Callable[..., tuple[int, str, str]]


def result_of(stdout: str) -> dict[str, Any]:
    """The JSON object that ends the output."""
    result: dict[str, Any] = json.loads(stdout.strip().splitlines()[-1])
    return result


def test_reduced_study_stage_by_stage_and_again(tmp_path: Path, adlayer: Run) -> None:
    """Search, train, generate, relax, report on real energies; a second run does nothing twice and finds the same."""
    text = (EXAMPLES / "reduced.toml").read_text()
    file = tmp_path / "reduced.toml"
    file.write_text(text.replace("../../runs/reduced_study", "results"))
    results = tmp_path / "results"

    status, out, _ = adlayer("run", file, "--until", "train", "--json")
    trained = result_of(out)
    assert status == 0
    assert trained["search"]["n"] == 4
    assert trained["train"]["n_steps"] == 40
    assert (results / "model.metrics.csv").read_text().startswith("step,seconds,")
    assert (results / "model.loss.png").stat().st_size > 1000
    database = ase.db.connect(results / "study.db")
    searched = {row.id: row.energy for row in database.select("stage=search")}
    assert all(row.calculator == "sevennet" for row in database.select())
    model = (results / "model.safetensors").read_bytes()

    status, out, _ = adlayer("run", file, "--json")
    first = result_of(out)
    assert status == 0
    assert first["n"] == 2
    assert first["n_force_calls"] > 2
    assert (results / "ranked.extxyz").is_file()
    page = (results / "index.html").read_text()
    assert "random search" in page
    rows = {(row.stage, row.id): row.energy for row in database.select()}
    assert {row_id: energy for (stage, row_id), energy in rows.items() if stage == "search"} == searched
    assert sum(stage == "relaxed" for stage, _ in rows) == 2

    status, out, _ = adlayer("run", file, "--json")
    second = result_of(out)
    assert status == 0
    assert {(row.stage, row.id): row.energy for row in database.select()} == rows
    assert (results / "model.safetensors").read_bytes() == model
    assert second["lowest"] == first["lowest"]


def test_an_interrupted_retraining_is_not_taken_for_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before it saved anything, beside the model of another training."""
    study = read_study(str(EXAMPLES / "reduced.toml")).model_copy(update={"directory": str(tmp_path)})
    trained: list[int] = []

    def train(*_: Any, seed: int, **__: Any) -> dict[str, Any]:
        trained.append(seed)
        (tmp_path / "model.safetensors").write_text("new")
        return {"n_steps": 1}

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "train", train)
    assert pipeline._train(study, pipeline.Quiet()) == {"n_steps": 1}
    assert pipeline._train(study, pipeline.Quiet())["trained_before"]
    other = study.model_copy(update={"seed": 1})
    monkeypatch.setattr(pipeline, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        pipeline._train(other, pipeline.Quiet())
    monkeypatch.setattr(pipeline, "train", train)
    assert pipeline._train(other, pipeline.Quiet()) == {"n_steps": 1}
    assert pipeline._train(other, pipeline.Quiet())["trained_before"]
    assert trained == [0, 1]


def test_random_structures_of_another_composition_are_left_aside(tmp_path: Path) -> None:
    study = read_study(str(EXAMPLES / "reduced.toml"))
    relax = study.relax.model_copy(update={"calculator": "emt", "fmax": 0.5})

    def overlayer(formula: str) -> str:
        table = study.generate.model_copy(update={"formula": formula, "random": 1})
        changed = {"directory": str(tmp_path), "relax": relax, "generate": table}
        (found,) = pipeline._random(study.model_copy(update=changed), pipeline.Quiet())
        return str(found.info["row"]["overlayer"])

    assert [overlayer(formula) for formula in ("Ag2", "Ag", "Ag2")] == ["Ag2", "Ag", "Ag2"]


@pytest.mark.parametrize(("given", "seed"), [((), 7), (("--seed", 0), 0), (("--seed", 3), 3)])
def test_the_seed_of_a_run(
    given: tuple[Any, ...], seed: int, tmp_path: Path, adlayer: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the study file, unless one is given, 0 too; told as what it is."""
    file = tmp_path / "study.toml"
    file.write_text("seed = 7\n" + (EXAMPLES / "reduced.toml").read_text().replace("seed = 0\n", ""))
    ran: list[int] = []
    monkeypatch.setattr("adlayer.study.run", lambda study, **_: (ran.append(study.seed), {})[1])
    status, out, _ = adlayer("run", file, *given, "--json")
    assert status == 0
    assert ran == [seed]
    assert result_of(out)["seed"] == seed


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('name = "Ag(111)"', 'nmae = "Ag(111)"', "nmae"),
        ("layers = 2", 'layers = "two"', "surface.layers"),
        ("n = 2", "n = 0", "search.0.n"),
        ("[train]", "[train", "is not TOML"),
    ],
)
def test_study_file_refuses_what_it_does_not_know(tmp_path: Path, old: str, new: str, named: str) -> None:
    """One sentence that names the entry."""
    file = tmp_path / "study.toml"
    file.write_text((EXAMPLES / "reduced.toml").read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        read_study(file)


def test_both_examples_are_studies(tmp_path: Path) -> None:
    """The shipped study files are sound, and the full one asks for what the issue of the paper asks."""
    full = read_study(shutil.copy(EXAMPLES / "study.toml", tmp_path))
    assert (full.generate.cell, full.generate.formula) == ("p(4x4)", "Ag12O6")
    assert read_study(shutil.copy(EXAMPLES / "reduced.toml", tmp_path)).relax.calculator == "sevennet"


def test_unknown_stage_is_the_users_mistake(tmp_path: Path, adlayer: Run) -> None:
    """Exit status 2, one sentence, nothing written."""
    file = shutil.copy(EXAMPLES / "reduced.toml", tmp_path)
    status, _, err = adlayer("run", file, "--until", "relaxation")
    assert status == 2
    assert err.strip().count("\n") == 0
    assert "relaxation" in err
    assert list(tmp_path.iterdir()) == [Path(file)]


@pytest.mark.slow
def test_demo_with_few_structures(tmp_path: Path, adlayer: Run) -> None:
    """The main job on what ships, with two structures."""
    status, out, _ = adlayer("demo", "-o", tmp_path / "demo", "-n", "2", "--json")
    result = result_of(out)
    assert status == 0
    assert result["n"] == 2
    assert Path(result["report"]).is_file()
    assert -1.0 < result["lowest"] < 5.0
