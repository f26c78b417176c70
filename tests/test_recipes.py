"""The recipes for clusters: what linters say of them, and that they do what their comments promise."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from evoengine.cli.parser import make_parser

SCALE = Path(__file__).parent.parent / "docs" / "scale"
SLURM, KUBERNETES = SCALE / "slurm.sh", SCALE / "kubernetes.yaml"
STUB = f"""#!{sys.executable}
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
with open(os.environ["SAID"], "w") as said:
    print(os.environ["EVOENGINE_HOME"], *sys.argv[1:], sep="\\n", file=said)
time.sleep(float(os.environ["LASTS"]))
sys.exit(int(os.environ["CODE"]))
"""


def linted(program: str, *arguments: str) -> None:
    """Nothing is found by a linter, which may be beside this interpreter or on PATH."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(program, path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{program} is not installed: pip install {program}")
    ran = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)

    assert 0 == ran.returncode, ran.stdout + ran.stderr


def test_shellcheck_finds_nothing() -> None:
    linted("shellcheck", str(SLURM))


def test_yamllint_finds_nothing() -> None:
    linted("yamllint", "--strict", "-d", "{extends: default, rules: {line-length: {max: 120}}}", str(KUBERNETES))


def test_kubernetes_schemas_are_kept() -> None:
    linted("kubernetes-validate", "--strict", str(KUBERNETES))


def manifests() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install yamllint")
    return [one for one in yaml.safe_load_all(KUBERNETES.read_text()) if one]


def test_the_commands_of_the_manifest_are_evoengine_s() -> None:
    containers = [
        container
        for one in manifests()
        if one["kind"] == "Job"
        for container in one["spec"]["template"]["spec"]["containers"]
    ]

    assert 3 == len(containers)
    for container in containers:
        program, *words = [*container["command"], *container["args"]]
        assert "evoengine" == program
        assert "mission" == make_parser().parse_args(words).study
        assert all("password" not in word for word in words)


def test_the_ports_and_names_of_the_manifest_fit_together() -> None:
    by_kind = {one["kind"]: one for one in manifests()}
    service, database = by_kind["Service"], by_kind["StatefulSet"]
    labels = database["spec"]["template"]["metadata"]["labels"]

    assert service["metadata"]["name"] == database["spec"]["serviceName"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert f"@{service['metadata']['name']}/" in KUBERNETES.read_text()


class TestSlurm:
    def start(self, folder: Path, lasts: float, code: int, *words: str) -> subprocess.Popen[str]:
        stub = folder / "bin" / "evoengine"
        stub.parent.mkdir()
        stub.write_text(STUB)
        stub.chmod(0o755)
        path = f"{stub.parent}{os.pathsep}{os.environ['PATH']}"
        told = {"SAID": str(folder / "said"), "LASTS": str(lasts), "CODE": str(code)}
        environment = {**os.environ, **told, "PATH": path, "TMPDIR": str(folder)}
        return subprocess.Popen(["bash", str(SLURM), *words], env=environment, text=True)

    def test_a_task_is_a_worker(self, tmp_path: Path) -> None:
        assert 0 == self.start(tmp_path, 0, 0, "mission", "--no-gpu").wait(60)
        home, *words = (tmp_path / "said").read_text().splitlines()
        arguments = make_parser().parse_args(words)

        assert ("mission", True, True) == (arguments.study, arguments.no_gpu, arguments.until_done)
        assert not Path(home).exists()

    @pytest.mark.parametrize("code", [1, 2])
    def test_a_failure_is_the_task_s(self, tmp_path: Path, code: int) -> None:
        assert code == self.start(tmp_path, 0, code, "mission").wait(60)

    def test_the_end_of_its_time_is_no_failure(self, tmp_path: Path) -> None:
        task = self.start(tmp_path, 60, 0, "mission")
        deadline = time.monotonic() + 30
        while not (tmp_path / "said").exists() or not (tmp_path / "said").read_text().endswith("\n"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        task.send_signal(signal.SIGTERM)

        assert 0 == task.wait(30)

    def test_slurm_reads_all_of_its_options(self) -> None:
        """sbatch stops at the first line that is neither empty nor a comment."""
        head = re.split(r"^[^#\n]", SLURM.read_text(), maxsplit=1, flags=re.MULTILINE)[0]

        assert 8 == SLURM.read_text().count("\n#SBATCH") == head.count("\n#SBATCH")
