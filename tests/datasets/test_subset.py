"""Some classes of a data set: labels, tags, lists, digest and names by hand, for every loader, on real images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedbed.benchmark.errors import ConfigError, DataError
from seedbed.benchmark.evaluation.plausibility import explain
from seedbed.benchmark.pipeline.dry_run_folder import DryRunFolder
from seedbed.benchmark.pipeline.registry import DATASETS
from seedbed.benchmark.pipeline.stage import Machine
from seedbed.benchmark.pipeline.work_folder import DatasetSpec, WorkFolder
from seedbed.benchmark.trials.conditions import conditions_of
from seedbed.benchmark.trials.plan import plan_trial
from seedbed.benchmark.trials.trial import Trial
from seedbed.benchmark.trials.voc_server import images_of_test
from seedbed.datasets.base import Split, tune_ids
from seedbed.datasets.chimera import DATASET as CHIMERA
from seedbed.datasets.io.labels import MaskLabels
from seedbed.datasets.io.tags import mask_labels
from seedbed.datasets.subset import ClassSubset, split_name, subset_name
from seedbed.datasets.tools.check import check
from seedbed.datasets.tools.reduced import reduce
from seedbed.datasets.tools.stats import statistics
from seedbed.datasets.voc2012 import DATASET, VocDataset
from tests.contracts.test_contracts import examples_of_data_sets
from tests.helpers.voc_folder import EXTRA, SHAPE, TRAIN, VAL, make_voc

REAL_COUNTS = {Split.WEAK: 190, Split.TRAIN: 125, Split.VAL: 56}
"""Real images of a cow or a sheep."""
ANIMALS = ("cat", "cow", "dog", "horse", "person", "sheep")


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Return images of aeroplane and person, of bicycle (`train`), bird and tvmonitor (`weak`), dog (`val`)."""
    return make_voc(tmp_path / "voc")


def test_labels_go_by_the_data_sets_order_and_other_classes_are_255():
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    labels = MaskLabels(4, (2, 3))
    expected = np.full(256, 255, np.uint8)
    expected[[0, 2, 3]] = 0, 1, 2
    assert np.array_equal(labels.counted(stored).ravel(), expected)
    assert labels.unknown(np.array([[0, 1, 4, 255, 7, 5]], np.uint8)) == [5, 7]
    assert MaskLabels(4).counted(stored) is stored


def test_masks_and_tags_by_hand(voc: Path):
    data = ClassSubset(DATASET.open(voc), ["tvmonitor", "person", "dog"])
    assert data.classes == ("dog", "person", "tvmonitor")
    assert data.tags(TRAIN[0]) == (2,)
    assert data.tags(EXTRA[0]) == (3,)
    assert data.tags(VAL[0]) == (1,)
    # The file has two columns of aeroplane, two of person, and a 255 in the corner.
    expected = np.zeros(SHAPE, np.uint8)
    expected[:, :2], expected[:, 2:4], expected[-1, -1] = 255, 2, 255
    assert np.array_equal(data.split(Split.TRAIN).mask(TRAIN[0]), expected)
    full = data.split(Split.WEAK, "full").mask(EXTRA[0])
    assert np.array_equal(full[0], [255, 255, 3, 3, *[0] * 12])


@pytest.mark.parametrize("xml", [True, False])
def test_images_without_a_chosen_class_leave_the_lists(tmp_path: Path, xml):
    data = ClassSubset(DATASET.open(make_voc(tmp_path / "voc", xml=xml)), ["bicycle", "bird", "dog"])
    assert data.ids(Split.WEAK) == (TRAIN[1], EXTRA[0])
    assert data.ids(Split.TRAIN) == data.ids(Split.TUNE) == (TRAIN[1],)
    assert data.ids(Split.VAL) == VAL
    assert data.ids(Split.TEST) == ()
    none = ClassSubset(DATASET.open(tmp_path / "voc"), ["bicycle", "sofa"])
    assert none.ids(Split.VAL) == ()
    with pytest.raises(DataError, match=r"the split 'val' of voc2012\[bicycle,sofa\] is empty"):
        none.split(Split.VAL)


