"""Compilers that hang, crash or are shot, and engines that die: nothing is left running and nobody else is blamed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from evoengine.build import Builder, BuildRequest
from evoengine.build.cache import ABANDONED_SECONDS, read_result
from evoengine.errors import EvoengineError
from evoengine.template import Template, load_template
from evoengine.verdict import Artifact, Gate, Rejection

pytestmark = pytest.mark.usefixtures("no_orphans")

ROOT = Path(__file__).resolve().parent.parent
SCALE = ROOT / "tests" / "templates" / "scale"

# Stands in for nvcc: a driver that answers for its version, starts a compiler proper as its child, and succeeds,
# except for candidates with EVO_ITEMS=7.
FAKE_NVCC = """#!/bin/sh
case "$*" in
  --version) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit 0;;
  *-DEVO_ITEMS=7*) {misbehave};;
esac
for word in "$@"; do
  case "$before" in -o) echo cubin > "$word";; --keep-dir) echo ptx > "$word/kernel.ptx";; esac
  before=$word
done
echo "ptxas info    : Compiling entry function 'evo_scale' for 'sm_89'"
echo "ptxas info    : Used 10 registers"
"""


def request(items: int) -> BuildRequest:
    return BuildRequest({"EVO_THREADS": 32, "EVO_ITEMS": items}, 0)


def processes_below(folder: Path) -> set[int]:
    """Ids of live processes that work in `folder`, as ninja, the workers and all compilers do."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")).is_relative_to(folder):
                found.add(int(process.name))
        except OSError:  # gone meanwhile, or a zombie: those have no folder
            continue
    return found


def stat_of(process: int) -> tuple[str, int]:
    """Name and parent of a process; empty and 0 when it is gone."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return "", 0
    name, _, rest = text.partition("(")[2].rpartition(")")
    return name, int(rest.split()[1])


def names_below(folder: Path) -> dict[int, str]:
    return {process: stat_of(process)[0] for process in processes_below(folder)}


def parent_of(process: int) -> int:
    return stat_of(process)[1]


def eventually(condition: Callable[[], bool]) -> bool:
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "home"
    yield folder
    for process in processes_below(folder):
        os.kill(process, signal.SIGKILL)


@pytest.fixture
def template() -> Template:
    return load_template(SCALE)


@pytest.fixture
def fake_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def install(misbehave: str) -> None:
        path = tmp_path / "cuda" / "bin" / "nvcc"
        path.parent.mkdir(parents=True)
        path.write_text(FAKE_NVCC.format(misbehave=misbehave))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))

    return install


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """A template that NVRTC never finishes for EVO_ITEMS=7: it includes a pipe that nobody writes to."""
    folder = Path(shutil.copytree(SCALE, tmp_path / "scale"))
    os.mkfifo(tmp_path / "never")
    kernel = folder / "kernel.cu"
    kernel.write_text(f'#if EVO_ITEMS == 7\n#include "{tmp_path}/never"\n#endif\n{kernel.read_text()}')
    return folder


def test_a_hanging_nvrtc_is_killed_and_its_chunk_goes_on(home: Path, hanging: Path) -> None:
    with Builder(load_template(hanging), "sm_89", jobs=1, deadline_seconds=3.0, home=home) as builder:
        before, hung, after = builder.build([request(1), request(7), request(2)])

    assert isinstance(before, Artifact)
    assert isinstance(after, Artifact)
    assert isinstance(hung, Rejection)
    assert (Gate.TIMEOUT, "compile exceeded its deadline of 3 s") == (hung.gate, hung.reason)
    assert 3.0 <= hung.evidence["build_seconds"]
    assert set() == processes_below(home)
    assert {before.folder, after.folder} == set(home.glob("builds/*/*"))  # a deadline is not kept


FRONT_END_BOMB = """
template <int N, int M> struct Tree {
  static constexpr int value = Tree<N - 1, M>::value + Tree<N - 1, M + (1 << N)>::value;
};
template <int M> struct Tree<0, M> { static constexpr int value = M; };
__device__ int bomb() { return Tree<30, 0>::value; }
"""
OPTIMISER_BOMB = """
#define TEN(x) x x x x x x x x x x
extern "C" __global__ void bomb(float* p, float x, int i) { TEN(TEN(TEN(TEN(x = sinf(x) * p[i += 3]; p[i] = x;)))) }
"""


@pytest.mark.parametrize("bomb", [FRONT_END_BOMB, OPTIMISER_BOMB], ids=["front end", "optimiser"])
def test_a_compile_that_wants_too_much_memory_fails_alone(home: Path, tmp_path: Path, bomb: str) -> None:
    folder = Path(shutil.copytree(SCALE, tmp_path / "scale"))
    kernel = folder / "kernel.cu"
    kernel.write_text(f"#if EVO_ITEMS == 7\n{bomb}#endif\n{kernel.read_text()}")
    limit = 300 << 20
    with Builder(load_template(folder), "sm_89", jobs=1, memory_bytes=limit, home=home) as builder:
        before, starved, after = builder.build([request(1), request(7), request(2)])

    assert isinstance(starved, Rejection)
    assert Gate.COMPILE == starved.gate
    assert re.fullmatch(r"compiler out of memory: 0\.\d\d GiB in use, it may map 0\.293 GiB", starved.reason)
    assert limit == starved.evidence["memory_bytes"]
    assert limit // 3 < starved.evidence["peak_bytes"] <= limit
    assert "out of memory" in starved.evidence["log_tail"]
    assert isinstance(before, Artifact)
    assert isinstance(after, Artifact)
    assert {before.folder, after.folder} == set(home.glob("builds/*/*"))  # another day there may be more memory
    assert set() == processes_below(home)


def test_nvccs_own_processes_have_the_same_limit(
    home: Path, template: Template, fake_nvcc: Callable[[str], None]
) -> None:
    """The fake's child asks Python for 1 GiB, which says MemoryError where it is told to print like cicc."""
    hungry = "try: b'x' * (1 << 30)\nexcept MemoryError: print('LLVM ERROR: out of memory')"
    fake_nvcc(f'"{sys.executable}" -c "{hungry}"; exit 1')
    with Builder(template, "sm_89", compiler="nvcc", jobs=1, memory_bytes=512 << 20, home=home) as builder:
        starved, fine = builder.build([request(7), request(1)])

    assert isinstance(starved, Rejection)
    assert starved.reason.endswith("it may map 0.5 GiB")
    assert isinstance(fine, Artifact)


