"""Real compiles of a tiny template: results, the cache, and the errors a user can run into."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evoengine.build import Builder, BuildRequest, cache_home, compiling, find_toolchain
from evoengine.build import cache as cache_module
from evoengine.build.cache import Result, entry_folder, publish, read_result
from evoengine.build.graph import chunks
from evoengine.build.toolchain import Compiler
from evoengine.errors import TemplateError, UserError
from evoengine.template import load_template
from evoengine.verdict import Artifact, Gate, Rejection

SCALE = Path(__file__).parent / "templates" / "scale"
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")


def request(threads: int = 64, items: int = 2, smem_bytes: int = 0, **more: int) -> BuildRequest:
    return BuildRequest({"EVO_THREADS": threads, "EVO_ITEMS": items, **more}, smem_bytes)


def build(
    home: Path, requests: list[BuildRequest], template: Path = SCALE, arch: str = "sm_89"
) -> list[Artifact | Rejection]:
    with Builder(load_template(template), arch, jobs=2, home=home) as builder:
        return builder.build(requests)


def build_one(home: Path, one: BuildRequest, template: Path = SCALE) -> Artifact:
    (result,) = build(home, [one], template)
    assert isinstance(result, Artifact)
    return result


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A copy of the template, to be spoilt."""
    return Path(shutil.copytree(SCALE, tmp_path / "scale"))


