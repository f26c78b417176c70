// How tiles of K and V reach the warps that compute: three ways to wait for a slot and to give it back.
//
// A consumer calls, for each tile: await_k, leave_k, await_v, leave_v (plain form), or for tile + 1 and tile in turns:
// await_pair, leave_k, await_v, leave_v (overlapped form). `slot` is tile % STAGES.
#pragma once
#include "load.cuh"

constexpr int kLoaders = cfg::kProducerWarps > 0 ? 32 * cfg::kProducerWarps : cfg::kThreads;
using Loader = KvLoader<kLoaders>;

// No producer: every warp loads and computes, __syncthreads separates the phases.
// Plain form: the first barrier of a tile says that K has landed for all and that all are done with the previous tile's
// V, whose slot is refilled; the second that V has landed and that all are done with K. Groups are committed as Q+K0,
// V0, K1, V1, ...; after the prologue 2 * STAGES are under way, so K of tile t has landed when at most 2 * STAGES - 2
// younger ones are pending (one more in the first tile, before the first refill). With LATE_LOADS the refills are issued
// behind the mma instructions, not before them: the tensor cores start sooner, the copies later.
// Overlapped form: one barrier a tile says that V of this tile and K of the next have landed for all, and that all are
// done with K of this tile and V of the one before, whose slots are refilled.
struct TogetherPipe {
  Loader loader;

  __device__ __forceinline__ void start() const {
    if constexpr (cfg::kOverlap) {
      loader.fetch_k(0, 0);
      ptx::cp_async_commit();
#pragma unroll
      for (int tile = 1; tile < cfg::kStages; ++tile) {
        loader.fetch_v(tile - 1, tile - 1);
        loader.fetch_k(tile, tile);
        ptx::cp_async_commit();
      }
    } else {
#pragma unroll
      for (int tile = 0; tile < cfg::kStages; ++tile) {
        loader.load_k(tile, tile);
        loader.load_v(tile, tile);
      }
    }
  }

  // K of the first tile is still under way: reading Q's fragments takes no time of its own.
  __device__ __forceinline__ void await_q() const {
    ptx::cp_async_wait<cfg::kOverlap ? cfg::kStages : 2 * cfg::kStages>();
    __syncthreads();
  }
  __device__ __forceinline__ void await_k(int tile, int slot, bool first) const {
    if (first) {
      ptx::cp_async_wait<cfg::kOverlap ? cfg::kStages - 1 : 2 * cfg::kStages - 1>();
      __syncthreads();
    } else {
      ptx::cp_async_wait<2 * cfg::kStages - 2>();
      __syncthreads();
      if constexpr (!cfg::kLateLoads) refill_v(tile, slot);
    }
  }
  __device__ __forceinline__ void leave_k(int tile, int slot) const {
    if (cfg::kLateLoads && tile > 0) refill_v(tile, slot);
  }
  __device__ __forceinline__ void await_v(int tile, int slot) const {
    if constexpr (cfg::kOverlap) return;                     // await_pair has seen to it
    ptx::cp_async_wait<2 * cfg::kStages - 2>();
    __syncthreads();
    if constexpr (!cfg::kLateLoads) loader.load_k(tile + cfg::kStages, slot);
  }
  __device__ __forceinline__ void leave_v(int tile, int slot) const {
    if constexpr (cfg::kLateLoads) loader.load_k(tile + cfg::kStages, slot);
  }
  __device__ __forceinline__ void await_pair(int tile, int slot) const {
    ptx::cp_async_wait<(cfg::kOverlap ? cfg::kStages - 2 : 0)>();
    __syncthreads();
    loader.fetch_v(tile - 1 + cfg::kStages, (slot + cfg::kStages - 1) % cfg::kStages);
    loader.fetch_k(tile + cfg::kStages, slot);
    ptx::cp_async_commit();
  }

  // The slot of the previous tile's V.
  __device__ __forceinline__ void refill_v(int tile, int slot) const {
    loader.load_v(tile - 1 + cfg::kStages, (slot + cfg::kStages - 1) % cfg::kStages);
  }
};

// Producer warps announce with hardware barriers 1 to 15 (0 is __syncthreads): a barrier opens when all threads of the
// CTA have arrived, so the consumers of a tile set out together.
struct NamedPipe {
  enum { kFullK = 1, kFullV = 1 + cfg::kStages, kEmpty = 1 + 2 * cfg::kStages, kFullQ = 1 + 3 * cfg::kStages };
  Loader loader;

