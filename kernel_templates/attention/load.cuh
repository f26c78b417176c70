// Global memory to shared memory.
#pragma once
#include "storage.cuh"

// Copies rows [first, first + kRows) of a contiguous (rows, HEAD_DIM) matrix; rows from `rows` on become zero, because
// garbage there would reach the output as 0 * NaN in P V. `lane` counts within the `kLoaders` threads that share this.
template <int kRows, int kLoaders>
__device__ __forceinline__ void load_tile(u32 tile, const u16* matrix, int first, int rows, int lane) {
  constexpr int kCopies = kRows * cfg::kChunks;
  const u16* from = matrix + static_cast<long long>(first) * cfg::kHeadDim;
  if (first + kRows <= rows) {
#pragma unroll
    for (int i = 0; i < (kCopies + kLoaders - 1) / kLoaders; ++i) {
      const unsigned copy = lane + i * kLoaders;
      if (kCopies % kLoaders == 0 || copy < kCopies) {
        ptx::cp_async(tile + tile_offset(copy / cfg::kChunks, copy % cfg::kChunks), from + copy * 8);
      }
    }
  } else {
#pragma unroll 1
    for (unsigned copy = lane; copy < kCopies; copy += kLoaders) {
      const int row = copy / cfg::kChunks;
      const bool inside = first + row < rows;
      ptx::cp_async_or_zero(tile + tile_offset(row, copy % cfg::kChunks), inside ? from + copy * 8 : matrix,
                            inside ? 16 : 0);
    }
  }
}

// One head's K and V, and the ring they stream through. Tile t lives in slot t % STAGES.
template <int kLoaders>
struct KvLoader {
  const u16* k;  // (seq_k, HEAD_DIM)
  const u16* v;  // (seq_k, HEAD_DIM)
  int seq_k;
  int tiles;     // tiles that any row of this CTA sees
  u32 ring_k;    // shared address of slot 0
  u32 ring_v;
  int lane;

  static constexpr u32 kSlotBytes = cfg::kBlockN * cfg::kRowStride * 2;

  // Both commit a group even when the tile does not exist, so that wait counts stay the same in every iteration.
  __device__ __forceinline__ void load_k(int tile) const {
    if (tile < tiles) {
      load_tile<cfg::kBlockN, kLoaders>(ring_k + tile % cfg::kStages * kSlotBytes, k, tile * cfg::kBlockN, seq_k, lane);
    }
    ptx::cp_async_commit();
  }
  __device__ __forceinline__ void load_v(int tile) const {
    if (tile < tiles) {
      load_tile<cfg::kBlockN, kLoaders>(ring_v + tile % cfg::kStages * kSlotBytes, v, tile * cfg::kBlockN, seq_k, lane);
    }
    ptx::cp_async_commit();
  }
};
