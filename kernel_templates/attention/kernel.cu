// Flash attention forward for sm_80 and up: mma.sync, ldmatrix, cp.async. See README.md for the data flow.
#include "consumer.cuh"
#include "load.cuh"

namespace {

constexpr int kLoaders = cfg::kProducerWarps > 0 ? 32 * cfg::kProducerWarps : cfg::kThreads;
using Loader = KvLoader<kLoaders>;

// Named barriers of the producer/consumer form; 0 is __syncthreads.
enum Barrier { kFullK = 1, kFullV = 1 + cfg::kStages, kEmpty = 1 + 2 * cfg::kStages };

struct Tiles {
  u32 q;
  u32 k;
  u32 v;
};

__device__ __forceinline__ void prologue(const Loader& loader) {
#pragma unroll
  for (int tile = 0; tile < cfg::kStages; ++tile) {
    loader.load_k(tile);
    loader.load_v(tile);
  }
}

// One tile between its K and its V arriving. The first tile is code of its own: nothing to rescale, Q to fetch.
template <bool kFirst>
__device__ __forceinline__ void attend(Consumer& consumer, const Tiles& at, int tile, int slot) {
  if constexpr (cfg::kQInRegs && kFirst) consumer.keep_q(at.q);
  if (consumer.sees(tile * cfg::kBlockN)) {
    consumer.scores<0>(at.q, at.k + slot * Loader::kSlotBytes);
    consumer.mask<0>(tile * cfg::kBlockN);
    consumer.softmax<0, kFirst>();
  }
}

__device__ __forceinline__ void gather(Consumer& consumer, const Tiles& at, int tile, int slot) {
  if (consumer.sees(tile * cfg::kBlockN)) consumer.accumulate<0>(at.v + slot * Loader::kSlotBytes);
}

// No producer: every warp loads and computes. The first barrier of a tile says that K has landed for all and that all
// are done with the previous tile's V, whose slot is refilled; the second that V has landed and that all are done with
// K. Groups are committed as Q+K0, V0, K1, V1, ...; after the prologue 2 * STAGES are under way, so K of tile t has
// landed when at most 2 * STAGES - 2 younger ones are pending (one more in the first tile, before the first refill).
template <bool kFirst>
__device__ __forceinline__ void step_together(Consumer& consumer, const Loader& loader, const Tiles& at, int tile) {
  const int slot = tile % cfg::kStages;
  ptx::cp_async_wait<2 * cfg::kStages - (kFirst ? 1 : 2)>();
  __syncthreads();
  if constexpr (!kFirst) loader.load_v(tile - 1 + cfg::kStages);
  attend<kFirst>(consumer, at, tile, slot);
  ptx::cp_async_wait<2 * cfg::kStages - 2>();
  __syncthreads();
  loader.load_k(tile + cfg::kStages);
  gather(consumer, at, tile, slot);
}

__device__ __forceinline__ void run_together(Consumer& consumer, const Loader& loader, const Tiles& at) {
  if (loader.tiles == 0) return;
  step_together<true>(consumer, loader, at, 0);
#pragma unroll 1
  for (int tile = 1; tile < loader.tiles; ++tile) step_together<false>(consumer, loader, at, tile);
}

// Producer warps: keep STAGES tiles under way. Waits on kEmpty of a slot, arrives on kFullK and kFullV.
// With two slots and more, the slot of the previous tile is refilled after this tile has been announced, so that an
// announcement never waits for the consumers; with one slot there is nothing to announce before the refill.
__device__ __forceinline__ void produce(const Loader& loader) {
  constexpr int kLag = cfg::kStages > 1 ? 1 : 0;
  prologue(loader);
  for (int tile = 0; tile < loader.tiles; ++tile) {
    const int slot = tile % cfg::kStages;
    if (kLag == 0 || tile < cfg::kStages) {
      ptx::cp_async_wait<2 * cfg::kStages - 1>();
    } else {
      ptx::cp_async_wait<(kLag == 0 ? 0 : 2 * cfg::kStages - 3)>();
    }
    ptx::barrier_arrive(kFullK + slot, cfg::kThreads);
    if (kLag == 0 || tile < cfg::kStages) {
      ptx::cp_async_wait<2 * cfg::kStages - 2>();
    } else {
      ptx::cp_async_wait<(kLag == 0 ? 0 : 2 * cfg::kStages - 4)>();
    }
    ptx::barrier_arrive(kFullV + slot, cfg::kThreads);
    const int refill = tile - kLag + cfg::kStages;
    if (tile < kLag) {                                       // nothing consumed yet: keep the group count
      ptx::cp_async_commit();
      ptx::cp_async_commit();
      continue;
    }
    if (refill < loader.tiles) ptx::barrier_sync(kEmpty + refill % cfg::kStages, cfg::kThreads);
    loader.load_k(refill);
    loader.load_v(refill);
  }
}

// Consumer warps: wait on kFullK and kFullV of a slot, arrive on kEmpty when a refill is due.
template <bool kFirst>
__device__ __forceinline__ void consume_step(Consumer& consumer, int tiles, const Tiles& at, int tile) {
  const int slot = tile % cfg::kStages;
  ptx::barrier_sync(kFullK + slot, cfg::kThreads);
  attend<kFirst>(consumer, at, tile, slot);
  ptx::barrier_sync(kFullV + slot, cfg::kThreads);
  gather(consumer, at, tile, slot);
  if (tile + cfg::kStages < tiles) ptx::barrier_arrive(kEmpty + slot, cfg::kThreads);
}

__device__ __forceinline__ void consume(Consumer& consumer, int tiles, const Tiles& at) {
  if (tiles == 0) return;
  consume_step<true>(consumer, tiles, at, 0);
#pragma unroll 1
  for (int tile = 1; tile < tiles; ++tile) consume_step<false>(consumer, tiles, at, tile);
}

// Overlapped form: the scores of tile + 1 are issued before the softmax of `tile`, so that tensor cores work under it.
template <int kBuffer>
__device__ __forceinline__ void score(Consumer& consumer, const Tiles& at, int tile) {
  if (consumer.sees(tile * cfg::kBlockN)) {
    consumer.scores<kBuffer>(at.q, at.k + tile % cfg::kStages * Loader::kSlotBytes);
  }
}

template <int kBuffer>
__device__ __forceinline__ void weigh(Consumer& consumer, int tile) {
  if (consumer.sees(tile * cfg::kBlockN)) {
    consumer.mask<kBuffer>(tile * cfg::kBlockN);
    consumer.softmax<kBuffer, false>();
  }
}

template <int kBuffer>
__device__ __forceinline__ void add(Consumer& consumer, const Tiles& at, int tile) {
  if (consumer.sees(tile * cfg::kBlockN)) {
    consumer.accumulate<kBuffer>(at.v + tile % cfg::kStages * Loader::kSlotBytes);
  }
}

// One barrier a tile: it says that V of this tile and K of the next have landed for all, and that all are done with K of
// this tile and V of the one before, whose slots are refilled.
template <int kBuffer>
__device__ __forceinline__ void overlap_step(Consumer& consumer, const Loader& loader, const Tiles& at, int tile) {
  ptx::cp_async_wait<cfg::kStages - 2>();
  __syncthreads();
  loader.fetch_v(tile - 1 + cfg::kStages);
  loader.fetch_k(tile + cfg::kStages);
  ptx::cp_async_commit();
  if (tile + 1 < loader.tiles) score<1 - kBuffer>(consumer, at, tile + 1);
  weigh<kBuffer>(consumer, tile);
  add<kBuffer>(consumer, at, tile);
}

__device__ __forceinline__ void run_overlapped(Consumer& consumer, const Loader& loader, const Tiles& at) {
  loader.fetch_k(0);                                         // with Q
  ptx::cp_async_commit();
#pragma unroll
  for (int tile = 1; tile < cfg::kStages; ++tile) {
    loader.fetch_v(tile - 1);
    loader.fetch_k(tile);
    ptx::cp_async_commit();
  }
  if (loader.tiles == 0) return;
  ptx::cp_async_wait<cfg::kStages - 1>();
  __syncthreads();
  if constexpr (cfg::kQInRegs) consumer.keep_q(at.q);
  score<0>(consumer, at, 0);
#pragma unroll 1
  for (int tile = 0; tile < loader.tiles; tile += 2) {
    overlap_step<0>(consumer, loader, at, tile);
    if (tile + 1 < loader.tiles) overlap_step<1>(consumer, loader, at, tile + 1);
  }
}

template <int kBuffer>
__device__ __forceinline__ void consume_overlapped_step(Consumer& consumer, int tiles, const Tiles& at, int tile) {
  if (tile + 1 < tiles) {
    ptx::barrier_sync(kFullK + (tile + 1) % cfg::kStages, cfg::kThreads);
    score<1 - kBuffer>(consumer, at, tile + 1);
  }
  weigh<kBuffer>(consumer, tile);
  ptx::barrier_sync(kFullV + tile % cfg::kStages, cfg::kThreads);
  add<kBuffer>(consumer, at, tile);
  if (tile + cfg::kStages < tiles) ptx::barrier_arrive(kEmpty + tile % cfg::kStages, cfg::kThreads);
}

__device__ __forceinline__ void consume_overlapped(Consumer& consumer, int tiles, const Tiles& at) {
  if (tiles == 0) return;
  ptx::barrier_sync(kFullK, cfg::kThreads);
  if constexpr (cfg::kQInRegs) consumer.keep_q(at.q);
  score<0>(consumer, at, 0);
#pragma unroll 1
  for (int tile = 0; tile < tiles; tile += 2) {
    consume_overlapped_step<0>(consumer, tiles, at, tile);
    if (tile + 1 < tiles) consume_overlapped_step<1>(consumer, tiles, at, tile + 1);
  }
}

}  // namespace

