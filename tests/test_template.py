"""Loading a template folder: modules beside template.py, and folders of one name."""

from __future__ import annotations

from pathlib import Path

import pytest

from evoengine.errors import UserError
from evoengine.template import load_template

SCALE = Path(__file__).parent / "templates" / "scale"


def folder(place: Path, work: str) -> Path:
    """A template named `mine` whose work() is in a module beside it, and is what `work` says."""
    made = place / "mine"
    made.mkdir(parents=True)
    host = (SCALE / "template.py").read_text()
    for name in ("kernel.cu", "config.cuh"):
        (made / name).write_bytes((SCALE / name).read_bytes())
    (made / "template.py").write_text(f"{host}\n\nfrom .cost import work\n")
    write(made, work)
    return made


def write(made: Path, work: str) -> None:
    (made / "cost.py").write_text(f"def work(values, problem):\n    return {work!r}\n")


def work(made: Path) -> object:
    return load_template(made).module.work({}, None)  # type: ignore[arg-type]  # what is asked for does not read them


def test_a_module_beside_it_is_part_of_it_and_of_its_digest(tmp_path: Path) -> None:
    made = folder(tmp_path, "ours")
    before = load_template(made)

    assert "ours" == before.module.work({}, None)  # type: ignore[arg-type]
    assert "cost.py" in before.sources
    write(made, "edited")
    assert before.digest != load_template(made).digest


def test_an_edit_is_seen_by_the_next_load_and_not_by_what_is_loaded(tmp_path: Path) -> None:
    made = folder(tmp_path, "before")
    first = load_template(made)
    write(made, "since the edit")

    assert "since the edit" == work(made)
    assert "before" == first.module.work({}, None)  # type: ignore[arg-type]


def test_folders_of_one_name_do_not_share_modules(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "a", "one"), folder(tmp_path / "b", "other")

    assert ["one", "other", "one"] == [work(one), work(other), work(one)]


def test_what_fails_in_a_module_beside_it_is_told(tmp_path: Path) -> None:
    made = folder(tmp_path, "ours")
    (made / "cost.py").write_text("import nunpy\n")

    with pytest.raises(UserError, match=r"mine/template.py does not run: ModuleNotFoundError: No module named 'nunpy'"):
        load_template(made)
    (made / "cost.py").unlink()
    with pytest.raises(UserError, match=r"mine/template.py does not run: .*cost"):
        load_template(made)
