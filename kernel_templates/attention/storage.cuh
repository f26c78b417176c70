// What lives in shared memory, and where an element of a tile lies.
#pragma once
#include "ptx.cuh"

// 8-byte barriers of the mbarrier form: K full, V full, K empty and V empty of every slot, and Q full.
inline constexpr int kMbarriers = 4 * cfg::kStages + 1;
inline constexpr u32 kSlotBytes = cfg::kBlockN * cfg::kHeadDim * 2;
inline constexpr int kRowBytes = cfg::kWgmma ? 128 : cfg::kHeadDim * 2;  // from one row of a tile to the next

struct MainStorage {
  u16 q[cfg::kBlockM * cfg::kHeadDim];                 // (BLOCK_M, HEAD_DIM)
  u16 k[cfg::kStages][cfg::kBlockN * cfg::kHeadDim];   // (STAGES, BLOCK_N, HEAD_DIM)
  u16 v[cfg::kStages][cfg::kBlockN * cfg::kHeadDim];   // (STAGES, BLOCK_N, HEAD_DIM)
};

// Partial results of the key groups; a single group stores its answer directly and keeps no row here. 8 floats of
// padding shift each row by 8 banks, so that the 8 rows that a warp's accumulator stores at once fall on all 32 banks.
inline constexpr int kMergeStride = cfg::kHeadDim + 8;
inline constexpr int kMergeRows = cfg::kWarpsKv > 1 ? cfg::kBlockM : 1;
struct MergeStorage {
  float o[cfg::kWarpsKv][kMergeRows * kMergeStride];     // (WARPS_KV, BLOCK_M, HEAD_DIM), not normalised
  float row_max[cfg::kWarpsKv][kMergeRows];              // raw scores
  float row_sum[cfg::kWarpsKv][kMergeRows];
};

union alignas(128) SharedStorage {
  MainStorage main;
  MergeStorage merge;                                    // after the last tile
};

inline constexpr u32 kOffsetK = sizeof(MainStorage::q);
inline constexpr u32 kOffsetV = kOffsetK + sizeof(MainStorage::k);

// The mbarriers come behind: `merge` must not overwrite one that a slow warp still asks.
inline constexpr int kBarrierOffset = sizeof(SharedStorage);
static_assert(kBarrierOffset + (cfg::kMbarrier ? 128 * ((8 * kMbarriers + 127) / 128) : 0) == cfg::kSmemBytes,
              "EVO rule smem_model: template.py and the kernel disagree on shared memory");

// Byte offset of 16-byte chunk `chunk` of row `row` in a tile. ldmatrix reads 8 rows of one chunk at once: in plain order
// rows of 128 bytes put all 8 on the same 4 banks; XOR with the row spreads them over all 32. Rows of 64 and 192 bytes
// begin on bank 0 and bank 16 in turn, so that two of them share a phase; their 4 and 12 chunks are whole groups of 4,
// which an XOR with 0 to 3 permutes. For wgmma a tile, of kRows rows, is parted into panels of 64 columns: with rows of 128
// bytes the XOR is its 128-byte swizzle. Among 4,864 configs of the mission shape on an H200 the best without a swizzle was
// 1.75 times as slow, the best with rows padded by 16 bytes instead 1.28 times: no knob.
template <int kRows>
__device__ __forceinline__ u32 tile_offset(int row, int chunk) {
  chunk ^= cfg::kChunks % 8 == 0 ? row & 7 : row >> 1 & 3;
  if constexpr (cfg::kWgmma) return static_cast<u32>((chunk / 8 * kRows + row) * kRowBytes + chunk % 8 * 16);
  return static_cast<u32>((row * cfg::kHeadDim + chunk * 8) * 2);
}
