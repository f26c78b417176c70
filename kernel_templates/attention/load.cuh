// Global memory to shared memory.
#pragma once
#include "storage.cuh"

// Copies I, I + 1, ... of one thread at constant distances. Recursion, because only template constants reach the
// instruction's immediate fields: computed 64-bit addresses cost two instructions a copy.
template <int kCopies, int kLoaders, int kI>
__device__ __forceinline__ void copy_at_constant_steps(u32 to, const u16* from, int lane) {
  if constexpr (kI * kLoaders < kCopies) {
    if ((kI + 1) * kLoaders <= kCopies || lane + kI * kLoaders < kCopies) {
      ptx::cp_async_at<kI * (kLoaders / cfg::kChunks) * cfg::kRowStride * 2, kI * kLoaders * 16>(to, from);
    }
    copy_at_constant_steps<kCopies, kLoaders, kI + 1>(to, from, lane);
  }
}

// Copies rows [first, first + kRows) of a contiguous (rows, HEAD_DIM) matrix; rows from `rows` on become zero, because
// garbage there would reach the output as 0 * NaN in P V. `lane` counts within the `kLoaders` threads that share this.
template <int kRows, int kLoaders>
__device__ __forceinline__ void load_tile(u32 tile, const u16* matrix, int first, int rows, int lane) {
  constexpr int kCopies = kRows * cfg::kChunks;
  constexpr int kRowStep = kLoaders / cfg::kChunks;          // rows between two copies of one thread
  static_assert(kLoaders % cfg::kChunks == 0, "EVO rule loaders: a thread keeps its 16-byte column");
  const int row = lane / cfg::kChunks;
  const int chunk = lane % cfg::kChunks;
  const u16* from = matrix + static_cast<long long>(first) * cfg::kHeadDim + lane * 8;
  if (first + kRows <= rows) {
    if constexpr (cfg::kLayout != cfg::Layout::kXor || kRowStep % 8 == 0) {  // every copy has the same swizzle phase
      copy_at_constant_steps<kCopies, kLoaders, 0>(tile + tile_offset(row, chunk), from, lane);
    } else {
#pragma unroll
      for (int i = 0; i < (kCopies + kLoaders - 1) / kLoaders; ++i) {
        if (kCopies % kLoaders == 0 || lane + i * kLoaders < kCopies) {
          ptx::cp_async_at<0, 0>(tile + tile_offset(row + i * kRowStep, chunk), from + i * kLoaders * 8);
        }
      }
    }
  } else {
#pragma unroll 1
    for (int i = 0; lane + i * kLoaders < kCopies; ++i) {
      const int this_row = row + i * kRowStep;
      const bool inside = first + this_row < rows;
      ptx::cp_async_or_zero(tile + tile_offset(this_row, chunk), inside ? from + i * kLoaders * 8 : matrix,
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

  __device__ __forceinline__ void fetch_k(int tile, int slot) const {
    if (tile < tiles) {
      load_tile<cfg::kBlockN, kLoaders>(ring_k + slot * kSlotBytes, k, tile * cfg::kBlockN, seq_k, lane);
    }
  }
  __device__ __forceinline__ void fetch_v(int tile, int slot) const {
    if (tile < tiles) {
      load_tile<cfg::kBlockN, kLoaders>(ring_v + slot * kSlotBytes, v, tile * cfg::kBlockN, seq_k, lane);
    }
  }

  // Both commit a group even when the tile does not exist, so that wait counts stay the same in every iteration.
  __device__ __forceinline__ void load_k(int tile, int slot) const {
    fetch_k(tile, slot);
    ptx::cp_async_commit();
  }
  __device__ __forceinline__ void load_v(int tile, int slot) const {
    fetch_v(tile, slot);
    ptx::cp_async_commit();
  }
};
