"""The study file: TOML, one table per stage, unknown keys refused, units in the descriptions.

The resolved configuration is written beside the results, so that a result always says how it was made.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adlayer.errors import UserError


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SurfaceTable(_Table):
    """The crystal surface that all cells share."""

    name: str = Field(description='surface, such as "Ag(111)"')
    layers: int = Field(default=2, ge=1, description="number of layers")
    fixed_layers: int = Field(default=1, ge=0, description="lowest layers that relaxations keep fixed")
    lattice: float | None = Field(default=None, gt=0, description="lattice constant, Å; default: the default backend's")
    window: tuple[float, float] = Field(default=(1.0, 4.0), description="confinement above the top layer, Å")


class SearchTable(_Table):
    """One random structure search; a study may have several."""

    cell: str = Field(description="superstructure, Wood's notation or matrix")
    formulas: list[str] = Field(default_factory=list, description="overlayer formulas")
    range: str | None = Field(default=None, description='formulas by range, such as "Ag3-6 O1-4"')
    n: int = Field(default=4, ge=1, description="structures of each formula")
    min_distance: float = Field(default=0.7, gt=0, description="smallest distance at placement, covalent radii")


class TrainTable(_Table):
    """Training of denoiser and force field."""

    select: str = Field(default="", description='rows to learn from, such as "dE<1.5, 0.2<O<0.4"')
    repeat: str = Field(default="1x1,1x1,2x1,1x2", description="in-plane repetitions to draw from")
    time: str | None = Field(default=None, description='how long, such as "1h"; or give steps')
    steps: int | None = Field(default=None, ge=1, description="number of steps")
    batch: int = Field(default=32, ge=1, description="structures of a step")


class GenerateTable(_Table):
    """What the model shall make."""

    cell: str = Field(description="superstructure, Wood's notation or matrix")
    formula: str = Field(description="overlayer formula")
    n: int = Field(default=24, ge=1, description="number of structures")
    preset: str = Field(default="default", description="default, fast or paper")
    steps: int | None = Field(default=None, ge=1, description="steps of the solver")
    starts: int | None = Field(
        default=None,
        ge=1,
        description="samples of which each structure is the lowest in learned energy; default: the preset's",
    )
    refine: int | None = Field(
        default=None,
        ge=0,
        description="rounds of noising, denoising and relaxing, the lower one kept; default: the preset's",
    )
    symmetry: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the structures drawn with a symmetry of the substrate; default: the preset's",
    )
    window: tuple[float, float] | None = Field(
        default=None, description="confinement above the top layer, Å; default: the surface's"
    )
    random: int = Field(default=0, ge=0, description="random structures of the same formula and cell to compare with")


class RelaxTable(_Table):
    """Local relaxation, of the search as of what is generated."""

    calculator: str = Field(default="sevennet", description="energy backend")
    fmax: float = Field(default=0.05, gt=0, description="largest force at the end, eV/Å")
    max_steps: int = Field(default=300, ge=1, description="steps after which to give up")


class Study(_Table):
    """A whole study."""

    title: str = Field(default="Study", description="heading of the report")
    directory: str = Field(default="runs/study", description="where results go, relative to the study file")
    seed: int = Field(default=0, ge=0, description="random seed of every stage")
    reference: str | None = Field(default=None, description="shipped reference, or a structure file, to match")
    surface: SurfaceTable
    search: list[SearchTable] = Field(min_length=1)
    train: TrainTable = TrainTable()
    generate: GenerateTable
    relax: RelaxTable = RelaxTable()


def read_study(path: str | Path) -> Study:
    """A study from its TOML file; ``directory`` becomes relative to the working folder.

    Raises
    ------
    UserError
        If the file is missing, no TOML, or has unknown, missing or unusable entries.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no study file {path}: give a TOML file such as examples/silver_oxide/study.toml")
    try:
        study = Study.model_validate(tomllib.loads(file.read_text()))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"study file {path} is not TOML ({error}): mend that line") from error
    except ValidationError as error:
        # A misspelt entry is both unknown and missing: name the unknown one.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        place = ".".join(str(p) for p in first["loc"])
        raise UserError(f'study file {path}: "{place}" is wrong ({first["msg"]}): mend that entry') from error
    return study.model_copy(update={"directory": str(file.parent / study.directory)})