def test_a_deadline_takes_the_compilers_children_along(
    home: Path, template: Template, fake_nvcc: Callable[[str], None]
) -> None:
    fake_nvcc("sleep 600 & sleep 600")
    results, gone = [], []
    with Builder(template, "sm_89", compiler="nvcc", jobs=1, deadline_seconds=2.0, home=home) as builder:
        for _, result in builder.stream([request(7), request(1)]):
            results.append(result)
            gone.append(eventually(lambda: "sleep" not in names_below(home).values()))
    hung, fine = results

    assert isinstance(hung, Rejection)
    assert Gate.TIMEOUT == hung.gate
    assert isinstance(fine, Artifact)
    assert [True, True] == gone
    assert set() == processes_below(home)


def test_a_shot_worker_takes_its_hanging_compile_along(home: Path, hanging: Path) -> None:
    """Else the compile would hold the channel open, and the engine would wait for it without a deadline."""
    done = threading.Event()

    def shoot_workers() -> None:
        while not done.wait(0.05):
            parents = {process: parent_of(process) for process in processes_below(home)}
            names = names_below(home)
            for process, parent in parents.items():
                if names.get(parent) == "ninja" and process in parents.values():  # a worker with its compile running
                    os.kill(process, signal.SIGKILL)

    builder = Builder(load_template(hanging), "sm_89", jobs=1, deadline_seconds=600.0, home=home)
    shooter = threading.Thread(target=shoot_workers)
    shooter.start()
    give_up = threading.Timer(60.0, builder.close)  # ends the build with an error
    give_up.start()
    try:
        (lost,) = builder.build([request(7)])
    finally:
        done.set()
        give_up.cancel()
        shooter.join()

    assert isinstance(lost, Rejection)
    assert (Gate.COMPILE, "compile worker died twice without a result") == (lost.gate, lost.reason)
    assert set() == processes_below(home)


