"""DFT energies of the finalists with GPAW: single points, or short relaxations, kept in ``dft.json``.

    examples/silver_oxide/dft.sh                                          # the environment, once
    export OMP_NUM_THREADS=1
    examples/silver_oxide/.gpaw/bin/python examples/silver_oxide/dft.py   # single points, most important first
    examples/silver_oxide/.gpaw/bin/python examples/silver_oxide/dft.py --setting k3 --names Ag6 new-1
    examples/silver_oxide/.gpaw/bin/python examples/silver_oxide/dft.py --relax 10 --names Ag6 new-1
    examples/silver_oxide/.gpaw/bin/python examples/silver_oxide/dft.py --table

PBE with atomic orbitals (LCAO, dzp), Fermi-Dirac smearing of 0.1 eV (energies extrapolated to zero width), no spin,
6 Å of vacuum on either side and no periodicity across the slab. Silver's setup has 11 valence electrons: the one with
17 has far longer orbitals and costs ten times as much. Energies compare within one setting and one number of
layers only. A result is written as soon as it is there; one of the same structure and settings is not computed again.
A relaxation goes on where the last one of that structure ended; substrate atoms that were fixed stay fixed.
This file runs without adlayer.
"""

import argparse
import hashlib
import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

HERE = Path(__file__).parent
VACUUM = 6.0  # Å
CRYSTAL_MESH = 12  # k-points along each axis of bulk silver
SETTINGS: dict[str, dict[str, Any]] = {
    "base": {"h": 0.2, "kpts": [2, 2, 1], "gamma": False},
    "k3": {"h": 0.2, "kpts": [3, 3, 1], "gamma": True},
    "h16": {"h": 0.16, "kpts": [2, 2, 1], "gamma": False},
}
COMMON = {"mode": "lcao", "basis": "dzp", "xc": "PBE", "setups": {"Ag": "11"}, "smearing_eV": 0.1}
ORDER = ["Ag6", "new-1", "trilayer", "Ag-bulk", "Ag5O3", "Ag6-symmetric", "new-4", "new-2", "new-3", "best-random"]


def geometry_hash(atoms: Atoms) -> str:
    """Elements, cell and positions rounded to 0.1 mÅ."""
    numbers = np.asarray(atoms.numbers, dtype="<i8").tobytes()
    lengths = np.round(np.vstack([atoms.cell[:2] if not atoms.pbc[2] else atoms.cell[:], atoms.positions]), 4) + 0.0
    return hashlib.sha256(numbers + lengths.astype("<f8").tobytes()).hexdigest()[:12]


def in_vacuum(atoms: Atoms) -> Atoms:
    """A copy between equal vacua; crystals as they are."""
    work = atoms.copy()
    if not work.pbc[2]:
        work.center(vacuum=VACUUM, axis=2)
    return work


def calculator(atoms: Atoms, setting: str, log: Path) -> Any:
    """GPAW with the settings of that name."""
    from gpaw import GPAW

    chosen = SETTINGS[setting]
    size = (CRYSTAL_MESH,) * 3 if atoms.pbc[2] else tuple(chosen["kpts"])
    mesh = {"size": size, "gamma": chosen["gamma"]} if not atoms.pbc[2] else {"size": size}
    return GPAW(
        mode=COMMON["mode"],
        basis=COMMON["basis"],
        xc=COMMON["xc"],
        setups=COMMON["setups"],
        h=chosen["h"],
        kpts=mesh,
        occupations={"name": "fermi-dirac", "width": COMMON["smearing_eV"]},
        txt=log.open("a", buffering=1),
    )


def read(path: Path) -> dict[str, Any]:
    """What is there, or the empty record; results of other settings are not mixed with ours."""
    common = {**COMMON, "vacuum_A": VACUUM, "bulk_kpts": [CRYSTAL_MESH] * 3}
    if not path.is_file():
        return {
            "what": "GPAW energies of the finalists, eV per cell; compare within one setting and number of layers",
            "common": common,
            "settings": SETTINGS,
            "results": [],
        }
    record = json.loads(path.read_text())
    if record["common"] != common or any(SETTINGS.get(k) != v for k, v in record["settings"].items()):
        raise SystemExit(f"{path} was made with other settings: name another file with -o")
    return record


def append(path: Path, result: dict[str, Any]) -> None:
    """Add one result; the file is whole at every moment."""
    record = read(path)
    record["settings"] = SETTINGS
    record["results"].append(result)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path)


