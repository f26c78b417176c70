// What one warp computes: ROW_TILES x 16 query rows against its share of the keys, online softmax in registers.
#pragma once
#include "warpgroup.cuh"

// Natural logarithm of the sum of exp(scale * score) over a row's keys: -inf where there is none. `row_max` is of raw
// scores, `row_sum` of exp(scale * (score - row_max)).
__device__ __forceinline__ float log_sum_exp(float row_max, float row_sum, float scale_log2) {
  return 0.6931471805599453f * (row_max * scale_log2 + ptx::log2(row_sum));
}

struct Consumer {
  static constexpr int kRowTiles = cfg::kRowTiles;
  static constexpr int kKeyPairs = cfg::kKeys / 16;          // 16 keys: two mma columns of S, one mma depth of PV
  static constexpr int kDepth = cfg::kHeadDim / 16;
  static constexpr u32 k16Rows = 16 * cfg::kHeadDim * 2;   // bytes

  // Accumulator layout of mma.m16n8: values 0, 1 are row lane / 4, columns 2 * (lane % 4) + {0, 1}; 2, 3 are row + 8.
  float o[kRowTiles][cfg::kHeadDim / 8][4];                  // (16, 8) per tile of the output, not normalised
  float row_max[kRowTiles][2];                               // raw scores, -inf before the first visible key
  float row_sum[kRowTiles][2];                               // this lane's share; unused with SUM_MMA
  float sums[kRowTiles][4];                                  // SUM_MMA: accumulators of P times ones, whole row sums
  u32 q[kRowTiles][kDepth][4];                               // used with Q_IN_REGS only
  float buffer[cfg::kOverlap ? 2 : 1][kRowTiles][cfg::kKeys / 8][4];  // scores, then probabilities, of one or two tiles

  int lane;
  int warp_row;                                              // first query row of this warp inside the CTA
  int warp_key;                                              // first key of this warp inside a tile
  int first_row;                                             // warp_row as a row of the sequence
  int seq_k;
  int diagonal;
  float scale_log2;                                          // softmax scale * log2(e)

  __device__ __forceinline__ void setup() {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        row_max[i][h] = ptx::negative_infinity();
        row_sum[i][h] = 0.0f;
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[i][e] = 0.0f;
#pragma unroll
      for (int d = 0; d < cfg::kHeadDim / 8; ++d) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o[i][d][e] = 0.0f;
      }
    }
  }

  __device__ __forceinline__ void load_q_fragment(u32 (&to)[4], u32 tile_q, int i, int d) const {
    const int row = warp_row + i * 16 + (lane & 15);
    ptx::ldmatrix(to, tile_q + tile_offset<cfg::kBlockM>(row, d * 2 + (lane >> 4)));
  }

  __device__ __forceinline__ void keep_q(u32 tile_q) {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int d = 0; d < kDepth; ++d) load_q_fragment(q[i][d], tile_q, i, d);
    }
  }

  // Keys that row `row` of the sequence sees.
  __device__ __forceinline__ int visible(int row) const {
    if constexpr (!cfg::kCausal) return seq_k;
    const int upto = row + diagonal + 1;
    return upto < seq_k ? upto : seq_k;
  }

  // S = Q K^T for this warp's keys.
  template <int kBuffer>
  __device__ __forceinline__ void scores(u32 tile_q, u32 tile_k) {
    auto& s = buffer[kBuffer];
    if constexpr (cfg::kWgmma) return warpgroup::scores(s, q, tile_q, warp_row, tile_k, warp_key);
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < cfg::kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[i][j][e] = 0.0f;
      }
    }
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      if constexpr (!cfg::kQInRegs) {
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) load_q_fragment(q[i][0], tile_q, i, d);
      }
      // 16 rows further on the swizzle repeats: one address per depth, the rest are constants.
      const u32 k = tile_k + tile_offset<cfg::kBlockN>(warp_key + (lane & 7) + ((lane >> 4) << 3), d * 2 + ((lane >> 3) & 1));
#pragma unroll
      for (int j = 0; j < kKeyPairs; ++j) {
        u32 b[4];                                            // two 8-key columns x 16 deep
        ptx::ldmatrix(b, k + j * k16Rows);
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          ptx::mma(s[i][2 * j], q[i][cfg::kQInRegs ? d : 0], b[0], b[1]);
          ptx::mma(s[i][2 * j + 1], q[i][cfg::kQInRegs ? d : 0], b[2], b[3]);
        }
      }
    }
  }

  // Leading tiles of which every row of this warp sees every key; with wgmma of its warpgroup, whose warps go together.
  __device__ __forceinline__ int whole_tiles() const {
    const int keys = visible(cfg::kWgmma ? first_row - warp_row % warpgroup::kRows : first_row);
    return keys > 0 ? keys / cfg::kBlockN : 0;
  }

  // Scores of keys that a row does not see become -inf. Only tiles that cross the mask's edge pay for it.
  template <int kBuffer>
  __device__ __forceinline__ void mask(int first_key) {
    auto& s = buffer[kBuffer];
    const int key = first_key + warp_key;
    if (key + cfg::kKeys <= visible(first_row)) return;
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int seen = visible(first_row + i * 16 + h * 8 + (lane >> 2)) - key - (lane & 3) * 2;
#pragma unroll
        for (int j = 0; j < cfg::kKeys / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            if (j * 8 + e >= seen) s[i][j][2 * h + e] = ptx::negative_infinity();
          }
        }
      }
    }
  }

  // P = exp(scale * (S - max)), and the running maximum, sum and output brought to the new maximum; in the first tile
  // there is none to bring. The two rows of a lane and the two columns of a register pair are four independent chains.
  template <int kBuffer, bool kFirst>
  __device__ __forceinline__ void softmax() {
    auto& s = buffer[kBuffer];
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      float highest[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) highest[h] = kFirst ? s[i][0][2 * h] : row_max[i][h];
#pragma unroll
      for (int j = 0; j < cfg::kKeys / 8; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          highest[h] = ptx::max(highest[h], ptx::max(s[i][j][2 * h], s[i][j][2 * h + 1]));
        }
      }
      float base[2];
      float sum[2][2] = {};
