"""The pipeline: kinds must fit, nothing is computed twice, and what cannot change a result is in no key."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.pipeline import Pipeline, check_chain
from seedbed.benchmark.pipeline.stage import Kind, Machine, Stage
from seedbed.benchmark.pipeline.store import Store
from seedbed.datasets.base import Split
from tests.helpers.fakes import FolderDataset, random_scene

RAN: list[tuple[str, str]] = []


@dataclass(frozen=True, kw_only=True)
class Counted(Stage):
    """Notes that it ran, on which split, and what it was given."""

    version = 1
    produces = Kind.CHECKPOINT
    strength: float = hp(1.0, low=0, high=10)

    def run(self, data, inputs, out, ctx):
        RAN.append((type(self).__name__, str(ctx.split)))
        given = ",".join(sorted(f"{kind.value}:{(path / 'text').read_text()}" for kind, path in inputs.items()))
        (out / "text").write_text(f"{type(self).__name__}({given})")


@dataclass(frozen=True, kw_only=True)
class Teach(Counted):
    produces = Kind.CHECKPOINT


@dataclass(frozen=True, kw_only=True)
class Map(Counted):
    consumes = (Kind.CHECKPOINT,)
    produces = Kind.SCORES
    seeded = False


@dataclass(frozen=True, kw_only=True)
class Choose(Counted):
    consumes = (Kind.SCORES,)
    produces = Kind.THRESHOLD
    seeded = False

    @property
    def on(self):
        return Split.TUNE


@dataclass(frozen=True, kw_only=True)
class Mask(Counted):
    consumes = (Kind.SCORES, Kind.THRESHOLD)
    produces = Kind.MASKS
    seeded = False


@dataclass(frozen=True, kw_only=True)
class Learn(Counted):
    consumes = (Kind.MASKS,)
    produces = Kind.CHECKPOINT


CHAIN = [Teach(), Map(), Choose(), Mask(), Learn()]


@pytest.fixture
def data(tmp_path: Path) -> FolderDataset:
    RAN.clear()
    image, mask = random_scene(0, 16, 16, (1,))
    ids = [f"i{n}" for n in range(6)]
    splits = {Split.WEAK: ids[:5], Split.TRAIN: ids[:3], Split.TUNE: ids[:1], Split.VAL: ids[5:]}
    return FolderDataset(tmp_path / "data", dict.fromkeys(ids, image), dict.fromkeys(ids, mask), splits=splits)


def pipeline(
    data: FolderDataset, folder: Path, stages=CHAIN, seed: int = 0, digest: str = "d", **options
) -> Pipeline:
    return Pipeline(stages, data, digest, seed, Store(folder), options.pop("machine", Machine()), **options)


def test_a_stage_gets_the_nearest_artifact_of_each_kind(data, tmp_path):
    folder = pipeline(data, tmp_path).latest(Kind.CHECKPOINT, Split.WEAK)
    scores = "Map(checkpoint:Teach())"
    assert (folder / "text").read_text() == f"Learn(masks:Mask(scores:{scores},threshold:Choose(scores:{scores})))"


def test_training_stages_work_on_weak_and_the_choice_on_tune(data, tmp_path):
    pipeline(data, tmp_path).latest(Kind.CHECKPOINT, Split.VAL)
    assert sorted(RAN) == [
        ("Choose", "tune"),
        ("Learn", "weak"),
        ("Map", "tune"),
        ("Map", "weak"),
        ("Mask", "weak"),
        ("Teach", "weak"),
    ]


def test_smaller_splits_are_read_from_the_widest_one_in_scope(data, tmp_path):
    scope = {Kind.SCORES: Split.WEAK, Kind.MASKS: Split.WEAK}
    run = pipeline(data, tmp_path, scope=scope)
    run.latest(Kind.MASKS, Split.TRAIN)
    assert [split for name, split in RAN if name in ("Map", "Mask")] == ["weak", "weak"]


@dataclass(frozen=True, kw_only=True)
class Affinity(Counted):
    consumes = (Kind.SCORES,)
    produces = Kind.CHECKPOINT


@dataclass(frozen=True, kw_only=True)
class Walk(Counted):
    consumes = (Kind.SCORES, Kind.CHECKPOINT)
    produces = Kind.SCORES
    seeded = False


def test_maps_that_a_refiner_learns_from_are_made_on_weak_once_and_its_own_where_asked_for(data, tmp_path):
    stages = [Teach(), Map(), Affinity(), Walk()]
    run = pipeline(data, tmp_path, stages, scope={Kind.SCORES: Split.TRAIN}, on_weak=2)
    folder = run.latest(Kind.SCORES, Split.TUNE)
    scores = "Map(checkpoint:Teach())"
    assert (folder / "text").read_text() == f"Walk(checkpoint:Affinity(scores:{scores}),scores:{scores})"
    assert sorted(RAN) == [("Affinity", "weak"), ("Map", "weak"), ("Teach", "weak"), ("Walk", "train")]


def test_a_split_that_the_scope_does_not_contain_is_computed_by_itself(data, tmp_path):
    data._splits[Split.TRAIN] = ["i0", "i5"]
    pipeline(data, tmp_path, scope={Kind.SCORES: Split.WEAK}).latest(Kind.SCORES, Split.TRAIN)
    assert RAN[-1] == ("Map", "train")


def test_nothing_is_computed_twice_and_a_change_only_from_there_on(data, tmp_path):
    pipeline(data, tmp_path).latest(Kind.CHECKPOINT, Split.WEAK)
    RAN.clear()
    again = pipeline(data, tmp_path)
    again.latest(Kind.CHECKPOINT, Split.WEAK)
    assert RAN == []
    assert again.executed == []
    changed = [*CHAIN[:3], Mask(strength=2.0), CHAIN[4]]
    pipeline(data, tmp_path, changed).latest(Kind.CHECKPOINT, Split.WEAK)
    assert sorted(RAN) == [("Learn", "weak"), ("Mask", "weak")]


def test_seeds_share_the_stages_that_draw_no_random_number(data, tmp_path):
    stages = [GivenMap(), Choose(), Mask(), Learn()]
    pipeline(data, tmp_path, stages, seed=0).latest(Kind.CHECKPOINT, Split.WEAK)
    RAN.clear()
    pipeline(data, tmp_path, stages, seed=1).latest(Kind.CHECKPOINT, Split.WEAK)
    assert RAN == [("Learn", "weak")]


@dataclass(frozen=True, kw_only=True)
class GivenMap(Counted):
    produces = Kind.SCORES
    seeded = False


def test_what_decides_the_result_is_in_the_key_and_the_machine_is_not(data, tmp_path):
    def key(**options) -> str:
        return pipeline(data, tmp_path, **options).step(4, Split.WEAK).key

    base = key()
    assert key(seed=1) != base
    assert key(digest="other") != base
    assert key(stages=[replace(CHAIN[0], strength=2.0), *CHAIN[1:]]) != base
    assert key(machine=Machine(device="cuda", workers=7)) == base


def test_a_raised_version_gives_another_key(data, tmp_path, monkeypatch):
    before = pipeline(data, tmp_path).step(4, Split.WEAK).key
    monkeypatch.setattr(Teach, "version", 2)
    assert pipeline(data, tmp_path).step(4, Split.WEAK).key != before


def test_a_chain_whose_kinds_do_not_fit_is_refused_before_anything_runs(data, tmp_path):
    with pytest.raises(
        ConfigError, match="Mask needs threshold, which no stage before it makes: Teach → Map → Mask"
    ):
        check_chain([Teach(), Map(), Mask()])
    with pytest.raises(ConfigError):
        pipeline(data, tmp_path, [Map()])
    assert RAN == []
