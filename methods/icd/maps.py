"""The maps and seeds of a trained ICD network (methods/icd/), and the numbers of the paper's Tables 1 to 3.

The paper's seeds (section 4.5, authors' code) are labels, but the suite's maps are scores that a refiner cuts at a
threshold. `seed_scores` puts the paper's rule into the scores: if several classes claim a pixel, the one with the
greatest product of CAM and ICD score keeps its ICD score, and the others are lowered. So at the threshold 0 the
best class is the paper's, pixels with only negative scores are background, and scores outside overlaps are
ICD's own. If the authors' code leaves a pixel undefined (255), its best score is 0. That is a score within 1e-5 of
0, or, in an image of several classes, CAM products of all classes within 1e-5 of each other, for example if no
class that ICD sees has a positive CAM. In the thresholded masks these cells are 255 again (`seed_mask`): metrics
count them as background, and no segmentation network learns from them; the CRF preset `icd` gives them no
preference.

With saliency maps (`InferIcdWithSaliency`) the authors' code, which then has no CRF, labels pixels with a saliency
below 0.01 as background; if less than 1 % of the image reaches 0.01, ICD's own background must agree. Here this is
a background channel: 1 for pixels that are not salient, 0 for all others and for images that are less than 1 %
salient. Positive scores exceed 0, negative ones do not. The code leaves two kinds of pixels undefined (255):
salient but negative for all classes, and not salient but positive for one. Here both are background. Metrics count
both the same; a segmentation network learns background there, but nothing from the code's seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seedbed.benchmark.evaluation.formats import PngMasks
from seedbed.benchmark.evaluation.maps import MapReader, MapWriter, ScoreMaps, resize_bilinear
from seedbed.benchmark.evaluation.pictures import ROWS, heat_map, sheet
from seedbed.benchmark.evaluation.records import Record, records_of_map_scores, write_records
from seedbed.benchmark.evaluation.scoring import score_maps, score_masks
from seedbed.benchmark.evaluation.stages import RECORDS_FILE
from seedbed.benchmark.evaluation.threshold import UNSURE
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Kind, Stage
from seedbed.benchmark.training.checkpoint import load_network
from seedbed.benchmark.training.inference import multi_scale, one_value_per, resized
from seedbed.datasets.base import Dataset, SplitView
from seedbed.datasets.io.images import decode_mask, write_mask
from seedbed.methods.common.saliency_masks import salient_area
from seedbed.methods.icd.losses import Refinement, extremes_to_one, membership, refine

Scores = NDArray[np.float32]
UNDEFINED = 255


def claims(signed: Scores, cams: Scores) -> Scores:
    """Return CAM × ICD (K, H, W): the positive part of the CAMs, scaled to [0, 1] over all classes, times ICD's.

    `signed` are ICD's scaled scores, `cams` the CAMs of the same K present classes, unscaled.
    """
    positive = np.maximum(cams, 0)
    scaled = (positive - positive.min()) / max(float(positive.max() - positive.min()), UNSURE)
    return scaled * np.maximum(signed, 0)


def undefined(signed: Scores, claimed: Scores) -> NDArray[np.bool_]:
    """Return the pixels (H, W) that the authors' code leaves undefined, for K ≥ 1 classes.

    `claimed` are the `claims` of the classes. No score is positive and not all are negative; or there are several
    classes, one is positive, and all claims are equal.
    """
    foreground, background = (signed > UNSURE).any(0), (signed < -UNSURE).all(0)
    neither = foreground == background
    if len(signed) > 1:
        neither |= foreground & (claimed.max(0) - claimed.min(0) <= UNSURE)
    return neither


def seeds(signed: Scores, cams: Scores, labels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return the paper's seeds uint8 (H, W) of an image with K ≥ 1 classes: background, its labels, and 255.

    A pixel is background if it is negative for all classes. Of several positive classes the greatest `claims`
    wins.
    """
    foreground = signed > UNSURE
    claimed = claims(signed, cams)
    winner = np.where(foreground.sum(0) > 1, claimed.argmax(0), foreground.argmax(0))
    result = labels.astype(np.uint8)[winner]
    result[(signed < -UNSURE).all(0)] = 0
    result[undefined(signed, claimed)] = UNDEFINED
    return result


