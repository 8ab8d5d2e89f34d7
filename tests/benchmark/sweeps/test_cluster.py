"""The connection to Ray, and ray_cluster.yaml: its launcher takes both variants, which are closed to the world.

Ray checks a file with `prepare_config` and `validate_config` before it asks any cloud, so this needs no network
and no boto3.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import ray
import yaml

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.sweeps.cluster import connected, problems_of_node, shipped_code
from tests.helpers.sweeping import small

CHECKOUT = Path(__file__).resolve().parents[3]
LAUNCHER_FILE = CHECKOUT / "ray_cluster.yaml"
GUIDE = CHECKOUT / "docs" / "cluster.md"
SHARED = "/shared"
BEGIN, END = "# BEGIN own machines\n", "# END own machines\n"


def own_machines() -> str:
    """Return the variant at the end of the file, without its comment signs."""
    block = LAUNCHER_FILE.read_text().partition(BEGIN)[2].partition(END)[0]
    return re.sub(r"^# ?", "", block, flags=re.MULTILINE)


VARIANTS = {"aws": LAUNCHER_FILE.read_text(), "own machines": own_machines()}


@pytest.fixture(params=VARIANTS)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return yaml.safe_load(VARIANTS[request.param])


def commands(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if key.endswith("_commands"):
            yield from ((key, command) for command in value)


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """Do what `ray up` does with the file before it turns to the cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled = prepare_config(copy.deepcopy(config))
    validate_config(filled)
    return filled


def schema() -> dict[str, Any]:
    import ray.autoscaler

    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def test_the_file_meets_the_schema_of_ray(config):
    jsonschema.validate(config, schema())


def test_ray_fills_in_and_accepts_the_file(config):
    filled = prepared(config)
    assert filled["head_node_type"] in filled["available_node_types"]
    for key in ("head_start_ray_commands", "worker_start_ray_commands", "file_mounts"):
        assert filled[key] == config[key]
    assert filled["worker_setup_commands"][: len(config["setup_commands"])] == config["setup_commands"]


def test_every_node_type_has_whole_numbers_of_resources():
    node_types = yaml.safe_load(VARIANTS["aws"])["available_node_types"]
    assert len(node_types) >= 2
    for node_type in node_types.values():
        assert {"CPU", "GPU"} <= node_type["resources"].keys()
        assert all(type(amount) is int for amount in node_type["resources"].values())


def test_only_workers_with_a_gpu_are_added_and_their_number_is_bounded():
    aws = prepared(yaml.safe_load(VARIANTS["aws"]))
    head = aws["available_node_types"].pop(aws["head_node_type"])
    assert head["max_workers"] == 0
    assert head["resources"]["GPU"] == 0
    for worker in aws["available_node_types"].values():
        assert worker["resources"]["GPU"] >= 1
        assert worker["min_workers"] == 0
        assert worker["max_workers"] <= aws["max_workers"]
    assert 0 < aws["idle_timeout_minutes"] <= 60


def test_all_own_machines_belong_to_the_cluster():
    own = yaml.safe_load(VARIANTS["own machines"])
    (node_type,) = prepared(own)["available_node_types"].values()
    assert node_type["min_workers"] == node_type["max_workers"] == len(own["provider"]["worker_ips"])


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("available_node_types", "gpu_worker", "resources", "GPU"), 0.5),
        (("available_node_types", "gpu_worker", "resources"), None),
        (("available_node_types", "head", "node_config"), None),
        (("provider", "type"), None),
        (("cluster_name",), 7),
        (("head_node_type",), "absent"),
        (("max_worker",), 4),
        (("max_workers",), "four"),
        (("available_node_types", "gpu_worker", "min_workers"), 5),
    ],
)
def test_a_broken_file_is_refused(where, value):
    """None deletes the key."""
    config = yaml.safe_load(VARIANTS["aws"])
    inner = config
    for key in where[:-1]:
        inner = inner[key]
    if value is None:
        del inner[where[-1]]
    else:
        inner[where[-1]] = value
    with pytest.raises((jsonschema.ValidationError, ValueError, KeyError)):
        prepared(config)


@pytest.mark.parametrize("missing", ["head_ip", "worker_ips"])
def test_own_machines_without_addresses_are_refused(missing):
    config = yaml.safe_load(VARIANTS["own machines"])
    del config["provider"][missing]
    with pytest.raises(Exception, match="head_ip"):
        prepared(config)