def processor() -> str:
    """Name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, one thread"


def entry(atoms: Atoms, setting: str) -> dict[str, Any]:
    """What identifies a single point."""
    return {
        "name": str(atoms.info["name"]),
        "layers": int(atoms.info["layers"]),
        "setting": setting,
        "geometry": geometry_hash(atoms),
    }


def same(path: Path, key: dict[str, Any]) -> list[dict[str, Any]]:
    """Results of the same structure and settings."""
    return [r for r in read(path)["results"] if all(r.get(k) == v for k, v in key.items())]


def provenance(start: float, cpu: float) -> dict[str, Any]:
    """Versions, machine and cost."""
    return {
        "versions": {p: metadata.version(p) for p in ("gpaw", "gpaw-data", "ase", "numpy", "scipy")},
        "machine": processor(),
        "wall_s": round(time.time() - start),
        "cpu_s": round(time.process_time() - cpu),
    }


def single_point(atoms: Atoms, setting: str, path: Path, logs: Path) -> None:
    """Energy (extrapolated to zero smearing) of one structure, unless it is there."""
    key = entry(atoms, setting)
    if any("relaxed_steps" not in r for r in same(path, key)):
        return
    start, cpu = time.time(), time.process_time()
    work = in_vacuum(atoms)
    work.calc = calculator(work, setting, logs / f"{key['name']}-{key['layers']}-{setting}.txt")
    energy = float(work.get_potential_energy())
    result = {**key, "energy_eV": round(energy, 5), **provenance(start, cpu)}
    append(path, result)
    print(f"{key['name']:14} {key['layers']} layers {setting:5} {energy:12.4f} eV {result['wall_s']} s", flush=True)


def relaxation(atoms: Atoms, setting: str, steps: int, path: Path, logs: Path) -> None:
    """At most ``steps`` steps of BFGS (largest force 0.05 eV/Å), each kept; a later run goes on from the last."""
    from ase.optimize import BFGS

    key = entry(atoms, setting)
    earlier = [r for r in same(path, key) if "relaxed_steps" in r]
    if earlier and earlier[-1]["converged"]:
        return
    done = earlier[-1]["relaxed_steps"] if earlier else -1
    stem = f"{key['name']}-{key['layers']}-{setting}-{key['geometry']}"
    last, memory = logs / f"{stem}.npy", logs / f"{stem}.bfgs.json"
    origin = in_vacuum(atoms)
    work = origin.copy()
    if done >= 0:
        if not last.is_file():
            raise SystemExit(f"{last} is missing: a relaxation of {key['name']} began elsewhere, go on there")
        work.positions = np.load(last)
    work.calc = calculator(work, setting, logs / f"{stem}.txt")
    start, cpu = time.time(), time.process_time()
    optimizer = BFGS(work, restart=str(memory), logfile=None)
    for converged in optimizer.irun(fmax=0.05, steps=steps):
        step = max(done, 0) + optimizer.nsteps
        np.save(last, work.positions)
        if step <= done:  # where the last run ended
            continue
        result = {
            **key,
            "energy_eV": round(float(work.get_potential_energy()), 5),
            "relaxed_steps": step,
            "fmax_eV_A": round(float(np.linalg.norm(work.get_forces(), axis=1).max()), 4),
            "moved_A": round(float(np.linalg.norm(work.positions - origin.positions, axis=1).max()), 3),
            "converged": bool(converged),
            **provenance(start, cpu),
        }
        append(path, result)
        print(f"{stem} step {step} {result['energy_eV']:.4f} eV {result['fmax_eV_A']:.3f} eV/Å", flush=True)


def table(path: Path) -> None:
    """Energies above Ag6 (eV) for each setting and number of layers, of relaxations the lowest, on stdout."""
    results = read(path)["results"]
    columns = sorted({(r["setting"], r["layers"]) for r in results if r["layers"]})
    latest: dict[tuple[str, str, int, bool], dict[str, Any]] = {}
    for r in results:
        key = r["name"], r["setting"], r["layers"], "relaxed_steps" in r
        if not key[-1] or key not in latest or r["energy_eV"] < latest[key]["energy_eV"]:  # a step may go too far
            latest[key] = r
    for relaxed in (False, True):
        for setting, layers in columns:
            zero = latest.get(("Ag6", setting, layers, relaxed))
            if zero is None:
                continue
            print(f"{setting}, {layers} layers{', relaxed' * relaxed}")
            for name in ORDER:
                r = latest.get((name, setting, layers, relaxed))
                metal = latest.get(("Ag-bulk", setting, 0, False))
                if r is None or (name == "Ag5O3" and metal is None):
                    continue
                more = 2 * metal["energy_eV"] if name == "Ag5O3" and metal else 0.0
                print(f"  {name:14} {r['energy_eV'] + more - zero['energy_eV']:+8.3f}  {r.get('fmax_eV_A', '')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finalists", type=Path, default=HERE / "finalists.extxyz")
    parser.add_argument("-o", type=Path, default=HERE / "dft.json")
    parser.add_argument("--logs", type=Path, default=HERE / ".gpaw" / "logs")
    parser.add_argument("--setting", choices=list(SETTINGS), default="base")
    parser.add_argument("--layers", type=int, choices=[2, 3], default=2)
    parser.add_argument("--names", nargs="+", default=ORDER)
    parser.add_argument("--relax", type=int, default=0, metavar="STEPS", help="relax by this many steps at most")
    parser.add_argument("--table", action="store_true", help="print what is there")
    arguments = parser.parse_args()
    if arguments.table:
        table(arguments.o)
        return
    arguments.logs.mkdir(parents=True, exist_ok=True)
    frames = ase.io.read(arguments.finalists, index=":")
    found = {str(a.info["name"]): a for a in frames if a.info["layers"] in (0, arguments.layers)}
    unknown = [n for n in arguments.names if n not in found]
    if unknown:
        raise SystemExit(f"{', '.join(unknown)} with {arguments.layers} layers is not among {arguments.finalists}")
    for name in arguments.names:
        if arguments.relax:
            relaxation(found[name], arguments.setting, arguments.relax, arguments.o, arguments.logs)
        else:
            single_point(found[name], arguments.setting, arguments.o, arguments.logs)


if __name__ == "__main__":
    main()
