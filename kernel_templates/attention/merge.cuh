// What several warps, or several CTAs, know of the same rows becomes one result.
#pragma once
#include "consumer.cuh"

// Eight columns of a row over some of its keys, not normalised.
struct Merged {
  float row_max;                                             // raw score
  float row_sum;
  float o[8];
};

// Shares of the same rows, at most kShares of them, with rows of kStride floats. `step` floats lie between two shares'
// outputs, `row_step` between their maxima and between their sums.
template <int kShares, int kStride>
struct Shares {
  const float* o;
  const float* row_max;
  const float* row_sum;
  int step;
  int row_step;

  // The first `count` shares, always in the same order: repeats are equal bit by bit. In place of those beyond, the last
  // one is read again and weighs nothing: a branch would make every share wait for the one before.
  __device__ __forceinline__ Merged merged(int count, int row, int column, float scale_log2) const {
    Merged all{row_max[row], 0.0f, {}};
#pragma unroll
    for (int i = 1; i < kShares; ++i) {
      all.row_max = ptx::max(all.row_max, row_max[(i < count ? i : count - 1) * row_step + row]);
    }
    const float base = all.row_max == ptx::negative_infinity() ? 0.0f : all.row_max * scale_log2;
#pragma unroll
    for (int i = 0; i < kShares; ++i) {
      const int g = i < count ? i : count - 1;
      const float exponential = ptx::exp2(__fmaf_rn(row_max[g * row_step + row], scale_log2, -base));
      const float weight = i < count ? exponential : 0.0f;
      all.row_sum += weight * row_sum[g * row_step + row];
      const float4* share = reinterpret_cast<const float4*>(o + g * step + row * kStride + column);
      const float4 low = share[0];
      const float4 high = share[1];
      all.o[0] += weight * low.x;
      all.o[1] += weight * low.y;
      all.o[2] += weight * low.z;
      all.o[3] += weight * low.w;
      all.o[4] += weight * high.x;
      all.o[5] += weight * high.y;
      all.o[6] += weight * high.z;
      all.o[7] += weight * high.w;
    }
    return all;
  }
};

// Where a CTA's rows of the output (seq_q, HEAD_DIM) go and, where asked for, of the log-sum-exp (seq_q).
struct Output {
  u16* out;
  float* lse;
  int cta_row;
  int seq_q;

  __device__ __forceinline__ bool has(int row) const { return cta_row + row < seq_q; }

  __device__ __forceinline__ void put(const Merged& all, int row, int column, float scale_log2) const {
    if constexpr (cfg::kLse) {
      if (column == 0) lse[cta_row + row] = log_sum_exp(all.row_max, all.row_sum, scale_log2);
    }
    const float inverse = all.row_sum > 0.0f ? 1.0f / all.row_sum : 0.0f;
    const uint4 words = make_uint4(ptx::pack(all.o[0] * inverse, all.o[1] * inverse),
                                   ptx::pack(all.o[2] * inverse, all.o[3] * inverse),
                                   ptx::pack(all.o[4] * inverse, all.o[5] * inverse),
                                   ptx::pack(all.o[6] * inverse, all.o[7] * inverse));
    *reinterpret_cast<uint4*>(out + static_cast<long long>(cta_row + row) * cfg::kHeadDim + column) = words;
  }
};

// Merges the first `count` shares of a CTA's rows into `to`; a thread takes 8 columns of a row at a time.
template <class From, class To>
__device__ __forceinline__ void merge(const From& from, int count, const To& to, float scale_log2) {
  constexpr int kItems = cfg::kBlockM * cfg::kChunks;
#pragma unroll
  for (int i = 0; i < (kItems + cfg::kMergeThreads - 1) / cfg::kMergeThreads; ++i) {
    const unsigned item = threadIdx.x + i * cfg::kMergeThreads;
    const int row = item / cfg::kChunks;
    const int column = item % cfg::kChunks * 8;
    if ((kItems % cfg::kMergeThreads != 0 && item >= kItems) || !to.has(row)) continue;
    to.put(from.merged(count, row, column, scale_log2), row, column, scale_log2);
  }
}

// What the key groups of a CTA published.
using GroupShares = Shares<cfg::kWarpsKv, kMergeStride>;
__device__ __forceinline__ GroupShares group_shares(const MergeStorage& from) {
  return {from.o[0], from.row_max[0], from.row_sum[0], kMergeRows * kMergeStride, kMergeRows};
}
