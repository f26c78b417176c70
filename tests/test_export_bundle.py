"""The bundle: it builds with CMake alone, its test can pass and fail, and folders of others are left alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from command_line import make_template
from measured_study import TEMPLATE, make_chosen

from evoengine.cli import main
from evoengine.cli.output import write_folder
from evoengine.errors import UserError
from evoengine.export.bundle import bundle_files
from evoengine.export.header import parse_header, render_header
from evoengine.problem import AttentionProblem
from evoengine.template import load_template

SPLIT = AttentionProblem(seq_q=16, seq_k=512)
SMALL = AttentionProblem(heads=2, seq_q=48, head_dim=32, causal=True, lse=True)
TALL = AttentionProblem(heads=1, seq_q=600, seq_k=40, head_dim=32, lse=True)
"""Of so many rows the bundle's test compares some with its reference."""

needs_cmake = pytest.mark.skipif(
    not all(map(shutil.which, ("cmake", "nvcc"))), reason="cmake and nvcc are not both on PATH"
)
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")


def run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **(env or {})}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def lay_out(folder: Path, problem: AttentionProblem, **axes: int) -> Path:
    write_folder(folder, "bundle", bundle_files(make_chosen(problem, **axes)), force=False)
    return folder


def test_a_bundle_is_its_own_header_kernel_and_listing(tmp_path: Path) -> None:
    chosen = make_chosen(SPLIT, SPLIT_KV=4)
    folder = lay_out(tmp_path / "out", SPLIT, SPLIT_KV=4)
    listing = json.loads((folder / "evoengine.json").read_text())
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    assert chosen.facts == parse_header((folder / "config.h").read_text())
    assert {f"kernel/{name}" for name in TEMPLATE.device_sources} < found
    assert found == {*listing["files"], "evoengine.json"}
    for name, digest in listing["files"].items():
        assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert "#define TUNED_SEQ_K 512\n" in (folder / "tuned_shape.h").read_text()


@needs_cmake
def test_it_builds_without_a_warning_in_a_folder_with_a_space_and_skips_without_a_gpu(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "my bundle", SPLIT, SPLIT_KV=4, WARPS_M=1)
    strict = ("-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror", "-DCMAKE_CUDA_FLAGS=-Werror all-warnings")
    configured = run("cmake", "-B", "build", *strict, cwd=folder)
    built = run("cmake", "--build", "build", cwd=folder)
    tested = run("ctest", "--test-dir", "build", cwd=folder, env={"CUDA_VISIBLE_DEVICES": ""})

    assert 0 == configured.returncode, configured.stderr
    assert 0 == built.returncode, built.stdout + built.stderr
    assert 0 == tested.returncode, tested.stdout
    assert "Skipped" in tested.stdout
    flags = (folder / "build" / "CMakeFiles" / "evo_attention.dir" / "flags.make").read_text()
    assert "sm_89" in flags  # the architecture of the card in the header, an L4


REFUSALS = """
#include "attention.h"
#include <cstdio>
int main() {
  alignas(16) static char memory[64];
  const auto call = [](evo::AttentionShape shape, int q, int o, bool lse, bool scratch) {
    float* sums = lse ? reinterpret_cast<float*>(memory) : nullptr;
    void* room = scratch ? memory : nullptr;
    void* out = o < 0 ? nullptr : memory + o;
    std::printf("%d\\n", evo::attention(memory + q, memory, memory, out, sums, room, shape, 0));
  };
  evo::AttentionShape good;
  good.batch = 1, good.heads = 2, good.kv_heads = 2, good.seq_q = 48, good.seq_k = 48, good.scale = 0.125f;
  std::printf("%zu\\n", evo::attention_scratch_bytes(good));
  evo::AttentionShape bad[6] = {good, good, good, good, good, good};
  bad[0].heads = 3, bad[1].seq_k = 0, bad[2].batch = 65536, bad[3].scale = -1.0f, bad[4].diagonal = 1 << 25;
  bad[5].seq_q = 1 << 25;
  for (const auto& shape : bad) call(shape, 0, 0, true, true);
  call(good, 0, -1, true, true);
  call(good, 0, 0, false, true);
  call(good, 0, 0, true, false);
  call(good, 2, 0, true, true);
}
"""


@needs_nvcc
def test_the_launcher_of_a_kernel_with_every_parameter_refuses_what_cannot_be(tmp_path: Path) -> None:
    axes = dict(HEAVY_FIRST=1, SPLIT_KV=4)
    folder = lay_out(tmp_path / "bundle", SMALL, **axes)
    (folder / "main.cpp").write_text(REFUSALS)
    strict = ("-std=c++17", "-arch=sm_89", "-Werror", "all-warnings")
    built = run("nvcc", *strict, "-o", "refusals", "attention.cu", "main.cpp", cwd=folder)
    printed = run("./refusals", cwd=folder).stdout.split()
    scratch = TEMPLATE.module.scratch(make_chosen(SMALL, **axes).values, SMALL)  # type: ignore[attr-defined]
    invalid, misaligned = "1", "716"

    assert (0, "") == (built.returncode, built.stderr)
    assert str(-(-scratch["arrivals"] // 256) * 256 + scratch["partials"]) == printed[0]
    assert [*[invalid] * 9, misaligned] == printed[1:]


def simulate(folder: Path, problem: AttentionProblem) -> Path:
    """The bundle's test, linked with a runtime and a kernel that are plain C++."""
    lay_out(folder, problem)
    sources = ("attention_test.cpp", str(Path(__file__).with_name("fake_cuda_runtime.cpp")))
    # nvcc hands C++ to the host's compiler, and knows where CUDA's headers are.
    built = run("nvcc", "-std=c++17", "-O2", "-cudart", "none", "-I.", "-o", "simulated", *sources, cwd=folder)
    assert 0 == built.returncode, built.stderr
    return folder / "simulated"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("simulated") / "bundle", SMALL)


@pytest.fixture(scope="module")
def simulated_tall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("simulated") / "bundle", TALL)


