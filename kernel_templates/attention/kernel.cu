// Flash attention forward for sm_80 and up: mma.sync, ldmatrix, cp.async. See README.md for the data flow.
#include "pipe.cuh"
#include "split.cuh"

namespace {

struct Tiles {
  u32 q;
  u32 k;
  u32 v;
};

template <bool kFirst, bool kMask, class Pipe>
__device__ __forceinline__ void step(Consumer& consumer, const Pipe& pipe, const Tiles& at, int tile, int slot) {
  pipe.await_k(tile, slot, kFirst);
  consumer.scores<0>(at.q, at.k + slot * kSlotBytes);
  pipe.leave_k(tile, slot);
  if constexpr (kMask) consumer.mask<0>(tile * cfg::kBlockN);
  consumer.softmax<0, kFirst>();
  pipe.await_v(tile, slot);
  consumer.accumulate<0>(at.v + slot * kSlotBytes);
  pipe.leave_v(tile, slot);
}

// The first tile is code of its own: nothing to rescale. One body for all tiles is 40 % smaller and was slower in 57 of
// 80 pairs on an H200, by 1.2 % in the median. With MASK_SPLIT, tiles that every row sees whole come first and run code
// without a mask: the branch around it keeps the compiler from mixing the maximum with the mma instructions. With
// ONE_TILE a lone tile (a whole one with MASK_SPLIT) has code that knows it is alone. Unrolled over the ring, slots are
// constants: no address is computed inside the loop.
template <class Pipe>
__device__ __forceinline__ void run(Consumer& consumer, const Pipe& pipe, const Tiles& at) {
  constexpr bool kSplit = cfg::kMaskSplit && !cfg::kOneTile;
  constexpr int kStep = cfg::kUnroll ? cfg::kStages : 1;
  const int tiles = pipe.loader.tiles;
  const int whole = consumer.whole_tiles();
  if (cfg::kOneTile && tiles == 1 && (!cfg::kMaskSplit || whole == 1)) {
    return step<true, !cfg::kMaskSplit>(consumer, pipe, at, 0, 0);
  }
  if (kSplit && whole > 0) {
    step<true, false>(consumer, pipe, at, 0, 0);
  } else {
    step<true, true>(consumer, pipe, at, 0, 0);
  }
  int tile = 1;
#pragma unroll 1
  for (; kSplit ? tile + kStep <= whole : tile < tiles; tile += kStep) {
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      if (!kSplit && i > 0 && tile + i >= tiles) break;
      step<false, !kSplit>(consumer, pipe, at, tile + i, (cfg::kUnroll ? 1 + i : tile) % cfg::kStages);
    }
  }
  if constexpr (kSplit) {
#pragma unroll 1
    for (; tile < tiles; ++tile) step<false, true>(consumer, pipe, at, tile, tile % cfg::kStages);
  }
}

// Overlapped form: the scores of tile + 1 are issued before the softmax of `tile`, so that tensor cores work under it.
template <int kBuffer, bool kMask, class Pipe>
__device__ __forceinline__ void overlapped_step(Consumer& consumer, const Pipe& pipe, const Tiles& at, int tile,
                                                int slot, int next_slot) {
  pipe.await_pair(tile, slot);
  if (tile + 1 < pipe.loader.tiles) {
    consumer.scores<1 - kBuffer>(at.q, at.k + next_slot * kSlotBytes);
    pipe.leave_k(tile + 1, next_slot);
  }
  if constexpr (kMask) consumer.mask<kBuffer>(tile * cfg::kBlockN);
  consumer.softmax<kBuffer, false>();
  pipe.await_v(tile, slot);
  consumer.accumulate<kBuffer>(at.v + slot * kSlotBytes);
  pipe.leave_v(tile, slot);
}

// kStep tiles from `tile` on, an even one. All of them exist where no mask is needed.
template <int kStep, bool kMask, class Pipe>
__device__ __forceinline__ void overlapped_steps(Consumer& consumer, const Pipe& pipe, const Tiles& at, int tile) {
#pragma unroll
  for (int i = 0; i < kStep; ++i) {
    if (kMask && i > 0 && tile + i >= pipe.loader.tiles) break;
    const int slot = (kStep > 2 || cfg::kStages == 2 ? i : tile + i) % cfg::kStages;
    const int next_slot = (kStep > 2 || cfg::kStages == 2 ? i + 1 : tile + i + 1) % cfg::kStages;
    if (i % 2 == 0) {
      overlapped_step<0, kMask>(consumer, pipe, at, tile + i, slot, next_slot);
    } else {
      overlapped_step<1, kMask>(consumer, pipe, at, tile + i, slot, next_slot);
    }
  }
}