def test_every_node_mounts_the_same_folder(config):
    """The mount stands in the commands that head and workers share, so a node without it never starts Ray."""
    (mount,) = [command for command in config["setup_commands"] if "mount " in command]
    assert f"mountpoint -q {SHARED} ||" in mount
    assert re.search(rf"(:/\S* {SHARED} nfs4 |-t nfs4 .*:/\S* {SHARED}\b)", mount)
    assert "nolock" not in mount  # the store's locks must hold across nodes
    text = "\n".join(command for _, command in commands(config))
    assert f"SEEDBED_WORK={SHARED}/seedbed-work" in text


def test_nothing_listens_to_the_world(config):
    text = "\n".join(command for _, command in commands(config))
    assert "0.0.0.0" not in text
    assert "--disable-security-middleware" not in text
    for _, command in commands(config):
        if "ray start --head" in command:
            assert "--dashboard-host=127.0.0.1" in command
        if re.search(r'mlflow"? server', command):
            assert '--host "$address"' in command
            assert "address=$(hostname -I" in command
            hosts = command.partition("--allowed-hosts ")[2].split()[0].strip('"').split(",")
            assert {"$address:5000", "localhost:5000"} <= set(hosts)
            assert "*" not in "".join(hosts)


def test_every_rented_node_is_in_the_users_own_security_group():
    for node_type in yaml.safe_load(VARIANTS["aws"])["available_node_types"].values():
        assert node_type["node_config"]["SecurityGroupIds"]


def test_nodes_speak_to_each_other_with_the_token_only(config):
    assert "~/.ray/auth_token" in config["file_mounts"]
    starts = [command for _, command in commands(config) if "ray start " in command]
    assert len(starts) == 2
    for command in starts:
        assert command.index("export RAY_AUTH_MODE=token") < command.index("ray start ")
        assert command.index("unset OMP_NUM_THREADS") < command.index("ray start ")


def test_packages_come_from_the_lock_with_hashes(config):
    text = "\n".join(config["setup_commands"])
    assert config["file_mounts"]["~/requirements.lock"] == "requirements.lock"
    assert re.search(r"uv pip install .*--require-hashes .*-r ~/requirements.lock", text)
    assert "g++ python3-dev" in text
    (version,) = re.findall(r"uv==([\d.]+)", text)
    assert f"UV_VERSION := {version}\n" in (CHECKOUT / "Makefile").read_text()


def test_the_shell_can_read_every_command(config):
    from ray.autoscaler._private.command_runner import _with_interactive

    script = "\n".join(f"({command})" for _, command in commands(config))
    subprocess.run(["bash", "-n", "-c", script], check=True)
    for _, command in commands(config):
        subprocess.run(["bash", "-n", "-c", " ".join(_with_interactive(command))], check=True)


def test_options_of_ray_and_mlflow_exist(config):
    from mlflow.cli import server
    from ray.scripts.scripts import start

    known = {
        "ray start ": {option for parameter in start.params for option in parameter.opts},
        "server ": {option for parameter in server.params for option in parameter.opts},
    }
    checked = set()
    for _, command in commands(config):
        for program, options in known.items():
            if program == "server " and not re.search(r'mlflow"? server', command):
                continue
            for line in command.replace("\\\n", " ").splitlines():
                if program in line:
                    used = set(re.findall(r"(?<!\S)--[a-z-]+", line.partition(program)[2]))
                    assert used <= options, used - options
                    checked |= used
    assert {"--head", "--address", "--dashboard-host"} <= checked
    if config["provider"]["type"] == "aws":
        assert {"--backend-store-uri", "--artifacts-destination", "--host", "--allowed-hosts"} <= checked


def test_values_to_change_are_marked(config):
    """A placeholder is either marked in itself or by a comment on its line."""
    text = VARIANTS["aws" if config["provider"]["type"] == "aws" else "own machines"]
    for key in ("region", "availability_zone", "ImageId", "SecurityGroupIds", "head_ip", "worker_ips", "ssh_user"):
        lines = [line for line in text.splitlines() if re.match(rf"\s*{key}: ", line)]
        if key != "ssh_user" or config["provider"]["type"] == "local":
            assert all("CHANGE" in line for line in lines), key


