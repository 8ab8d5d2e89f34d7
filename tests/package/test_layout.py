"""The layout of the project: dependencies point down, no folder is crowded, and the tests mirror the packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = ("benchmark", "methods", "datasets", "leaderboard")
LAYERS = (
    ("benchmark",),
    ("benchmark.source", "datasets"),
    ("benchmark.pipeline",),
    ("benchmark.training", "benchmark.evaluation"),
    ("methods",),
    ("benchmark.trials",),
    ("benchmark.sweeps",),
    ("benchmark.tracking",),
    ("benchmark.studies",),
    ("leaderboard",),
    ("benchmark.cli",),
)
"""From the ground up. A module imports modules of its own layer and of earlier ones, never of a later one."""
MOST_MODULES = 14


def layer_of(module: str) -> int:
    """Return the layer of a module, named without `seedbed.`, by the longest prefix in LAYERS."""
    found = [
        (len(prefix), level)
        for level, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if f"{module}.".startswith(f"{prefix}.")
    ]
    return max(found)[1]


def imports_of(path: Path) -> Iterator[str]:
    """Yield the modules of the project that a file imports anywhere, without `seedbed.`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("seedbed.") for name in names if name.startswith("seedbed."))


def modules() -> Iterator[tuple[str, Path]]:
    """Yield the name and path of every module of the four packages."""
    for package in PACKAGES:
        for path in sorted((CHECKOUT / package).rglob("*.py")):
            parts = path.relative_to(CHECKOUT).with_suffix("").parts
            yield ".".join(parts).removesuffix(".__init__"), path


def test_dependencies_point_down():
    against = {
        f"{name} imports {imported}"
        for name, path in modules()
        for imported in imports_of(path)
        if layer_of(imported) > layer_of(name)
    }
    assert not against, "\n".join(sorted(against))


def test_the_packages_are_imported_under_the_name_of_the_distribution():
    """`import datasets` would find Hugging Face's package, or hide it."""
    plain = [
        f"{path.relative_to(CHECKOUT)}: {ast.unparse(node)}"
        for folder in (*PACKAGES, "tests")
        for path in (CHECKOUT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        if name.partition(".")[0] in PACKAGES and not getattr(node, "level", 0)
    ]
    assert not plain, "\n".join(plain)


def test_no_folder_has_more_modules_than_one_can_take_in():
    folders = [p for name in (*PACKAGES, "tests") for p in [CHECKOUT / name, *(CHECKOUT / name).rglob("*/")]]
    counts = {
        str(folder.relative_to(CHECKOUT)): len([p for p in folder.glob("*.py") if p.name != "__init__.py"])
        for folder in folders
    }
    assert not {name: count for name, count in counts.items() if count > MOST_MODULES}


def test_the_tests_mirror_the_packages():
    """Every folder of tests is named like a folder of a package, or is one of the folders for tests alone."""
    own = {"claims", "contracts", "docs", "golden", "helpers", "package", "performance"}
    for path in (CHECKOUT / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(CHECKOUT / "tests")
        assert folder.parts, f"{path.name}: not in a folder"
        assert folder.parts[0] in own or (CHECKOUT / folder).is_dir(), folder
