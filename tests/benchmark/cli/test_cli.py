"""The command line as a user types it, with the messages that a person reads."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedbed.benchmark.evaluation.maps import MapReader
from seedbed.benchmark.pipeline.store import Store
from seedbed.datasets.base import Split
from seedbed.datasets.chimera import DATASET
from seedbed.datasets.io.images import decode_mask
from tests.helpers.command_line import seedbed, seedbed_process, start_seedbed

TINY = ["--set", "TrainCam.epochs=2", "--set", "TrainSegmentation.epochs=2", "--workers", "0", "--device", "cpu"]


def numbers(output: str) -> list[str]:
    """Return the lines of the table of results."""
    lines = output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("level"))
    return [line for line in lines[start:] if line and not line.startswith(("run ", "pictures", "scored "))]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny Chimera and a seedbed.toml that names it."""
    folder = tmp_path_factory.mktemp("work")
    seedbed(
        folder, "data", "generate", "chimera", "--out", "data", "--images", "48", "--size", "64", "--seed", "3"
    )
    (folder / "seedbed.toml").write_text('[datasets.small]\ndataset = "chimera"\nroot = "data"\n')
    return folder


@pytest.fixture(scope="module")
def finished(work: Path) -> str:
    """Return the output of a whole run of CAM with a CRF."""
    return seedbed(work, "run", "--dataset", "small", "--refiner", "crf", *TINY).stdout


