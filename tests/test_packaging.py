"""What a user installs: a wheel that carries its templates, and dependencies that are declared, pinned and few."""

from __future__ import annotations

import configparser
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import evoengine

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = {
    canonicalize_name(name): version
    for name, _, version in (
        line.partition("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line[:1] not in ("#", "")
    )
}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built offline with the hatchling of the test extra."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked as an installer would lay it out."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_installed(installed: Path, cwd: Path, code: str) -> str:
    """Run `code` far from the checkout with the unpacked wheel first on the path."""
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "HOME": str(cwd)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def shipped_sources(kind: str, *suffixes: str) -> set[str]:
    return {
        f"evoengine/{path.relative_to(ROOT)}"
        for path in (ROOT / kind).rglob("*")
        if path.suffix in suffixes and "__pycache__" not in path.parts
    }


def test_the_wheel_carries_code_templates_and_spaces_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "evoengine").rglob("*.py")}
    data = shipped_sources("kernel_templates", ".cu", ".cuh", ".py", ".h", ".cpp", ".txt", ".md")
    data |= shipped_sources("search_spaces", ".py")
    data |= {f"evoengine/report/page.{suffix}" for suffix in ("css", "js")}

    assert set() == (modules | data | {"evoengine/py.typed"}) - names
    assert "evoengine/kernel_templates/attention/kernel.cu" in names
    assert "evoengine/kernel_templates/attention/bundle/CMakeLists.txt" in names
    assert {"evoengine", f"evoengine-{evoengine.__version__}.dist-info"} == {name.split("/")[0] for name in names}
    assert [] == [name for name in names if "__pycache__" in name]


def test_an_installed_wheel_loads_its_own_template_and_space(installed: Path, tmp_path: Path) -> None:
    code = """
from evoengine.space import load_space
from evoengine.template import load_template, shipped
template = load_template(shipped("kernel_templates") / "attention")
space = load_space(shipped("search_spaces") / "attention.py")
print(template.folder, template.module.defines(space.default, template.module.PROBLEM())["EVO_HEAD_DIM"])
"""
    folder, head_dim = run_installed(installed, tmp_path, code).rsplit(" ", 1)

    assert str(installed / "evoengine" / "kernel_templates" / "attention") == folder
    assert "64" == head_dim


def test_the_console_script_is_the_module(installed: Path, tmp_path: Path) -> None:
    scripts = configparser.ConfigParser()
    scripts.read(next(installed.glob("*.dist-info")) / "entry_points.txt")

    assert "evoengine.cli:main" == scripts["console_scripts"]["evoengine"]
    assert "from evoengine.cli import main" in (installed / "evoengine" / "__main__.py").read_text()
    as_module = "import sys, runpy; sys.argv = ['x', '--version']; runpy.run_module('evoengine', run_name='__main__')"
    assert evoengine.__version__ in run_installed(installed, tmp_path, as_module)


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in [*project["dependencies"], *extras["test"], *extras["interop"]]]
    loose = [str(need) for need in wanted if PINS.get(canonicalize_name(need.name), "none") not in need.specifier]

    assert [] == loose


def test_constraints_pin_one_version_each_and_the_torch_that_was_tested() -> None:
    assert "2.13.0" == PINS["torch"]
    assert [] == [name for name, version in PINS.items() if not version[:1].isdigit()]


def test_the_cuda_12_extra_fits_the_base_dependencies() -> None:
    project = PYPROJECT["project"]
    base = {need.name: need.specifier for need in map(Requirement, project["dependencies"])}
    extra = {need.name: need.specifier for need in map(Requirement, project["optional-dependencies"]["cu12"])}

    assert "12.9.10" in base["cuda-bindings"] & extra["cuda-bindings"]
    assert "13.0.3" not in extra["cuda-bindings"]


def test_building_needs_no_torch() -> None:
    assert ["hatchling"] == [Requirement(text).name for text in PYPROJECT["build-system"]["requires"]]
