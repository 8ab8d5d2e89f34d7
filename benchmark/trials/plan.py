"""The plan of a trial: all artifacts that it will make, known before anything runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from seedbed.benchmark.environment import environment
from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.evaluation.records import Record, read_records
from seedbed.benchmark.files import atomic
from seedbed.benchmark.paths import slug
from seedbed.benchmark.pipeline.changed_code import Change, changes_of
from seedbed.benchmark.pipeline.hparams import values, when
from seedbed.benchmark.pipeline.pipeline import Pipeline, Step
from seedbed.benchmark.pipeline.stage import Context, Kind, Machine, Meta, Precision, Stage
from seedbed.benchmark.pipeline.store import Entry
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.trials.trial import Chain, Trial, build_chain, resolve
from seedbed.datasets.base import Dataset, Split


@dataclass(frozen=True)
class Target:
    """One artifact of a trial, and the name of its folder in `run.json` (None: not listed)."""

    pipeline: Pipeline
    step: Step
    name: str | None = None


@dataclass
class TrialPlan:
    """Everything that a trial will compute, known before anything runs."""

    trial: Trial
    """The trial, with defaults that depend on the data set filled in."""
    meta: Meta
    chain: Chain
    data: Dataset
    digest: str
    work: WorkFolder
    machine: Machine
    executed: list[Entry] = field(default_factory=list)
    artifacts: dict[str, Path] = field(default_factory=dict)
    planned: int = 0
    """Number of stages that `measure` computes; 0: not known yet."""

    @property
    def precision(self) -> Precision:
        """The precision of the trial's networks."""
        assert self.trial.precision != "auto", "plan_trial has chosen one"
        return self.trial.precision

    def targets(self) -> list[Target]:
        """Return the artifacts to compute, in order; the RECORDS are the trial's numbers."""
        if self.trial.measure_on == "tune":
            return self._masks_on_tune()
        targets: list[Target] = []
        if self.trial.supervision == "weak":
            targets += [*self._classifier(), *self._seeds(), *self._own(), *self._pseudo_masks()]
        elif self.chain.refine:
            targets += self._constant_masks()
        if self.chain.segment:
            targets += self._segmentation()
        return [*targets, *self._network()]

    def steps(self) -> dict[str, Step]:
        """Return every step of the trial by its key, inputs first. Runs nothing."""
        steps: dict[str, Step] = {}
        for target in self.targets():
            target.pipeline.walk(target.step, lambda step: steps.update({step.key: step}))
        return steps

    def missing(self) -> dict[str, Step]:
        """Return the steps that must be computed, by key, inputs first."""
        missing: dict[str, Step] = {}

        def visit(step: Step) -> None:
            if step.key not in missing and not self.work.store.usable(step.key):
                for needed in step.inputs.values():
                    visit(needed)
                missing[step.key] = step

        for target in self.targets():
            visit(target.step)
        return missing

    def weights_needed(self) -> set[tuple[str, str]]:
        """Return the backbones and initialisations of all stages that must be computed."""
        needed = set()
        for step in self.missing().values():
            settings = step.stage.settings()
            condition = when(type(step.stage), "weights")
            if "weights" in settings and (condition is None or settings[condition[0]] == condition[1]):
                needed.add((settings["backbone"], settings["weights"]))
        return needed

    def changes(self) -> list[Change]:
        """Return the stored results that other code made (pipeline/changed_code.py)."""
        return changes_of(self.steps().values(), self.data, self.work.store)

    def measure(self) -> list[Record]:
        """Compute all targets, or find them in the store, and return their records."""
        self.planned = len(self.executed) + len(self.missing())
        records: list[Record] = []
        for target in self.targets():
            folder = target.pipeline.compute(target.step).path
            if target.name is not None:
                self.artifacts[target.name] = folder
            if target.step.stage.produces is Kind.RECORDS:
                records += read_records(folder / "records.parquet")
        return records

    def figures(self) -> dict[str, Path]:
        """Return the stored pictures of the method's own measurements, by file name."""
        found = {}
        for target in (
            self._own() if self.trial.measure_on == "report" and self.trial.supervision == "weak" else ()
        ):
            for path in sorted(self.work.store.path(target.step.key).glob("*.png")):
                found[f"{type(target.step.stage).__name__}_{path.name}"] = path
        return found

    def first_training(self) -> Target | None:
        """Return the first training stage of the method; None if there is none."""
        for position, stage in enumerate(self.chain.localise):
            if stage.produces is Kind.CHECKPOINT:
                pipeline = self._pipeline(self.chain.localise)
                return Target(pipeline, pipeline.step(position, Split.WEAK))
        return None

    def run_id(self) -> str:
        """Return a readable name with a digest of the last step's identity."""
        pipeline = self._pipeline(self.chain.stages)
        key = pipeline.step(len(self.chain.stages) - 1, Split.VAL).key
        heads = {"weak": f"{self.trial.method}-{self.trial.refiner}", "full": "supervised"}
        head = heads.get(self.trial.supervision, self.trial.supervision)
        return f"{head}-{slug(self.data.display_name)}-seed{self.trial.seed}-{key[:8]}"

    def describe(self) -> dict[str, Any]:
        """Return the resolved configuration of the trial as plain JSON values."""
        return {
            "run": self.run_id(),
            "trial": asdict(self.trial),
            "supervision": "" if self.chain.method is None else self.chain.method.supervision,
            "data": {
                "name": self.data.display_name,
                "digest": self.digest,
                "classes": self.data.classes,
                "tags": self.data.tag_source,
                "masks": self.data.mask_source,
                "images": {str(split): len(self.data.ids(split)) for split in Split},
            },
            "stages": [
                {"stage": type(s).__name__, "version": getattr(s, "version", 1), **values(s)}
                for s in self.chain.configured
            ],
            "artifacts": {name: path.name for name, path in self.artifacts.items()},
            "environment": environment(),
        }

    def pictures(self, path: Path) -> None:
        """Draw some images of `train` with all results of the run, unless they exist."""
        from seedbed.benchmark.evaluation.pictures import draw_examples
        from seedbed.methods.segmentation.stages import PredictMasks, predict_masks

        if path.exists():
            return
        predict = None
        if "network" in self.artifacts:
            stage, checkpoint = cast(PredictMasks, self.chain.stages[-1]), self.artifacts["network"]
            view = self.data.split(Split.TRAIN)
            context = Context(self.trial.seed, Split.TRAIN, path.parent, self.precision, **vars(self.machine))

            def predict(ids: tuple[str, ...], folder: Path) -> None:
                predict_masks(stage, checkpoint, replace(view, ids=ids), folder, context)

        with atomic(path) as temporary:
            draw_examples(temporary, self.data, self.artifacts, predict)

    def _masks_on_tune(self) -> list[Target]:
        from seedbed.benchmark.evaluation.stages import MeasureMasks

        stages = [*self.chain.localise, *self.chain.refine]
        return [self._target([*stages, MeasureMasks(selection=self._selection())], Split.TUNE)]

    def _classifier(self) -> list[Target]:
        from seedbed.benchmark.evaluation.stages import MeasureClassifier

        first = next(i for i, stage in enumerate(self.chain.localise) if stage.produces is Kind.CHECKPOINT)
        measuring = MeasureClassifier(long_side=self.trial.size)
        return [self._target([*self.chain.localise[: first + 1], measuring], Split.VAL)]

    def _seeds(self) -> list[Target]:
        from seedbed.benchmark.evaluation.stages import MeasureMaps
        from seedbed.benchmark.evaluation.threshold import SelectThreshold

        makes_scores = [i for i, stage in enumerate(self.chain.localise) if stage.produces is Kind.SCORES]
        if not makes_scores or self.chain.method is None:
            return []
        localise = self.chain.localise[: makes_scores[-1] + 1]
        # A refiner with its own maps thresholds those.
        own = any(stage.produces is Kind.SCORES for stage in self.chain.refine)
        chosen = next((s for s in self.chain.refine if isinstance(s, SelectThreshold) and not own), None)
        fixed = self.chain.method.fixed_threshold if chosen is None else chosen.value
        measuring = [
            SelectThreshold(selection="tuned", value=fixed, tuned=None if chosen is None else chosen.tuned),
            MeasureMaps(fixed=fixed),
        ]
        measured = [self._target([*localise, *measuring], split) for split in self._splits()]
        return [self._target(localise, Split.TRAIN, name="scores"), *measured]

    def _own(self) -> list[Target]:
        """Return the method's own measurements.

        Clusters and superpixels, which only training images have, are measured on `train`.
        """
        return [
            self._target([*self.chain.localise, stage], split)
            for stage in self.chain.measurements
            for split in ([Split.TRAIN] if {Kind.TAGS, Kind.SUPERPIXELS} & {*stage.consumes} else self._splits())
        ]

    def _splits(self) -> list[Split]:
        return [Split(name) for name in self.trial.maps_on]

    def _pseudo_masks(self) -> list[Target]:
        from seedbed.benchmark.evaluation.stages import MeasureMasks

        if self.chain.method is not None and self.chain.method.one_step:
            return self._masks_in_one_step()
        chosen = self._selection()
        targets = []
        for selection in dict.fromkeys([chosen, *(self.trial.selections if chosen != "none" else ())]):
            refine = [
                replace(cast(Any, stage), selection=selection) if hasattr(stage, "selection") else stage
                for stage in self.chain.refine
            ]
            stages = [*self.chain.localise, *refine]
            main = selection == chosen
            for split in (*self._splits(), Split.TUNE) if main else self._splits():
                measuring = MeasureMasks(level="pseudo_mask", selection=selection)
                targets.append(self._target([*stages, measuring], split, wide=main))
            if main:
                targets.append(self._target(stages, Split.TRAIN, name="masks"))
        return targets

    def _masks_in_one_step(self) -> list[Target]:
        """Return the masks of the method's own network: on `val` its result, on `train` pseudo-masks."""
        from seedbed.benchmark.evaluation.stages import MeasureMasks

        stages, pseudo_mask = self.chain.localise, MeasureMasks(level="pseudo_mask")
        return [
            self._target([*stages, pseudo_mask], Split.TRAIN),
            self._target([*stages, pseudo_mask], Split.TUNE),
            self._target(stages, Split.TRAIN, name="masks"),
            self._target([*stages, MeasureMasks(level="one_step")], Split.VAL),
        ]

    def _constant_masks(self) -> list[Target]:
        """Return the masks of a reference without a network.

        They are measured as pseudo-masks; those of background, which need no tags, also as a prediction of `val`.
        """
        from seedbed.benchmark.evaluation.stages import MeasureMasks

        stages, pseudo_mask = self.chain.refine, MeasureMasks(level="pseudo_mask")
        targets = [self._target([*stages, pseudo_mask], split) for split in self._splits()]
        targets.append(self._target(stages, Split.TRAIN, name="masks"))
        if self.trial.supervision == "background" and self.trial.segment:
            targets.append(self._target(stages, Split.VAL, name="predictions"))
            targets.append(self._target([*stages, MeasureMasks(level="segmentation")], Split.VAL))
        return targets

    def _segmentation(self) -> list[Target]:
        from seedbed.benchmark.evaluation.stages import MeasureMasks

        return [
            self._target(self.chain.stages, Split.VAL, name="predictions"),
            self._target([*self.chain.stages, MeasureMasks(level="segmentation")], Split.VAL),
        ]

    def _network(self) -> list[Target]:
        """Return the network of the last stage, which is already computed, so that `run.json` names it."""
        from seedbed.methods.segmentation.stages import PredictMasks

        if not isinstance(self.chain.stages[-1], PredictMasks):
            return []
        pipeline = self._pipeline(self.chain.stages)
        predict = pipeline.step(len(self.chain.stages) - 1, Split.VAL)
        return [Target(pipeline, predict.inputs[Kind.CHECKPOINT], "network")]

    def _selection(self) -> Any:
        """Return how the threshold of the training masks is chosen; `none` without a threshold."""
        return next((s.settings()["selection"] for s in self.chain.refine if hasattr(s, "selection")), "none")

    def _target(self, stages: list[Stage], split: Split, name: str | None = None, wide: bool = True) -> Target:
        pipeline = self._pipeline(stages, wide)
        return Target(pipeline, pipeline.step(len(stages) - 1, split), name)

    def _pipeline(self, stages: list[Stage], wide: bool = True) -> Pipeline:
        # A segmentation network needs all of `weak`, so smaller splits are read from it.
        widest = Split.WEAK if self.chain.segment and self.chain.localise else Split.TRAIN
        if self.trial.measure_on == "tune":
            widest = Split.TUNE
        scope = {Kind.SCORES: widest, Kind.MASKS: widest if wide else Split.TRAIN}
        learns = any(stage.on is Split.WEAK for stage in self.chain.refine)
        return Pipeline(
            stages,
            self.data,
            self.digest,
            self.trial.seed,
            self.work.store,
            self.machine,
            self.precision,
            scope=scope,
            on_weak=len(self.chain.localise) if learns else 0,
            executed=self.executed,
            planned=self.planned,
        )


def plan_trial(
    trial: Trial, data: Dataset, work: WorkFolder, machine: Machine, digest: str | None = None
) -> TrialPlan:
    """Return what a trial will do. Computes nothing.

    `digest` is the data set's, if known; else the data set's files are read for it. Raises ConfigError for an
    impossible trial.
    """
    trial, meta, machine = resolve(trial, data, machine)
    if trial.measure_on == "tune":
        trial = replace(trial, segment=False)
    chain = build_chain(trial, meta)
    _refuse_without_saliency(trial, chain, data)
    if digest is None:
        digest = work.digest(data)
    return TrialPlan(trial, meta, chain, data, digest, work, machine)


def _refuse_without_saliency(trial: Trial, chain: Chain, data: Dataset) -> None:
    if chain.method is not None and chain.method.supervision == "I+S" and not data.has_saliency:
        raise ConfigError(
            f"{trial.dataset}: {trial.method} with these settings needs saliency maps, but the data set was "
            f"opened without. Give their folder: `seedbed run --saliency DIR`, or in seedbed.toml, below "
            f'[datasets.{trial.dataset}], the line saliency = "DIR"'
        )
