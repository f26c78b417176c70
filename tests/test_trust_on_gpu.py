"""All proofs in a given time: each in its turn, the one that is too slow is interrupted and may end itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.trust.on_gpu import SCRIPTS, run_all


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_failure_does_not_keep_the_others_from_their_turn(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_all([("one", python("print('first')")), ("two", python(""))], 60.0)
    assert not run_all([("bad", python("raise SystemExit(3)")), ("good", python("print('its turn')"))], 60.0)
    out = capfd.readouterr().out

    assert out.index("first") < out.index("one: passed")
    assert "its turn" in out
    assert out.splitlines()[-1].startswith("bad: FAILED (3)")


def test_what_is_too_slow_is_interrupted_and_writes_down_what_it_has(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    slow = f"""
import time
try:
    time.sleep(60)
finally:
    open({str(kept)!r}, "w").write("half")
"""

    assert not run_all([("slow", python(slow)), ("late", python(""))], 2.0)
    assert "half" == kept.read_text()
    assert "slow: out of time" in capfd.readouterr().out.splitlines()[-1]


def test_every_script_is_there() -> None:
    folder = Path(__file__).resolve().parents[1] / "benchmarks" / "trust"

    assert all((folder / f"{name}.py").exists() for name, *_ in SCRIPTS)
