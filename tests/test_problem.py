"""Problems: what `--shape` may say, how much work a mask leaves, and names that never clash."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evoengine.errors import UserError
from evoengine.problem import HEAD_DIMS, AttentionProblem, make_problem, parse_shape, problem_digest, problem_fields

FIELDS = {
    "batch": st.integers(1, 70),
    "kv_heads": st.integers(1, 4),
    "group": st.integers(1, 4),
    "seq_q": st.integers(1, 600),
    "seq_k": st.integers(1, 600),
    "head_dim": st.sampled_from(HEAD_DIMS),
    "dtype": st.sampled_from(("fp16", "bf16")),
    "causal": st.booleans(),
    "diagonal": st.integers(-700, 700),
    "scale": st.floats(1e-6, 1e6),
    "lse": st.booleans(),
}
"""Every degree of freedom of an attention problem; `group` is heads over kv_heads."""


def problem(**freedoms: object) -> AttentionProblem:
    group = freedoms.pop("group")
    if not freedoms["causal"]:
        freedoms.pop("diagonal")
    return AttentionProblem(heads=freedoms["kv_heads"] * group, **freedoms)  # type: ignore[operator, arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", AttentionProblem()),
        ("1,8,512,64", AttentionProblem()),
        ("batch=2", AttentionProblem(batch=2)),
        ("2,16,512,head_dim=64", AttentionProblem(batch=2, heads=16)),
        (" 2 , 16 , 100 , 128 ", AttentionProblem(batch=2, heads=16, seq_q=100, head_dim=128)),
        ("1,8,512,64,causal", AttentionProblem(causal=True)),
        ("causal,1,8,512,64", AttentionProblem(causal=True)),
        ("causal=true", AttentionProblem(causal=True)),
        ("causal=True", AttentionProblem(causal=True)),
        ("causal=1", AttentionProblem(causal=True)),
        ("causal=0", AttentionProblem()),
        ("causal=false", AttentionProblem()),
        ("dtype=bf16", AttentionProblem(dtype="bf16")),
        ("heads=32, kv_heads=8, seq_k=77", AttentionProblem(heads=32, kv_heads=8, seq_k=77)),
        ("causal,diagonal=-3", AttentionProblem(causal=True, diagonal=-3)),
        ("scale=0.5", AttentionProblem(scale=0.5)),
        ("1,8,512,64,lse,causal", AttentionProblem(causal=True, lse=True)),
        ("1,8,512,64,,", AttentionProblem()),
    ],
)
def test_a_shape_is_read_as_written(text: str, expected: AttentionProblem) -> None:
    assert expected == parse_shape(AttentionProblem, text)


@given(st.fixed_dictionaries(FIELDS))
def test_a_problem_survives_being_written_as_a_shape(freedoms: dict[str, object]) -> None:
    written = problem(**freedoms)
    text = ",".join(f"{name}={value}" for name, value in problem_fields(written).items())

    assert written == parse_shape(AttentionProblem, text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,8,512,64,7", ("7 is one number too many", "seq_k=7")),
        ("1,8,seq=512", ("unknown field 'seq'", "seq_q")),
        ("1,8,512,64,casual", ("unknown field 'casual'", "causal")),
        ("1.5", ("unknown field '1.5'",)),
        ("=4", ("unknown field ''",)),
        ("1,8,batch=2", ("batch is given twice",)),
        ("causal,causal=0", ("causal is given twice",)),
        ("seq_q=many", ("seq_q='many' is not a int",)),
        ("seq_k", ("seq_k='' is not a int",)),
        ("seq_q=5.0", ("seq_q='5.0' is not a int",)),
        ("scale=big", ("scale='big' is not a float",)),
        ("causal=2", ("causal='2' is not a bool",)),
        ("1,--8", ("heads='--8' is not a int",)),
        ("1,²", ("heads='²' is not a int",)),
        ("seq_q=" + 5000 * "9", ("is not a int",)),
        ("4,5", ("'4,5' lacks seq_q, head_dim: its numbers are batch,heads,seq_q,head_dim, as in 4,5,512,64",)),
        ("1,8,512,causal", ("'1,8,512,causal' lacks head_dim", "as in 1,8,512,64")),
        ("1,8,seq_q=512", ("lacks head_dim", "as in 1,8,512,64")),
        ("1,8,-512,64", ("seq_q=-512", "from 1 to 16777216")),
        ("batch=0", ("batch=0", "from 1 to")),
        ("seq_q=16777217", ("seq_q=16777217", "from 1 to 16777216")),
        ("seq_k=-1", ("seq_k=-1", "from 1 to")),
        ("kv_heads=-1", ("kv_heads=-1", "from 1 to")),
        ("1,8,512,80", ("head_dim=80", "32, 64, 96, 128, 256")),
        ("heads=8,kv_heads=3", ("heads=8", "multiple of kv_heads=3")),
        ("heads=4,kv_heads=8", ("heads=4", "multiple of kv_heads=8")),
        ("dtype=fp8", ("dtype='fp8'", "fp16 and bf16")),
        ("dtype", ("dtype=''", "fp16 and bf16")),
        ("scale=-1", ("scale=-1.0", "positive")),
        ("scale=inf", ("scale=inf", "finite")),
        ("scale=nan", ("scale=nan", "finite")),
        ("batch=65536", ("batch=65536", "65535")),
        ("heads=65536", ("heads=65536", "65535")),
        ("diagonal=5", ("diagonal=5", "without causal")),
        ("causal,diagonal=16777217", ("diagonal=16777217", "16777216")),
        ("causal,diagonal=-16777217", ("diagonal=-16777217", "16777216")),
    ],
)
def test_a_shape_that_cannot_be_is_answered_in_one_line_that_names_it(text: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        parse_shape(AttentionProblem, text)
    message = str(error.value)

    assert 2 == error.value.exit_code
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "text",
    ["65535,65535,1,64", "1,1,16777216,64,seq_k=16777216", "causal,diagonal=16777216", "causal,diagonal=-16777216"],
)
def test_the_largest_values_are_still_problems(text: str) -> None:
    assert parse_shape(AttentionProblem, text).flops >= 0


def test_what_is_left_at_zero_follows_from_the_rest() -> None:
    filled = AttentionProblem(heads=6, seq_q=100, head_dim=128)

    assert (6, 100, 128**-0.5) == (filled.kv_heads, filled.seq_k, filled.scale)
    assert filled == AttentionProblem(heads=6, kv_heads=6, seq_q=100, seq_k=100, head_dim=128, scale=128**-0.5)


@pytest.mark.parametrize("seq_k", range(1, 8))
@pytest.mark.parametrize("seq_q", range(1, 8))
def test_a_masks_area_is_its_count_of_visible_pairs(seq_q: int, seq_k: int) -> None:
    row, key = np.arange(seq_q)[:, None], np.arange(seq_k)[None, :]
    for diagonal in range(-12, 13):
        masked = AttentionProblem(seq_q=seq_q, seq_k=seq_k, causal=True, diagonal=diagonal)

        assert int((key <= row + diagonal).sum()) == masked.visible_pairs, masked.label


@given(st.fixed_dictionaries(FIELDS))
def test_work_counts_what_the_mask_lets_through(freedoms: dict[str, object]) -> None:
    asked = problem(**freedoms)
    row, key = np.arange(asked.seq_q)[:, None], np.arange(asked.seq_k)[None, :]
    seen = int((key <= row + asked.diagonal).sum()) if asked.causal else asked.seq_q * asked.seq_k

    assert seen == asked.visible_pairs
    # two matrix products, a multiply and an add each
    assert 2 * 2 * asked.batch * asked.heads * seen * asked.head_dim == asked.flops


def test_work_of_the_mission_shape() -> None:
    mission = AttentionProblem()

    assert ("B1_H8_S512_D64_fp16", 536_870_912, 2_097_152) == (mission.label, mission.flops, mission.bytes_moved)


def test_grouped_heads_read_fewer_keys() -> None:
    grouped = AttentionProblem(batch=2, heads=8, kv_heads=2, seq_q=10, seq_k=30)

    # Q and O: 2 * 8 * 10 rows each; K and V: 2 * 2 * 30 rows each; 64 numbers of 2 bytes a row
    assert (2 * 160 + 2 * 120) * 128 == grouped.bytes_moved


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("2,8,512,64,causal", "B2_H8_S512_D64_fp16_causal"),
        ("1,8,512,64,causal,lse", "B1_H8_S512_D64_fp16_causal_lse"),
        ("causal,diagonal=-3", "B1_H8_S512_D64_fp16_causal-3"),
        ("causal,diagonal=4,dtype=bf16", "B1_H8_S512_D64_bf16_causal+4"),
        ("1,8,10,128,kv_heads=2,seq_k=20,scale=0.25", "B1_H8_KV2_S10_K20_D128_fp16_scale0.25"),
        ("scale=0.125", "B1_H8_S512_D64_fp16"),  # the default of head_dim 64
    ],
)
def test_a_label_shows_what_is_not_usual(text: str, label: str) -> None:
    assert label == parse_shape(AttentionProblem, text).label


@given(st.fixed_dictionaries(FIELDS), st.sampled_from(sorted(FIELDS)), st.data())
def test_no_two_problems_share_a_digest_and_labels_differ_but_for_a_hair_of_scale(
    freedoms: dict[str, object], name: str, data: st.DataObject
) -> None:
    first = problem(**freedoms)
    second = problem(**{**freedoms, name: data.draw(FIELDS[name])})
    assume(first != second)

    assert problem_digest(first) != problem_digest(second)
    close = dataclasses.replace(first, scale=second.scale) == second and f"{first.scale:g}" == f"{second.scale:g}"
    assert close == (first.label == second.label)


def test_fields_are_ready_for_json_and_make_the_problem_again() -> None:
    asked = AttentionProblem(heads=4, kv_heads=2, causal=True, diagonal=3, dtype="bf16", scale=0.3)
    read = json.loads(json.dumps(problem_fields(asked)))

    assert asked == AttentionProblem(**read)
    expected = "batch heads kv_heads seq_q seq_k head_dim dtype causal diagonal scale lse"
    assert expected.split() == list(read)


def test_digests_are_those_of_earlier_releases() -> None:
    # an archive finds its studies by them
    assert "1d2305849c36" == problem_digest(AttentionProblem())
    assert "7e7d9ee90fd9" == problem_digest(AttentionProblem(causal=True, diagonal=-3))


def test_a_shape_is_read_by_types_that_are_not_text_too() -> None:
    """As in a template.py without `from __future__ import annotations`."""
    members = [("rows", int, 4), ("bias", bool, False), ("dtype", str, "fp16")]
    plain = dataclasses.make_dataclass("plain", members, namespace={"POSITIONAL": ("rows",)})

    assert plain(8, True, "bf16") == parse_shape(plain, "8,bias,dtype=bf16")
    with pytest.raises(UserError, match="rows='many' is not a int"):
        parse_shape(plain, "rows=many")
    with pytest.raises(UserError, match="rows='8', which is not a int"):
        make_problem(plain, {"rows": "8"})
