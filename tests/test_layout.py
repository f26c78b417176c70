"""The architecture, enforced: who may import what, how long a module may be, what a start-up may cost."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "evoengine"
MODULES = sorted(PACKAGE.rglob("*.py"))
CODE = [
    *MODULES,
    *(
        path
        for room in ("kernel_templates", "search_spaces", "benchmarks", "tests")
        for path in sorted((ROOT / room).rglob("*.py"))
    ),
]
HEAVY = ("torch", "optuna", "sqlalchemy", "numpy", "cuda")

NOUNS = {"errors", "feasible", "listing", "space", "problem", "verdict", "hardware", "template", "gates"}
LEAVES = {"oracle": {"numpy"}, "dtypes": {"numpy"}}
ROOMS = {
    # third-party package: the only places that may import it
    "torch": ("devices.cuda",),
    "triton": ("devices.cuda",),
    "pynvml": ("devices.cuda",),
    "cuda": ("devices.cuda", "build"),
    "optuna": ("sampler", "archive"),
    "sqlalchemy": ("sampler", "archive"),
}
CLOSED = {
    # room of ours: those that must not import it
    "engine": lambda importer: importer not in ("cli", "__main__") and not importer.startswith("cli."),
    "archive": lambda importer: importer.startswith("devices"),
    "sampler": lambda importer: importer.startswith("devices"),
}


def module_name(path: Path) -> str:
    """`devices.cuda.timer` for evoengine/devices/cuda/timer.py; the package itself is empty."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def imports(path: Path) -> Iterator[str]:
    """Every module that `path` imports when it runs, at any depth; what only type checkers see is left out."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.orelse:
                yield from visit(child)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute, so that these rules can be read off them"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            for child in ast.iter_child_nodes(node):
                yield from visit(child)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")))


def broken_rules(path: Path) -> Iterator[str]:
    importer = module_name(path)
    for imported in imports(path):
        top, _, rest = imported.partition(".")
        ours = rest if top == "evoengine" else None
        if importer in NOUNS | LEAVES.keys():
            allowed = LEAVES.get(importer, set())
            noun = ours is None or ours.partition(".")[0] in NOUNS | LEAVES.keys() | {""}
            if not noun or not (ours is not None or top in allowed or top in sys.stdlib_module_names):
                yield f"{importer} imports {imported}, a noun imports the standard library and other nouns"
        if top in ROOMS and not any(within(importer, room) for room in ROOMS[top]):
            yield f"{importer} imports {imported}, only {' and '.join(ROOMS[top])} may"
        if within(importer, "build") and top == "cuda" and imported not in ("cuda.bindings", "cuda.bindings.nvrtc"):
            yield f"{importer} imports {imported}, build may use cuda.bindings.nvrtc alone"
        for room, closed in CLOSED.items():
            if ours is not None and within(ours, room) and not within(importer, room) and closed(importer):
                yield f"{importer} imports {imported}, which is closed to it"


def test_every_module_stays_in_its_room() -> None:
    assert [] == [rule for path in MODULES for rule in broken_rules(path)]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("space.py", "import numpy"),
        ("gates.py", "from evoengine.build import cache_home"),
        ("oracle.py", "import torch"),
        ("gates.py", "def late():\n    import torch"),
        ("build/builder.py", "import torch"),
        ("build/builder.py", "from cuda.bindings import driver"),
        ("doctor.py", "import sqlalchemy.orm"),
        ("archive/store.py", "from evoengine import engine"),
        ("devices/replay.py", "import evoengine.archive"),
        ("devices/cuda/timer.py", "from evoengine.sampler import proposer"),
    ],
)
def test_the_rules_catch_what_they_forbid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, line: str
) -> None:
    path = tmp_path / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)

    assert [] != list(broken_rules(path))


def test_modules_are_short_and_have_a_purpose() -> None:
    too_long = {path.name: n for path in MODULES if (n := len(path.read_text().splitlines())) > 320}

    assert {} == too_long
    assert [] == [path for path in MODULES if path.stem in {"util", "utils", "helpers", "misc", "common"}]


def test_only_two_environment_variables_are_ours() -> None:
    names = {
        node.value
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"EVOENGINE_[A-Z_]+", node.value)
    }

    assert names <= {"EVOENGINE_HOME"}


@pytest.mark.parametrize(
    "pattern",
    [
        r"\bexcept( Exception| BaseException)?( as \w+)?:\s*(#[^\n]*)?\n\s*pass\b",
        r"\bshell\s*=\s*True",
        r"(?<![\w.])eval\(",
        r"(?<![\w.])exec\(",
        r"\bimport pickle\b",
        r"\bsignal\.SIGALRM\b",
        r"(?<![\w.])random\.(random|choice|shuffle|seed|randint)\(",
    ],
)
def test_what_must_not_exist(pattern: str) -> None:
    found = [path.name for path in MODULES if re.search(pattern, path.read_text())]

    assert [] == found


def committed_texts() -> Iterator[tuple[str, str]]:
    """Tracked text files. A wheel or an export without git has none to check."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        try:
            yield name, (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # an archive or a picture, or deleted and not committed yet


# Letters in brackets keep this list from finding itself.
PRIVATE = [
    r"(?<![\w.~-])/(hom[e]|User[s]|wor[k]|roo[t])/(?!someone\b)\w",
    r"(?<![\w.~-])/tm[p]/\w",
    r"/op[t]/(wheel|pypi)",
    r"\bpyp[i]\.org|\bpythonhoste[d]\.org|download\.pytorc[h]\.org",
    r"-index-ur[l]\b|--find-link[s]\b",
    r"\b(sub)?agen[t]s?\b",
    r"\bchat\s?gp[t]\b|\bclaud[e]\b|\bcopilo[t]\b",
    r"\b10\.\d{1,3}\.\d{1,3}\.\d{1,3}\b|\b192\.16[8]\.\d",
]


def test_the_project_speaks_of_itself_alone() -> None:
    found = [
        f"{name}: {match[0]}"
        for name, text in committed_texts()
        for pattern in PRIVATE
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]

    assert [] == found


def loaded_after(code: str) -> set[str]:
    """Top-level names of the heavy packages that a fresh interpreter has loaded after `code`."""
    report = f"import sys; print('loaded:', *sorted({{name.partition('.')[0] for name in sys.modules}} & set({HEAVY})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.rpartition("loaded:")[2].split())


def test_the_probe_sees_a_heavy_import() -> None:
    assert "numpy" in loaded_after("import numpy")


def test_importing_the_package_and_its_nouns_loads_nothing_heavy() -> None:
    nouns = "\n".join(f"import evoengine.{name}" for name in sorted(NOUNS))

    assert set() == loaded_after(f"import evoengine\n{nouns}")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["search", "--help"], ["export", "--help"], ["replay", "--help"]]
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
from evoengine.cli import main
try:
    main({arguments!r})
except SystemExit as stop:
    assert stop.code in (None, 0), stop.code
"""

    assert set() == loaded_after(code)
