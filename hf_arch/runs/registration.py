"""What was claimed before there were results: `claims.json` in the results folder, written before the first run starts.

    {"schema_version": 1, "entries": [{"time": ..., "set": ..., "hypothesis": ..., "claims": [...], "runs": [...],
                                       "seeds": [...], "results": 0, "hash": ...}, ...]}

An entry is added whenever a set is started with other claims, runs or seeds than before, and none is ever changed or
taken out. `results` counts the runs in the folder that had results by then: a claim of an entry with results that was
not in the entry before it is *added later*, and stays so, whatever is written afterwards. Where the first entry comes
after results (of `hf-arch train`, or an earlier release), claims that all runs with results hold in their own config
were made in time: these are `recorded`. Each hash covers its entry and the hash before it, so that an entry changed by
hand is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import read_json, write_json
from hf_arch.runs.claims import claims_in
from hf_arch.runs.file_shape import check_version
from hf_arch.runs.files import CLAIMS_FILE, METRICS_FILE, run_folders
from hf_arch.runs.record import RunRecord, group_name, read_results

SCHEMA_VERSION = 1
Status = Literal["before results", "added later", "not registered"]


@dataclass(frozen=True)
class Entry:
    """What a set claimed when it was started at `time` (UTC), about `runs` (their names) under `seeds`, and how many
    runs in the folder had `results` by then. `recorded`: claims that those runs hold themselves, of a first entry.
    `most_seeds`: up to which seed `experiment.seeds: auto` may go. `metric`: what the claims are about, where
    the recipe names it (`experiment.metric`); absent from entries of before it was kept."""

    time: str
    set: str
    hypothesis: str
    claims: tuple[str, ...]
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    results: int
    recorded: tuple[str, ...] = ()
    most_seeds: int | None = None
    metric: str | None = None
    hash: str = ""

    def hashed(self, before: str) -> Entry:
        """This entry with its hash, after one with the hash `before` (empty: it is the first)."""
        content = {**self.to_dict(), "hash": before}
        return replace(self, hash=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as the file holds them."""
        return {key: value for key, value in asdict(self).items() if key != "metric" or value is not None}

    def says_as(self, other: Entry) -> bool:
        """Whether both claim the same of the same runs and seeds."""
        said = ("set", "claims", "runs", "seeds", "most_seeds", "metric")
        return all(getattr(self, name) == getattr(other, name) for name in said)


@dataclass(frozen=True)
class Registration:
    """How a claim stands to the results: `before results`, `added later`, or `not registered` (there is no file, or
    not the one that there was when the runs began).

    time: of the entry that first held it. removed: when it was taken out after results existed, None where it was not.
    metric: what the claim was first made of, where that was named. seeds: those that were said to be looked at, of the
    last entry before there were results and of every one since; () for `seeds: auto`. more_seeds: when seeds were
    added, or the limits of `seeds: auto` changed, after results existed, which no correction of the claim's test
    covers. sentence: the same in words.
    """

    status: Status
    time: str | None = None
    removed: str | None = None
    more_seeds: str | None = None
    hash: str | None = None
    metric: str | None = None
    seeds: tuple[int, ...] = ()
    sentence: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class MadeClaim:
    """One claim that was made of a set of runs, with the hypothesis that it is part of."""

    hypothesis: str
    claim: str
    registration: Registration


_NOT_SHOWN = "so that it cannot be shown to have been made before the results"
UNREGISTERED = Registration("not registered", sentence=f"not registered: there is no {CLAIMS_FILE}, {_NOT_SHOWN}")
UNREGISTERED_HERE = Registration(
    "not registered", sentence=f"not registered: {CLAIMS_FILE} of the folder names none of its runs, {_NOT_SHOWN}"
)
"""Of runs in a folder whose claims are those of others: copied there, or trained there by `hf-arch train`."""
GONE = Registration(
    "not registered",
    sentence=f"not registered: {CLAIMS_FILE}, which was there when its runs began, is gone, {_NOT_SHOWN}",
)
REWRITTEN = f"{CLAIMS_FILE} is not the one that was there when its runs began, {_NOT_SHOWN}"
CLAIMS_FACT = "claims"
"""In `run` of experiment_config.json: the hash of the last entry of claims.json when the run was begun."""


def read_entries(folder: Path) -> list[Entry]:
    """The entries of a results folder; [] where it has none. Raises ConfigError of one line where the file is damaged,
    changed by hand or of a newer version."""
    file = folder / CLAIMS_FILE
    if not file.exists():
        return []
    content = read_json(file)
    check_version(file, content.get("schema_version") or 0, SCHEMA_VERSION)
    if not isinstance(content.get("entries"), list):
        raise ConfigError(f"{file}: entries: expected a list, found {content.get('entries')!r}")
    entries: list[Entry] = []
    for index, values in enumerate(content["entries"]):
        entry = _entry(values, f"{file}: entries[{index}]")
        if entry.hash != entry.hashed(entries[-1].hash if entries else "").hash:
            raise ConfigError(
                f"{file}: entries[{index}].hash: does not fit what the entry says; the file was changed by hand"
            )
        entries.append(entry)
    return entries


