"""The search of a cell: its space, what Optuna is told, and suggestions that do not depend on timing."""

from __future__ import annotations

import itertools
import math

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.evaluation.threshold import SelectThreshold
from seedbed.benchmark.sweeps.search import (
    CellStudy,
    StoppedEarlyError,
    check_tune,
    search_space,
    stop_if_above_median,
    storage_at,
)
from seedbed.methods.cam import InferCam, TrainCam
from seedbed.methods.refine.crf import CrfMasks
from seedbed.methods.refine.none import ThresholdMasks

STAGES = [TrainCam(), InferCam(), SelectThreshold(), CrfMasks()]
SPACE = {"A.x": (FloatDistribution(0.0, 1.0), 0.25), "A.y": (FloatDistribution(1e-3, 1.0, log=True), None)}


def study(path, name="cell", window=3, trials=9) -> CellStudy:
    return CellStudy(storage_at(path), name, SPACE, seed=7, trials=trials, window=window)


def loaded(path, name="cell"):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{path}")


def test_everything_is_searched_but_what_is_searched_on_request_or_has_no_effect():
    space = search_space(STAGES, ["all"], {})
    assert "TrainCam.lr" in space
    assert "CrfMasks.bilateral_sxy" in space
    assert "SelectThreshold.tuned" not in space
    assert "CrfMasks.background_exponent" not in space
    with_psa = search_space([CrfMasks(preset="psa")], ["all"], {})
    assert "CrfMasks.background_exponent" in with_psa


def test_words_name_stages_and_fields():
    crf_and_threshold = search_space(STAGES, ["crf", "threshold"], {})
    assert {key.partition(".")[0] for key in crf_and_threshold} == {"CrfMasks", "SelectThreshold"}
    assert list(search_space(STAGES, ["TrainCam.lr"], {})) == ["TrainCam.lr"]
    assert "TrainCam.lr" not in search_space(STAGES, ["all"], {"TrainCam.lr": 0.1})
    assert not search_space([SelectThreshold(selection="fixed")], ["threshold"], {})


def test_a_word_that_names_nothing_is_refused_with_the_valid_ones():
    with pytest.raises(ConfigError, match=r"'crv'.*CrfMasks\.bilateral_compat"):
        check_tune([STAGES], ["crv"])
    assert check_tune([[TrainCam(), ThresholdMasks()], STAGES], ["crf"]) == []
    # What only another method has is told and ignored, so that one file serves several lists of methods.
    assert check_tune([[TrainCam()]], ["lr", "crf"], lambda: [CrfMasks]) == ["crf"]
    with pytest.raises(ConfigError, match="'crf'"):
        check_tune([[TrainCam()]], ["crf"], lambda: [CrfMasks])


def test_the_first_trial_is_the_default(tmp_path):
    cell = study(tmp_path / "s.db")
    assert cell.begin(0) == {"A.x": 0.25}
    assert loaded(tmp_path / "s.db").trials[0].state is TrialState.RUNNING