@pytest.mark.parametrize(
    ("misbehave", "reason"),
    [
        ("kill -SEGV $$", "compiler killed by signal 11"),
        ("echo \"nvcc error   : 'cicc' died due to signal 9\"; exit 9", "compiler killed by signal 9"),
        # The parent is the worker: it dies twice, and the second time nobody else was on its edge.
        ("kill -KILL $PPID; sleep 600", "compile worker died twice without a result"),
    ],
)
def test_a_crash_is_blamed_on_its_candidate_alone(
    home: Path, template: Template, fake_nvcc: Callable[[str], None], misbehave: str, reason: str
) -> None:
    fake_nvcc(misbehave)
    with Builder(template, "sm_89", compiler="nvcc", jobs=1, home=home) as builder:
        crashed, *others = builder.build([request(items) for items in (7, 1, 2, 3)])

    assert isinstance(crashed, Rejection)
    assert (Gate.COMPILE, reason) == (crashed.gate, crashed.reason)
    assert [Artifact] * 3 == [type(other) for other in others]
    assert 3 == len(list(home.glob("builds/*/*")))  # a crash is not kept
    assert eventually(lambda: not processes_below(home))


@contextmanager
def engine(home: Path, template: Path) -> Iterator[subprocess.Popen[str]]:
    """An engine in a process of its own that builds one candidate and then hangs in another."""
    script = f"""
import signal
from pathlib import Path
from evoengine.build import Builder, BuildRequest
from evoengine.template import load_template
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
template = load_template(Path({str(template)!r}))
with Builder(template, "sm_89", jobs=2, deadline_seconds=600.0, home=Path({str(home)!r})) as builder:
    requests = [BuildRequest({{"EVO_THREADS": 32, "EVO_ITEMS": items}}, 0) for items in (7, 1)]
    for index, _ in builder.stream(requests):
        print(index, flush=True)
"""
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_flags_from_the_environment_do_not_reach_nvcc(
    home: Path, template: Template, fake_nvcc: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvcc('[ -z "$NVCC_APPEND_FLAGS$NVCC_PREPEND_FLAGS" ] || exit 1')
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-G")
    monkeypatch.setenv("NVCC_PREPEND_FLAGS", "-O0")
    with Builder(template, "sm_89", compiler="nvcc", home=home) as builder:
        (result,) = builder.build([request(7)])

    assert isinstance(result, Artifact)


def test_compilers_leave_the_cores_to_others(home: Path, template: Template, fake_nvcc: Callable[[str], None]) -> None:
    fake_nvcc('[ "$(nice)" -ge 10 ] || exit 1')
    with Builder(template, "sm_89", compiler="nvcc", home=home) as builder:
        (result,) = builder.build([request(7)])

    assert isinstance(result, Artifact)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_ctrl_c_leaves_no_process_and_no_half_built_entry(home: Path, hanging: Path) -> None:
    with engine(home, hanging) as process:
        assert "1\n" == first_line(process)
        process.send_signal(signal.SIGINT)

        assert -signal.SIGINT == process.wait(timeout=60)
    assert set() == processes_below(home)
    assert [] == list((home / "work").iterdir())
    assert [True] == [read_result(entry) is not None for entry in home.glob("builds/*/*")]


def test_a_killed_engine_leaves_no_process(home: Path, hanging: Path) -> None:
    with engine(home, hanging) as process:
        assert "1\n" == first_line(process)
        assert set() != processes_below(home)
        process.kill()

    assert eventually(lambda: not processes_below(home))
    assert [True] == [read_result(entry) is not None for entry in home.glob("builds/*/*")]


def test_two_engines_on_one_cache_do_not_disturb_each_other(home: Path) -> None:
    """Both want the same twenty configs, one of them damaged and four of them refused, in opposite order."""
    script = """
import json, sys
from pathlib import Path
from evoengine.build import Builder, BuildRequest
from evoengine.template import load_template
home, template, step = Path(sys.argv[1]), load_template(Path(sys.argv[2])), int(sys.argv[3])
configs = [(threads, items) for threads in (32, 33, 64, 96, 128) for items in (1, 2, 3, 4)][::step]
requests = [BuildRequest({"EVO_THREADS": threads, "EVO_ITEMS": items}, 0) for threads, items in configs]
with Builder(template, "sm_89", jobs=2, home=home) as builder:
    results = builder.build(requests)
told = [getattr(result, "cubin_sha256", None) or result.reason for result in results]
print(json.dumps(sorted(zip(configs, told))))
"""
    with Builder(load_template(SCALE), "sm_89", home=home) as builder:
        (damaged,) = builder.build([request(1)])
    assert isinstance(damaged, Artifact)
    damaged.cubin.write_bytes(b"")
    engines = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(home), str(SCALE), step], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for step in ("1", "-1")
    ]
    one, other = (json.loads(engine.communicate(timeout=100)[0]) for engine in engines)

    assert [0, 0] == [engine.returncode for engine in engines]
    assert one == other
    assert 16 == len({told for _, told in one if "rule" not in told})
    assert [damaged.cubin_sha256] == [told for config, told in one if config == [32, 1]]
    assert [True] * 20 == [read_result(entry) is not None for entry in home.glob("builds/*/*")]
    assert [] == list((home / "work").iterdir())
    assert set() == processes_below(home)


