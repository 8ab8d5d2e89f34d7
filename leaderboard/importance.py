"""Which hyper-parameters a search found to matter, by Optuna's fANOVA."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence

from leaderboard.columns import group_title
from leaderboard.figures import COLOURS, Figure, canvas, comma_separated_rows, of_group, slug, svg_of
from leaderboard.select import objective
from leaderboard.snapshot import Run
from leaderboard.standing import Group

NEEDED = 4
"""Complete trials with all parameters; of fewer nothing is said."""
SEED = 0
"""Of the forest that fANOVA grows."""


def importance(search: Sequence[Run]) -> dict[str, float] | str:
    """Return the importance of each drawn parameter, of sum 1, highest first, or why there is none.

    Trials that lack a parameter are left out: the default may lie outside its space.
    """
    scored = [
        (run, value) for run in search if (value := objective(run)) is not None and run.parameters and run.space
    ]
    drawn = [(json.loads(run.parameters), json.loads(run.space), value) for run, value in scored]
    names = sorted({name for parameters, _, _ in drawn for name in parameters})
    whole = [trial for trial in drawn if names and set(trial[0]) == set(names)]
    if not names:
        return "what was drawn was not recorded" if search and not scored else "nothing was drawn"
    if len(whole) < NEEDED:
        return f"{len(whole)} complete trials, and {NEEDED} are needed"
    if len({value for _, _, value in whole}) < 2:
        return "all trials have the same score"
    varied = [name for name in names if len({json.dumps(trial[0][name]) for trial in whole}) > 1]
    if len(varied) < 2:
        return f"{varied[0]} alone varied" if varied else "no parameter varied"
    return _fanova(whole, varied)


def _fanova(trials: Sequence[tuple[Mapping, Mapping, float]], names: Sequence[str]) -> dict[str, float] | str:
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
    """Return a figure for each method of a group that was searched, with a panel a refiner."""
    found = {cell: importance(runs) for cell, runs in sorted(cells.items())}
    trials = {cell: sum(objective(run) is not None for run in runs) for cell, runs in cells.items()}
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
    heights = [1.5 if isinstance(values, str) else len(values) + 1.5 for values in found.values()]
    with canvas(0.6 + 0.2 * sum(heights), len(found), 1, sharex=True, gridspec_kw={"height_ratios": heights}) as (
        figure,
        axes,
    ):
        for axis, (cell, values) in zip(axes.flat, found.items(), strict=True):
            if isinstance(values, str):
                axis.set_title(f"{' + '.join(cell)}: nothing can be said", loc="left")
                axis.tick_params(left=False, bottom=False, labelleft=False)
                axis.spines[:].set_visible(False)
            else:
                axis.barh(list(values), list(values.values()), color=COLOURS[0], height=0.7)
                axis.invert_yaxis()
                axis.set_title(" + ".join(cell), loc="left")
                axis.grid(visible=True, axis="x")
        axes[-1, 0].set(xlabel="share of the variance of the tune score", xlim=(0, 1))
        svg = svg_of(figure, name, title)
    told = "; ".join(
        f"{refiner}: {f'nothing, {values}' if isinstance(values, str) else f'{trials[method, refiner]} trials'}"
        for (_, refiner), values in found.items()
    )
    caption = (
        f"{of_group(group)} How much of the variance of the tune score each hyper-parameter explains within its "
        "search space, by Optuna's fANOVA on the complete trials; of few trials it is a hint and no more "
        f"({told})."
    )
    rows: list[list[object]] = []
    for cell, values in found.items():
        if isinstance(values, str):
            rows.append([*cell, None, None, values])
        else:
            rows += [[*cell, key, value, None] for key, value in values.items()]
    table = comma_separated_rows(["method", "refiner", "parameter", "importance", "nothing_because"], rows)
    return Figure(name, title, caption, svg, table, (method,), group.dataset)