@pytest.fixture
def no_compiling(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        def fail(*arguments: object) -> None:
            raise AssertionError("this should have come from the cache")

        monkeypatch.setattr(compiling, "NinjaRun", fail)

    return forbid


@pytest.mark.parametrize("compiler", ["nvrtc", pytest.param("nvcc", marks=needs_nvcc)])
def test_a_batch_comes_back_in_order_with_resources_and_ptx(tmp_path: Path, compiler: Compiler) -> None:
    requests = [request(threads=64, smem_bytes=4096), request(threads=33), request(threads=128)]
    with Builder(load_template(SCALE), "sm_89", compiler=compiler, jobs=2, home=tmp_path) as builder:
        first, refused, last = builder.build(requests)

    assert isinstance(first, Artifact)
    assert isinstance(last, Artifact)
    assert isinstance(refused, Rejection)
    # one float per thread is staged in shared memory, behind barrier 0
    assert (256, 4096, 1) == (
        first.resources.static_smem_bytes,
        first.resources.smem_bytes,
        first.resources.barriers,
    )
    assert (512, 0, 0) == (last.resources.static_smem_bytes, last.resources.smem_bytes, last.resources.spill_bytes)
    assert 0 < first.resources.registers <= 32
    assert b"\x7fELF" == first.cubin.read_bytes()[:4]
    assert ".target sm_89" in first.ptx.read_text()
    assert ".entry evo_scale(" in first.ptx.read_text()
    assert builder.toolchain.version == first.compiler
    assert (Gate.COMPILE, "whole_warps") == (refused.gate, refused.evidence["rule"])
    assert not any((tmp_path / "work").iterdir())


def test_every_macro_reaches_the_cubin(tmp_path: Path) -> None:
    results = build(tmp_path, [request(threads, items) for threads in (32, 64) for items in (1, 2)])

    assert 4 == len({result.cubin_sha256 for result in results if isinstance(result, Artifact)})


def test_equal_kernels_have_equal_cubins_wherever_they_are_built(tmp_path: Path) -> None:
    here = build_one(tmp_path / "a", request())
    there = build_one(tmp_path / "b", request())
    unused = build_one(tmp_path / "a", request(EVO_UNUSED=1))

    assert here.digest == there.digest
    assert here.digest != unused.digest
    assert {here.cubin_sha256} == {there.cubin_sha256, unused.cubin_sha256}


def test_cubins_and_compile_errors_are_built_once(tmp_path: Path, no_compiling: Callable[[], None]) -> None:
    fresh = build(tmp_path, [request(), request(threads=33)])
    no_compiling()
    again = build(tmp_path, [request(threads=33), request()])

    assert isinstance(fresh[0], Artifact)
    assert isinstance(again[1], Artifact)
    assert (False, True) == (fresh[0].cached, again[1].cached)
    assert fresh[0].build_seconds == again[1].build_seconds > 0.0
    assert fresh[0].resources == again[1].resources
    assert fresh[1] == again[0]


def test_requests_with_one_binary_share_a_build(tmp_path: Path) -> None:
    with Builder(load_template(SCALE), "sm_89", home=tmp_path) as builder:
        seen, (first, twin) = zip(*builder.stream([request(), request(smem_bytes=512)]), strict=True)

    assert isinstance(first, Artifact)
    assert isinstance(twin, Artifact)
    assert first.digest == twin.digest
    assert (0, 512) == (first.resources.smem_bytes, twin.resources.smem_bytes)
    assert (0, 1) == seen
    assert 1 == len(list(tmp_path.glob("builds/*/*")))


def truncate_cubin(entry: Path) -> None:
    cubin = (entry / "kernel.cubin").read_bytes()
    (entry / "kernel.cubin").write_bytes(cubin[:-1])


def empty_cubin(entry: Path) -> None:
    (entry / "kernel.cubin").write_bytes(b"")


def garble_cubin(entry: Path) -> None:
    cubin = bytearray((entry / "kernel.cubin").read_bytes())
    cubin[len(cubin) // 2] ^= 1
    (entry / "kernel.cubin").write_bytes(cubin)


def truncate_ptx(entry: Path) -> None:
    ptx = (entry / "kernel.ptx").read_bytes()
    (entry / "kernel.ptx").write_bytes(ptx[: len(ptx) // 2])


def lose_result(entry: Path) -> None:
    (entry / "result.json").unlink()


def garble_result(entry: Path) -> None:
    (entry / "result.json").write_bytes(os.urandom(300))


def empty_folder(entry: Path) -> None:
    for path in entry.iterdir():
        path.unlink()


def edit_log(entry: Path) -> None:
    log = (entry / "build.log").read_text()
    (entry / "build.log").write_text(re.sub(r"Used (\d+) registers", "Used 1 registers", log))


def truncate_result(entry: Path) -> None:
    result = (entry / "result.json").read_text()
    (entry / "result.json").write_text(result[: len(result) // 2])


def lose_ptx(entry: Path) -> None:
    (entry / "kernel.ptx").unlink()


def forget_files(entry: Path) -> None:
    record = json.loads((entry / "result.json").read_text())
    (entry / "result.json").write_text(json.dumps(record | {"sha256": {}}))


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return build_one(tmp_path_factory.mktemp("intact"), request())


DAMAGES = [
    truncate_cubin, empty_cubin, garble_cubin, edit_log, truncate_ptx, lose_ptx, truncate_result, garble_result,
    lose_result, forget_files, empty_folder,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_rebuilt(
    tmp_path: Path, intact: Artifact, damage: Callable[[Path], None], no_compiling: Callable[[], None]
) -> None:
    home = tmp_path / "home"
    shutil.copytree(intact.folder.parents[2], home)
    damage(entry_folder(home, intact.digest))
    rebuilt = build_one(home, request())
    no_compiling()

    assert not rebuilt.cached
    assert (intact.cubin_sha256, intact.resources) == (rebuilt.cubin_sha256, rebuilt.resources)
    assert build_one(home, request()).cached
    assert ["builds", "lock", "work"] == sorted(path.name for path in home.iterdir())
    assert [] == list((home / "work").iterdir())


def test_a_damaged_entry_that_a_twin_moves_aside_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = build_one(tmp_path / "a", request()).folder
    final = build_one(tmp_path / "b", request()).folder
    truncate_cubin(final)

    def look(folder: Path) -> Result | None:
        found = read_result(folder)
        final.rename(tmp_path / "aside")
        return found

    monkeypatch.setattr(cache_module, "read_result", look)
    publish(mine, final)

    assert read_result(final) is not None
    assert not mine.exists()


def test_the_loser_of_a_race_leaves_the_winner_in_place(tmp_path: Path) -> None:
    winner = build_one(tmp_path / "a", request())
    loser = build_one(tmp_path / "b", request())
    marker = winner.folder.stat().st_ino
    publish(loser.folder, winner.folder)

    assert marker == winner.folder.stat().st_ino
    assert read_result(winner.folder) is not None


def test_the_digest_covers_sources_arch_and_compiler(tmp_path: Path, own: Path) -> None:
    base = build_one(tmp_path, request())
    (other_arch,) = build(tmp_path, [request()], arch="sm_90")
    assert isinstance(other_arch, Artifact)
    with (own / "config.cuh").open("a") as header:
        header.write("// a comment\n")
    edited = build_one(tmp_path, request(), own)

    assert 3 == len({base.digest, other_arch.digest, edited.digest})
    assert base.cubin_sha256 == edited.cubin_sha256
    assert base.cubin_sha256 != other_arch.cubin_sha256


def test_an_edit_during_a_run_is_for_the_next_one(tmp_path: Path, own: Path) -> None:
    """What is compiled is what was hashed: a build under the old digest must not be of the new sources."""
    template = load_template(own)
    with Builder(template, "sm_89", home=tmp_path / "home") as builder:
        builder.build([request(threads=32)])
        kernel = (own / "kernel.cu").read_text()
        (own / "kernel.cu").write_text(f"#error edited\n{kernel}")
        (before,) = builder.build([request(threads=64)])
    (after,) = build(tmp_path / "home", [request(threads=64)], own)

    assert isinstance(before, Artifact)
    assert isinstance(after, Rejection)
    assert "edited" in after.reason


@pytest.mark.parametrize("compiler", ["nvrtc", pytest.param("nvcc", marks=needs_nvcc)])
def test_a_macro_that_no_config_gives_breaks_the_template(tmp_path: Path, compiler: Compiler) -> None:
    builder = Builder(load_template(SCALE), "sm_89", compiler=compiler, home=tmp_path)
    with builder, pytest.raises(TemplateError, match="EVO_ITEMS"):
        builder.build([BuildRequest({"EVO_THREADS": 32}, 0)])

    assert not list(tmp_path.glob("builds/*/*"))


def test_a_kernel_under_another_name_breaks_the_template(tmp_path: Path, own: Path) -> None:
    kernel = own / "kernel.cu"
    kernel.write_text(kernel.read_text().replace("evo_scale", "evo_other"))
    with pytest.raises(TemplateError, match="evo_scale; it defines evo_other"):
        build(tmp_path / "home", [request()], own)


@pytest.mark.parametrize("compiler", ["nvrtc", pytest.param("nvcc", marks=needs_nvcc)])
def test_an_architecture_that_the_compiler_does_not_know(tmp_path: Path, compiler: Compiler) -> None:
    builder = Builder(load_template(SCALE), "sm_77", compiler=compiler, home=tmp_path)
    with builder, pytest.raises(UserError, match="cannot compile for sm_77"):
        builder.build([request()])


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot use the cache folder .*file/home.* set EVOENGINE_HOME"):
        build(tmp_path / "file" / "home", [request()])


def test_a_disk_that_takes_no_more_is_not_the_candidates_fault(tmp_path: Path) -> None:
    """The file-size limit stands in for a full disk: ninja's files fit below 2000 bytes, the cubin does not."""
    script = f"""
import resource
from pathlib import Path
from evoengine.build import Builder, BuildRequest
from evoengine.build.toolchain import Compiler
from evoengine.errors import UserError
from evoengine.template import load_template
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    Builder(load_template(Path({str(SCALE)!r})), "sm_89", home=Path({str(tmp_path)!r})).build(
        [BuildRequest({{"EVO_THREADS": 32, "EVO_ITEMS": 1}}, 0)]
    )
except UserError as error:
    print(error)
"""
    root = Path(__file__).resolve().parent.parent
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, timeout=60)

    assert "" == run.stderr
    assert f"cannot use the cache folder {tmp_path} ([Errno 27] File too large" in run.stdout


@pytest.mark.parametrize(("variable", "names"), [("CUDA_HOME", "CUDA_HOME="), ("PATH", "PATH")])
def test_no_nvcc_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, names: str) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(UserError, match=f"nvcc is not in {names}.*install the CUDA toolkit"):
        find_toolchain("nvcc")


def test_no_nvrtc_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / "__init__.py").touch()  # hides the real one, and has no bindings
    script = "from evoengine.build import find_toolchain; find_toolchain('nvrtc')"
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, env=environment)

    assert (
        "evoengine.errors.UserError: NVRTC is not usable (ModuleNotFoundError: No module named 'cuda.bindings'): "
        "pip install cuda-bindings nvidia-cuda-nvrtc, or use --compiler nvcc"
    ) == run.stderr.splitlines()[-1]


def test_ctrl_c_still_wakes_the_engine_after_a_build(tmp_path: Path) -> None:
    """It would not if NVRTC had run in this process: see toolchain.py."""
    script = f"""
import os, signal, subprocess
from pathlib import Path
from evoengine.build import Builder, BuildRequest
from evoengine.template import load_template
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
with Builder(load_template(Path({str(SCALE)!r})), "sm_89", home=Path({str(tmp_path)!r})) as builder:
    builder.build([BuildRequest({{"EVO_THREADS": 32, "EVO_ITEMS": 1}}, 0)])
never, _ = os.pipe()
with subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -INT {{os.getpid()}}"]):
    try:
        os.read(never, 1)
    except KeyboardInterrupt:
        print("woken")
"""
    root = Path(__file__).resolve().parent.parent
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, timeout=60)

    assert ("woken\n", "") == (run.stdout, run.stderr)


def test_the_toolchains_are_told_apart() -> None:
    toolchain = find_toolchain("nvrtc")

    assert re.fullmatch(r"NVRTC \d+\.\d+\.\d+", toolchain.version)
    assert toolchain == find_toolchain("nvrtc")
    if shutil.which("nvcc"):
        assert toolchain.digest != find_toolchain("nvcc").digest


def test_the_cache_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    homes = []
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setenv("EVOENGINE_HOME", "/builds")
    for variable in ("EVOENGINE_HOME", "XDG_CACHE_HOME", "HOME"):
        homes.append(str(cache_home()))
        monkeypatch.delenv(variable)

    assert ["/builds", "/caches/evoengine", "/home/someone/.cache/evoengine"] == homes


@pytest.mark.parametrize(
    ("count", "jobs", "elsewhere", "sizes"),
    [
        (1, 2, 0, [1]),
        (5, 2, 0, [3, 2]),
        (8, 2, 0, [4, 4]),
        (20, 2, 0, [4, 4, 3, 3, 3, 3]),
        (16, 16, 0, [1] * 16),
        (17, 16, 0, [2] + [1] * 15),
        (3, 16, 0, [1] * 3),
        (1, 2, 7, [1]),
        (4, 2, 1, [1] * 4),
        (2, 2, 14, [2]),
        (4, 16, 28, [1] * 4),
        (4, 16, 12, [1] * 4),
        (8, 16, 56, [1] * 8),
        (8, 16, 57, [2] * 4),
        (16, 2, 100, [4, 3, 3, 3, 3]),
    ],
)
def test_chunks_are_small_equal_and_keep_every_job_busy(
    count: int, jobs: int, elsewhere: int, sizes: list[int]
) -> None:
    names = [str(number) for number in range(count)]
    parts = chunks(names, jobs, elsewhere)

    assert sizes == [len(part) for part in parts]
    assert sorted(names) == sorted(name for part in parts for name in part)


def test_an_entry_is_where_its_digest_says(tmp_path: Path) -> None:
    artifact = build_one(tmp_path, request())

    assert entry_folder(tmp_path, artifact.digest) == artifact.folder
    assert ["build.log", "kernel.cubin", "kernel.ptx", "result.json"] == sorted(
        path.name for path in artifact.folder.iterdir()
    )


def test_only_what_the_digest_covers_can_be_included(tmp_path: Path, own: Path) -> None:
    (own / "extra.inc").write_text("#define EXTRA 1\n")
    (own / "config.cuh").write_text((own / "config.cuh").read_text() + '#include "extra.inc"\n')
    (result,) = build(tmp_path / "home", [request()], own)

    assert "extra.inc" not in load_template(own).sources
    assert isinstance(result, Rejection)
    assert "extra.inc" in result.reason