def test_the_compilers_go_on_while_a_result_is_looked_at_and_end_with_the_iterator(home: Path, hanging: Path) -> None:
    with Builder(load_template(hanging), "sm_89", jobs=2, deadline_seconds=600.0, home=home) as builder:
        stream = builder.stream([request(7), request(1)])
        index, _ = next(stream)
        running = processes_below(home)
        stream.close()

    assert 1 == index
    assert set() != running
    assert set() == processes_below(home)


def test_builds_begin_before_the_first_result_is_asked_for(home: Path, template: Template) -> None:
    with Builder(template, "sm_89", jobs=1, home=home) as builder, closing(builder.stream([request(1)])) as building:
        assert eventually(lambda: bool(list(home.glob("work/*/*/result.json"))))
        [(index, artifact)] = building

    assert 0 == index
    assert isinstance(artifact, Artifact)


def test_a_stream_that_is_closed_before_it_is_read_leaves_nothing(home: Path, hanging: Path) -> None:
    with Builder(load_template(hanging), "sm_89", jobs=1, deadline_seconds=600.0, home=home) as builder:
        stream = builder.stream([request(7)])
        running = processes_below(home)
        stream.close()

    assert set() != running
    assert set() == processes_below(home)
    assert [] == list((home / "work").iterdir())


def test_several_streams_share_the_jobs(
    home: Path, template: Template, fake_nvcc: Callable[[str], None], tmp_path: Path
) -> None:
    """Each compile notes how many run; a job that is free is taken by whichever stream has work."""
    (tmp_path / "running").mkdir()
    fake_nvcc(f"(cd {tmp_path / 'running'}; touch $$; ls | wc -l >> ../counts; sleep 0.2; rm $$); exit 1")
    with Builder(template, "sm_89", compiler="nvcc", jobs=2, home=home) as builder:
        streams = [
            builder.stream([BuildRequest({"EVO_THREADS": 2 * at + one, "EVO_ITEMS": 7}, 0) for one in (0, 1)])
            for at in (1, 2, 3)
        ]
        results = [result for stream in streams for _, result in stream]

    counts = [int(line) for line in (tmp_path / "counts").read_text().split()]
    assert 6 == len(results) == len(counts)
    assert {1, 2} >= set(counts)
    assert 2 in counts


def test_close_from_another_thread_ends_a_build(home: Path, hanging: Path) -> None:
    builder = Builder(load_template(hanging), "sm_89", jobs=2, deadline_seconds=600.0, home=home)
    started = threading.Event()

    def close() -> None:
        started.wait()
        builder.close()

    def build() -> None:
        for _ in builder.stream([request(7), request(1)]):
            started.set()

    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(EvoengineError, match="closed during a build"):
        build()
    closer.join()

    assert set() == processes_below(home)


def test_work_folders_of_the_killed_are_swept_after_a_day(home: Path, template: Template) -> None:
    for name in ("old", "young"):
        (home / "work" / name).mkdir(parents=True)
    yesterday = time.time() - ABANDONED_SECONDS - 60
    os.utime(home / "work" / "old", (yesterday, yesterday))
    with Builder(template, "sm_89", home=home) as builder:
        builder.build([request(1)])

    assert ["young"] == [folder.name for folder in (home / "work").iterdir()]
