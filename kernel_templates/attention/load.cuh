// Global memory to shared memory.
#pragma once
#include "storage.cuh"

// Copies after which a thread is back in its 16-byte column: 1 where the loaders are whole rows, 3 with the 12 chunks of
// HEAD_DIM 96.
template <int kLoaders>
inline constexpr int kPeriod = kLoaders % cfg::kChunks == 0 ? 1 : 3;

// Copies kFirst, kFirst + kPeriod, ... of one thread at constant distances; `to` is where copy kFirst goes, `from` where
// copy 0 comes from. Recursion, because only template constants reach the instruction's immediate fields: computed
// 64-bit addresses cost two instructions a copy.
template <int kCopies, int kLoaders, int kFirst, int kI = kFirst>
__device__ __forceinline__ void copy_at_constant_steps(u32 to, const u16* from, int lane) {
  if constexpr (kI * kLoaders < kCopies) {
    if ((kI + 1) * kLoaders <= kCopies || lane + kI * kLoaders < kCopies) {
      constexpr int kRows = (kI - kFirst) * kLoaders / cfg::kChunks;
      ptx::cp_async_at<kRows * kRowBytes, kI * kLoaders * 16>(to, from);
    }
    copy_at_constant_steps<kCopies, kLoaders, kFirst, kI + kPeriod<kLoaders>>(to, from, lane);
  }
}

// The same for every column of a thread, from kFirst on; copy 0 is for (row, chunk) of a tile of kRows rows.
template <int kRows, int kCopies, int kLoaders, int kFirst = 0>
__device__ __forceinline__ void copy_columns(u32 tile, const u16* from, int row, int chunk, int lane) {
  if constexpr (kFirst < kPeriod<kLoaders>) {
    const int index = chunk + kFirst * kLoaders;
    const u32 to = tile + (kFirst == 0 ? tile_offset<kRows>(row, chunk)
                                       : tile_offset<kRows>(row + index / cfg::kChunks, index % cfg::kChunks));
    copy_at_constant_steps<kCopies, kLoaders, kFirst>(to, from, lane);
    copy_columns<kRows, kCopies, kLoaders, kFirst + 1>(tile, from, row, chunk, lane);
  }
}

// Copies rows [first, first + kRows) of a contiguous (rows, HEAD_DIM) matrix; rows from `rows` on become zero, because
// garbage there would reach the output as 0 * NaN in P V. `lane` counts within the `kLoaders` threads that share this.
template <int kRows, int kLoaders>
__device__ __forceinline__ void load_tile(u32 tile, const u16* matrix, int first, int rows, int lane) {
  constexpr int kCopies = kRows * cfg::kChunks;
  constexpr bool kOneColumn = kPeriod<kLoaders> == 1;
  constexpr int kRowStep = kPeriod<kLoaders> * kLoaders / cfg::kChunks;  // rows between two copies in one column
  static_assert(kPeriod<kLoaders> * kLoaders % cfg::kChunks == 0, "EVO rule loaders: a thread returns to its column");
  static_assert(kOneColumn || kRowStep % 8 == 0, "EVO rule loaders: and to its swizzle phase");
  const int row = lane / cfg::kChunks;
  const int chunk = lane % cfg::kChunks;
  const u16* from = matrix + static_cast<long long>(first) * cfg::kHeadDim + lane * 8;
  if (first + kRows <= rows) {
    if constexpr (kRowStep % 8 == 0) {  // every copy has the same swizzle phase
      copy_columns<kRows, kCopies, kLoaders>(tile, from, row, chunk, lane);
    } else {
#pragma unroll
      for (int i = 0; i < (kCopies + kLoaders - 1) / kLoaders; ++i) {
        if (kCopies % kLoaders == 0 || lane + i * kLoaders < kCopies) {
          ptx::cp_async_at<0, 0>(tile + tile_offset<kRows>(row + i * kRowStep, chunk), from + i * kLoaders * 8);
        }
      }
    }
  } else {
#pragma unroll 1
    for (int i = 0; lane + i * kLoaders < kCopies; ++i) {
      const int index = chunk + i * kLoaders;
      const int this_row = kOneColumn ? row + i * kRowStep : row + index / cfg::kChunks;
      const int this_chunk = kOneColumn ? chunk : index % cfg::kChunks;
      const bool inside = first + this_row < rows;
      ptx::cp_async_or_zero(tile + tile_offset<kRows>(this_row, this_chunk), inside ? from + i * kLoaders * 8 : matrix,
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