def test_help_answers_at_once_and_imports_nothing_heavy(tmp_path):
    program = (
        "import sys; sys.argv = ['seedbed', '--help']\n"
        "from seedbed.benchmark.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('heavy:', *[m for m in ('torch', 'numpy', 'pandas', 'optuna', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "run" in done.stdout
    assert done.stdout.strip().splitlines()[-1] == "heavy:"


def test_a_run_goes_from_images_to_the_networks_miou(work, finished):
    table = {tuple(line.split()[:3]): line for line in numbers(finished)}
    for row in (
        ("classification", "val", "mAP"),
        ("seed", "train", "mIoU"),
        ("seed", "train", "msoft_overlap"),
        ("seed", "train", "mpixel_AP"),
        ("pseudo_mask", "train", "mIoU"),
        ("pseudo_mask", "tune", "mIoU"),
        ("segmentation", "val", "mIoU"),
    ):
        assert row in table
    assert len(re.findall(r"\d+\.\d\d", table["seed", "train", "mIoU"])) == 3
    picture = Path(work / re.search(r"pictures: (\S+)", finished)[1])
    assert Image.open(picture).width > 700


def test_the_same_command_executes_no_stage_and_prints_the_same_numbers(work, finished):
    again = seedbed_process(work, "run", "--dataset", "small", "--refiner", "crf", *TINY)
    assert again.returncode == 0, again.stderr
    assert "every stage was in the store" in again.stdout
    assert "▸" not in again.stderr
    assert "tags from Annotations/*.xml; masks from SegmentationClass/" in again.stderr
    assert numbers(again.stdout) == numbers(finished)


def test_other_processes_and_another_work_folder_change_no_number(work, finished):
    words = ["run", "--dataset", "small", "--refiner", "crf", *TINY, "--workers", "2", "--work", "elsewhere"]
    assert numbers(seedbed(work, *words).stdout) == numbers(finished)


@pytest.mark.slow
def test_kill_minus_nine_anywhere_then_the_same_numbers(work, finished):
    words = ["run", "--dataset", "small", "--refiner", "crf", *TINY, "--work", "killed"]
    waits = np.random.default_rng(0).uniform(3, 14, 4)
    for wait in waits:
        process = start_seedbed(work, *words)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(float(wait))
        process.kill()
        process.wait()
    assert numbers(seedbed(work, *words).stdout) == numbers(finished)


def test_a_search_over_postprocessing_trains_nothing(work, finished):
    changed = seedbed(
        work,
        "run",
        "--dataset",
        "small",
        "--refiner",
        "crf",
        *TINY[:2],
        "--no-segment",
        *TINY[4:],
        "--set",
        "CrfMasks.preset=psa",
    )
    stages = re.findall(r"▸ stage \d+ of \d+: (\w+)", changed.stderr)
    assert "CrfMasks" in stages
    assert not any(stage.startswith("Train") for stage in stages)


def test_a_fixed_threshold_of_the_users_own_is_used_for_seeds_and_masks(work, finished):
    words = ["--no-segment", *TINY[:2], *TINY[4:], "--selections", "fixed", "--set", "SelectThreshold.value=0.305"]
    lines = numbers(seedbed(work, "run", "--dataset", "small", *words).stdout)
    table = {tuple(line.split()[:3]): line.split()[3:] for line in lines}
    assert table["seed", "train", "mIoU"][0] == table["pseudo_mask", "train", "mIoU"][0]
    assert table["seed", "train", "threshold"][0] in ("0.30", "0.31")


def test_the_upper_bound_trains_on_true_masks(work):
    words = ["run", "--dataset", "small", "--supervision", "full", "--set", "TrainSupervised.epochs=2"]
    output = seedbed(work, *words, "--workers", "0").stdout
    assert tuple(numbers(output)[1].split()[:2]) == ("segmentation", "val")
    assert "run supervised-small-seed0-" in output


def test_evaluate_scores_a_run_our_maps_and_png_folders_alike(work, finished):
    run = re.search(r"run (\S+)", finished)[1]
    by_run = seedbed(work, "evaluate", f"run:{run}", "--dataset", "small").stdout
    mean = next(line for line in numbers(finished) if line.split()[:3] == ["segmentation", "val", "mIoU"])
    assert next(line for line in numbers(by_run) if line.split()[2] == "mIoU").split()[3] == mean.split()[3]
    # On `train`, a run's masks are its pseudo-masks, and are called so.
    on_train = seedbed(work, "evaluate", f"run:{run}", "--dataset", "small", "--split", "train").stdout
    (masks,) = [line.split() for line in numbers(on_train) if line.split()[2] == "mIoU"]
    in_run = [line.split() for line in numbers(finished) if line.split()[:3] == ["pseudo_mask", "train", "mIoU"]]
    assert masks[:3] == ["pseudo_mask", "train", "mIoU"]
    assert masks[3] in in_run[0][3:]
    unknown = seedbed(work, "evaluate", "run:nothing", "--dataset", "small", check=False)
    assert unknown.returncode == 1
    assert run in unknown.stderr


def test_evaluate_gives_the_same_numbers_on_irn_psa_and_our_own_maps(work, finished):
    run = re.search(r"run (\S+)", finished)[1]
    description = json.loads((work / "seedbed-work/runs" / run / "run.json").read_text())
    store = Store(work / "seedbed-work/store")
    ours, pseudo_masks = (store.path(description["artifacts"][name]) for name in ("scores", "masks"))
    data = DATASET.open(work / "data")
    for name in ("irn", "psa", "png"):
        (work / name).mkdir(exist_ok=True)
    reader = MapReader(ours)
    for image_id in data.ids(Split.TRAIN):
        maps = reader.read(image_id)
        full, keys = maps.at_full_size(), maps.labels.astype(np.int64) - 1
        content = {"keys": keys, "cam": np.asarray(maps.scores, np.float32), "high_res": full}
        np.save(work / "irn" / f"{image_id}.npy", content)
        np.save(work / "psa" / f"{image_id}.npy", dict(zip(keys.tolist(), full, strict=True)))
        mask = decode_mask(pseudo_masks / f"{image_id}.png")
        Image.fromarray(mask).save(work / "png" / f"{image_id}.png")
    tables = [
        numbers(seedbed(work, "evaluate", "--dataset", "small", "--split", "train", "--maps", folder).stdout)
        for folder in (ours, work / "irn", work / "psa")
    ]
    assert tables[0] == tables[1] == tables[2]
    masks = [
        numbers(seedbed(work, "evaluate", "--dataset", "small", "--split", "train", "--masks", folder).stdout)
        for folder in (pseudo_masks, work / "png")
    ]
    assert masks[0] == masks[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--method", "kam"], r"unknown method 'kam'. Did you mean 'cam'\?"),
        (["run", "--refiner", "crv"], r"unknown refiner 'crv'. Did you mean 'crf'\?"),
        (["run", "--dataset", "smal"], r"unknown data set 'smal'. Did you mean 'small'\?"),
        (["run", "--dataset", "voc2012"], r"where is voc2012\? Give --root DIR"),
        (["run", "--dataset", "small", "--root", "nowhere"], r"nowhere: no such folder"),
        (["run", "--dataset", "small", "--saliency", "away"], r"away: no such folder \(the saliency maps\)"),
        (["run", "--dataset", "small", "--set", "TrainCam.learning_rate=1"], r"unknown setting of TrainCam"),
        (["run", "--dataset", "small", "--set", "TrainCan.lr=1"], r"Did you mean 'TrainCam'\?"),
        (["run", "--dataset", "small", "--set", "TrainCam.lr=hot"], r"TrainCam.lr = 'hot': expected number"),
        (["run", "--dataset", "small", "--set", "TrainCam.epochs=0"], r"TrainCam.epochs = 0: outside 1"),
        (["run", "--dataset", "small", "--set", "TrainCam.stride=9"], r"backbone 'tiny' has no stride 9"),
        (["run", "--dataset", "small", "--backbone", "tinny"], r"Did you mean 'tiny'\?"),
        (["run", "--dataset", "small", "--weights", "nowhere.pth"], r"nowhere.pth: no such file"),
        (["run", "--dataset", "small", "--weights", "imagenet"], r"'tiny' has no ImageNet weights"),
        (["run", "--dataset", "small", "--segmentation-weights", "coco"], r"'tiny' has no COCO weights"),
        (["run", "--dataset", "small", "--segmentation-backbone", "vgg61"], r"Did you mean 'vgg16'\?"),
        (["run", "--dataset", "small", "--device", "cuda"], r"--device cuda"),
        (["evaluate", "--dataset", "small"], r"give one of --maps DIR, --masks DIR or run:ID"),
        (["evaluate", "--dataset", "small", "--maps", "data"], r"data: no localisation maps"),
        (["evaluate", "--dataset", "small", "--split", "vall", "--masks", "data"], r"unknown split 'vall'"),
        (["methods", "show", "kam"], r"Did you mean 'cam'\?"),
        (["cache", "show", "zzz"], r"no entry whose key begins with"),
        (
            ["data", "generate", "chimera", "--out", "data", "--images", "50"],
            r"data.*(not empty|another|something else)",
        ),
    ],
)
def test_every_mistake_is_one_line_that_says_what_to_do(work, words, message):
    done = seedbed(work, *words, check=False)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    assert re.search(message, done.stderr), done.stderr