def test_tune_is_a_fifth_of_what_is_left(chimera):
    data = ClassSubset(chimera, ["griffin", "hydra"])
    wanted = {chimera.classes.index(name) + 1 for name in data.classes}
    left = tuple(i for i in chimera.ids(Split.TRAIN) if wanted & {*chimera.tags(i)})
    assert 5 < len(left) < len(chimera.ids(Split.TRAIN))
    assert data.ids(Split.TRAIN) == left
    assert data.ids(Split.TUNE) == tune_ids(left)


def test_an_image_whose_tags_cannot_be_read_stays_and_is_named(voc: Path):
    (voc / "Annotations" / f"{EXTRA[0]}.xml").write_text("<annotation>")
    data = ClassSubset(DATASET.open(voc), ["bicycle", "dog"])
    assert data.ids(Split.WEAK) == (TRAIN[1], EXTRA[0])
    errors = [problem for problem in check(data) if problem.severity == "error"]
    assert [problem.file.name for problem in errors] == [f"{EXTRA[0]}.xml"]


def test_the_digest_is_its_own(voc: Path, tmp_path: Path):
    whole = DATASET.open(voc)
    digests = {whole.digest()}
    digests |= {ClassSubset(whole, names).digest() for names in (["dog"], ["person", "dog"], ["dog", "bird"])}
    assert len(digests) == 4
    assert ClassSubset(whole, ["dog", "person"]).digest() == ClassSubset(whole, ["person", "dog"]).digest()
    # The same files, classes and tags, and masks whose labels mean other classes.
    root = make_voc(tmp_path / "masks", xml=False)
    lists = [VocDataset(root, "x", names) for names in (("a", "b"), ("b", "a"))]
    for data in lists:
        data.tags = lambda image_id: (1, 2)  # type: ignore[method-assign]
    first, second = (ClassSubset(data, ["a"]) for data in lists)
    assert (first.name, first.classes, first.ids(Split.WEAK)) == (
        second.name,
        second.classes,
        second.ids(Split.WEAK),
    )
    assert first.digest() != second.digest()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            ["cat", "hors"],
            r"unknown class of voc2012 'hors'\. Did you mean 'horse'\? Valid: aeroplane, .*tvmonitor$",
        ),
        (["cat", "dog", "cat"], r"classes of voc2012: cat, dog, cat contains a duplicate"),
        ([], r"classes of voc2012: expected a list of at least one name"),
        ("cat", r"classes of voc2012: expected a list of at least one name, not 'cat'"),
    ],
)
def test_wrong_choices_are_refused(classes, message, voc: Path):
    with pytest.raises(ConfigError, match=message):
        ClassSubset(DATASET.open(voc), classes)


def test_names_are_taken_apart_and_put_together():
    assert split_name("voc2012[cat, dining table]") == ("voc2012", ["cat", "dining table"])
    assert split_name("voc2012[]") == ("voc2012", [])
    assert split_name("voc2012") == ("voc2012", None)
    assert subset_name("voc2012", ["cat", "cow"]) == "voc2012[cat,cow]"


