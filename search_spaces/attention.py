"""The search space of the attention template: what may vary, and why not everything goes with everything.

The rules keep out what cannot be built or cannot differ from another config. What is merely slow stays in: reasoning
alone picked the loser three times out of four when the first 421 configs were measured.
"""

from __future__ import annotations

from evoengine.hardware import DeviceLimits
from evoengine.problem import AttentionProblem, Problem
from evoengine.space import Axis, Rule, SearchSpace, Values

AXES = (
    Axis("WARPS_M", (1, 2, 4, 8), "wm", about="warps along the query rows"),
    Axis("ROW_TILES", (1, 2), "rt", about="16-row mma tiles per warp: 2 feed two mma from one ldmatrix of K or V"),
    Axis("BLOCK_N", (16, 32, 48, 64, 96, 128, 192, 256, 512), "bn", about="keys per K/V tile"),
    Axis("WARPS_KV", (1, 2, 4, 8), "wkv", about="warps that share a tile's keys, merged through shared memory"),
    Axis("STAGES", (1, 2, 3, 4), "st", about="tiles under way: slots of the K/V ring"),
    Axis("PRODUCER_WARPS", (0, 1, 2, 4), "pw", about="warps that only load; 0: every warp loads and computes"),
    Axis("MBARRIER", (0, 1), "mb", about="1: producers hand over through mbarriers, warp by warp; 0: named barriers"),
    Axis("UNROLL", (0, 1), "un", about="1: a loop trip for every slot of the ring, so that slots are constants"),
    Axis("LATE_LOADS", (0, 1), "ll", about="1: without producers, refills are issued behind the mma instructions"),
    Axis("Q_IN_REGS", (0, 1), "qr", about="1: Q fragments stay in registers; 0: read again for every tile"),
    Axis("OVERLAP", (0, 1), "ov", about="1: Q K^T of the next tile is issued before this tile's softmax"),
    Axis("LAZY_RESCALE", (0, 1), "lr", about="1: the output is rescaled only when a maximum grows by 2^8"),
    Axis("SUM_MMA", (0, 1), "sm", about="1: row sums by one more mma column of ones; 0: by additions"),
    Axis("MASK_SPLIT", (0, 1), "ms", about="1: tiles that all rows see whole run code without a mask"),
    Axis("ONE_TILE", (0, 1), "ot", about="1: where all keys are one tile, it runs code of its own"),
    Axis("HEAVY_FIRST", (0, 1), "hf", about="1: under a causal mask the last rows of all heads start first"),
    Axis("SPLIT_KV", (1, 2, 4, 8, 16), "sp", about="CTAs that share the keys of the same rows; the last to end merges"),
    Axis("MIN_CTAS", (1, 2, 3, 4, 6), "mc", about="CTAs per SM promised to the compiler: caps registers"),
    Axis("WGMMA", (0, 1, 2), "wg", about="1: Hopper's warpgroup mma; 2: and producers' registers for it; 0: mma.sync"),
)


MAX_SPLIT_CTAS = 256
"""CTAs of a grid that splits the keys: four for each SM of an L4 and two of an H200, so that none idles. The template
has scratch for the partial results of so many."""


def _attention(problem: Problem) -> AttentionProblem:
    assert isinstance(problem, AttentionProblem), "the attention space goes with the attention template"
    return problem


def _launch_registers(values: Values, limits: DeviceLimits) -> tuple[int, int]:
    """Threads of a CTA, and registers a thread that launch bounds leave."""
    threads = 32 * (values["WARPS_M"] * values["WARPS_KV"] + values["PRODUCER_WARPS"])
    return threads, limits.registers_per_sm // (threads * values["MIN_CTAS"]) // 8 * 8


def _consumer_registers(values: Values, limits: DeviceLimits) -> int:
    """Registers a thread that computes: with WGMMA=2 also those that the producers, all but 40 a thread, give up."""
    threads, allowed = _launch_registers(values, limits)
    producers = 32 * values["PRODUCER_WARPS"]
    if values["WGMMA"] < 2:
        return allowed
    return (allowed * threads - 40 * producers) // (threads - producers) // 8 * 8


