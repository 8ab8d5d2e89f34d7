"""`seedbed leaderboard`: the tables and the site of one or several sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seedbed.benchmark.cli.options import WORK, Plugins, Quiet, Work, chosen_device, work_folder
from seedbed.benchmark.cli.tracking import Uri
from seedbed.benchmark.errors import ConfigError

if TYPE_CHECKING:
    from seedbed.benchmark.pipeline.work_folder import WorkFolder


def leaderboard(
    sweep: Annotated[list[str], typer.Option(help="Name of a sweep; several sweeps make one leaderboard.")],
    out: Annotated[Path, typer.Option(help="Folder for the site and the tables.")],
    results: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Folder of a leaderboard that was built before, perhaps by others, or a result "
            "NAME.seedbed.json; its runs join. Results submitted to the work folder join by themselves.",
            show_default="none",
        ),
    ] = None,
    gallery: Annotated[int, typer.Option(min=0, help="Images per data set in the gallery; 0: no gallery.")] = 6,
    tracking_uri: Uri = None,
    plugin: Plugins = None,
    work: Work = WORK,
    quiet: Quiet = False,
) -> None:
    """Build the leaderboard of sweeps from MLflow: a site, and each table as Markdown, LaTeX and CSV.

    The site needs no server: open its index.html.
    """
    from collections.abc import Sequence

    from seedbed.benchmark import plugins
    from seedbed.benchmark.sweeps.settings import saved_settings
    from seedbed.leaderboard.build import INDEX, Sources, build
    from seedbed.leaderboard.site.gallery import FOLDER

    folder = work_folder(work.resolve())
    for name in sweep:
        if (folder.sweeps / name / "sweep.yaml").exists():
            plugins.add_all(saved_settings(folder.sweeps, name).plugins)

    def predict(trial: Path, ids: Sequence[str]) -> Path | None:
        from seedbed.benchmark.sweeps.predictions import predict_train

        return predict_train(folder, trial, ids, lambda: chosen_device("auto"))

    uri = tracking_uri or _uri(folder, sweep)
    made = build(uri, sweep, out, Sources(folder, gallery, predict), results or ())
    print(made.table)
    print(f"site: {out / INDEX}")
    if any(path.parent == out / FOLDER for path in made.paths):
        print(f"its gallery has photographs of the data sets; where they may not be published: {out / FOLDER}/")


def _uri(folder: WorkFolder, sweeps: list[str]) -> str:
    """Return where all of the sweeps are recorded."""
    from seedbed.benchmark.tracking.sync import uri_of

    uris = {uri_of(folder, name) for name in sweeps}
    if len(uris) > 1:
        raise ConfigError(
            f"the sweeps are recorded in several places; give one by --tracking-uri: {', '.join(sorted(uris))}"
        )
    return uris.pop()
