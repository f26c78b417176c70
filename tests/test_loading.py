"""`evoengine.load` without a GPU: which call goes to which kernel, with what arguments, and when PyTorch does it."""

from __future__ import annotations

import ast
import contextlib
import ctypes
import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import empty_database
from cuda.bindings import driver
from documented import ROOT, blocks
from fake_deployed import FakeCards
from measured_study import BEST, PROBLEM, SPACE, TEMPLATE, cubin, make_chosen, spec_of, write_study
from torch.nn.functional import scaled_dot_product_attention as sdpa

import evoengine
from evoengine import loading
from evoengine.archive.archive import Archive
from evoengine.cli import main, sources
from evoengine.devices.cuda import attention
from evoengine.devices.cuda.attention import Attention
from evoengine.devices.cuda.deployed import CudaCards
from evoengine.errors import UserError
from evoengine.export.chosen import Chosen
from evoengine.export.gather import wisdom_of
from evoengine.export.header import render_header
from evoengine.problem import AttentionProblem
from evoengine.template import Launch, load_template, shipped

SMALL = AttentionProblem(batch=2, heads=4, kv_heads=2, seq_q=40, seq_k=56)
CAUSAL = AttentionProblem(batch=1, heads=2, seq_q=48, head_dim=32, causal=True)
SPLIT = AttentionProblem(batch=1, heads=2, seq_q=16, seq_k=512)


