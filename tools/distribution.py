"""Checks that a wheel and an sdist hold what they should and nothing else: `python -m tools.distribution dist/`.

Expected are the files that git tracks: those of `hf_arch/` and `recipes/` in the wheel, all in the sdist that
`pyproject.toml` includes. Whatever else lies in a clone (tests, tools, caches, results, keys) is named and refused.
"""

from __future__ import annotations

import fnmatch
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
LARGEST = 1 << 20
"""Bytes of the largest file that a distribution may hold."""


def tracked_files(root: Path = ROOT) -> set[str]:
    """The files that git tracks and that exist, relative to the root."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
    return {name for name in listed.split("\0") if name and (root / name).is_file()}


def expected_wheel(tracked: Iterable[str], project: dict) -> set[str]:
    """The files of the wheel besides its metadata, by the `wheel` target of `pyproject.toml`."""
    target = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    excluded = tuple(f"{folder}/" for folder in target.get("exclude", []))
    wanted = {name for name in tracked if name.startswith("hf_arch/") and not name.startswith(excluded or ("\0",))}
    for source, place in target.get("force-include", {}).items():
        wanted |= {place + name[len(source) :] for name in tracked if name == source or name.startswith(f"{source}/")}
    return wanted


def expected_sdist(tracked: Iterable[str], project: dict) -> set[str]:
    """The files of the sdist besides its metadata, by the `sdist` target of `pyproject.toml`, whose `include` names
    things in the root and whose `exclude` names folders."""
    target = project["tool"]["hatch"]["build"]["targets"]["sdist"]
    excluded = tuple(f"{folder.removeprefix('/')}/" for folder in target.get("exclude", []))
    return {
        name
        for name in tracked
        if name in ("pyproject.toml", "README.md", ".gitignore")
        or (
            any(fnmatch.fnmatch("/" + name.partition("/")[0], entry) for entry in target["include"])
            and not name.startswith(excluded or ("\0",))
        )
    }


def wheel_sizes(path: Path) -> dict[str, int]:
    """Names and bytes of a wheel's files, without its metadata."""
    with zipfile.ZipFile(path) as archive:
        return {
            entry.filename: entry.file_size
            for entry in archive.infolist()
            if not entry.is_dir() and not entry.filename.partition("/")[0].endswith(".dist-info")
        }


def sdist_sizes(path: Path) -> dict[str, int]:
    """Names (within its one folder) and bytes of an sdist's files, without `PKG-INFO`."""
    with tarfile.open(path) as archive:
        sizes = {entry.name.partition("/")[2]: entry.size for entry in archive.getmembers() if entry.isfile()}
    sizes.pop("PKG-INFO", None)
    return sizes


def problems(kind: str, sizes: dict[str, int], expected: set[str]) -> list[str]:
    """One line for each file that is missing, unexpected or too large."""
    lines = [f"{kind}: {name} is missing" for name in sorted(expected - set(sizes))]
    lines += [f"{kind}: {name} does not belong there" for name in sorted(set(sizes) - expected)]
    lines += [f"{kind}: {name} has {size:,} bytes" for name, size in sorted(sizes.items()) if size > LARGEST]
    return lines


def check(folder: Path) -> list[str]:
    """The problems of the one wheel and the one sdist in `folder`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tracked = tracked_files()
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sdists) != 1:
        return [f"{folder}: holds {len(wheels)} wheels and {len(sdists)} sdists; one of each is needed"]
    return [
        *problems(wheels[0].name, wheel_sizes(wheels[0]), expected_wheel(tracked, project)),
        *problems(sdists[0].name, sdist_sizes(sdists[0]), expected_sdist(tracked, project)),
    ]


if __name__ == "__main__":
    found = check(Path(sys.argv[1]))
    print("\n".join(found) or f"{sys.argv[1]}: wheel and sdist hold what they should")
    sys.exit(1 if found else 0)
