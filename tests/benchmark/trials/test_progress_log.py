"""The log of a running trial: what is read from its lines, also from damaged ones."""

from __future__ import annotations

import json

from seedbed.benchmark.trials.progress_log import PROGRESS, Epoch, append_line, read_progress

START = {"time": 10.0, "stages": 3, "anew": True}
TRAIN = {"time": 11.0, "stage": "TrainCam", "split": "weak", "epochs": 2, "training": "TrainCam"}
INFER = {"time": 14.0, "stage": "InferCam", "split": "train", "epochs": 0, "training": ""}


def epoch(time: float, number: int, loss: float) -> dict:
    return {"time": time, "training": "TrainCam", "epoch": number, "losses": {"classification": loss}}


def progress_of(folder, *lines):
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / PROGRESS).write_text("".join(f"{text}\n" for text in texts))
    return read_progress(folder)


def test_stages_and_epochs_are_counted(tmp_path):
    assert read_progress(tmp_path) is None
    assert str(progress_of(tmp_path, START)) == "starting"
    assert str(progress_of(tmp_path, START, TRAIN)) == "stage 1 of 3: TrainCam on weak, epoch 0 of 2"
    training = progress_of(tmp_path, START, TRAIN, epoch(12.0, 1, 0.5))
    assert str(training) == "stage 1 of 3: TrainCam on weak, epoch 1 of 2"
    assert (training.started, training.stage_started) == (10.0, 11.0)
    after = progress_of(tmp_path, START, TRAIN, epoch(12.0, 1, 0.5), epoch(13.0, 2, 0.25), INFER)
    assert str(after) == "stage 2 of 3: InferCam on train"
    assert after.history == {
        "TrainCam": [Epoch(12.0, {"classification": 0.5}), Epoch(13.0, {"classification": 0.25})]
    }
    assert after.stages == [(11.0, 1), (14.0, 2)]


def test_another_process_continues_and_counts_its_own_stages(tmp_path):
    again = {"time": 20.0, "stages": 2, "anew": False}
    progress = progress_of(tmp_path, START, TRAIN, epoch(12.0, 1, 0.5), again, {**TRAIN, "time": 21.0})
    assert str(progress) == "stage 1 of 2: TrainCam on weak, epoch 1 of 2"
    assert progress.started == 10.0
    assert progress.stages == [(11.0, 1), (21.0, 1)]


def test_nothing_of_an_earlier_attempt_counts(tmp_path):
    anew = {"time": 30.0, "stages": 3, "anew": True}
    progress = progress_of(tmp_path, START, TRAIN, epoch(12.0, 1, 0.5), anew, TRAIN, epoch(31.0, 1, 0.75))
    assert progress.started == 30.0
    assert progress.history == {"TrainCam": [Epoch(31.0, {"classification": 0.75})]}


def test_damaged_lines_and_repeated_epochs_are_left_out(tmp_path):
    damaged = ['{"time": 1', "\0\0", "[1]", "{}", '{"time": "x", "stage": "A"}', '{"time": 12, "stage": "A"}']
    progress = progress_of(tmp_path, *damaged, START, TRAIN, *damaged, epoch(12.0, 1, 0.5), epoch(13.0, 1, 0.5))
    assert str(progress) == "stage 1 of 3: TrainCam on weak, epoch 1 of 2"
    assert progress.history == {"TrainCam": [Epoch(12.0, {"classification": 0.5})]}


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path):
    append_line(tmp_path / "no such folder" / PROGRESS, START)
    append_line(tmp_path / PROGRESS, START)
    assert str(read_progress(tmp_path)) == "starting"
