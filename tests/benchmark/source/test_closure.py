"""Which definitions a result depends on, and which edits of them count."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from seedbed.benchmark.source.closure import closure, differences, forget

FILES = {
    "mine/__init__.py": "from .losses import loss\n",
    "mine/losses.py": '''
        """Losses."""
        import torch.nn.functional as F
        from mine import deep
        WEIGHT = 2.0
        TABLE = {"a": 1}
        TABLE["b"] = 2
        def loss(x):
            """Return the loss."""
            return helper(x) * WEIGHT + F.relu(x) + TABLE["b"]
        def helper(x):
            # A comment.
            from mine.late import late
            return late(x) + deep.twice(x)
        def unused(x):
            return x
        ''',
    "mine/deep.py": "def twice(x):\n    if x is None:\n        raise ValueError(f'no {x}')\n    return 2 * x\n",
    "mine/late.py": "def late(x):\n    return x\n",
    "mine/net.py": '''
        import torch
        from torch import nn
        torch.set_flush_denormal(True)
        class Base(nn.Module):
            def forward(self, x):
                return self.inner(x)
            def inner(self, x):
                return x
            def described(self):
                return "net"
        class Net(Base):
            """A network."""
            width: int = 3
            def __init__(self):
                super().__init__()
        ''',
    "mine/stage.py": '''
        from dataclasses import dataclass
        import mine.net as net
        from seedbed.benchmark.pipeline.hparams import hp
        from seedbed.benchmark.pipeline.stage import Stage
        from mine import loss
        @dataclass(frozen=True, kw_only=True)
        class Train(Stage):
            """Trains."""
            version = 1
            rate: float = hp(0.1, low=0, high=1, source="here")
            def run(self, data, inputs, out, ctx):
                network = net.Net()
                return loss(self.step(network))
            def step(self, network):
                return network(1)
            def described(self):
                return "stage"
        ''',
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder of the import path with the package `mine`."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(tmp_path))
    forget()
    yield tmp_path
    forget()


def edit(path: Path, old: str, new: str) -> list[str]:
    """Replace a text in a file, and return the definitions of `mine.stage.Train` that differ."""
    before = closure(["mine.stage.Train"])
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    forget()
    return differences(before, closure(["mine.stage.Train"]))


def test_a_closure_has_what_the_stage_calls_and_nothing_else(folder):
    assert set(closure(["mine.stage.Train"])) == {
        "mine.deep.twice",
        "mine.late.late",
        "mine.losses.TABLE",
        "mine.losses.WEIGHT",
        "mine.losses.helper",
        "mine.losses.loss",
        "mine.net",
        "mine.net.Base",
        "mine.net.Base.forward",
        "mine.net.Base.inner",
        "mine.net.Net",
        "mine.net.Net.__init__",
        "mine.stage.Train",
        "mine.stage.Train.run",
        "mine.stage.Train.step",
    }


def test_a_module_that_is_named_like_a_local_variable_is_no_part_of_it(folder):
    before = closure(["mine.stage.Train"])
    (folder / "network.py").write_text("step = 1\n")
    (folder / "data.py").write_text("x = 1\n")
    forget()
    assert closure(["mine.stage.Train"]) == before


@pytest.mark.parametrize(
    ("file", "old", "new", "names"),
    [
        ("losses", "* WEIGHT", "/ WEIGHT", ["mine.losses.loss"]),
        ("losses", "F.relu", "F.gelu", ["mine.losses.loss"]),
        ("losses", "WEIGHT = 2.0", "WEIGHT = 3.0", ["mine.losses.WEIGHT"]),
        ("losses", 'TABLE["b"] = 2', 'TABLE["b"] = 3', ["mine.losses.TABLE"]),
        ("losses", "import torch.nn.functional as F", "import torch.special as F", ["mine.losses.loss"]),
        ("late", "return x", "return -x", ["mine.late.late"]),
        ("deep", "2 * x", "3 * x", ["mine.deep.twice"]),
        ("net", "return self.inner(x)", "return -self.inner(x)", ["mine.net.Base.forward"]),
        ("net", "width: int = 3", "width: int = 4", ["mine.net.Net"]),
        ("net", "denormal(True)", "denormal(False)", ["mine.net"]),
        ("net", "class Net(Base)", "class Net(nn.Module)", ["mine.net.Net"]),
        ("stage", "return network(1)", "return network(2)", ["mine.stage.Train.step"]),
        ("net", "    width: int = 3\n", "    def forward(self, x):\n        return x\n", ["mine.net.Net"]),
        # An imported function is replaced by one of the same name in the file.
        ("stage", "from mine import loss", "def loss(x):\n    return x", ["mine.stage.loss"]),
    ],
)  # fmt: skip
def test_an_edit_is_found_by_the_name_of_what_changed(folder, file, old, new, names):
    assert edit(folder / f"mine/{file}.py", old, new) == names


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("losses", "# A comment.", "# Another one,\n    # of two lines."),
        ("losses", '"""Return the loss."""', '"""Return it."""'),
        ("losses", '"""Return the loss."""\n', "\n"),
        ("losses", "return helper(x) * WEIGHT", "return (\n        (helper(x))\n        * WEIGHT\n    )"),
        ("losses", '{"a": 1}', "{'a': 1,}"),
        ("losses", "WEIGHT = 2.0", 'WEIGHT: float = 2.0\n"""What it is."""'),
        ("losses", "def loss(x):", "def loss(x: float) -> float:"),
        ("losses", "def unused(x):\n    return x", ""),
        ("deep", "f'no {x}'", "'none given'"),
        ("net", 'return "net"', 'return "network"'),
        ("stage", "version = 1", "version = 2"),
        ("stage", "hp(0.1, low=0, high=1", "hp(0.2, low=0, high=2"),
        ("stage", 'return "stage"', 'return "a stage"'),
    ],
)
def test_an_edit_that_changes_no_result_is_none(folder, file, old, new):
    assert edit(folder / f"mine/{file}.py", old, new) == []


def test_a_definition_that_moves_has_not_changed(folder):
    text = (folder / "mine/late.py").read_text()
    (folder / "mine/late.py").rename(folder / "mine/moved.py")
    (folder / "mine/late.py").write_text("")
    before = closure(["mine.moved.late"])
    (folder / "mine/late.py").write_text(text)
    (folder / "mine/moved.py").write_text("from mine.late import late\n")
    forget()
    after = closure(["mine.late.late"])
    assert [*before] == ["mine.moved.late"]
    assert differences(before, after) == []


def test_only_the_backbone_in_use_counts():
    tiny = closure(["seedbed.methods.cam.TrainCam", "seedbed.methods.backbones.tiny.BACKBONE"])
    assert "seedbed.methods.backbones.tiny.Tiny.blocks" in tiny
    assert {name.split(".")[3] for name in tiny if ".backbones." in name} == {"base", "tiny"}
    assert "seedbed.methods.cam.multi_label_soft_margin" in tiny
    assert "seedbed.methods.cam.CamNetwork.maps" not in tiny
    assert "seedbed.methods.cam.CamNetwork.maps" in closure(
        ["seedbed.methods.cam.TrainCam", "seedbed.methods.cam.InferCam"]
    )


def test_the_data_sets_loader_counts_and_its_checks_do_not():
    found = closure(["seedbed.methods.cam.TrainCam", "seedbed.datasets.voc2012.VocDataset"])
    assert "seedbed.datasets.voc2012.VocDataset.tags" in found
    assert "seedbed.datasets.voc2012.VocDataset.layout_problems" not in found


def test_a_class_that_is_in_no_file_has_no_source():
    assert closure(["nowhere.Stage", "seedbed.benchmark.pipeline.stage.Stage", "torch.nn.Linear"]) == {}


HIDDEN = {
    "a condition": ("import os\nif os.sep == '/':\n    VALUE = 1\nelse:\n    VALUE = 2\n", "'/'", "'|'"),
    "a file that is opened": ("with open('a.json') as file:\n    VALUE = file.read()\n", "a.json", "b.json"),
    "a data file": ("VALUE = open(__file__[:-7] + 'data.json')\n", None, None),
    "a global variable": ("VALUE = 1\ndef change():\n    global VALUE\n    VALUE = 20\nchange()\n", "20", "30"),
    "a decorator that registers": (
        "VALUE = {}\ndef register(f):\n    VALUE[1] = f\n    return f\n@register\ndef one():\n    return 20\n",
        "20",
        "30",
    ),
    "a method by a text": (
        "class A:\n    def soft(self):\n        return 20\n\nVALUE = getattr(A(), 'so' + 'ft')()\n",
        "20",
        "30",
    ),
    "a method of what a call returns": (
        "class A:\n    def soft(self):\n        return 20\ndef make():\n    return A()\nVALUE = make().soft()\n",
        "20",
        "30",
    ),
    "a subclass": (
        "class A:\n    pass\nclass B(A):\n    def soft(self):\n        return 20\nVALUE = A.__subclasses__()\n",
        "20",
        "30",
    ),
}


@pytest.mark.parametrize("case", HIDDEN)
def test_code_that_is_reached_without_its_name_counts(case, folder):
    text, old, new = HIDDEN[case]
    path = folder / "mine" / "hidden.py"
    path.write_text(text)
    (folder / "mine" / "data.json").write_text("1")
    before = closure(["mine.hidden.VALUE"])
    if old is None:
        (folder / "mine" / "data.json").write_text("2")
    else:
        path.write_text(text.replace(old, new))
    forget()
    assert differences(before, closure(["mine.hidden.VALUE"]))


def test_digests_do_not_depend_on_the_process_or_the_place_and_import_nothing_heavy(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "mine").rename(elsewhere / "mine")
    program = (
        "import sys; from seedbed.benchmark.source.closure import closure;"
        "print(dict(closure(['mine.stage.Train'])));"
        "print([m for m in ('torch', 'numpy', 'mine') if m in sys.modules])"
    )
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(elsewhere)!r}); {program}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    (elsewhere / "mine").rename(folder / "mine")
    forget()
    assert done.stdout.splitlines() == [str(dict(closure(["mine.stage.Train"]))), "[]"]


def test_the_form_of_a_definition_is_the_same_in_every_version_of_python():
    # Computed once; ast.dump and ast.unparse differ between 3.11 and 3.13.
    import ast

    from seedbed.benchmark.source.syntax import form

    code = 'def f(a, *, b: int = 1, **c) -> str:\n    "Doc."\n    x: float = a[1:2]\n    return f"{x!r:>{b}} é"\n'
    assert form(ast.parse(code).body[0]) == (
        "FunctionDef(name='f',args=arguments(args=[arg(arg='a')],kwonlyargs=[arg(arg='b')],kw_defaults=[int 1],"
        "kwarg=arg(arg='c')),body=[Assign(targets=[Name(id='x')],value=Subscript(value=Name(id='a'),slice=Slice("
        "lower=int 1,upper=int 2))),Return(value=JoinedStr(values=[FormattedValue(value=Name(id='x'),"
        "conversion=114,format_spec=JoinedStr(values=[str '>',FormattedValue(value=Name(id='b'),conversion=-1)])),"
        "str ' \\xe9']))])"
    )


def test_messages_and_progress_lead_nowhere():
    found = closure(["seedbed.methods.cam.TrainCam"])
    assert "seedbed.benchmark.training.loop._resume" in found
    assert not [
        name for name in found if name.startswith(("seedbed.benchmark.progress", "seedbed.benchmark.files"))
    ]


def test_an_edited_message_changes_nothing(folder):
    path = folder / "mine/stage.py"
    text = path.read_text().replace("network = net.Net()", "network = net.Net()\n        logger.info('a net')")
    path.write_text(
        text.replace("import mine.net", "import logging\nimport mine.net") + "logger = logging.getLogger()\n"
    )
    forget()
    assert edit(path, "'a net'", "f'{network} and {self}'") == []
    assert edit(path, "net.Net()", "net.Net") == ["mine.stage.Train.run"]
