// Every macro of one build, read once. There are no defaults: a default would hide a misspelt knob.
#pragma once

#ifndef EVO_WARPS_M
#error "EVO missing EVO_WARPS_M"
#endif
#ifndef EVO_ROW_TILES
#error "EVO missing EVO_ROW_TILES"
#endif
#ifndef EVO_BLOCK_N
#error "EVO missing EVO_BLOCK_N"
#endif
#ifndef EVO_WARPS_KV
#error "EVO missing EVO_WARPS_KV"
#endif
#ifndef EVO_STAGES
#error "EVO missing EVO_STAGES"
#endif
#ifndef EVO_PRODUCER_WARPS
#error "EVO missing EVO_PRODUCER_WARPS"
#endif
#ifndef EVO_MBARRIER
#error "EVO missing EVO_MBARRIER"
#endif
#ifndef EVO_UNROLL
#error "EVO missing EVO_UNROLL"
#endif
#ifndef EVO_LATE_LOADS
#error "EVO missing EVO_LATE_LOADS"
#endif
#ifndef EVO_Q_IN_REGS
#error "EVO missing EVO_Q_IN_REGS"
#endif
#ifndef EVO_OVERLAP
#error "EVO missing EVO_OVERLAP"
#endif
#ifndef EVO_LAZY_RESCALE
#error "EVO missing EVO_LAZY_RESCALE"
#endif
#ifndef EVO_SUM_MMA
#error "EVO missing EVO_SUM_MMA"
#endif
#ifndef EVO_MASK_SPLIT
#error "EVO missing EVO_MASK_SPLIT"
#endif
#ifndef EVO_ONE_TILE
#error "EVO missing EVO_ONE_TILE"
#endif
#ifndef EVO_HEAVY_FIRST
#error "EVO missing EVO_HEAVY_FIRST"
#endif
#ifndef EVO_SPLIT_KV
#error "EVO missing EVO_SPLIT_KV"
#endif
#ifndef EVO_MIN_CTAS
#error "EVO missing EVO_MIN_CTAS"
#endif
#ifndef EVO_WGMMA
#error "EVO missing EVO_WGMMA"
#endif
#ifndef EVO_HEAD_DIM
#error "EVO missing EVO_HEAD_DIM"
#endif
#ifndef EVO_CAUSAL
#error "EVO missing EVO_CAUSAL"
#endif
#ifndef EVO_DTYPE
#error "EVO missing EVO_DTYPE"
#endif
#ifndef EVO_LSE
#error "EVO missing EVO_LSE"
#endif
#ifndef EVO_SMEM_BYTES
#error "EVO missing EVO_SMEM_BYTES"
#endif