template <class Pipe>
__device__ __forceinline__ void run_overlapped(Consumer& consumer, const Pipe& pipe, const Tiles& at) {
  constexpr int kStep = !cfg::kUnroll ? 2 : cfg::kStages % 2 == 0 ? cfg::kStages : 2 * cfg::kStages;
  const int tiles = pipe.loader.tiles;
  pipe.await_k(0, 0, true);
  consumer.scores<0>(at.q, at.k);
  pipe.leave_k(0, 0);
  int tile = 0;
  if constexpr (cfg::kMaskSplit) {
    const int whole = consumer.whole_tiles();
#pragma unroll 1
    for (; tile + kStep <= whole; tile += kStep) overlapped_steps<kStep, false>(consumer, pipe, at, tile);
#pragma unroll 1
    for (; tile < tiles; tile += 2) overlapped_steps<2, true>(consumer, pipe, at, tile);
  } else {
#pragma unroll 1
    for (; tile < tiles; tile += kStep) overlapped_steps<kStep, true>(consumer, pipe, at, tile);
  }
}

// From few registers there is no way back to the code that needs many: ptxas would have all of it make do with few, and
// spill 584 bytes. Barriers count threads that have not exited (CUDA C++ Programming Guide, "Synchronization Functions").
template <class Pipe>
__device__ __forceinline__ void produce_and_exit(const Pipe& pipe) {
  warpgroup::shrink();
  pipe.produce();
  ptx::cp_async_wait<0>();                                   // a CTA that sees no key may still have some under way
}

template <class Pipe>
__device__ __forceinline__ void consume(Consumer& consumer, const Pipe& pipe, const Tiles& at) {
  if constexpr (cfg::kSetmaxnreg) warpgroup::grow();
  pipe.start();
  if (pipe.loader.tiles == 0) return;
  if constexpr (cfg::kQInRegs) {
    pipe.await_q();
    consumer.keep_q(at.q);
  }
  if constexpr (cfg::kOverlap) {
    run_overlapped(consumer, pipe, at);
  } else {
    run(consumer, pipe, at);
  }
}

}  // namespace