// q, o: (batch, heads, seq_q, HEAD_DIM); k, v: (batch, kv_heads, seq_k, HEAD_DIM); contiguous, 16-byte aligned.
// Grid (ceil(seq_q / BLOCK_M), heads, batch). Row i sees key j iff j <= i + diagonal (causal builds only).
extern "C" __global__ void __launch_bounds__(cfg::kThreads, cfg::kMinCtas)
    evo_attention(const u16* __restrict__ q, const u16* __restrict__ k, const u16* __restrict__ v, u16* __restrict__ o,
                  int seq_q, int seq_k, int kv_heads, int queries_per_kv, int diagonal, float scale_log2) {
  extern __shared__ __align__(128) unsigned char raw[];
  SharedStorage& storage = *reinterpret_cast<SharedStorage*>(raw);

  const int thread = threadIdx.x;
  const int warp = thread / 32;
  const int cta_row = blockIdx.x * cfg::kBlockM;
  const int head = blockIdx.y;
  const int kv_head = queries_per_kv == 1 ? head : head / queries_per_kv;  // spares the usual case a division
  const long long q_head = static_cast<long long>(blockIdx.z) * gridDim.y + head;
  const long long k_head = static_cast<long long>(blockIdx.z) * kv_heads + kv_head;
  q += q_head * seq_q * cfg::kHeadDim;
  o += q_head * seq_q * cfg::kHeadDim;
  k += k_head * seq_k * cfg::kHeadDim;
  v += k_head * seq_k * cfg::kHeadDim;

  int keys = seq_k;                                          // keys that the CTA's last row sees
  if constexpr (cfg::kCausal) {
    const int upto = cta_row + cfg::kBlockM + diagonal;
    keys = upto < 0 ? 0 : (upto < seq_k ? upto : seq_k);
  }

  const Tiles at{ptx::shared_address(storage.main.q), ptx::shared_address(storage.main.k),
                 ptx::shared_address(storage.main.v)};
  const int loader_lane = cfg::kProducerWarps > 0 ? thread - cfg::kConsumerThreads : thread;
  const Loader loader{k, v, seq_k, (keys + cfg::kBlockN - 1) / cfg::kBlockN, at.k, at.v, loader_lane};

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

  if constexpr (cfg::kProducerWarps > 0) {
    if (warp >= cfg::kWarpsM * cfg::kWarpsKv) {
      produce(loader);
    } else {
      load_tile<cfg::kBlockM, cfg::kConsumerThreads>(at.q, q, cta_row, seq_q, thread);
      ptx::cp_async_commit();
      ptx::cp_async_wait<0>();                               // kFullK of the first tile then says so to all consumers
      if constexpr (cfg::kOverlap) {
        consume_overlapped(consumer, loader.tiles, at);
      } else {
        consume(consumer, loader.tiles, at);
      }
    }
  } else {
    load_tile<cfg::kBlockM, cfg::kThreads>(at.q, q, cta_row, seq_q, thread);  // joins the group of K's first tile
    if constexpr (cfg::kOverlap) {
      run_overlapped(consumer, loader, at);
    } else {
      prologue(loader);
      run_together(consumer, loader, at);
    }
  }

  ptx::cp_async_wait<0>();                                   // a CTA that sees no key still has Q under way
  if constexpr (cfg::kWarpsKv == 1) {
    if (group == 0) consumer.store(o, seq_q);
  } else {
    __syncthreads();                                         // the ring is free for the merge
    if (group < cfg::kWarpsKv) consumer.publish(storage.merge, group);
    __syncthreads();
    merge(storage.merge, o, cta_row, seq_q, scale_log2);
  }
}