def test_beginning_again_after_a_kill_gives_the_same_trial_and_no_second_one(tmp_path):
    """The trap: a study built again must not queue its first points once more."""
    path = tmp_path / "s.db"
    first = study(path)
    settings = [first.begin(0), first.begin(1)]
    again = study(path)
    assert [again.begin(0), again.begin(1)] == settings
    again.finish(0, "complete", 0.5, [])
    again.finish(0, "complete", 0.7, [])
    final = loaded(path)
    assert [trial.state for trial in final.trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert final.trials[0].value == 0.5


def value_of(settings) -> float:
    return 1 - (settings.get("A.x", 0.25) - 0.6) ** 2


def run(path, order) -> list[dict]:
    """Run nine trials, three at a time, that end in an order of the test's choice."""
    cell = study(path)
    running: list[int] = []
    settings: list[dict] = []
    while len(settings) < 9 or running:
        while len(settings) < 9 and cell.ready(len(settings)):
            settings.append(cell.begin(len(settings)))
            running.append(len(settings) - 1)
        number = running.pop(order(len(running)))
        cell.finish(number, "complete", value_of(settings[number]), [])
    return settings


def test_suggestions_do_not_depend_on_the_order_in_which_trials_end(tmp_path):
    forward = run(tmp_path / "a.db", lambda running: 0)
    backward = run(tmp_path / "b.db", lambda running: running - 1)
    assert forward == backward
    assert len({tuple(s.values()) for s in forward}) == 9


def test_a_suggestion_waits_for_all_that_it_may_see(tmp_path):
    cell = study(tmp_path / "s.db", window=2)
    for number in (0, 1):
        assert cell.ready(number)
        cell.begin(number)
    assert not cell.ready(2)
    cell.finish(1, "complete", 0.1, [])
    assert not cell.ready(2)
    cell.finish(0, "complete", 0.1, [])
    assert cell.ready(2)


def test_later_suggestions_learn_from_earlier_results(tmp_path):
    """With the objective turned round, the same seed suggests something else."""
    cells = [study(tmp_path / f"{sign}.db", window=1, trials=20) for sign in (1, -1)]
    last = []
    for cell, sign in zip(cells, (1, -1), strict=True):
        for number in range(20):
            settings = cell.begin(number)
            cell.finish(number, "complete", sign * value_of(settings), [])
        last.append(settings)
    assert last[0] != last[1]


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_trial_without_a_finite_value_is_told_as_failed(tmp_path, value):
    """The trap: told as it is, a NaN leaves the Optuna trial running for ever."""
    cell = study(tmp_path / "s.db")
    cell.begin(0)
    cell.finish(0, "complete", value, [])
    assert loaded(tmp_path / "s.db").trials[0].state is TrialState.FAIL
    assert cell.best() is None


def test_a_stopped_trial_is_told_as_pruned_and_is_never_the_best(tmp_path):
    """The trap: a trial stopped early must not look complete with the number of its short budget."""
    cell = study(tmp_path / "s.db")
    for number in range(3):
        cell.begin(number)
    cell.finish(0, "complete", 0.3, [0.9, 0.5])
    cell.finish(1, "pruned", None, [5.0])
    cell.finish(2, "failed", None, [])
    assert [t.state for t in loaded(tmp_path / "s.db").trials] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
    ]
    assert cell.best() == 0
    assert cell.rivals(5) == [[0.9, 0.5]]  # As with Optuna, only complete trials are compared with.
    assert cell.rivals(3) == [[0.9, 0.5]]


def test_of_equal_values_the_first_is_the_best(tmp_path):
    cell = study(tmp_path / "s.db")
    for number, value in enumerate([0.2, 0.4, 0.4]):
        cell.begin(number)
        cell.finish(number, "complete", value, [])
    assert cell.best() == 1


def test_the_median_rule_stops_only_inside_the_training():
    rivals = [[1.0, 0.8, 0.6, 0.4, 0.3, 0.2], [1.2, 1.0, 0.8, 0.6, 0.5, 0.4], [1.1, 0.9, 0.7, 0.5, 0.4, 0.3]]
    stop_if_above_median(rivals, [3.0], 6)  # Not before a third of the epochs.
    with pytest.raises(StoppedEarlyError, match="in epoch 2 is above the median") as caught:
        stop_if_above_median(rivals, [3.0] * 5, 6)
    assert caught.value.losses == [3.0, 3.0]
    stop_if_above_median(rivals, [0.9, 0.7, 0.5, 0.4, 0.3], 6)
    stop_if_above_median(rivals, [0.9, 0.7, 0.5, 0.4, 0.3, 9.0], 6)  # The last epoch stops nothing.
    stop_if_above_median(rivals[:1], [3.0] * 5, 6)  # One rival is no median.


def test_every_declared_space_holds_its_default_or_says_none():
    for stage, word in itertools.product(STAGES, ["."]):
        for key, (space, default) in search_space([stage], [word], {}).items():
            assert default is None or space.low <= default <= space.high, key
