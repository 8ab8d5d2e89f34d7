"""Chains stages, checks that their kinds fit, and runs them through the store.

For each kind that a stage consumes, it gets the artifact of the nearest stage before it. Training stages and
superpixels use `weak`; stages that make SCORES, MASKS or RECORDS use the requested split.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.changed_code import source_of, with_earlier_code
from seedbed.benchmark.pipeline.cost import conditions_of
from seedbed.benchmark.pipeline.stage import Context, Kind, Machine, Precision, Stage, cache_key
from seedbed.benchmark.pipeline.store import Entry, Store
from seedbed.datasets.base import Dataset, Split

NESTED = (Split.TUNE, Split.TRAIN, Split.WEAK)
"""Each of these splits contains the ones before it (checked on the ids before use)."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One stage on one split, with the steps that make its inputs."""

    stage: Stage
    split: Split
    inputs: Mapping[Kind, Step]
    identity: Mapping[str, object]
    key: str


def check_chain(stages: Sequence[Stage]) -> None:
    """Raise ConfigError if a stage consumes a kind that no earlier stage produces."""
    produced: set[Kind] = set()
    for stage in stages:
        for kind in stage.consumes:
            if kind not in produced:
                chain = " → ".join(type(s).__name__ for s in stages)
                raise ConfigError(
                    f"{type(stage).__name__} needs {kind.value}, which no stage before it makes: {chain}"
                )
        produced.add(stage.produces)


@dataclass
class Pipeline:
    """A chain of stages on one data set with one seed.

    `scope` is the widest of `tune ⊂ train ⊂ weak` for which SCORES and MASKS are made; a smaller split is read
    from it, so that nothing is computed twice. The first `on_weak` stages always work on `weak`, because a later
    training needs it.
    """

    stages: Sequence[Stage]
    data: Dataset
    data_digest: str
    seed: int
    store: Store
    machine: Machine
    precision: Precision = "fp32"
    scope: Mapping[Kind, Split] = field(default_factory=dict)
    on_weak: int = 0
    executed: list[Entry] = field(default_factory=list)
    """The entries that this pipeline computed, in order, without those found in the store."""
    planned: int = 0
    """Number of stages that will be computed, for messages; 0: not known."""

    def __post_init__(self) -> None:
        check_chain(self.stages)

    def step(self, position: int, split: Split) -> Step:
        """Return the plan for the stage at `position`, requested on `split`. Runs nothing."""
        stage = self.stages[position]
        split = stage.on or self._within_scope(position, split)
        inputs = {}
        for kind in stage.consumes:
            source = max(i for i in range(position) if self.stages[i].produces is kind)
            inputs[kind] = self.step(source, split)
        keys = {kind: step.key for kind, step in inputs.items()}
        identity = stage.identity(self.seed, self.data_digest, split, keys, self.precision)
        return Step(stage, split, inputs, identity, cache_key(identity))

    def latest(self, kind: Kind, split: Split) -> Path:
        """Compute, or find, the last artifact of a kind in the chain on a split, and return its folder."""
        position = max(i for i, stage in enumerate(self.stages) if stage.produces is kind)
        return self.compute(self.step(position, split)).path

    def compute(self, step: Step) -> Entry:
        """Compute a step and its inputs, or find them in the store."""
        if (entry := self.store.use(step.key)) is not None:
            return entry
        source = source_of(step, self.data)
        entries = {kind: self.compute(needed) for kind, needed in step.inputs.items()}
        inputs = {kind: entry.path for kind, entry in entries.items()}
        source = with_earlier_code(source, entries, step.inputs, self.data)
        name = f"{type(step.stage).__name__} on {self.data.display_name}/{step.split}"

        def produce(out: Path, scratch: Path) -> None:
            place = f"stage {len(self.executed) + 1} of {self.planned}: " if self.planned else ""
            logger.info(f"▸ {place}{name}  [{step.key[:12]}]")
            self.machine.on_stage(step.stage, step.split, step.key)
            context = Context(self.seed, step.split, scratch, self.precision, **vars(self.machine))
            step.stage.run(self.data, inputs, out, context)

        def on_wait() -> None:
            logger.info(f"  waiting for another process that computes {name}  [{step.key[:12]}]")

        conditions = conditions_of(step, self.data, self.machine.device).to_json()
        notes = {"conditions": conditions, "source": source}
        entry, computed = self.store.get_or_run(step.identity, produce, on_wait, notes)
        if computed:
            logger.info(f"  {name} took {entry.seconds:.1f} s  [{step.key[:12]}]")
            self.executed.append(entry)
        return entry

    def walk(self, step: Step, visit: Callable[[Step], None]) -> None:
        """Call `visit` for a step and its inputs, inputs first."""
        for needed in step.inputs.values():
            self.walk(needed, visit)
        visit(step)

    def _within_scope(self, position: int, split: Split) -> Split:
        kind = self.stages[position].produces
        scope = self.scope.get(kind)
        if position < self.on_weak and kind is Kind.SCORES:
            scope = Split.WEAK
        if scope is None or split not in NESTED or NESTED.index(split) >= NESTED.index(scope):
            return split
        return scope if _covered(self.data.ids(split), self.data.ids(scope)) else split


@functools.lru_cache(maxsize=32)
def _covered(few: tuple[str, ...], many: tuple[str, ...]) -> bool:
    return set(few) <= set(many)