// q, o: (batch, heads, seq_q, HEAD_DIM); k, v: (batch, kv_heads, seq_k, HEAD_DIM); contiguous, 16-byte aligned.
// lse, where asked for: (batch, heads, seq_q).
// partials and arrivals, with SPLIT_KV: see split.cuh.
// Grid (ceil(seq_q / BLOCK_M) * SPLIT_KV, heads, batch), or (heads, batch, ceil(seq_q / BLOCK_M) * SPLIT_KV) with
// HEAVY_FIRST. Row i sees key j iff j <= i + diagonal (causal builds only).
extern "C" __global__ void __launch_bounds__(cfg::kThreads, cfg::kMinCtas)
    evo_attention(const u16* __restrict__ q, const u16* __restrict__ k, const u16* __restrict__ v, u16* __restrict__ o,
                  LSE_PARAMETER SPLIT_PARAMETERS int seq_q, int seq_k, int kv_heads, int queries_per_kv, int diagonal,
                  float scale_log2) {
  extern __shared__ __align__(cfg::kWgmma ? 1024 : 128) unsigned char raw[];

  const int thread = static_cast<int>(ptx::kept(threadIdx.x));
  const int warp = thread / 32;
  const u32 block = cfg::kHeavyFirst ? gridDim.z - 1 - blockIdx.z : blockIdx.x;  // of rows, and of their keys
  const int row_block = block / cfg::kSplitKv;
  const int head = cfg::kHeavyFirst ? blockIdx.x : blockIdx.y;
  const int heads = cfg::kHeavyFirst ? gridDim.x : gridDim.y;
  const int batch = cfg::kHeavyFirst ? blockIdx.y : blockIdx.z;
  const int cta_row = row_block * cfg::kBlockM;
  const int kv_head = queries_per_kv == 1 ? head : head / queries_per_kv;  // spares the usual case a division
  const long long q_head = static_cast<long long>(batch) * heads + head;
  const long long k_head = static_cast<long long>(batch) * kv_heads + kv_head;
  q += q_head * seq_q * cfg::kHeadDim;
  o += q_head * seq_q * cfg::kHeadDim;
  k += k_head * seq_k * cfg::kHeadDim;
  v += k_head * seq_k * cfg::kHeadDim;
  float* lse_head = nullptr;
  if constexpr (cfg::kLse) lse_head = LSE_POINTER + q_head * seq_q;

  int keys = seq_k;                                          // keys that the CTA's last row sees
  if constexpr (cfg::kCausal) {
    const int upto = cta_row + cfg::kBlockM + diagonal;
    keys = upto < 0 ? 0 : (upto < seq_k ? upto : seq_k);
  }
  const int split = block % cfg::kSplitKv;
  const Share share = share_of((keys + cfg::kBlockN - 1) / cfg::kBlockN, split);
  if constexpr (cfg::kSplitKv > 1) {
    if (share.tiles <= 0 && split > 0) return;               // nobody counts on it; the first one stores zeros
    const int first_key = share.first * cfg::kBlockN;        // from here on key 0
    k += static_cast<long long>(first_key) * cfg::kHeadDim;
    v += static_cast<long long>(first_key) * cfg::kHeadDim;
    seq_k = min(seq_k - first_key, share.tiles * cfg::kBlockN);
    diagonal -= first_key;
  }

  const u32 base = ptx::kept(ptx::shared_address(raw));
  const Tiles at{base, base + kOffsetK, base + kOffsetV};
  const int loader_lane = cfg::kProducerWarps > 0 ? thread - cfg::kConsumerThreads : thread;
  const Loader loader{k, v, seq_k, share.tiles, at.k, at.v, loader_lane};

  const int warp_m = warp % cfg::kWarpsM;
  const int group = warp / cfg::kWarpsM;                     // key group; WARPS_KV and up are producers
  Consumer consumer;
  consumer.lane = thread % 32;
  consumer.warp_row = warp_m * 16 * cfg::kRowTiles;
  consumer.warp_key = group * cfg::kKeys;
  consumer.first_row = cta_row + consumer.warp_row;
  consumer.seq_k = seq_k;
  consumer.diagonal = diagonal;
  consumer.scale_log2 = scale_log2;
  consumer.setup();

  const bool producer = warp >= cfg::kWarpsM * cfg::kWarpsKv;
  if constexpr (cfg::kMbarrier) {
    const MbarrierPipe pipe{loader, base + kBarrierOffset};
    pipe.init(thread);
    if (producer) {
      loader.fetch_k(0, 0);                                  // under way while the barriers are made
    } else {
      load_tile<cfg::kBlockM, cfg::kConsumerThreads>(at.q, q, cta_row, seq_q, thread);
    }
    __syncthreads();
    if (producer) {
      if constexpr (cfg::kSetmaxnreg) return produce_and_exit(pipe);
      pipe.produce();
    } else {
      consume(consumer, pipe, at);
    }
  } else if constexpr (cfg::kProducerWarps > 0) {
    const NamedPipe pipe{loader};
    if (producer) {
      if constexpr (cfg::kSetmaxnreg) return produce_and_exit(pipe);
      pipe.produce();
    } else {
      load_tile<cfg::kBlockM, cfg::kConsumerThreads>(at.q, q, cta_row, seq_q, thread);
      ptx::cp_async_commit();
      consume(consumer, pipe, at);
    }
  } else {
    load_tile<cfg::kBlockM, cfg::kThreads>(at.q, q, cta_row, seq_q, thread);
    if constexpr (cfg::kQInRegs) ptx::cp_async_commit();     // else it joins the group of K's first tile
    consume(consumer, TogetherPipe{loader}, at);
  }

  ptx::cp_async_wait<0>();                                   // a CTA that sees no key still has Q under way
  MergeStorage& groups = reinterpret_cast<SharedStorage*>(raw)->merge;
  if constexpr (cfg::kWarpsKv > 1) {
    __syncthreads();                                         // the ring is free for the merge
    if (group < cfg::kWarpsKv) {
      consumer.publish<kMergeStride>(groups.o[group], groups.row_max[group], groups.row_sum[group]);
    }
    __syncthreads();
  }
  const Output output{o, lse_head, cta_row, seq_q};
  if constexpr (cfg::kSplitKv > 1) {
    if (share.ctas > 1) {
      const Scratch scratch{SPLIT_POINTERS};
      const long long cta = q_head * (cfg::kHeavyFirst ? gridDim.z : gridDim.x) + block;
      const Partial partial = scratch.partial(cta);
      if constexpr (cfg::kWarpsKv > 1) {
        merge(group_shares(groups), cfg::kWarpsKv, partial, scale_log2);
      } else {
        if (group == 0) consumer.publish<cfg::kHeadDim>(partial.o, partial.row_max(), partial.row_sum());
      }
      if (scratch.last_to_arrive(cta, share.ctas, reinterpret_cast<u32*>(raw))) {
        merge(scratch.shares(cta), share.ctas, output, scale_log2);
      }
      return;
    }
  }
  if constexpr (cfg::kWarpsKv > 1) {
    merge(group_shares(groups), cfg::kWarpsKv, output, scale_log2);
  } else {
    if (group == 0) consumer.store(o, lse_head, seq_q);
  }
}