def tensors(problem: AttentionProblem, seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    keys = (problem.batch, problem.kv_heads, problem.seq_k, problem.head_dim)
    shapes = [(problem.batch, problem.heads, problem.seq_q, problem.head_dim), keys, keys]
    return [torch.randn(shape, generator=random).half() for shape in shapes]


def expected(problem: AttentionProblem, inputs: list[torch.Tensor]) -> torch.Tensor:
    q, k, v = (one.double() for one in inputs)
    return sdpa(q, k, v, is_causal=problem.causal, scale=problem.scale, enable_gqa=True).half()


def tuned(*chosen: Chosen, cards: FakeCards | None = None, **options: Any) -> tuple[Attention, FakeCards]:
    """The function for these configs, whose cubins are known by the digests in their rows."""
    cubins = {one.facts.cubin_sha256: cubin(dict(one.values)) for one in chosen}
    problem = AttentionProblem(**chosen[0].facts.problem)  # type: ignore[arg-type]
    found = cards or FakeCards(problem)
    return Attention(wisdom_of(chosen), TEMPLATE, cubins, cards=found, **options), found


@pytest.fixture
def quiet() -> Any:
    """Every warning is an error, the filter of this suite, also where a library turned it off."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# *** the tuned shape ***


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("problem", "axes"),
    [(SMALL, dict(STAGES=1)), (CAUSAL, dict(STAGES=1)), (SPLIT, dict(SPLIT_KV=4, WARPS_M=1))],
    ids=["grouped heads", "causal", "split keys"],
)
def test_a_tuned_shape_runs_its_cubin_with_its_launch(problem: AttentionProblem, axes: dict[str, int]) -> None:
    chosen = make_chosen(problem, **axes)
    function, cards = tuned(chosen)
    inputs = tensors(problem)
    first = function(*inputs, is_causal=problem.causal, enable_gqa=True)
    again = function(*inputs, is_causal=problem.causal, enable_gqa=True)

    torch.testing.assert_close(expected(problem, inputs), first, rtol=2e-3, atol=1e-3)
    assert first.equal(again)
    assert first.is_contiguous()
    assert [cubin(dict(chosen.values))] == cards.loaded
    assert [TEMPLATE.module.launch(chosen.values, problem)] * 2 == cards.launches


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("changed", "copies"),
    [
        (lambda x: x, 0),
        (lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), 3),  # (batch, seq, heads, head_dim)
        (lambda x: torch.cat((x, x), -1)[..., ::2].contiguous().mT.contiguous().mT, 3),  # innermost not dense
        (lambda x: torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape), 3),  # 2 bytes off
        (lambda x: x[:, :1].expand(x.shape), 3),
    ],
    ids=["contiguous", "transposed", "innermost not dense", "misaligned", "expanded"],
)
def test_any_strides_give_what_contiguous_tensors_give(
    changed: Callable[[torch.Tensor], torch.Tensor], copies: int
) -> None:
    function, cards = tuned(make_chosen(SMALL))
    inputs = [changed(one) for one in tensors(SMALL)]
    plain = [one.contiguous().clone() for one in inputs]
    found = function(*inputs, enable_gqa=True)

    assert found.equal(function(*plain, enable_gqa=True))
    own = {one.data_ptr() for one in inputs}
    assert 3 - copies == len(own & set(cards.addresses[0][:3]))


@pytest.mark.usefixtures("quiet")
def test_the_scale_is_an_argument_of_the_same_kernel() -> None:
    function, cards = tuned(make_chosen(SMALL))
    inputs = tensors(SMALL)
    flat = function(*inputs, scale=1e-6, enable_gqa=True)

    torch.testing.assert_close(
        inputs[2].mean(2, keepdim=True).repeat_interleave(2, 1).expand(flat.shape), flat, rtol=1e-2, atol=1e-2
    )
    function(*inputs, enable_gqa=True)
    assert 1 == len(cards.loaded)


# *** other shapes ***


def test_another_shape_is_pytorchs_with_one_warning_each() -> None:
    function, cards = tuned(make_chosen(SMALL))
    short = [one[:, :, :24].contiguous() for one in tensors(SMALL)]
    for inputs in (short, [one[:1] for one in short]):
        with pytest.warns(UserWarning, match=r"no config for .* was tuned .*PyTorch's own attention") as caught:
            first, second = (function(*inputs, enable_gqa=True) for _ in range(2))
        assert 1 == len(caught)
        assert __file__ == caught[0].filename
        assert first.equal(second)
        assert first.equal(sdpa(*inputs, enable_gqa=True))
    assert [] == cards.launches


def test_the_nearest_size_is_used_where_that_is_wanted() -> None:
    function, cards = tuned(make_chosen(SMALL), sizes=True)
    problem = AttentionProblem(batch=2, heads=4, kv_heads=2, seq_q=24, seq_k=51)
    inputs = tensors(problem)
    with pytest.warns(UserWarning, match=r"no wisdom for this problem .* using that for B2_H4_KV2_S40_K56") as caught:
        found, _ = (function(*inputs, enable_gqa=True) for _ in range(2))

    assert 1 == len(caught)
    torch.testing.assert_close(expected(problem, inputs), found, rtol=2e-3, atol=1e-3)
    assert TEMPLATE.module.launch(SPACE.default, problem) == cards.launches[0]


def test_another_cards_config_is_built_for_the_architecture_that_is_here() -> None:
    function, cards = tuned(make_chosen(SMALL, "h200"))
    with pytest.warns(UserWarning, match="on NVIDIA L4: using that for .* on NVIDIA H200"):
        found = function(*tensors(SMALL), enable_gqa=True)

    torch.testing.assert_close(expected(SMALL, tensors(SMALL)), found, rtol=2e-3, atol=1e-3)
    assert cards.loaded[0].startswith(b"\x7fELF")


def test_a_cubin_that_is_not_here_is_built_and_a_difference_is_told() -> None:
    chosen = make_chosen(SMALL, compiler="NVRTC 12.0")
    cards = FakeCards(SMALL)
    function = Attention(wisdom_of([chosen]), TEMPLATE, {}, cards=cards)

    with pytest.warns(UserWarning, match=r"NVRTC 1\S+ makes another cubin than NVRTC 12.0, which was measured"):
        function(*tensors(SMALL), enable_gqa=True)
    assert cards.loaded[0].startswith(b"\x7fELF")


def test_of_several_shapes_and_cards_each_has_its_own() -> None:
    other = AttentionProblem(batch=2, heads=4, kv_heads=2, seq_q=24)
    function, cards = tuned(
        make_chosen(SMALL, STAGES=1), make_chosen(SMALL, "h200", STAGES=3), make_chosen(other, STAGES=4)
    )
    for problem in (SMALL, other):
        function(*tensors(problem), enable_gqa=True)
    cards.card, cards.architecture = "NVIDIA H200", "sm_90a"
    function._ready.clear()
    function(*tensors(SMALL), enable_gqa=True)

    assert [1, 4, 3] == [dict(ast.literal_eval(image.decode()))["STAGES"] for image in cards.loaded]


@pytest.mark.parametrize(
    ("changed", "options", "says"),
    [
        (lambda q, k, v: (q[0], k[0], v[0]), {}, "not of shape"),
        (lambda q, k, v: (q.float(), k.float(), v.float()), {}, "dtype='fp32'"),
        (lambda q, k, v: (q, k, v), {"enable_gqa": False}, "need enable_gqa=True"),
        (lambda q, k, v: (q, k, v[..., :32]), {}, "do not go with it"),
        (lambda q, k, v: (q[..., :24], k[..., :24], v[..., :24]), {}, "head_dim=24"),
        (lambda q, k, v: (q, k, v), {"is_causal": True}, "causal was tuned"),
        (lambda q, k, v: (q, k, v), {"attn_mask": torch.ones(40, 56, dtype=torch.bool)}, "attn_mask is given"),
        (lambda q, k, v: (q, k, v), {"dropout_p": 0.5}, "dropout_p is given"),
        (lambda q, k, v: (q.requires_grad_(), k, v), {}, "gradients are recorded"),
        (lambda q, k, v: (q[:, :, :0], k, v), {}, "empty"),
        (lambda q, k, v: (q, k, v), {"scale": -1.0}, "scale=-1.0"),
        (lambda q, k, v: (q, k, v), {"scale": 0.0}, "scale=0"),
    ],
)
def test_what_no_kernel_here_does_is_pytorchs_with_the_reason(
    changed: Callable[..., tuple[torch.Tensor, ...]], options: dict[str, Any], says: str
) -> None:
    function, cards = tuned(make_chosen(SMALL))
    inputs = changed(*tensors(SMALL))
    if says == "need enable_gqa=True":  # PyTorch refuses it, and says so itself
        with pytest.warns(UserWarning, match=says), pytest.raises(RuntimeError):
            function(*inputs, **options)
        return
    torch.manual_seed(0)  # for dropout
    with pytest.warns(UserWarning, match=says):
        found = function(*inputs, **{"enable_gqa": True, **options})
    torch.manual_seed(0)

    assert found.equal(sdpa(*inputs, **{"enable_gqa": True, **options}))
    assert [] == cards.launches
    if found.requires_grad:
        found.sum().backward()
        assert inputs[0].grad is not None


def test_a_first_call_inside_a_capture_says_what_to_do() -> None:
    function, cards = tuned(make_chosen(SMALL))
    cards.in_capture = True
    with pytest.raises(RuntimeError, match=r"inside a CUDA graph capture.*call it once before"):
        function(*tensors(SMALL), enable_gqa=True)
    cards.in_capture = False
    function(*tensors(SMALL), enable_gqa=True)
    cards.in_capture = True

    torch.testing.assert_close(
        expected(SMALL, tensors(SMALL)), function(*tensors(SMALL), enable_gqa=True), rtol=2e-3, atol=1e-3
    )


def test_a_launch_is_in_torchs_context_and_on_its_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CudaCards asks of the driver, in order, by a driver that only listens."""
    heard: list[tuple[Any, ...]] = []

    def listen(name: str, *answer: Any) -> None:
        def function(*arguments: Any) -> tuple[Any, ...]:
            heard.append((name, *arguments))
            return (driver.CUresult.CUDA_SUCCESS, *answer)

        monkeypatch.setattr(driver, name, function)

    for name, answer in (("cuDeviceGet", 5), ("cuDevicePrimaryCtxRetain", "context"), ("cuModuleLoadData", "module")):
        listen(name, answer)
    listen("cuModuleGetFunction", "function")
    for name in ("cuInit", "cuCtxSetCurrent", "cuFuncSetAttribute", "cuLaunchKernel"):
        listen(name)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    cards, device = CudaCards(), torch.device("cuda", 0)
    kernel = cards.load(device, b"cubin", "evo_attention", 70_000)
    loaded, heard[:] = list(heard), []
    parameters = ((1, 2), (ctypes.c_void_p, ctypes.c_int))
    cards.start(device, kernel, Launch((3, 4, 5), 128, 70_000), parameters)

    assert [("cuCtxSetCurrent", "context"), ("cuModuleLoadData", b"cubin")] == loaded[3:5]
    assert ("cuFuncSetAttribute", "function", 70_000) == (*loaded[-1][:2], loaded[-1][3])
    assert ("cuCtxSetCurrent", "context") == heard[0]
    assert [("cuLaunchKernel", "function", 3, 4, 5, 128, 1, 1, 70_000, 77, parameters, 0)] == heard[1:]


# *** torch.compile ***


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_calls_it_without_a_graph_break(backend: str) -> None:
    function, cards = tuned(make_chosen(SMALL))

    def model(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return 2 * function(q.transpose(1, 2), k, v, enable_gqa=True).flatten(2)

    q, k, v = tensors(SMALL)
    q = q.transpose(1, 2).contiguous()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    found = compiled(q, k, v)

    assert found.equal(model(q, k, v))
    assert 2 == len(cards.launches)
    with pytest.warns(UserWarning, match="no config for .* was tuned"):
        other = compiled(q[:1], k[:1], v[:1])
    assert other.equal(2 * sdpa(q[:1].transpose(1, 2), k[:1], v[:1], enable_gqa=True).flatten(2))


def test_the_operator_keeps_its_promises() -> None:
    function, _ = tuned(make_chosen(SMALL))
    q, k, v = tensors(SMALL)
    for query in (q, q.transpose(1, 2).contiguous().transpose(1, 2)):
        arguments = (query, k, v, False, None, True, function._number)
        torch.library.opcheck(attention._operator, arguments, test_utils=("test_schema", "test_faketensor"))


# *** load ***


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a study, and what `export` makes of it."""
    folder = tmp_path_factory.mktemp("exported")
    database = empty_database(folder / "studies.db")
    archive = Archive.open(str(database))
    write_study(archive, spec_of(SMALL))
    archive.close()
    for form, name in (("header", "best.h"), ("wisdom", "attention.wisdom"), ("torch", "package")):
        options = ["--format", form, "-o", str(folder / name), "--storage", str(database)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sources, "check_trial", lambda *_: None)  # the study's cubins are made up
            assert 0 == main(["export", "measured", *options])
    return folder


@pytest.mark.parametrize("source", ["measured", "best.h", "attention.wisdom", "package"])
def test_every_source_gives_the_same_config(folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    cards = FakeCards(SMALL)
    monkeypatch.setattr(attention, "CudaCards", lambda: cards)
    function = evoengine.load(source, storage="studies.db")
    brings_cubin = source in ("measured", "package")
    with warnings.catch_warnings():
        warnings.simplefilter("error" if brings_cubin else "ignore")
        found = function(*tensors(SMALL), enable_gqa=True)

    torch.testing.assert_close(expected(SMALL, tensors(SMALL)), found, rtol=2e-3, atol=1e-3)
    values = {**SPACE.default, **BEST}
    assert [TEMPLATE.module.launch(values, SMALL)] == cards.launches
    assert brings_cubin == (cards.loaded == [cubin(values)])


def test_a_package_needs_nothing_of_where_it_was_made(folder: Path, tmp_path: Path) -> None:
    listing = json.loads((folder / "package" / "evoengine.json").read_text())
    moved = tmp_path / "moved"
    (folder / "package").rename(moved)
    try:
        function = evoengine.load(moved)
    finally:
        moved.rename(folder / "package")

    assert {"attention.wisdom", "attention/kernel.cu", "attention/template.py"} < set(listing["files"])
    assert 1 == sum(name.endswith(".cubin") for name in listing["files"])
    assert TEMPLATE.digest == function._template.digest


def test_a_package_holds_several_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = AttentionProblem(batch=2, heads=4, kv_heads=2, seq_q=24)
    for name, one in (("a.h", make_chosen(SMALL, STAGES=1)), ("b.h", make_chosen(other, STAGES=4))):
        (tmp_path / name).write_text(render_header(one.facts))
    headers = [str(tmp_path / "a.h"), str(tmp_path / "b.h")]
    cards = FakeCards(SMALL)
    monkeypatch.setattr(attention, "CudaCards", lambda: cards)

    assert 0 == main(["export", *headers, "--format", "torch", "-o", str(tmp_path / "package")])
    for function in (evoengine.load(tmp_path / "package"), evoengine.load(*headers)):
        with pytest.warns(UserWarning, match="another cubin"):  # the headers' cubins are made up
            found = [function(*tensors(problem), enable_gqa=True) for problem in (SMALL, other)]
        assert [SMALL.seq_q, other.seq_q] == [one.shape[2] for one in found]
    assert 4 == len(cards.launches)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: (path / "attention.wisdom").write_text("{}"), "was changed since it was exported"),
        (lambda path: (path / "attention" / "kernel.cu").write_text(""), "was changed since"),
        (lambda path: (path / "attention" / "template.py").unlink(), "No such file"),
        (lambda path: (path / "evoengine.json").unlink(), "export it again"),
        (lambda path: (path / "evoengine.json").write_text("[]"), "export it again"),
        (lambda path: (path / "evoengine.json").write_text("[" * 100_000), "no torch package .*: give a folder"),
        (lambda path: (path / "evoengine.json").write_text(" " * (2 << 20)), r"evoengine.json has more than 1,048,576"),
        (lambda path: (path / "evoengine.json").write_text('{"format": "evoengine bundle"}'), "evoengine bundle"),
    ],
)
def test_a_package_that_was_damaged_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[Path], Any], says: str
) -> None:
    shutil.copytree(folder / "package", tmp_path / "package")
    change(tmp_path / "package")

    with pytest.raises(UserError, match=says):
        evoengine.load(tmp_path / "package")


def test_what_cannot_be_loaded_is_one_line(folder: Path, tmp_path: Path) -> None:
    storage = str(folder / "studies.db")
    (tmp_path / "stale.h").write_text(render_header(make_chosen(digest="f" * 16).facts))
    (tmp_path / "guess.h").write_text(render_header(make_chosen(us=None).facts))
    (tmp_path / "lse.h").write_text(render_header(make_chosen(AttentionProblem(lse=True)).facts))
    (tmp_path / "x.wisdom").write_text("{}")
    for source, says in (
        ("stale.h", "has changed since .* that it was exported from with template=FOLDER$"),
        ("guess.h", "was never measured; load, torch and wisdom take measured configs only: resume its study"),
        ("lse.h", "log-sum-exp"),
        ("x.wisdom", "is no wisdom file"),
        ("nowhere.h", "does not exist"),
        ("", r"evoengine.json cannot be read .*: give a folder that `evoengine export --format torch` wrote"),
    ):
        with pytest.raises(UserError, match=says):
            evoengine.load(tmp_path / source, storage=storage)
    with pytest.raises(UserError, match="did you mean measured"):
        evoengine.load("measurd", storage=storage)
    with pytest.raises(UserError, match=r"start one with `evoengine search`, or name another with storage=$"):
        evoengine.load(storage=str(tmp_path / "none.db"))


def test_a_header_of_another_kernel_is_not_told_to_be_measured_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(make_chosen(us=None), template=load_template(shipped("kernel_templates") / "rmsnorm"))
    monkeypatch.setattr(sources, "find_chosen", lambda *_, **__: [other])
    (tmp_path / "rmsnorm.h").write_text(render_header(other.facts))

    with pytest.raises(UserError, match=r"^template rmsnorm is not attention, all that evoengine\.load can call$"):
        evoengine.load(tmp_path / "rmsnorm.h")


def test_what_to_do_is_said_in_words_of_python(folder: Path, tmp_path: Path) -> None:
    """No option of the command line, and a path that reads like one stays as it is."""
    own = tmp_path / "say --template DIR"
    shutil.copytree(TEMPLATE.folder, own / "attention", ignore=shutil.ignore_patterns("__pycache__"))
    (own / "best.h").write_text(render_header(make_chosen(digest="f" * 16).facts))
    shutil.copyfile(folder / "studies.db", own / "studies.db")
    archive = Archive.open(str(own / "studies.db"))
    elsewhere = dataclasses.replace(spec_of(name="elsewhere"), template_folder=str(own / "attention"))
    write_study(archive, elsewhere)
    write_study(archive, dataclasses.replace(spec_of(name="moved"), template_digest="f" * 16))
    archive.close()
    for source, says in (
        (str(own / "best.h"), "say --template DIR/best.h has changed since .* exported from with template=FOLDER$"),
        ("elsewhere", "if you trust it, name it yourself with template=FOLDER$"),
        ("moved", r"\(what was built before is still cached\)$"),
    ):
        with pytest.raises(UserError, match=says):
            evoengine.load(source, storage=str(own / "studies.db"))
    with pytest.raises(UserError, match=r"has no space\.py: give its search space with --space FILE to `evoeng"):
        evoengine.load(own / "best.h", template=own / "attention")


def test_a_file_is_read_up_to_a_bound(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MAX_BYTES", 100)

    with pytest.raises(UserError, match=r"attention.wisdom has more than 100 bytes: give wisdom or a header"):
        evoengine.load(folder / "attention.wisdom")
    with pytest.raises(UserError, match=r"has more than 100 bytes: give a folder that `evoengine export"):
        evoengine.load(folder / "package")


def test_wisdom_from_elsewhere_starts_no_code_that_it_names(folder: Path, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "kernel.cu").write_text("")
    (planted / "template.py").write_text("raise SystemExit('the code of a file from elsewhere ran')\n")
    text = (folder / "attention.wisdom").read_text()
    assert '"attention"' in text
    (tmp_path / "x.wisdom").write_text(text.replace('"attention"', json.dumps(str(planted)), 1))

    with pytest.raises(UserError, match="which is not shipped: say where it is with template=FOLDER"):
        evoengine.load(tmp_path / "x.wisdom")


def test_the_package_has_nothing_else_that_is_lazy() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        evoengine.lode  # noqa: B018

    assert evoengine.load is evoengine.load
    assert 512 == PROBLEM.seq_q


def test_a_function_says_what_is_tuned_in_it() -> None:
    function, _ = tuned(make_chosen(SMALL, us=5.0), make_chosen(CAUSAL, us=7.25))

    assert f"{SMALL.label} on NVIDIA L4: 5.000 us" in repr(function)
    assert f"{CAUSAL.label} on NVIDIA L4: 7.250 us" in repr(function)


@pytest.mark.parametrize("page", ["README.md", "docs/formats.md"])
def test_a_page_s_code_computes_attention(page: str) -> None:
    """On the CPU, with a shipped header for the study or the folder that the page names."""
    [code] = [block for _, block in blocks(ROOT / page, "python") if "evoengine.load(" in block]
    header = str(ROOT / "studies" / "elites" / "B1_H8_S512_D64_fp16_l4.h")
    for name in ('"STUDY"', '"attention_kernels"'):
        code = code.replace(name, repr(header))
    known: dict[str, Any] = {}
    with pytest.warns(UserWarning, match="tensors are on cpu: PyTorch's own attention is used"):
        exec(code.replace('"cuda"', '"cpu"'), known)

    wanted = sdpa(known["q"], known["k"], known["v"], is_causal="is_causal=True)" in code)
    assert torch.equal(wanted, known["out"])
