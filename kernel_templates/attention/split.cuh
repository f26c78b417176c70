// The grid split of the keys: CTAs of the same rows leave partial results in scratch, the last to arrive merges them.
#pragma once
#include "merge.cuh"

// The tiles that one of the SPLIT_KV CTAs of the same rows walks: contiguous, and none where the rows see too few.
struct Share {
  int first;
  int tiles;
  int ctas;                                                  // CTAs of these rows that walk a tile, 1 at least
};

__device__ __forceinline__ Share share_of(int tiles, int split) {
  if constexpr (cfg::kSplitKv == 1) return {0, tiles, 1};
  const int each = (tiles + cfg::kSplitKv - 1) / cfg::kSplitKv;
  const int first = split * each;
  const int left = tiles - first;
  return {first, left < each ? left : each, tiles > 0 ? (tiles + each - 1) / each : 1};
}

// One CTA's part of the scratch: rows of HEAD_DIM floats, not normalised, then maxima of raw scores, then sums.
struct Partial {
  static constexpr int kFloats = cfg::kBlockM * (cfg::kHeadDim + 2);
  float* o;                                                  // (BLOCK_M, HEAD_DIM)

  __device__ __forceinline__ float* row_max() const { return o + cfg::kBlockM * cfg::kHeadDim; }
  __device__ __forceinline__ float* row_sum() const { return row_max() + cfg::kBlockM; }
  __device__ __forceinline__ bool has(int row) const { return true; }

  __device__ __forceinline__ void put(const Merged& all, int row, int column, float scale_log2) const {
    if (column == 0) {
      row_max()[row] = all.row_max;
      row_sum()[row] = all.row_sum;
    }
    float4* to = reinterpret_cast<float4*>(o + row * cfg::kHeadDim + column);
    to[0] = make_float4(all.o[0], all.o[1], all.o[2], all.o[3]);
    to[1] = make_float4(all.o[4], all.o[5], all.o[6], all.o[7]);
  }
};

// CTAs of the same rows have numbers that follow each other; `arrivals` counts those that have written their partial
// results.
struct Scratch {
  float* partials;                                           // (CTAs, Partial::kFloats)
  u32* arrivals;                                             // (CTAs / SPLIT_KV), 0 before and after every launch

  __device__ __forceinline__ Partial partial(long long cta) const { return {partials + cta * Partial::kFloats}; }

  __device__ __forceinline__ Shares<cfg::kSplitKv, cfg::kHeadDim> shares(long long cta) const {
    const Partial first = partial(cta / cfg::kSplitKv * cfg::kSplitKv);
    return {first.o, first.row_max(), first.row_sum(), Partial::kFloats, Partial::kFloats};
  }

  // True in one of `ctas` CTAs, when the partial results of all are there to be read. It has set the counter back to 0.
  // `flag` is a word of shared memory that nobody reads any more once the whole CTA has come here.
  __device__ __forceinline__ bool last_to_arrive(long long cta, u32 ctas, volatile u32* flag) const {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();                                       // orders what the whole CTA wrote before its arrival
      *flag = atomicInc(arrivals + cta / cfg::kSplitKv, ctas - 1);
      __threadfence();
    }
    __syncthreads();
    return *flag == ctas - 1;
  }
};
