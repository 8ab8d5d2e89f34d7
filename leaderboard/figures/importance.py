"""The importance of hyper-parameters in a search, by Optuna's fANOVA."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from seedbed.leaderboard.analysis.grouping import objective
from seedbed.leaderboard.analysis.ranking import Group
from seedbed.leaderboard.data.snapshot import Run
from seedbed.leaderboard.figures.style import (
    COLOURS,
    Figure,
    canvas,
    of_group,
    short,
    slug,
    svg_of,
)
from seedbed.leaderboard.tables.columns import group_title
from seedbed.leaderboard.tables.table import unrounded

NEEDED = 4
"""Minimum number of complete trials with all parameters."""
SEED = 0
"""Random seed of fANOVA's forest."""


class Drawn(NamedTuple):
    """A complete search trial: its parameters, their distributions (Optuna's JSON) and its score."""

    parameters: Mapping[str, Any]
    space: Mapping[str, Any]
    score: float


def drawn_of(search: Sequence[Run]) -> tuple[list[str], list[Drawn]]:
    """Return the names of all parameters of a search, and the complete trials that have them all.

    The default settings may lack a parameter whose default is outside the space.
    """
    scored = [
        (run, value) for run in search if (value := objective(run)) is not None and run.parameters and run.space
    ]
    drawn = [Drawn(json.loads(run.parameters), json.loads(run.space), value) for run, value in scored]
    names = sorted({name for trial in drawn for name in trial.parameters})
    return names, [trial for trial in drawn if names and set(trial.parameters) == set(names)]


def importance(search: Sequence[Run]) -> dict[str, float] | str:
    """Return the importance of each drawn parameter, highest first, sum 1; or the reason why there is none."""
    names, whole = drawn_of(search)
    if not names:
        recorded = any(run.parameters for run in search)
        return "no parameter was searched" if recorded or not search else "the parameters were not recorded"
    if len(whole) < NEEDED:
        return f"{len(whole)} complete trials, and {NEEDED} are needed"
    if len({trial.score for trial in whole}) < 2:
        return "all trials have the same score"
    varied = [name for name in names if len({json.dumps(trial.parameters[name]) for trial in whole}) > 1]
    if len(varied) < 2:
        return f"{varied[0]} alone varied" if varied else "no parameter varied"
    return _fanova(whole, varied)


def _fanova(trials: Sequence[Drawn], names: Sequence[str]) -> dict[str, float] | str:
    import optuna
    from optuna.distributions import json_to_distribution

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for parameters, space, value in trials:
        study.add_trial(
            optuna.trial.create_trial(
                params={name: parameters[name] for name in names},
                distributions={name: json_to_distribution(json.dumps(space[name])) for name in names},
                value=value,
            )
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=SEED)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=list(names))
    except RuntimeError as error:
        return str(error)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def importance_figures(group: Group, cells: Mapping[tuple[str, str], Sequence[Run]], stem: str) -> list[Figure]:
    """Return one figure per searched method of a group, with one panel per refiner."""
    found = {cell: importance(runs) for cell, runs in sorted(cells.items())}
    trials = {cell: len(drawn_of(runs)[1]) for cell, runs in cells.items()}
    return [
        _figure(group, method, {cell: found[cell] for cell in found if cell[0] == method}, trials, stem)
        for method in sorted({method for method, _ in cells})
    ]


def _figure(
    group: Group,
    method: str,
    found: Mapping[tuple[str, str], dict[str, float] | str],
    trials: Mapping[tuple[str, str], int],
    stem: str,
) -> Figure:
    name = f"importance-{stem}-{slug(method)}"
    title = f"Importance of hyper-parameters, {method}: {group_title(group)}"
    # Panels without bars come first, so that the axis below belongs to bars.
    panels = sorted(found.items(), key=lambda item: isinstance(item[1], dict))
    heights = [1.5 if isinstance(values, str) else len(values) + 1.5 for _, values in panels]
    with canvas(0.6 + 0.2 * sum(heights), len(found), 1, sharex=True, gridspec_kw={"height_ratios": heights}) as (
        figure,
        axes,
    ):
        for axis, (cell, values) in zip(axes.flat, panels, strict=True):
            if isinstance(values, str):
                axis.set_title(f"{short(' + '.join(cell))}: no result", loc="left")
                axis.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
                axis.spines[:].set_visible(False)
            else:
                axis.barh(range(len(values)), list(values.values()), color=COLOURS[0], height=0.7)
                axis.set_yticks(range(len(values)), [short(name) for name in values])
                axis.invert_yaxis()
                axis.set_title(short(" + ".join(cell)), loc="left")
                axis.grid(visible=True, axis="x")
                axis.set(xlabel="share of the variance of the tune score", xlim=(0, 1))
                axis.label_outer()
        svg = svg_of(figure, name, title)
    told = "; ".join(
        f"{refiner}: {f'nothing, {values}' if isinstance(values, str) else f'{trials[method, refiner]} trials'}"
        for (_, refiner), values in found.items()
    )
    caption = (
        f"{of_group(group)} How much of the variance of the tune score each hyper-parameter explains within its "
        "search space, by Optuna's fANOVA on the complete trials with all parameters; of few it is a hint "
        f"and no more ({told})."
    )
    rows: list[list[object]] = []
    for cell, values in found.items():
        if isinstance(values, str):
            rows.append([*cell, None, None, values])
        else:
            rows += [[*cell, key, value, None] for key, value in values.items()]
    table = unrounded(["method", "refiner", "parameter", "importance", "nothing_because"], rows)
    return Figure(name, title, caption, svg, table, (method,), group.scope.dataset)
