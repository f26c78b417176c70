"""wgmma against the layouts of the PTX ISA, its asynchrony, its proxy, and what a warpgroup must not do."""

from __future__ import annotations

import re

import numpy as np
import pytest
from interpreted import MODES, ONE_MODE, Array, program, run

from evoengine.devices.interpreter import Fault, Mode, Unsupported
from evoengine.dtypes import from_bits, to_bits

SHARED = ".extern .shared .align 1024 .b8 smem[];"
BYTES = 65536
A_AT, B_AT = 0, 32768
STARTED = """.reg .f32 %acc<128>; .reg .b64 %desc<4>;
    ld.param.u64 %d0, [image]; ld.param.u64 %d1, [fragments]; ld.param.u64 %d2, [y];
    mov.u32 %r0, %tid.x; mov.u32 %r1, %warpid; mov.u32 %r2, smem; and.b32 %r3, %r0, 31; setp.eq.u32 %p0, %r0, %r0;
    setp.ne.u32 %p1, %r0, %r0; """
FENCE, ORDER = "fence.proxy.async.shared::cta;", "wgmma.fence.sync.aligned;"
COMMIT, WAIT = "wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;"
SMEM_A = "%desc0"
REGISTERS_A = "{%r10, %r11, %r12, %r13}"


def swizzled(tile: Array, stride: int, leading: int, *, across: bool) -> Array:
    """The bytes of a (rows, depth) tile in 128-byte swizzle: atoms of 8 lines of 8 chunks, chunk c of line l at c ^ l.

    A line is 64 elements along the depth, or `across` of it.
    """
    image = np.zeros(BYTES // 2, np.uint16)
    for i, k in np.ndindex(tile.shape):
        line, along = (k, i) if across else (i, k)
        atom = line // 8 * stride + along // 64 * leading
        chunk = along % 64 // 8 ^ line % 8
        image[(atom + line % 8 * 128 + chunk * 16) // 2 + along % 8] = tile[i, k]
    return image


def descriptor(at: int, stride: int = 1024, leading: int = 16, swizzle: int = 1, base: int = 0) -> int:
    return at >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | base << 49 | swizzle << 62


def fill(threads: int = 128) -> str:
    """Copy the image to shared memory with stores."""
    code = "mad.wide.u32 %d4, %r0, 16, %d0; mad.lo.u32 %r5, %r0, 16, %r2;"
    for at in range(0, BYTES, 16 * threads):
        code += (
            f"ld.global.v4.u32 {{%r6, %r7, %r8, %r9}}, [%d4+{at}]; st.shared.v4.u32 [%r5+{at}], {{%r6, %r7, %r8, %r9}};"
        )
    return code


def mma(
    a: str, b: str = "%desc1", adds: str = "%p1", columns: int = 64, dtype: str = "f16", transposed: str = "0, 0"
) -> str:
    d = ", ".join(f"%acc{i}" for i in range(columns // 2))
    flags = transposed[3:] if a[0] == "{" else transposed
    kind = f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{dtype}.{dtype}"
    return f"{kind} {{{d}}}, {a}, {b}, {adds}, 1, 1, {flags};"


def point(a: int, b: int) -> str:
    return f"mov.b64 %desc0, {a}; mov.b64 %desc1, {b};"


def store(columns: int = 64) -> str:
    stores = "".join(f"st.global.f32 [%d5+{4 * i}], %acc{i};" for i in range(columns // 2))
    return f"mad.wide.u32 %d5, %r0, {2 * columns}, %d2; {stores}"


def clear(columns: int = 64, value: str = "0f40E00000") -> str:
    """Accumulators that hold 7."""
    return "".join(f"mov.f32 %acc{i}, {value};" for i in range(columns // 2))


def results(
    body: str, image: Array, *, fragments: Array | None = None, columns: int = 64, threads: int = 128,
    modes: tuple[Mode, ...] = MODES,
) -> list[Array]:  # fmt: skip
    """D of the first warpgroup for each mode, as the ISA lays it out over lanes."""
    given: dict[str, Array] = {
        "image": image,
        "fragments": np.zeros(1, np.uint32) if fragments is None else fragments,
        "y": np.zeros((threads, columns // 2), np.float32),
    }
    done = run(STARTED + body, given, threads=threads, smem_bytes=BYTES, before=SHARED, modes=modes)
    matrices = []
    for left in done:
        held = left["y"].reshape(threads, columns // 2)
        matrix = np.empty((64, columns), np.float32)
        for thread, i in np.ndindex(128, columns // 2):
            row = thread // 32 * 16 + thread % 32 // 4 + (8 if i % 4 >= 2 else 0)
            matrix[row, i // 4 * 8 + thread % 4 * 2 + i % 2] = held[thread, i]
        matrices.append(matrix)
    return matrices


def register_fragments(a: Array) -> Array:
    """(128, depth / 16, 4) words: the A fragments of mma.m16n8k16, a warp's 16 rows each."""
    words = np.empty((128, a.shape[1] // 16, 8), np.uint16)
    for thread, step, i in np.ndindex(words.shape):
        row = thread // 32 * 16 + thread % 32 // 4 + (8 if i // 2 % 2 else 0)
        words[thread, step, i] = a[row, 16 * step + thread % 4 * 2 + i % 2 + (8 if i >= 4 else 0)]
    return words.view(np.uint32)


def load_fragments(step: int) -> str:
    return f"mad.wide.u32 %d6, %r0, 64, %d1; ld.global.v4.u32 {REGISTERS_A}, [%d6+{16 * step}];"


def operands(dtype: str, columns: int = 64) -> tuple[Array, Array, Array]:
    """Bits of A (64, 64) and B transposed (columns, 64), and the product of their depths 16-31 and 48-63."""
    rng = np.random.default_rng(11)
    a, b = (to_bits(rng.integers(-4, 5, (rows, 64)).astype(np.float32), dtype) for rows in (64, columns))
    steps = [slice(16, 32), slice(48, 64)]
    product = sum(from_bits(a[:, k], dtype) @ from_bits(b[:, k], dtype).T for k in steps)
    return a, b, np.asarray(product)  # small integers: exact in any order


@pytest.mark.parametrize(("ptx_type", "dtype"), [("f16", "fp16"), ("bf16", "bf16")])
@pytest.mark.parametrize("a_in", ["registers", "rows", "columns"])
@pytest.mark.parametrize("b_across", [False, True])
@pytest.mark.parametrize("columns", [8, 64, 128])
def test_products_of_operands_as_the_isa_lays_them_out(
    ptx_type: str, dtype: str, a_in: str, b_across: bool, columns: int
) -> None:
    """Two steps of the depth, the first of which throws away what the accumulators held."""
    a, b, expected = operands(dtype, columns)
    a_across, a_stride, b_stride, b_leading = a_in == "columns", 1024, (2048 if columns < 128 else 1024), 16384
    image = np.roll(swizzled(b, b_stride, b_leading, across=b_across), B_AT // 2)
    image |= swizzled(a, a_stride, 0, across=a_across)
    flags = f"{int(a_across)}, {int(b_across)}"
    body = fill() + FENCE + "bar.sync 0;" + clear(columns) + ORDER
    for step, adds in ((1, "%p1"), (3, "%p0")):
        a_at = A_AT + step * (2 * a_stride if a_across else 32)
        b_at = B_AT + step * (2 * b_stride if b_across else 32)
        body += point(descriptor(a_at, a_stride), descriptor(b_at, b_stride, b_leading)) + load_fragments(step)
        body += mma(REGISTERS_A if a_in == "registers" else SMEM_A, "%desc1", adds, columns, ptx_type, flags)
    body += COMMIT + WAIT + store(columns)

    for matrix in results(body, image, fragments=register_fragments(a), columns=columns):
        assert np.array_equal(expected, matrix)


def simple(before: str = FENCE + "bar.sync 0;" + ORDER, after: str = COMMIT + WAIT, **changed: int) -> str:
    """Accumulators of 7, the product of A and B at depth 0 on top, stored."""
    at = {"a": descriptor(A_AT), "b": descriptor(B_AT), **changed}
    return fill() + clear() + point(at["a"], at["b"]) + before + mma(SMEM_A, adds="%p0") + after + store()


def tiles() -> tuple[Array, Array]:
    """The image that `simple` multiplies, and its result."""
    a, b, _ = operands("fp16")
    image = swizzled(a, 1024, 0, across=False) | np.roll(swizzled(b, 1024, 0, across=False), B_AT // 2)
    return image, from_bits(a[:, :16], "fp16") @ from_bits(b[:, :16], "fp16").T + 7


def test_the_predicate_adds_to_what_the_accumulators_hold() -> None:
    image, expected = tiles()
    thrown_away = simple().replace("%p0, 1, 1", "%p1, 1, 1")

    assert np.array_equal([expected] * 4, results(simple(), image))
    assert np.array_equal([expected - 7] * 4, results(thrown_away, image))


@pytest.mark.parametrize(
    "at", [{"a": descriptor(A_AT, 2048)}, {"b": descriptor(B_AT, 512)}, {"b": descriptor(B_AT + 32)}]
)
def test_a_wrong_descriptor_gives_wrong_numbers(at: dict[str, int]) -> None:
    image, expected = tiles()

    assert not np.array_equal(expected, results(simple(**at), image, modes=ONE_MODE)[0])


def test_the_swizzle_is_one_of_addresses_not_of_rows() -> None:
    """A tile that begins between multiples of 1024 bytes is read as hardware reads it: not as it was meant."""
    image, expected = tiles()
    body, moved = simple(b=descriptor(B_AT + 512)), image.copy()
    moved[B_AT // 2 :] = np.roll(image[B_AT // 2 :], 256)

    assert not np.array_equal(expected, results(body, moved, modes=ONE_MODE)[0])
    for byte in range(B_AT + 512, B_AT + 512 + 8192, 2):  # element of row r, byte c: at r * 128 + c, XOR of the address
        row, column = divmod(byte - B_AT - 512, 128)
        meant = B_AT + row * 128 + (column ^ row % 8 << 4)
        moved[(byte ^ (byte >> 7 & 7) << 4) // 2] = image[meant // 2]
    assert np.array_equal(expected, results(body, moved, modes=ONE_MODE)[0])


def test_accumulators_are_there_once_they_are_waited_for() -> None:
    image, expected = tiles()
    made, left = expected, np.full((64, 64), 7, np.float32)

    for after in (COMMIT, WAIT, COMMIT + "wgmma.wait_group.sync.aligned 1;"):  # no wait, no group, not this group
        assert np.array_equal([made, made, left, left], results(simple(after=after), image))


def test_a_wait_lets_the_newest_groups_be() -> None:
    """The first product is done, the second, of a group of its own, need not be."""
    image, expected = tiles()
    after = COMMIT + mma(SMEM_A, adds="%p0") + COMMIT + "wgmma.wait_group.sync.aligned 1;"
    once, twice = expected, 2 * expected - 7

    assert np.array_equal([twice, twice, once, once], results(simple(after=after), image))
    assert np.array_equal([twice] * 4, results(simple(after=after + WAIT), image))


DONE = f"mbarrier.arrive.shared.b64 %d7, [%r2+{BYTES - 8}];"
OVERWRITE = f"""setp.lt.u32 %p2, %r1, 4; @%p2 bra MULTIPLY;
    AGAIN: mbarrier.test_wait.parity.shared.b64 %p3, [%r2+{BYTES - 8}], 0; @!%p3 bra AGAIN;
    mov.u32 %r6, 0; mad.lo.u32 %r5, %r3, 256, %r2; ZEROS ret;
    MULTIPLY:"""


@pytest.mark.parametrize(("end", "right"), [(COMMIT + WAIT + DONE, True), (COMMIT + DONE + WAIT, False)])
def test_a_tile_refilled_before_its_product_is_waited_for_shows(end: str, right: bool) -> None:
    image, expected = tiles()
    filled = "and.b32 %r15, %r0, 127;" + fill().replace(
        "%r0, 16", "%r15, 16"
    )  # the fifth warp copies what the first does
    ready = f"bar.sync 0; setp.eq.u32 %p4, %r0, 0; @%p4 mbarrier.init.shared.b64 [%r2+{BYTES - 8}], 128; bar.sync 0;"
    zeros = "".join(f"st.shared.u32 [%r5+{B_AT + at}], %r6;" for at in range(0, 256, 4))
    product = clear() + point(descriptor(A_AT), descriptor(B_AT)) + ORDER + mma(SMEM_A, adds="%p0") + end + store()
    body = filled + FENCE + ready + OVERWRITE.replace("ZEROS", zeros) + product
    shown = [np.array_equal(expected, matrix) for matrix in results(body, image, threads=160)]

    assert [True, True, True, right] == shown  # late products, and the last warp first


def test_lanes_that_took_a_detour_are_waited_for() -> None:
    image, expected = tiles()
    body = simple(before=FENCE + "bar.sync 0; setp.eq.u32 %p3, %r3, 7; @%p3 bra DETOUR; HERE:" + ORDER)

    assert np.array_equal([expected] * 4, results(body + "ret; DETOUR: bra.uni HERE;", image))


PLAIN = FENCE + "bar.sync 0;" + ORDER
COPIES = "mad.wide.u32 %d4, %r0, 16, %d0; mad.lo.u32 %r5, %r0, 16, %r2;" + "".join(
    f"cp.async.cg.shared.global [%r5+{at}], [%d4+{at}], 16;" for at in range(0, BYTES, 2048)
)  # fmt: skip


@pytest.mark.parametrize("fence", ["", "fence.acq_rel.cta;"])
def test_a_store_without_a_proxy_fence_since_is_a_fault(fence: str) -> None:
    image, _ = tiles()
    with pytest.raises(Fault, match=r"m64n64k16\.f32\.f16\.f16: reads shared address 0, written without a fence.proxy"):
        results(simple(before=fence + "bar.sync 0;" + ORDER), image)


def test_one_late_store_is_enough() -> None:
    image, _ = tiles()
    last = f"setp.eq.u32 %p3, %r0, 127; @%p3 st.shared.u16 [%r2+{B_AT + 1024}], %h0; bar.sync 1;"
    with pytest.raises(Fault, match=f"reads shared address {B_AT + 1024}, written without"):
        results("mov.u16 %h0, 0;" + simple(before=FENCE + "bar.sync 0;" + last + ORDER), image)


def test_the_reader_may_fence() -> None:
    image, expected = tiles()

    assert np.array_equal([expected] * 4, results(simple(before="bar.sync 0; fence.proxy.async;" + ORDER), image))


def test_a_fence_is_only_good_for_copies_that_have_landed() -> None:
    image, expected = tiles()
    landed, not_yet = "cp.async.wait_all;" + FENCE, FENCE + "cp.async.wait_all;"
    body = simple().replace(fill(), COPIES)

    assert np.array_equal([expected] * 4, results(body.replace(FENCE, landed), image))
    with pytest.raises(Fault, match="written without a fence"):
        results(body.replace(FENCE, not_yet), image, modes=MODES[:1])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (simple(before=PLAIN + "setp.lt.u32 %p3, %r3, 8; @!%p3 ret;"),
         "k16.f32.f16.f16: divergent, only 8 of the warp's 32 lanes"),
        (simple(before=PLAIN + "setp.eq.u32 %p3, %r1, 2; @%p3 bra NONE;").replace(COMMIT, "NONE:" + COMMIT),
         "warps 0 to 3 do not all execute the same wgmma and setmaxnreg with the same operands (CTA 0, late cop"),
        (simple(before=PLAIN + f"setp.eq.u32 %p3, %r1, 3; @%p3 mov.b64 %desc1, {descriptor(B_AT + 32)};"),
         "warps 0 to 3 do not all execute the same wgmma and setmaxnreg with the same operands"),
        (simple(before=PLAIN + "setp.eq.u32 %p0, %r1, 1;"), "warps 0 to 3 do not all execute the same"),
        (simple(before=PLAIN + f"@!%p4 mov.b64 %desc1, {descriptor(B_AT + 32)};").replace(
            ORDER, ORDER + "setp.lt.u32 %p4, %r3, 5;"), "lanes of a warp give different descriptors or predicates"),
        (simple(before=PLAIN + "setp.lt.u32 %p0, %r3, 5;"), "lanes of a warp give different descriptors or predicates"),
        (simple(before=FENCE + "bar.sync 0;"), "no wgmma.fence before a warp's first product"),
        (simple(b=descriptor(BYTES - 4096)), f"shared address {BYTES + 4080} (+16 B) outside the {BYTES} B it has"),
    ],
)  # fmt: skip
def test_misuse_is_a_fault(body: str, message: str) -> None:
    image, _ = tiles()
    with pytest.raises(Fault, match=re.escape(message)):
        results(body, image)


def test_a_warpgroup_is_whole() -> None:
    with pytest.raises(Fault, match="warps 0 to 3 do not all execute the same"):
        results(ORDER + COMMIT, np.zeros(1, np.uint16), threads=96)


@pytest.mark.parametrize(
    "wrong",
    [
        descriptor(B_AT, swizzle=0),
        descriptor(B_AT, swizzle=2),
        descriptor(B_AT, swizzle=3),
        descriptor(B_AT, base=1),
    ],
)
def test_other_layouts_need_a_gpu(wrong: int) -> None:
    image, _ = tiles()
    with pytest.raises(Unsupported, match="without 128-byte swizzle, or with a base offset"):
        results(simple(b=wrong), image)


@pytest.mark.parametrize(
    "instruction",
    [
        mma(SMEM_A).replace("n64k16", "n60k16"),
        mma(SMEM_A).replace("n64k16", "n128k16"),
        mma(SMEM_A).replace("k16", "k8"),
        mma(SMEM_A).replace("k16.f32.f16.f16", "k16.f16.f16.f16"),
        mma(SMEM_A).replace("f32.f16.f16", "f32.f16.bf16"),
        mma(SMEM_A).replace("f32.f16.f16", "f32.e4m3.e5m2"),
        mma(SMEM_A).replace("f32.f16.f16", "f32.tf32.tf32"),
        mma(SMEM_A).replace("mma_async", "mma_async.sp"),
        mma(SMEM_A).replace("1, 1, 0, 0", "-1, 1, 0, 0"),
        mma(SMEM_A).replace("1, 1, 0, 0", "1, -1, 0, 0"),
        mma(SMEM_A).replace("1, 1, 0, 0", "1, 1, 0"),
        mma(SMEM_A).replace("1, 1, 0, 0", "1, 1, 0, 2"),
        mma(REGISTERS_A).replace("1, 1, 0", "1, 1, 0, 0"),
        mma("{%r10, %r11}"),
        mma(SMEM_A, adds="%r0"),
        "wgmma.wait_group.sync.aligned;",
        "wgmma.commit_group.sync;",
        "fence.proxy.async.global;",
        "fence.proxy.alias;",
    ],
)
def test_other_forms_need_a_gpu(instruction: str) -> None:
    with pytest.raises(Unsupported, match=re.escape(instruction.split()[0].rstrip(";"))):
        program(STARTED + instruction, ("image", "fragments", "y"))