def test_a_mistake_ends_the_process_with_code_one_and_no_traceback(work):
    done = seedbed_process(work, "run", "--method", "kam")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: unknown method 'kam'. Did you mean 'cam'? Valid: ")


def test_methods_show_tells_every_setting_with_its_source(work):
    output = seedbed(work, "methods", "show", "cam", "--backbone", "vgg16", "--refiner", "crf").stdout
    assert re.search(r"lr +0.1 +number +0 … 100 +Float\(.*\) +PSA code", output)
    for stage in ("TrainCam", "InferCam", "SelectThreshold", "CrfMasks", "TrainSegmentation", "PredictMasks"):
        assert f"\n{stage}  (" in output
    assert "cam" in seedbed(work, "methods").stdout


def test_the_cache_is_listed_shown_and_removed(work, finished):
    listing = seedbed(work, "cache", "ls").stdout
    key = next(line.split()[0] for line in listing.splitlines() if "PredictMasks" in line)
    assert '"stage": "PredictMasks"' in seedbed(work, "cache", "show", key).stdout
    assert "removed" in seedbed(work, "cache", "rm", key).stdout
    assert key not in seedbed(work, "cache", "ls").stdout
    assert "removed 0 entries" in seedbed(work, "cache", "gc", "--older-than", "1").stdout