namespace cfg {

enum class Dtype { kFp16 = 0, kBf16 = 1 };

// Problem axes.
inline constexpr int kHeadDim = EVO_HEAD_DIM;
inline constexpr bool kCausal = EVO_CAUSAL != 0;
inline constexpr Dtype kDtype = static_cast<Dtype>(EVO_DTYPE);
inline constexpr bool kLse = EVO_LSE != 0;                 // store the rows' log-sum-exp beside the output

// Search axes.
inline constexpr int kWarpsM = EVO_WARPS_M;                // warps along query rows
inline constexpr int kRowTiles = EVO_ROW_TILES;            // 16-row mma tiles per warp
inline constexpr int kBlockN = EVO_BLOCK_N;                // keys per K/V tile
inline constexpr int kWarpsKv = EVO_WARPS_KV;              // key groups: warps that split a tile's keys
inline constexpr int kStages = EVO_STAGES;                 // slots of the K/V ring
inline constexpr int kProducerWarps = EVO_PRODUCER_WARPS;  // warps that only load; 0: every warp loads
inline constexpr bool kMbarrier = EVO_MBARRIER != 0;        // producers and consumers meet at mbarriers, not named ones
inline constexpr bool kUnroll = EVO_UNROLL != 0;           // as many tiles per loop trip as the ring has slots
inline constexpr bool kLateLoads = EVO_LATE_LOADS != 0;    // refills are issued behind the mma instructions
inline constexpr bool kQInRegs = EVO_Q_IN_REGS != 0;       // Q fragments kept for the whole main loop
inline constexpr bool kOverlap = EVO_OVERLAP != 0;         // Q K^T of the next tile under this tile's softmax
inline constexpr bool kLazyRescale = EVO_LAZY_RESCALE != 0;  // keep an outgrown maximum while that is safe
inline constexpr bool kSumMma = EVO_SUM_MMA != 0;          // row sums of P by a further mma column of ones
inline constexpr bool kMaskSplit = EVO_MASK_SPLIT != 0;    // tiles that all rows see whole run code without a mask
inline constexpr bool kOneTile = EVO_ONE_TILE != 0;        // a lone tile runs code of its own
inline constexpr bool kHeavyFirst = EVO_HEAVY_FIRST != 0;  // grid (heads, batch, row blocks), the last rows first
inline constexpr int kSplitKv = EVO_SPLIT_KV;              // CTAs that share the keys of the same rows
inline constexpr bool kWgmma = EVO_WGMMA != 0;             // Hopper's warpgroup mma in place of ldmatrix and mma.sync
inline constexpr bool kSetmaxnreg = EVO_WGMMA == 2;        // and registers of the producers go to the warps that compute
inline constexpr int kMinCtas = EVO_MIN_CTAS;              // second argument of __launch_bounds__
inline constexpr int kSmemBytes = EVO_SMEM_BYTES;

// Derived.
inline constexpr int kBlockM = 16 * kRowTiles * kWarpsM;   // query rows per CTA
inline constexpr int kKeys = kBlockN / kWarpsKv;           // keys one warp sees of a tile
inline constexpr int kConsumerThreads = 32 * kWarpsM * kWarpsKv;
inline constexpr int kThreads = kConsumerThreads + 32 * kProducerWarps;
inline constexpr int kMergeThreads = kSetmaxnreg ? kConsumerThreads : kThreads;  // producers have exited by then
inline constexpr int kChunks = kHeadDim / 8;               // 16-byte chunks per row

// Registers a thread with setmaxnreg: what __launch_bounds__ leaves of Hopper's 65,536, what producers need (with 24, the
// least there is, they spilled 16 bytes), and what is then free for the others.
inline constexpr int kLaunchRegisters = 65536 / (kThreads * kMinCtas) / 8 * 8;
inline constexpr int kProducerRegisters = 40;
inline constexpr int kConsumerRegisters =
    (kLaunchRegisters * kThreads - kProducerRegisters * 32 * kProducerWarps) / kConsumerThreads / 8 * 8;

static_assert(kHeadDim == 32 || kHeadDim == 64 || kHeadDim == 96 || kHeadDim == 128 || kHeadDim == 256,
              "EVO rule head_dim: proven for 32, 64, 96, 128 and 256");
static_assert(EVO_DTYPE == 0 || EVO_DTYPE == 1, "EVO rule dtype: 0 is fp16, 1 is bf16");
static_assert(kRowTiles == 1 || kRowTiles == 2, "EVO rule row_tiles: one or two 16-row tiles a warp");
static_assert(kBlockN % (16 * kWarpsKv) == 0, "EVO rule keys_per_warp: P feeds the second mma in slices of 16 keys");
static_assert(kThreads <= 1024, "EVO rule threads_per_cta: CUDA allows 1024 threads a CTA");
static_assert(!kOverlap || kStages >= 2, "EVO rule overlap_stages: the next tile's K needs a slot of its own");
static_assert(kSplitKv >= 1, "EVO rule split_kv: somebody has to see the keys");
static_assert(kStages >= 1, "EVO rule stages: the ring needs a slot");
static_assert(!kMbarrier || kProducerWarps > 0, "EVO rule mbarrier: they stand between producers and consumers");
static_assert(!kLateLoads || (kProducerWarps == 0 && !kOverlap), "EVO rule late_loads: who computes must also load");
static_assert(!kOneTile || !kOverlap, "EVO rule one_tile: nothing overlaps with a lone tile");
static_assert(!kHeavyFirst || kCausal, "EVO rule heavy_first: without a causal mask all row blocks weigh the same");
static_assert(!kWgmma || kWarpsM % 4 == 0, "EVO rule wgmma_warps: a warpgroup is four warps along the rows");
static_assert(!kWgmma || (kKeys % 64 == 0 && kHeadDim % 64 == 0), "EVO rule wgmma_columns: it computes 64 at a time");
static_assert(!kWgmma || kRowTiles == 1 || kQInRegs, "EVO rule wgmma_rows: in shared memory its rows lie together");
static_assert(!kWgmma || !kOverlap, "EVO rule wgmma_overlap: its scores are waited for at once");
static_assert(!kSetmaxnreg || kProducerWarps == 4, "EVO rule setmaxnreg_producers: a whole warpgroup gives them up");
static_assert(!kSetmaxnreg || (kLaunchRegisters > kProducerRegisters && kConsumerRegisters < 256),
              "EVO rule setmaxnreg_registers: there are some to give up, and a thread can use them");
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
static_assert(!kWgmma, "EVO rule wgmma_arch: only sm_90a has it");
#endif
static_assert(kProducerWarps == 0 || kMbarrier || 3 * kStages + 1 <= 15,
              "EVO rule named_barriers: three a slot and one for Q out of ids 1 to 15");

}  // namespace cfg

// Parameters that only some builds have. `if constexpr` cannot remove one, and a build without it shall be what it would
// be if there were none.
#if EVO_LSE
#define LSE_PARAMETER float* __restrict__ lse,
#define LSE_POINTER lse
#else
#define LSE_PARAMETER
#define LSE_POINTER static_cast<float*>(nullptr)
#endif
#if EVO_SPLIT_KV > 1
#define SPLIT_PARAMETERS float* partials, unsigned int* arrivals,
#define SPLIT_POINTERS partials, arrivals
#else
#define SPLIT_PARAMETERS
#define SPLIT_POINTERS nullptr, nullptr
#endif