def test_the_command_that_cuts_out_the_own_machines_works():
    (command,) = re.findall(r"^#\s+(sed -n .*) > my_machines.yaml$", LAUNCHER_FILE.read_text(), flags=re.MULTILINE)
    assert command in GUIDE.read_text()
    cut = subprocess.run(["sh", "-c", command], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert yaml.safe_load(cut) == yaml.safe_load(VARIANTS["own machines"])


def guide_commands(program: str) -> list[list[str]]:
    blocks = re.findall(r"^```\w*\n(.*?)^```$", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(program + " ")]


@pytest.mark.parametrize("program", ["ray", "seedbed"])
def test_commands_and_options_in_the_guide_exist(program):
    import click
    import typer
    from ray.scripts.scripts import cli

    from seedbed.benchmark.cli.main import app

    top = cli if program == "ray" else typer.main.get_command(app)
    lines = guide_commands(program)
    assert lines
    for words in lines:
        command, rest = top, words[1:]
        while rest and hasattr(command, "get_command"):
            inner = command.get_command(click.Context(top), rest[0])
            assert inner is not None, " ".join(words)
            command, rest = inner, rest[1:]
        known = {option for parameter in command.params for option in parameter.opts}
        used = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert used <= known | {"--help"}, (words, used - known)


def test_the_guide_keeps_to_the_line_length():
    assert max(len(line) for line in GUIDE.read_text().splitlines()) <= 120
    assert max(len(line) for line in LAUNCHER_FILE.read_text().splitlines()) <= 120


def test_an_address_where_nothing_listens_is_told_at_once(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        settings = small(tmp_path, address=f"127.0.0.1:{port}")
        message = rf"no Ray cluster at 127\.0\.0\.1:{port} \(Connection refused\)"
        with pytest.raises(ConfigError, match=message), connected(settings, [], []):
            raise AssertionError("connected to nothing")


def test_what_ray_sets_in_the_environment_is_gone_when_the_sweep_ends(tmp_path, monkeypatch):
    def init(**_: object) -> None:
        os.environ["RAY_AUTH_MODE"] = "token"

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(ray, "init", init)
    before = dict(os.environ)
    with connected(small(tmp_path), [], []):
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert dict(os.environ) == before


def test_ray_that_does_not_start_is_told_in_one_line(tmp_path, monkeypatch):
    def init(**_: object) -> None:
        raise RuntimeError("Failed to start GCS.\nMore lines")

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(ConfigError, match=r"Ray cannot start here \(Failed to start GCS\.\)$"),
        connected(small(tmp_path), [], []),
    ):
        raise AssertionError("started")


def test_data_work_folder_and_weights_are_not_sent_to_other_nodes(monkeypatch):
    inside, outside = CHECKOUT / "mine" / "VOC2012", Path("/elsewhere/data")
    sent = shipped_code([inside, outside])
    assert sent["working_dir"] == str(CHECKOUT)
    assert "/mine/VOC2012" in sent["excludes"]
    assert not any("elsewhere" in pattern for pattern in sent["excludes"])
    assert "py_modules" not in sent  # Ray fails on an empty list.
    for pattern in ("seedbed-work/", "*.pth", ".git/", ".venv/"):
        assert pattern in sent["excludes"]


def test_every_node_that_lacks_the_data_is_named_before_the_first_trial(tmp_path, chimera_root):
    place = {"name": "chimera-voc", "loader": "chimera", "root": str(tmp_path / "away"), "options": {}}
    other = {"name": "chimera-voc", "loader": "chimera", "root": str(chimera_root), "options": {}}
    driver = {"work": str(tmp_path), "token": "sweep.json", "store": None}
    counts, weights = {"chimera-voc": [1, 2, 3, 4, 5]}, str(tmp_path / "weights.pth")
    problems = problems_of_node([place, other], counts, driver, weights)
    assert len(problems) == 4
    assert "a file system that all nodes share" in problems[0]
    assert "weights.pth: no such file" in problems[1]
    assert f"{tmp_path / 'away'}: no such folder" in problems[2]
    assert "has different images" in problems[3]
    nobody = "s3://bucket?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"
    driver["store"] = {"address": nobody, "cache": None}
    (problem,) = problems_of_node([], {}, driver)
    assert problem.startswith(f"{nobody}: the object store cannot be used")