def test_data_check_and_stats(work):
    assert seedbed(work, "data", "check", "small").stdout.strip().endswith("0 errors, 0 warnings")
    assert "griffin" in seedbed(work, "data", "stats", "small").stdout


def test_a_broken_picture_is_one_line_that_names_it_whoever_reads_it(work):
    for workers in ("0", "1"):
        root = work / f"broken{workers}"
        shutil.copytree(work / "data", root)
        broken = root / "JPEGImages" / f"{DATASET.open(root).ids(Split.TRAIN)[5]}.jpg"
        broken.write_bytes(broken.read_bytes()[:900])
        words = ["run", "--dataset", "chimera", "--root", root, *TINY[:4], "--workers", workers]
        done = seedbed(work, *words, check=False)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert re.search(rf"error: \S*{broken.name}: broken or truncated", done.stderr), done.stderr
        checked = seedbed(work, "data", "check", "chimera", "--root", root, "--workers", "0", check=False)
        assert checked.returncode == 1
        assert broken.name in checked.stdout


def test_coco_masks_are_prepared_by_the_command_that_the_error_names(work):
    root = work / "coco"
    words = ["--out", root, "--layout", "coco", "--images", "40", "--size", "64"]
    seedbed(work, "data", "generate", "chimera", *words)
    shutil.rmtree(root / "SegmentationMasks")
    refused = seedbed(work, "data", "stats", "chimera", "--root", root, check=False)
    assert refused.returncode == 1
    command = re.search(r"seedbed (data prepare coco2014 --root \S+)", refused.stderr)[1]
    assert "40 masks" in seedbed(work, *command.split()).stdout
    assert "griffin" in seedbed(work, "data", "stats", "chimera", "--root", root).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep"], "error: 2 problems\n  a sweep needs name\n  a sweep needs datasets\n"),
        (["sweep", "--name", "x", "--datasets", "nowhere"], "error: unknown data set 'nowhere'"),
        (
            ["sweep", "--name", "x", "--datasets", "small", "--tune", "nothing"],
            "matches 'nothing'. Valid: all, ",
        ),
        (["sweep", "--resume", "x"], "no sweep 'x'. Valid: (none)"),
        (["sweep", "absent.yaml"], "error: absent.yaml: No such file"),
        (["leaderboard", "--sweep", "x", "--out", "o"], "no such file; a sweep writes it"),
        (["leaderboard", "--sweep", "x", "y", "--out", "o"], "no such file; a sweep writes it"),
        (["ui"], "no MLflow store yet"),
    ],
)
def test_commands_of_a_sweep_say_what_is_missing(work, tmp_path, words, message):
    (tmp_path / "seedbed.toml").write_text(f'[datasets.small]\ndataset = "chimera"\nroot = "{work / "data"}"\n')
    done = seedbed(tmp_path, *words, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_to_deliver_is_no_error(tmp_path):
    assert seedbed(tmp_path, "sync").stdout == "0 trials uploaded, 0 left\n"


def test_the_number_of_classes_says_that_background_is_one_of_them(capsys):
    from seedbed.benchmark.cli.options import print_records
    from seedbed.benchmark.evaluation.records import Record

    print_records([Record("segmentation", "val", "classes", "none", None, 7.0, 7)])
    assert "classes, with background  7" in capsys.readouterr().out