def _register_floor(values: Values, head_dim: int) -> int:
    """Registers a thread that no allocation can go below: output, scores, row statistics, addresses.

    45 is what addresses, loop state and fragments took at least in 20 ptxas logs of this algorithm for sm_89; it grows
    with the chunks of a row, and at head_dim 32 was 32.
    """
    rows = 16 * values["ROW_TILES"]
    keys = values["BLOCK_N"] // values["WARPS_KV"]
    tiles = 1 + values["OVERLAP"]  # scores of two tiles are alive at once
    rest = 45 if head_dim >= 64 else 32
    return rows * head_dim // 32 + tiles * (rows * keys // 32) + 4 * values["ROW_TILES"] + rest


def _tiles(values: Values, problem: Problem) -> int:
    """Tiles that a CTA walks at most."""
    tiles = -(-_attention(problem).seq_k // values["BLOCK_N"])
    return -(-tiles // values["SPLIT_KV"])


def keys_per_warp(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    if values["BLOCK_N"] % (16 * values["WARPS_KV"]) == 0:
        return None
    return f"BLOCK_N={values['BLOCK_N']} over {values['WARPS_KV']} key groups is not a multiple of 16 keys a warp"


def wgmma(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    if not values["WGMMA"]:
        return None
    chosen = f"WGMMA={values['WGMMA']}"
    if limits.compute_capability != (9, 0):
        return f"{chosen} is of Hopper: {limits.name} is {limits.arch}"
    head_dim, keys = _attention(problem).head_dim, values["BLOCK_N"] // values["WARPS_KV"]
    if head_dim % 64 or keys % 64:
        return f"{chosen} computes 64 columns at a time: head_dim {head_dim}, {keys} keys a warp"
    if values["WARPS_M"] % 4:
        return f"{chosen} with WARPS_M={values['WARPS_M']}: a warpgroup is four warps along the rows"
    if values["OVERLAP"]:
        return f"{chosen} with OVERLAP=1: its scores are waited for at once"
    if values["ROW_TILES"] > 1 and not values["Q_IN_REGS"]:
        return f"{chosen} with ROW_TILES=2 and Q_IN_REGS=0: the rows of a warpgroup would not lie together"
    return None


def setmaxnreg(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    if values["WGMMA"] < 2:
        return None
    if values["PRODUCER_WARPS"] != 4:
        return f"WGMMA=2 with PRODUCER_WARPS={values['PRODUCER_WARPS']}: a whole warpgroup, 4 warps, gives up registers"
    if _consumer_registers(values, limits) < 256:
        return None
    threads, allowed = _launch_registers(values, limits)
    return f"WGMMA=2 with {threads} threads, MIN_CTAS={values['MIN_CTAS']}: a thread has {allowed} registers anyway"


def mbarrier(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    if not values["MBARRIER"] or values["PRODUCER_WARPS"]:
        return None
    return "MBARRIER=1 with PRODUCER_WARPS=0: there is nobody to hand over to"


def unrolled(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    tiles = _tiles(values, problem)
    if not values["UNROLL"]:
        return None
    if values["OVERLAP"] and values["STAGES"] == 2:
        return "UNROLL=1 with OVERLAP=1 and 2 slots: that loop takes two tiles a trip anyway"
    if values["STAGES"] >= 2 and tiles >= 2:
        return None
    return f"UNROLL=1 with {values['STAGES']} slots and {tiles} tiles: there is one slot to make constant"


def late_loads(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    if not values["LATE_LOADS"]:
        return None
    if values["PRODUCER_WARPS"] or values["OVERLAP"]:
        return "LATE_LOADS=1 moves the copies of warps that compute too, in the plain form: PRODUCER_WARPS=0, OVERLAP=0"
    tiles = _tiles(values, problem)
    if tiles > values["STAGES"]:
        return None
    return f"LATE_LOADS=1 with {values['STAGES']} slots for {tiles} tiles: nothing is ever refilled"


def stages_filled(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    tiles = _tiles(values, problem)
    if values["STAGES"] <= tiles:
        return None
    return f"{values['STAGES']} slots for {tiles} tiles of {values['BLOCK_N']} keys: the rest would never be filled"


def split_filled(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    tiles = -(-_attention(problem).seq_k // values["BLOCK_N"])
    if values["SPLIT_KV"] <= tiles:
        return None
    return f"SPLIT_KV={values['SPLIT_KV']} CTAs for {tiles} tiles of {values['BLOCK_N']} keys: the rest would have none"


def split_needed(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    attention, block_m = _attention(problem), 16 * values["ROW_TILES"] * values["WARPS_M"]
    ctas = attention.batch * attention.heads * -(-attention.seq_q // block_m)
    if values["SPLIT_KV"] == 1 or ctas * values["SPLIT_KV"] <= MAX_SPLIT_CTAS:
        return None
    return (
        f"SPLIT_KV={values['SPLIT_KV']} makes {ctas * values['SPLIT_KV']} CTAs of {ctas}: more than {MAX_SPLIT_CTAS}, "
        "which keep every SM busy, only leave more partial results"
    )


def rows_used(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    rows, seq_q = 16 * values["ROW_TILES"] * values["WARPS_M"], _attention(problem).seq_q
    if rows - 16 < seq_q:
        return None
    return f"BLOCK_M={rows} leaves whole mma tiles without a row of seq_q={seq_q}"


def keys_used(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    seq_k = _attention(problem).seq_k
    if values["BLOCK_N"] - values["BLOCK_N"] // values["WARPS_KV"] < seq_k:
        return None
    return f"BLOCK_N={values['BLOCK_N']} leaves a key group without a key of seq_k={seq_k}"


def overlap_stages(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    if not values["OVERLAP"] or values["STAGES"] >= 2:
        return None
    return f"OVERLAP=1 reads K of the next tile beside V of this one: {values['STAGES']} slot is too few, 2 will do"


def tiles_to_rescale(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    if not values["LAZY_RESCALE"] or _tiles(values, problem) > 1:
        return None
    return f"LAZY_RESCALE=1 with 1 tile of {values['BLOCK_N']} keys a CTA: nothing is ever rescaled"


def one_tile(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    if not values["ONE_TILE"]:
        return None
    if values["OVERLAP"]:
        return "ONE_TILE=1 with OVERLAP=1: nothing overlaps with a lone tile"
    seq_k = _attention(problem).seq_k
    if _tiles(values, problem) == 1:
        return None
    return f"ONE_TILE=1 with tiles of {values['BLOCK_N']} keys for seq_k={seq_k}: its code would never run"


def heavy_first(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    if not values["HEAVY_FIRST"] or _attention(problem).causal:
        return None
    return "HEAVY_FIRST=1 without a causal mask: all row blocks weigh the same"


def register_file(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    floor = _register_floor(values, _attention(problem).head_dim)
    if floor <= limits.registers_per_thread:
        return None
    return f"accumulators need {floor} registers a thread, {limits.registers_per_thread} exist: certain to spill"


def launch_bounds(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    allowed = _consumer_registers(values, limits)
    floor = _register_floor(values, _attention(problem).head_dim)
    if floor <= allowed:
        return None
    threads, _ = _launch_registers(values, limits)
    return (
        f"{values['MIN_CTAS']} CTAs of {threads} threads leave {allowed} registers a thread, "
        f"accumulators need {floor}: certain to spill"
    )


# Half of FlashAttention-2's 128x128 with 4 warps for head_dim 64 (flash_fwd_launch_template.h) in both directions: that
# leaves more CTAs at the mission shape and fits every problem.
DEFAULT = dict(
    WARPS_M=4,
    ROW_TILES=1,
    BLOCK_N=64,
    WARPS_KV=1,
    STAGES=2,
    PRODUCER_WARPS=0,
    MBARRIER=0,
    UNROLL=0,
    LATE_LOADS=0,
    Q_IN_REGS=1,
    OVERLAP=0,
    LAZY_RESCALE=0,
    SUM_MMA=0,
    MASK_SPLIT=0,
    ONE_TILE=0,
    HEAVY_FIRST=0,
    SPLIT_KV=1,
    MIN_CTAS=1,
    WGMMA=0,
)

SPACE = SearchSpace(
    name="attention",
    axes=AXES,
    rules=(
        Rule("keys_per_warp", ("BLOCK_N", "WARPS_KV"), keys_per_warp),
        Rule("rows_used", ("WARPS_M", "ROW_TILES"), rows_used),
        Rule("keys_used", ("BLOCK_N", "WARPS_KV"), keys_used),
        Rule("overlap_stages", ("STAGES", "OVERLAP"), overlap_stages),
        Rule("split_filled", ("BLOCK_N", "SPLIT_KV"), split_filled),
        Rule("split_needed", ("WARPS_M", "ROW_TILES", "SPLIT_KV"), split_needed),
        Rule("tiles_to_rescale", ("BLOCK_N", "SPLIT_KV", "LAZY_RESCALE"), tiles_to_rescale),
        Rule("one_tile", ("BLOCK_N", "SPLIT_KV", "OVERLAP", "ONE_TILE"), one_tile),
        Rule("heavy_first", ("HEAVY_FIRST",), heavy_first),
        Rule("register_file", ("ROW_TILES", "BLOCK_N", "WARPS_KV", "OVERLAP"), register_file),
        Rule("stages_filled", ("BLOCK_N", "STAGES", "SPLIT_KV"), stages_filled),
        Rule("wgmma", ("WARPS_M", "ROW_TILES", "BLOCK_N", "WARPS_KV", "Q_IN_REGS", "OVERLAP", "WGMMA"), wgmma),
        Rule("setmaxnreg", ("WARPS_M", "WARPS_KV", "PRODUCER_WARPS", "MIN_CTAS", "WGMMA"), setmaxnreg),
        Rule("mbarrier", ("PRODUCER_WARPS", "MBARRIER"), mbarrier),
        Rule("unrolled", ("BLOCK_N", "STAGES", "UNROLL", "OVERLAP", "SPLIT_KV"), unrolled),
        Rule("late_loads", ("BLOCK_N", "STAGES", "PRODUCER_WARPS", "LATE_LOADS", "OVERLAP", "SPLIT_KV"), late_loads),
        Rule(
            "launch_bounds",
            ("WARPS_M", "ROW_TILES", "BLOCK_N", "WARPS_KV", "PRODUCER_WARPS", "OVERLAP", "MIN_CTAS", "WGMMA"),
            launch_bounds,
        ),
    ),
    default=DEFAULT,
    starts=(
        # All keys in flight as one tile, four key groups, nobody but the mask between the mma instructions.
        DEFAULT | dict(WARPS_M=2, BLOCK_N=512, WARPS_KV=4, STAGES=1, SUM_MMA=1, MASK_SPLIT=1, ONE_TILE=1),
        # The best of 500 random configs on an H200, inside an L4's 99 KB: two tiles, four warps that only load.
        DEFAULT | dict(WARPS_M=2, BLOCK_N=256, WARPS_KV=2, STAGES=1, PRODUCER_WARPS=4, SUM_MMA=1),
        DEFAULT | dict(WARPS_M=2, BLOCK_N=256, WARPS_KV=4, STAGES=1),
        # More rows a CTA for larger grids; where rows see unequal numbers of keys, the heavy ones first.
        DEFAULT | dict(BLOCK_N=256, WARPS_KV=2, STAGES=1, HEAVY_FIRST=1),
        # Two row tiles a warp for long sequences, where shared-memory reads bound one.
        DEFAULT | dict(ROW_TILES=2, UNROLL=1, LATE_LOADS=1, HEAVY_FIRST=1),
        # Dedicated producer warps, and consumers that do not wait for each other.
        DEFAULT | dict(BLOCK_N=128, PRODUCER_WARPS=2, MBARRIER=1, UNROLL=1, SUM_MMA=1, HEAVY_FIRST=1),
        # Hopper: the best at B2 H8 S512, S=1024 and D128 on an H200, at S=2048, and at long sequences of D128.
        DEFAULT | dict(BLOCK_N=256, WARPS_KV=2, STAGES=1, PRODUCER_WARPS=4, MBARRIER=1, Q_IN_REGS=0, WGMMA=2),
        DEFAULT | dict(BLOCK_N=128, PRODUCER_WARPS=4, UNROLL=1, MIN_CTAS=2, HEAVY_FIRST=1, WGMMA=2),
        DEFAULT | dict(WARPS_M=8, BLOCK_N=128, PRODUCER_WARPS=4, MBARRIER=1, LAZY_RESCALE=1, HEAVY_FIRST=1, WGMMA=2),
        # And of causal grids that fill the card four times over.
        DEFAULT | dict(LATE_LOADS=1, LAZY_RESCALE=1, HEAVY_FIRST=1, WGMMA=1),
    ),
)