def seed_scores(signed: Scores, cams: Scores) -> Scores:
    """Return scores (K, h, w) in [−1, 1] whose best class above 0 is that of `seeds` (the file's docstring).

    For undefined seeds the best score is 0.
    """
    claimed = claims(signed, cams)
    winner = claimed.argmax(0)[None]
    greatest = np.take_along_axis(claimed, winner, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        limit = np.take_along_axis(signed, winner, 0) * (claimed / greatest)
    scores = np.where((greatest > 0) & (signed > 0), np.minimum(signed, limit), signed)
    open_scores = np.where(signed < -UNSURE, signed, np.float32(0))
    return np.where(undefined(signed, claimed), open_scores, scores)


@dataclass(frozen=True, kw_only=True)
class IcdInference(Stage):
    """Inference settings of a trained ICD network."""

    seeded = False

    long_side: int = hp(0, low=0, high=4096, source="longer image side in pixels at scale 1; 0 is the image's own")
    scales: tuple[float, ...] = hp((1.0,), low=0.1, high=4, source="ICD code: one scale", report_as="multi_scale")
    flip: bool = hp(False, source="ICD code: no flip")

    def maps(self, network: Any, view: SplitView, cell: int, ctx: Context) -> Iterator[tuple[str, list[Tensor]]]:
        """Yield (id, [CAM, signed bottom-up scores, top-down logits]) of every image.

        Each is float32 (C, ⌈H/cell⌉, ⌈W/cell⌉) for an image of H×W pixels at scale 1.
        """

        def forward(images: Tensor) -> Tensor:
            found = network.branches(images)
            return torch.cat([found.cam, network.signed(found.bottom_up), found.top_down], 1)

        for image_id, maps in multi_scale(
            forward,
            view,
            scales=self.scales,
            flip=self.flip,
            long_side=self.long_side,
            grid=one_value_per(cell),
            ctx=ctx,
            label=type(self).__name__,
        ):
            yield image_id, list(maps.chunk(3))


@dataclass(frozen=True, kw_only=True)
class InferIcd(IcdInference):
    """Signed maps in [−1, 1] of the present classes, cut at 0 (`seed_scores`)."""

    version = 4
    consumes = (Kind.CHECKPOINT,)
    produces = Kind.SCORES

    branch: Literal["top_down", "bottom_up"] = hp("top_down", source="ICD, section 4.5; bottom_up: Tables 3 and 5")
    cell: int = hp(4, low=1, high=64, source="pixels of the image to a cell of the stored maps; ICD code: 1")

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the maps of the context's split."""
        network, view = cast(Any, load_network(inputs[Kind.CHECKPOINT], ctx.device)), data.split(ctx.split)
        with MapWriter(out) as writer:
            for image_id, (cam, bottom_up, top_down) in self.maps(network, view, self.cell, ctx):
                tags = view.tags(image_id)
                signed = present(extremes_to_one(top_down if self.branch == "top_down" else bottom_up), tags)
                scores = seed_scores(signed, present(cam, tags)) if tags else signed
                maps = ScoreMaps(np.array(tags, np.int16), scores, view.size(image_id))
                writer.write(image_id, self.with_background(view, image_id, maps))

    def with_background(self, view: SplitView, image_id: str, maps: ScoreMaps) -> ScoreMaps:
        """Return the maps unchanged: pixels with only negative scores are background."""
        return maps


def background_channel(saliency: Scores, not_salient: float, size: tuple[int, int]) -> Scores:
    """Return a background channel (1, *size) in [0, 1] for ICD's scores, of a saliency map (H, W) in [0, 1].

    At the map's own size it is 1 for a saliency below `not_salient` and 0 otherwise, or 0 everywhere if less than
    1 % of the image is salient. It is then resized by `resize_bilinear`.
    """
    area = salient_area(saliency, not_salient)
    background = np.zeros_like(saliency) if area is None else (~area).astype(np.float32)
    return resize_bilinear(background[None], size)


@dataclass(frozen=True, kw_only=True)
class InferIcdWithSaliency(InferIcd):
    """Maps as above, with background from the data set's saliency maps (the file's docstring)."""

    not_salient: float = hp(0.01, low=0, high=1, source="ICD code: background where saliency is less")

    def with_background(self, view: SplitView, image_id: str, maps: ScoreMaps) -> ScoreMaps:
        """Return the maps after a background channel; an image without tags has no maps."""
        if len(maps.labels) == 0:
            return maps
        _, height, width = maps.scores.shape
        background = background_channel(view.saliency(image_id), self.not_salient, (height, width))
        return ScoreMaps(np.insert(maps.labels, 0, 0), np.concatenate([background, maps.scores]), maps.size)


def present(maps: Tensor, tags: tuple[int, ...]) -> Scores:
    """Return the maps of the tagged classes, float32 (K, h, w), of maps (C, h, w); tags are labels 1..C."""
    chosen: Scores = maps[[tag - 1 for tag in tags]].cpu().numpy()
    return chosen


MAPS = ("cam", "bottom_up", "refined", "top_down")
"""What `MeasureIcd` compares, in the order of computation."""
OF_MAPS = ("mpixel_AP", "pixel_AP", "signed_mIoU", "signed_recall", "signed_coverage")


@dataclass(frozen=True, kw_only=True)
class MeasureIcd(IcdInference):
    """The paper's Tables 1 to 3 without CRF: the CAM, and ICD's scores before, between and after its steps.

    Levels `icd_cam`, `icd_bottom_up`, `icd_refined` and `icd_top_down`. Metrics: pixel AP (Table 1), the signed
    maps at the paper's thresholds (Table 2), and the mIoU of the paper's seeds: `seed_mIoU` counts undefined
    pixels as background, `seed_mIoU_defined` leaves them out as the authors' script does (Table 3). All maps are
    scaled by their extremes per image and class; the paper does not describe this. `maps.png` shows some of them
    (Fig. 4).
    """

    version = 5
    consumes = (Kind.CHECKPOINT, Kind.SUPERPIXELS)
    produces = Kind.RECORDS

    refinement: Refinement = hp("vote", source="as TrainIcd.refinement")

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the records of the context's split, which must be part of `weak`, and the picture."""
        network, view = cast(Any, load_network(inputs[Kind.CHECKPOINT], ctx.device)), data.split(ctx.split)
        superpixels, stride = inputs[Kind.SUPERPIXELS], network.backbone.stride
        maps, masks = ({name: ctx.scratch / what / name for name in MAPS} for what in ("maps", "seeds"))
        for folder in (*maps.values(), *masks.values()):
            folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            writers = {name: stack.enter_context(MapWriter(folder)) for name, folder in maps.items()}
            for image_id, (cam, bottom_up, top_down) in self.maps(network, view, stride, ctx):
                refined = self._refined(bottom_up, view.tags(image_id), superpixels / f"{image_id}.png", stride)
                self._write(image_id, view, (cam, bottom_up, refined, top_down), writers, masks)
        records = []
        for name in MAPS:
            level = f"icd_{name}"
            scores = score_maps(MapReader(maps[name]), view, processes=ctx.workers, signed=True)
            found = records_of_map_scores(scores, data.classes, level, ctx.split, 0.0, None)
            records += [record for record in found if record.metric in OF_MAPS]
            for metric, ignored in (("seed_mIoU", False), ("seed_mIoU_defined", True)):
                counted = score_masks(
                    PngMasks(masks[name]),
                    view,
                    processes=ctx.workers,
                    per_image=None if ignored else out / f"per_image_{level}.parquet",
                    ignore_predicted=ignored,
                )
                miou, labels = counted.confusion.miou(), counted.confusion.classes_counted()
                records.append(Record(level, str(ctx.split), metric, "fixed", None, miou, labels))
        write_records(out / RECORDS_FILE, records)
        _draw(out / "maps.png", view, maps)

    def _refined(self, bottom_up: Tensor, tags: tuple[int, ...], path: Path, stride: int) -> Tensor:
        """Return the signed scores (C, h, w) of one image after the superpixel refinement.

        Cell i lies on pixel i·stride of the network's input, as in the authors' code, which pads images to 513
        pixels for 65 cells.
        """
        mask = decode_mask(path)
        shown = resized(mask.shape[0], mask.shape[1], self.long_side)
        spans = zip(bottom_up.shape[1:], mask.shape, shown, strict=True)
        last_row, last_column = (round((cells - 1) * stride * own / seen) for cells, own, seen in spans)
        superpixels = torch.from_numpy(mask[: last_row + 1, : last_column + 1].copy()).long()[None]
        superpixels = superpixels.to(bottom_up.device)
        tagged = torch.zeros(1, len(bottom_up), device=bottom_up.device)
        tagged[0, [tag - 1 for tag in tags]] = 1
        members = membership(superpixels, (bottom_up.shape[1], bottom_up.shape[2]))
        return refine(bottom_up[None], tagged, members, self.refinement)[0]

    def _write(
        self,
        image_id: str,
        view: SplitView,
        found: tuple[Tensor, ...],
        writers: Mapping[str, MapWriter],
        masks: Mapping[str, Path],
    ) -> None:
        """Write the scaled maps and the seeds of one image."""
        tags, size = np.array(view.tags(image_id), np.int16), view.size(image_id)
        cams = resize_bilinear(present(found[0], view.tags(image_id)), size)
        for name, scores in zip(MAPS, found, strict=True):
            signed = present(extremes_to_one(scores), view.tags(image_id))
            writers[name].write(image_id, ScoreMaps(tags, signed, size))
            seed = seeds(resize_bilinear(signed, size), cams, tags) if len(tags) else np.zeros(size, np.uint8)
            write_mask(masks[name] / f"{image_id}.png", seed)


def _draw(path: Path, view: SplitView, maps: Mapping[str, Path]) -> None:
    """Draw some images of the split with the positive part of each map."""
    ids = view.ids[:: max(1, len(view) // ROWS)][:ROWS]
    columns: dict[str, Any] = {"image": view.image, "truth": view.mask}
    for name, folder in maps.items():
        columns[name.replace("_", "-")] = lambda i, folder=folder: heat_map(
            view.image(i), MapReader(folder).read(i)
        )
    sheet(ids, columns, view.classes).save(path)