#pragma unroll
      for (int h = 0; h < 2; ++h) highest[h] = ptx::quad_max(highest[h]);
      bool rescales = true;
      if constexpr (cfg::kLazyRescale && !kFirst) {
        // Weights may grow to 2^8 before the maximum has to follow: fp16 holds them, and the sum scales with them.
        const float slack = 8.0f / scale_log2;
        const bool outgrown = highest[0] > row_max[i][0] + slack || highest[1] > row_max[i][1] + slack;
        rescales = __any_sync(0xffffffffu, outgrown);
        if (!rescales) {
          highest[0] = row_max[i][0];
          highest[1] = row_max[i][1];
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        // A row that has seen no key yet has maximum -inf; -inf - -inf would be NaN.
        base[h] = highest[h] == ptx::negative_infinity() ? 0.0f : highest[h] * scale_log2;
      }
#pragma unroll
      for (int j = 0; j < cfg::kKeys / 8; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& p = s[i][j][2 * h + e];
            p = ptx::exp2(__fmaf_rn(p, scale_log2, -base[h]));
            if constexpr (!cfg::kSumMma) sum[h][e] += p;
          }
        }
      }
      if (kFirst || !rescales) {
#pragma unroll
        for (int h = 0; h < 2; ++h) row_sum[i][h] = (kFirst ? 0.0f : row_sum[i][h]) + sum[h][0] + sum[h][1];
      } else {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float rescale = ptx::exp2(__fmaf_rn(row_max[i][h], scale_log2, -base[h]));
          row_sum[i][h] = row_sum[i][h] * rescale + sum[h][0] + sum[h][1];
          sums[i][2 * h] *= rescale;
          sums[i][2 * h + 1] *= rescale;
#pragma unroll
          for (int d = 0; d < cfg::kHeadDim / 8; ++d) {
            o[i][d][2 * h] *= rescale;
            o[i][d][2 * h + 1] *= rescale;
          }
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) row_max[i][h] = highest[h];
    }
  }

  // O += P V: the accumulator layout of S is the A-operand layout of the second mma.
  template <int kBuffer>
  __device__ __forceinline__ void accumulate(u32 tile_v) {
    const auto& s = buffer[kBuffer];
    if constexpr (cfg::kWgmma) return warpgroup::accumulate(o, sums, s, tile_v, warp_key);
    u32 v[kDepth];
#pragma unroll
    for (int d = 0; d < kDepth; ++d) v[d] = tile_v + tile_offset<cfg::kBlockN>(warp_key + (lane & 15), d * 2 + (lane >> 4));
#pragma unroll
    for (int j = 0; j < kKeyPairs; ++j) {
      u32 p[kRowTiles][4];
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        ptx::pack_fragment(p[i], s[i][2 * j], s[i][2 * j + 1]);
        if constexpr (cfg::kSumMma) ptx::mma(sums[i], p[i], ptx::ones(), ptx::ones());
      }
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        u32 b[4];                                            // 16 keys x two 8-wide columns of V
        ptx::ldmatrix_transposed(b, v[d] + j * k16Rows);
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          ptx::mma(o[i][2 * d], p[i], b[0], b[1]);
          ptx::mma(o[i][2 * d + 1], p[i], b[2], b[3]);
        }
      }
    }
  }

  // Sum of row h * 8 + lane / 4 of tile i over all of this warp's keys.
  __device__ __forceinline__ float total(int i, int h) const {
    return cfg::kSumMma ? sums[i][2 * h] : ptx::quad_sum(row_sum[i][h]);
  }

  // Normalise and store; only with one key group, which holds the whole answer. `out` is (seq_q, HEAD_DIM), `lse`
  // (seq_q) where it is asked for.
  __device__ __forceinline__ void store(u16* out, float* lse, int seq_q) const {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float sum = total(i, h);
        const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;  // a row that saw no key is zero
        const int row = first_row + i * 16 + h * 8 + (lane >> 2);
        if (row < seq_q) {
          if constexpr (cfg::kLse) {
            if ((lane & 3) == 0) lse[row] = log_sum_exp(row_max[i][h], sum, scale_log2);
          }
          u16* to = out + static_cast<long long>(row) * cfg::kHeadDim + (lane & 3) * 2;
#pragma unroll
          for (int d = 0; d < cfg::kHeadDim / 8; ++d) {
            *reinterpret_cast<u32*>(to + d * 8) = ptx::pack(o[i][d][2 * h] * inverse, o[i][d][2 * h + 1] * inverse);
          }
        }
      }
    }
  }

  // Leave this key group's share, rows of kStride floats, for whoever merges it.
  template <int kStride>
  __device__ __forceinline__ void publish(float* to_o, float* to_max, float* to_sum) const {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = warp_row + i * 16 + h * 8 + (lane >> 2);
        const float sum = total(i, h);
        if ((lane & 3) == 0) {
          to_max[row] = row_max[i][h];
          to_sum[row] = sum;
        }
        float* out = to_o + row * kStride + (lane & 3) * 2;
#pragma unroll
        for (int d = 0; d < cfg::kHeadDim / 8; ++d) {
          *reinterpret_cast<float2*>(out + d * 8) = make_float2(o[i][d][2 * h], o[i][d][2 * h + 1]);
        }
      }
    }
  }
};