  // Keeps STAGES tiles under way. With two slots and more, the slot of the previous tile is refilled after this tile has
  // been announced, so that an announcement never waits for the consumers; with one slot there is nothing to announce
  // before the refill.
  __device__ __forceinline__ void produce() const {
    constexpr int kLag = cfg::kStages > 1 ? 1 : 0;
#pragma unroll
    for (int tile = 0; tile < cfg::kStages; ++tile) {
      loader.load_k(tile, tile);
      loader.load_v(tile, tile);
    }
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
      if (tile < kLag) {                                     // nothing consumed yet: keep the group count
        ptx::cp_async_commit();
        ptx::cp_async_commit();
        continue;
      }
      if (refill < loader.tiles) ptx::barrier_sync(kEmpty + refill % cfg::kStages, cfg::kThreads);
      loader.load_k(refill, refill % cfg::kStages);
      loader.load_v(refill, refill % cfg::kStages);
    }
  }

  __device__ __forceinline__ void start() const {
    ptx::cp_async_wait<0>();                                 // Q; await_q or the first tile's barrier says so to all
  }
  // K of the first tile is still under way: reading Q's fragments takes no time of its own.
  __device__ __forceinline__ void await_q() const { ptx::barrier_sync(kFullQ, cfg::kConsumerThreads); }
  __device__ __forceinline__ void await_k(int, int slot, bool) const {
    ptx::barrier_sync(kFullK + slot, cfg::kThreads);
  }
  __device__ __forceinline__ void leave_k(int, int) const {}
  __device__ __forceinline__ void await_v(int, int slot) const { ptx::barrier_sync(kFullV + slot, cfg::kThreads); }
  __device__ __forceinline__ void leave_v(int tile, int slot) const {
    if (tile + cfg::kStages < loader.tiles) ptx::barrier_arrive(kEmpty + slot, cfg::kThreads);
  }
  __device__ __forceinline__ void await_pair(int tile, int slot) const {
    if (tile + 1 < loader.tiles) await_k(tile + 1, (slot + 1) % cfg::kStages, false);
  }
};

// The same hand-over through mbarriers: a consumer warp waits for the copies only, not for the other consumers, and K's
// slot is free again before V is used. Copies announce themselves when they land.
struct MbarrierPipe {
  enum {
    kFullK = 0,
    kFullV = cfg::kStages,
    kEmptyK = 2 * cfg::kStages,
    kEmptyV = 3 * cfg::kStages,
    kFullQ = 4 * cfg::kStages
  };
  Loader loader;
  u32 barriers;

  __device__ __forceinline__ u32 at(int index) const { return barriers + index * 8; }
  static __device__ __forceinline__ u32 parity(int tile) { return tile / cfg::kStages & 1; }

  __device__ __forceinline__ void init(int thread) const {
    if (thread >= kMbarriers) return;
    const int empty = cfg::kWarpsM * cfg::kWarpsKv;          // one arrival a warp
    ptx::mbarrier_init(at(thread), thread == kFullQ ? cfg::kConsumerThreads : thread < kEmptyK ? kLoaders : empty);
  }

  // The first tile's K is under way when this is called.
  __device__ __forceinline__ void produce() const {
#pragma unroll 1
    for (int tile = 0; tile < loader.tiles; ++tile) {
      const int slot = tile % cfg::kStages;
      const u32 used = parity(tile) ^ 1;                     // of the slot's tile before this one
      if (tile >= cfg::kStages) ptx::mbarrier_wait(at(kEmptyK + slot), used);
      if (tile > 0) loader.fetch_k(tile, slot);
      ptx::cp_async_arrive(at(kFullK + slot));
      if (tile >= cfg::kStages) ptx::mbarrier_wait(at(kEmptyV + slot), used);
      loader.fetch_v(tile, slot);
      ptx::cp_async_arrive(at(kFullV + slot));
    }
  }

  __device__ __forceinline__ void start() const {
    ptx::cp_async_arrive(at(kFullQ));
    if (!cfg::kQInRegs && loader.tiles > 0) await_q();
  }
  __device__ __forceinline__ void await_q() const { ptx::mbarrier_wait(at(kFullQ), 0); }
  __device__ __forceinline__ void await_k(int tile, int slot, bool) const {
    ptx::mbarrier_wait(at(kFullK + slot), parity(tile));
  }
  __device__ __forceinline__ void leave_k(int tile, int slot) const { leave(kEmptyK, tile, slot); }
  __device__ __forceinline__ void await_v(int tile, int slot) const {
    ptx::mbarrier_wait(at(kFullV + slot), parity(tile));
  }
  __device__ __forceinline__ void leave_v(int tile, int slot) const { leave(kEmptyV, tile, slot); }
  __device__ __forceinline__ void await_pair(int tile, int slot) const {
    if (tile + 1 < loader.tiles) await_k(tile + 1, (slot + 1) % cfg::kStages, false);
  }

  __device__ __forceinline__ void leave(int kind, int tile, int slot) const {
    if (tile + cfg::kStages >= loader.tiles) return;
    __syncwarp();                                            // every lane has read the slot
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(at(kind + slot));
  }
};