@pytest.mark.parametrize(
    ("name", "toml", "recorded", "shown"),
    [
        ("chimera[hydra, sphinx]", "", "chimera[hydra, sphinx]", "chimera[hydra, sphinx]"),
        (
            "mine",
            "[datasets.mine]\ndataset = 'chimera'\nroot = '{}'\nclasses = ['hydra', 'sphinx']",
            "mine",
            "mine",
        ),
        (
            "chimera",
            "[datasets.chimera]\nroot = '{}'\nclasses = ['hydra', 'sphinx']",
            "chimera[hydra,sphinx]",
            "chimera[hydra,sphinx]",
        ),
        (
            "mine[sphinx,hydra]",
            "[datasets.mine]\ndataset = 'chimera'\nroot = '{}'\nclasses = ['griffin']",
            "mine[sphinx,hydra]",
            "mine[sphinx,hydra]",
        ),
    ],
)
def test_classes_are_chosen_by_name_or_in_the_configuration(
    name, toml, recorded, shown, chimera_root, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seedbed.toml").write_text(toml.format(chimera_root))
    work = WorkFolder(tmp_path / "work/x")
    spec = work.locate(name, chimera_root)
    assert spec.name == recorded
    # A worker gets the options as JSON.
    data = DatasetSpec(spec.name, spec.loader, spec.root, json.loads(json.dumps(spec.options))).open()
    assert data.classes == ("sphinx", "hydra")
    assert data.name == "chimera-voc[sphinx,hydra]"
    assert data.display_name == shown
    assert work.digest(data) == data.digest()
    plan = plan_trial(Trial(dataset=name, weights="none"), data, work, Machine())
    assert conditions_of(plan)["classes"] == "2 of 6 classes: sphinx, hydra"
    assert plan.describe()["data"]["name"] == shown
    assert "[" not in plan.run_id()


def test_a_whole_data_set_states_no_choice(chimera_root, tmp_path):
    work = WorkFolder(tmp_path)
    data = work.locate("chimera", chimera_root).open()
    assert data.digest() == CHIMERA.open(chimera_root).digest()
    assert "classes" not in conditions_of(
        plan_trial(Trial(dataset="chimera", weights="none"), data, work, Machine())
    )


@pytest.mark.parametrize("value", ["'cat'", "[]", "[1]", "['cat', '']"])
def test_the_configuration_holds_a_list_of_names(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seedbed.toml").write_text(f"[datasets.mine]\ndataset = 'voc2012'\nroot = '.'\nclasses = {value}")
    with pytest.raises(
        ConfigError, match=r"seedbed\.toml: datasets\.mine\.classes = .*expected a list of class names"
    ):
        WorkFolder(tmp_path).locate("mine", None)


def test_an_unknown_data_set_and_option_name_what_is_valid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="unknown data set 'voc2011'"):
        WorkFolder(tmp_path).locate("voc2011[cat]", tmp_path)
    with pytest.raises(
        ConfigError, match=r"unknown option of voc2012 'clases'\. Did you mean 'classes'\? Valid: "
    ):
        DATASET.open(make_voc(tmp_path / "voc"), clases=["cat"])


def test_a_dry_run_counts_every_image_of_a_chimera_that_is_not_generated(tmp_path):
    work = DryRunFolder(tmp_path)
    data = work.locate("chimera-coco[hydra]", None).open()
    assert data.classes == ("hydra",)
    assert len(data.ids(Split.VAL)) == 120
    assert data.long_side == 96
    assert work.digest(data) != work.digest(work.locate("chimera-coco", None).open())


def test_the_check_looks_at_what_is_left_and_at_no_other_file(voc: Path):
    data = ClassSubset(DATASET.open(voc), ["bicycle", "dog"])
    (voc / "JPEGImages" / f"{TRAIN[0]}.jpg").unlink()
    (voc / "SegmentationClass" / f"{TRAIN[0]}.png").write_bytes(b"broken")
    untrained = "1 of 2 classes have no image in `weak`: dog"
    assert [problem.message for problem in check(data)] == [untrained]
    mask = np.zeros(SHAPE, np.uint8)
    mask[0] = 21
    Image.fromarray(mask).save(voc / "SegmentationClass" / f"{VAL[0]}.png")
    messages = [problem.message for problem in check(data)]
    assert messages == ["labels [21] are outside 0..20 and 255", "shows nothing, the tags are dog", untrained]
    with pytest.raises(DataError, match=r"labels \[21\] are outside 0\.\.20 and 255"):
        data.split(Split.VAL).mask(VAL[0])


def test_the_statistics_and_notices_state_the_choice(voc: Path):
    data = ClassSubset(DATASET.open(voc), ["bicycle", "dog"])
    first, second = statistics(data)
    assert first.title.endswith("; 2 of 20 classes: bicycle, dog")
    assert [row[:2] for row in first.rows] == [
        ["weak", "1"],
        ["tune", "1"],
        ["train", "1"],
        ["val", "1"],
        ["test", "0"],
    ]
    assert second.rows == [["bicycle", "1", "1", "0"], ["dog", "0", "0", "1"]]
    assert data.notices[-1].startswith("2 of 20 classes: bicycle, dog; ")


def test_a_subset_of_the_official_release_has_no_other_notice(voc: Path):
    counts = {Split.TRAIN: 2, Split.WEAK: 3, Split.VAL: 1}
    whole = VocDataset(voc, "voc2012", DATASET.open(voc).classes, official_counts=counts)
    assert len(ClassSubset(whole, ["dog"]).notices) == 1


def test_results_in_the_labels_of_the_whole_data_set_are_recognised(voc: Path):
    view = ClassSubset(DATASET.open(voc), ["bicycle", "dog"]).split(Split.VAL)
    assert (
        explain(view, [12]) == "; they may be the labels of the whole data set, of which some classes are chosen"
    )


def test_what_needs_all_classes_refuses_a_subset(voc: Path, tmp_path: Path):
    data = ClassSubset(DATASET.open(voc), ["dog"])
    with pytest.raises(ConfigError, match=r"voc2012\[dog\]: the server scores all classes of VOC"):
        images_of_test(data)
    with pytest.raises(ConfigError, match=r"voc2012\[dog\]: reduce the whole data set"):
        reduce(data, tmp_path / "small", 64)


def test_category_ids_are_those_of_the_chosen_classes(chimera):
    chimera.category_ids = (2, 5, 8, 11, 14, 17)
    try:
        assert ClassSubset(chimera, [chimera.classes[4], chimera.classes[1]]).category_ids == (5, 14)
    finally:
        del chimera.category_ids
    assert ClassSubset(chimera, ["hydra"]).category_ids == ()


def test_every_data_set_has_the_option(tmp_path: Path):
    """Every loader, also one that is added later: the option is not the loader's."""
    opened = set()
    for root in examples_of_data_sets(tmp_path):
        for loader in DATASETS.names():
            try:
                whole = DatasetSpec("own", loader, str(root), {}).open()
                whole.tags(whole.ids(Split.WEAK)[0])
            except (ConfigError, DataError):
                continue
            opened.add(loader)
            labels = sorted(
                {label for split in (Split.WEAK, Split.VAL) for i in whole.ids(split) for label in whole.tags(i)}
            )
            kept = labels[::2]
            names = [whole.classes[label - 1] for label in kept]
            data = DatasetSpec("own", loader, str(root), {"classes": names[::-1]}).open()
            assert (data.display_name, list(data.classes)) == ("own", names)
            assert data.digest() != whole.digest()
            for split in (Split.WEAK, Split.TRAIN, Split.VAL):
                assert data.ids(split) == tuple(i for i in whole.ids(split) if {*whole.tags(i)} & {*kept})
                for image_id in data.ids(split):
                    assert data.tags(image_id) == tuple(
                        n for n, label in enumerate(kept, 1) if label in whole.tags(image_id)
                    )
                    before = whole.split(split, "full").mask(image_id)
                    after = data.split(split, "full").mask(image_id)
                    for new, label in enumerate(kept, 1):
                        assert np.array_equal(after == new, before == label)
                    assert np.array_equal(after == 0, before == 0)
    assert opened == {*DATASETS.names()}, "a data set opens none of the examples: add one to examples_of_data_sets"


@pytest.mark.real_data
def test_six_classes_of_real_voc(real_voc, real_tags):
    with real_tags.open(newline="") as file:
        tagged = {row["image_id"]: {*row["classes"].split()} for row in csv.DictReader(file)}
    whole = DATASET.open(real_voc, tags=real_tags)
    data = ClassSubset(whole, ANIMALS)
    assert data.classes == ANIMALS
    for split, count in ((Split.WEAK, 800), (Split.TRAIN, 437), (Split.TUNE, 87), (Split.VAL, 200)):
        assert len(data.ids(split)) == count
    two = ClassSubset(whole, ["cow", "sheep"])
    for split, count in REAL_COUNTS.items():
        expected = tuple(i for i in whole.ids(split) if tagged[i] & {"cow", "sheep"})
        assert two.ids(split) == expected
        assert len(expected) == count
    assert [problem for problem in check(data) if problem.severity == "error"] == []
    for image_id in data.ids(Split.VAL)[::20]:
        stored = np.asarray(Image.open(whole.mask_path(image_id)))
        mask = data.split(Split.VAL).mask(image_id)
        for label, name in enumerate(ANIMALS, 1):
            assert np.array_equal(mask == label, stored == whole.classes.index(name) + 1)
        assert {*mask_labels(mask, 6)} <= {*data.tags(image_id)}