@needs_nvcc
@pytest.mark.parametrize(
    ("bug", "code", "says"),
    [
        ("none", 0, "right"),
        ("no device", 77, "no GPU"),
        ("launch fails", 1, "an error"),
        ("last key dropped", 1, "WRONG"),
        ("wrong head", 1, "WRONG"),
        ("wrong lse", 1, "WRONG"),
        ("last row unwritten", 1, "nan"),
        ("race", 1, "differs from the first"),
        ("lse race", 1, "differs from the first"),
        ("out of bounds", 1, "outside the output"),
    ],
)
def test_the_bundles_test_tells_right_from_wrong(simulated: Path, bug: str, code: int, says: str) -> None:
    done = run(str(simulated), cwd=simulated.parent, env={"FAKE_BUG": bug})

    assert code == done.returncode, done.stdout
    assert says in done.stdout + done.stderr


@needs_nvcc
@pytest.mark.parametrize(
    ("bug", "code", "says"),
    [
        ("none", 0, "right"),
        ("a row between unwritten", 1, "row 20: nan"),
        ("an lse between unwritten", 1, "row 20: log-sum-exp is nan"),
    ],
)
def test_rows_that_are_not_compared_must_be_written(simulated_tall: Path, bug: str, code: int, says: str) -> None:
    done = run(str(simulated_tall), cwd=simulated_tall.parent, env={"FAKE_BUG": bug})

    assert code == done.returncode, done.stdout
    assert says in done.stdout


def test_an_empty_folder_is_filled_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(Path("."), "bundle", {"a": b"1"}, force=False)

    assert {"a", "evoengine.json"} == set(os.listdir("."))


def test_a_template_without_a_bundle_says_so(tmp_path: Path) -> None:
    template = load_template(make_template(tmp_path / "mine"))
    chosen = dataclasses.replace(make_chosen(), template=template)

    with pytest.raises(UserError, match=r"template mine has no bundle/CMakeLists.txt"):
        bundle_files(chosen)


# *** folders ***


def test_an_earlier_export_is_replaced_and_what_lies_beside_it_stays(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_folder(folder, "bundle", {"a": b"1", "kernel/b": b"2"}, force=False)
    (folder / "build").mkdir()
    (folder / "build" / "a.o").write_text("mine")
    with pytest.raises(UserError, match=r"out exists: give --force"):
        write_folder(folder, "bundle", {"a": b"3"}, force=False)
    write_folder(folder, "bundle", {"a": b"3"}, force=True)

    assert b"3" == (folder / "a").read_bytes()
    assert not (folder / "kernel" / "b").exists()
    assert "mine" == (folder / "build" / "a.o").read_text()
    assert ["out"] == os.listdir(tmp_path)


@pytest.mark.parametrize(
    "listing",
    [
        None,
        "not JSON",
        '{"format": "evoengine torch package", "files": {}}',
        '{"format": "evoengine bundle", "files": {"../precious": ""}}',
        '{"format": "evoengine bundle", "files": {"/precious": ""}}',
        '{"format": "evoengine bundle"}',
        "[]",
        pytest.param("[" * 100_000, id="nested"),
        pytest.param(" " * (2 << 20), id="large"),
    ],
)
def test_a_folder_of_others_is_left_alone_even_with_force(tmp_path: Path, listing: str | None) -> None:
    (tmp_path / "precious").write_text("mine")
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "main.cpp").write_text("mine")
    if listing is not None:
        (folder / "evoengine.json").write_text(listing)
    before = sorted(folder.iterdir())

    with pytest.raises(UserError, match=r"is no bundle that `evoengine export` wrote"):
        write_folder(folder, "bundle", {"main.cpp": b"ours"}, force=True)
    assert before == sorted(folder.iterdir())
    assert "mine" == (tmp_path / "precious").read_text() == (folder / "main.cpp").read_text()


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(UserError, match=r"cannot write .*file/out \(File exists\)"):
        write_folder(tmp_path / "file" / "out", "bundle", {"a": b""}, force=False)
    with pytest.raises(UserError, match=r"cannot write .*out \(File name too long\)"):
        write_folder(tmp_path / "out", "bundle", {"a": b"", 300 * "b": b""}, force=False)
    assert [tmp_path / "file"] == list(tmp_path.iterdir())


def test_a_header_becomes_a_bundle_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = tmp_path / "best.h"
    header.write_text(render_header(make_chosen().facts))
    stale = tmp_path / "stale.h"
    stale.write_text(render_header(make_chosen(digest="f" * 16).facts))

    def export(*options: str) -> int:
        return main(["export", *options, "--format", "bundle", "-o", str(tmp_path / "out")])

    assert 2 == export(str(stale))
    assert 2 == export(str(header), str(header))
    assert 2 == export(str(header), "--trial", "3")
    lines = capsys.readouterr().err.splitlines()
    assert ["has changed since", "a bundle is of one config", "a header is of one trial"] == [
        next(
            words
            for words in ("has changed since", "a bundle is of one config", "a header is of one trial")
            if words in one
        )
        for one in lines
    ]
    assert not (tmp_path / "out").exists()
    assert 0 == export(str(header))
    assert "5.000 us, as measured before it was exported on 2026-01-02" in capsys.readouterr().out
    assert header.read_text() == (tmp_path / "out" / "config.h").read_text()
    assert 0 == export(str(stale), "--force")