_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("time", "set", "hypothesis", "hash"), str),
    **dict.fromkeys(("claims", "runs", "seeds", "recorded"), list),
    "results": int,
    "most_seeds": (int, type(None)),
    "metric": (str, type(None)),
}


def _entry(values: object, where: str) -> Entry:
    if not isinstance(values, dict) or {*values, "metric"} != _TYPES.keys():
        raise ConfigError(f"{where}: expected an object with {', '.join(_TYPES)}; the file is damaged")
    for key, kind in _TYPES.items():
        if not isinstance(values.get(key), kind) or isinstance(values.get(key), bool):
            raise ConfigError(f"{where}.{key}: {values.get(key)!r} is not allowed; the file is damaged")
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Entry(**plain)


def register(
    folder: Path,
    name: str,
    hypothesis: str,
    runs: Sequence[str],
    seeds: Sequence[int],
    most_seeds: int | None = None,
    metric: str | None = None,
    now: datetime | None = None,
) -> list[Entry]:
    """Writes what the set `name` claims of `runs`, unless the last entry about it says the same; the entries about it.

    A set that claims nothing, and did not before, writes nothing. Raises ConfigError as `read_entries` does; the file
    is left as it is then.
    """
    entries = read_entries(folder)
    about = [entry for entry in entries if entry.set == name or set(entry.runs) & set(runs)]
    if not about and not hypothesis.strip():
        return []
    names = {*runs, *(run for entry in about for run in entry.runs)}
    shown = _with_results(folder, names)
    entry = Entry(
        time=(now or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        set=name,
        hypothesis=" ".join(hypothesis.split()),
        claims=claims_in(hypothesis),
        runs=tuple(runs),
        seeds=tuple(seeds),
        results=len(shown),
        recorded=() if about else _held_by_all(shown),
        most_seeds=most_seeds,
        metric=metric,
    ).hashed(entries[-1].hash if entries else "")
    if about and about[-1].says_as(entry):
        return about
    content = [one.to_dict() for one in (*entries, entry)]
    write_json(folder / CLAIMS_FILE, {"schema_version": SCHEMA_VERSION, "entries": content})
    return [*about, entry]


def claims_known(run: Path) -> str | None:
    """The hash of the last entry that stands in claims.json next to a run that begins; None where nothing does."""
    with suppress(ConfigError):
        entries = read_entries(run.parent)
        return entries[-1].hash if entries else None
    return None


def _with_results(folder: Path, names: Iterable[str]) -> list[Path]:
    """The folders of runs of these names, those of a sweep included, that have shown a number."""
    wanted = {group_name(name) for name in names}
    return [run for run in run_folders(folder) if wanted & _names_of(run) and _has_results(run)]


def _names_of(folder: Path) -> set[str]:
    """What a run is called: by its folder, and by its results, which keep the name where the folder is renamed."""
    found = {_folder_name(folder)}
    with suppress(ConfigError):  # the results of another set, which are not for this one to complain about
        found |= {record.name} if (record := read_results(folder)) is not None else set()
    return found


def _folder_name(folder: Path) -> str:
    return group_name(folder.name.rpartition("_")[0])


def _has_results(folder: Path) -> bool:
    metrics = folder / METRICS_FILE
    if metrics.is_file() and metrics.stat().st_size:
        return True
    record = read_results(folder)
    return record is not None and record.status == "completed"


def _held_by_all(folders: Sequence[Path]) -> tuple[str, ...]:
    """The claims that each of these runs records itself."""
    held = [claims_in(RunRecord.load(folder).hypothesis) for folder in folders]
    return tuple(claim for claim in held[0] if all(claim in one for one in held)) if held else ()


def claims_made(runs: Sequence[RunRecord]) -> list[MadeClaim]:
    """Every claim that was made of these runs: those of their folders' files, removed ones included, else those that
    the runs record themselves."""
    made: dict[str, MadeClaim] = {}
    registered: set[int] = set()
    elsewhere: set[int] = set()
    for folder in dict.fromkeys(run.path.parent for run in runs):
        entries = read_entries(folder)
        here = [run for run in runs if run.path.parent == folder]
        for about in _by_set(entries):
            named = {group_name(name) for entry in about for name in entry.runs}
            covered = [run for run in here if named & {run.name, _folder_name(run.path)}]
            registered |= {id(run) for run in covered}
            rewritten = any(_known_to(run) not in (None, *(entry.hash for entry in entries)) for run in covered)
            for claim in claims_made_by(about) if covered else ():
                claim = _without_proof(claim) if rewritten else claim
                # Of one claim in several folders: added later in one is added later.
                if claim.claim not in made or claim.registration.status != "before results":
                    made[claim.claim] = claim
        if entries:
            elsewhere |= {id(run) for run in here} - registered
    for run in runs:
        for text in claims_in(run.hypothesis) if id(run) not in registered else ():
            found = UNREGISTERED_HERE if id(run) in elsewhere else GONE if _known_to(run) else UNREGISTERED
            made.setdefault(text, MadeClaim(run.hypothesis, text, found))
    return list(made.values())


def _known_to(run: RunRecord) -> str | None:
    known = run.experiment.get(CLAIMS_FACT)
    return None if known is None else str(known)


def _without_proof(made: MadeClaim) -> MadeClaim:
    """A claim of a file that is not the one that was there when the runs began."""
    sentence = f"{made.registration.sentence}; but {REWRITTEN}"
    return replace(made, registration=replace(made.registration, status="not registered", sentence=sentence))


def current_hypotheses(runs: Sequence[RunRecord]) -> list[str]:
    """The distinct hypotheses of these runs: as they were registered last, else as the runs record them."""
    return list(dict.fromkeys(made.hypothesis for made in claims_made(runs) if made.registration.removed is None))


def _by_set(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries that are about the same set, or about runs in common, together, in their order."""
    found: list[list[Entry]] = []
    for entry in entries:
        same = [
            group for group in found if any(one.set == entry.set or set(one.runs) & set(entry.runs) for one in group)
        ]
        merged = sorted((one for group in same for one in group), key=entries.index)
        found = [group for group in found if group not in same] + [[*merged, entry]]
    return found


def claims_made_by(about: Sequence[Entry]) -> list[MadeClaim]:
    """The claims of one set that were in force while results existed, and how each came and went."""
    first: dict[str, Entry] = {}
    later: dict[str, Entry] = {}
    removed: dict[str, Entry] = {}
    text: dict[str, str] = {}
    before: tuple[str, ...] = ()
    known = 0  # results that were seen stay seen, also where their folders were deleted
    more_seeds: dict[str, Entry] = {}
    previous: Entry | None = None
    for entry in about:
        known = max(known, entry.results)
        entry = replace(entry, results=known)
        if known and previous is not None and _has_more_seeds(previous, entry):
            for claim in previous.claims:
                more_seeds.setdefault(claim, entry)
        previous = entry
        for claim in entry.claims:
            first.setdefault(claim, entry)
            text[claim] = entry.hypothesis
            if claim not in before and claim not in entry.recorded and known:
                later.setdefault(claim, entry)
        for claim in before:
            if claim in entry.claims:
                continue
            if known:
                removed[claim] = entry
            else:  # taken back before anything was known
                del first[claim]
        before = entry.claims
    seeds = _seeds_said(about)
    return [
        MadeClaim(
            text[claim],
            claim,
            replace(
                _registration(entry, later.get(claim), removed.get(claim), claim in before, more_seeds.get(claim)),
                seeds=seeds,
            ),
        )
        for claim, entry in first.items()
    ]


def _seeds_said(about: Sequence[Entry]) -> tuple[int, ...]:
    """The seeds that a set said it would look at: of its last entry before there were results, and of all since."""
    if any(entry.most_seeds is not None for entry in about):
        return ()
    blind = max((index for index, entry in enumerate(about) if not entry.results), default=0)
    return tuple(sorted({seed for entry in about[blind:] for seed in entry.seeds}))


def _has_more_seeds(before: Entry, after: Entry) -> bool:
    """Whether a set looks at more seeds than it said it would."""
    if before.most_seeds is not None or after.most_seeds is not None:
        return before.most_seeds != after.most_seeds
    return not set(after.seeds) <= set(before.seeds)


def _registration(
    first: Entry, later: Entry | None, removed: Entry | None, in_force: bool, more_seeds: Entry | None
) -> Registration:
    events = []
    if later is None or later.time != first.time:
        known = "recorded by the runs before their results" if first.results else "before any result"
        events.append((first.time, f"registered {first.time}, {known}"))
    if later is not None:
        events.append((later.time, f"added later, {_after(later)}"))
    if removed is not None:
        events.append((removed.time, f"removed {_after(removed)}"))
    if more_seeds is not None:
        events.append((more_seeds.time, f"more seeds since {_after(more_seeds)}, for which p is not corrected"))
    return Registration(
        status="before results" if later is None else "added later",
        time=first.time,
        removed=None if removed is None or in_force else removed.time,
        more_seeds=None if more_seeds is None else more_seeds.time,
        hash=first.hash,
        metric=first.metric,
        sentence="; ".join(words for _time, words in sorted(events, key=lambda event: event[0])),
    )


def _after(entry: Entry) -> str:
    count = entry.results
    return f"{entry.time}, after results of {count} run{'' if count == 1 else 's'}"
