// Hopper's wgmma: four warps multiply 64 rows at once, and K and V come from shared memory without ldmatrix. Accumulators
// and A operands lie as those of mma.sync, 16 rows a warp, so that everything between the two products is the same code.
// PTX ISA 9.0, 9.7.15; sm_90a only.
#pragma once
#include "storage.cuh"

namespace warpgroup {

using u64 = unsigned long long;
using Columns = float[8][4];                                 // 64 columns of an accumulator: 8 tiles of 8

inline constexpr int kRows = 64 * cfg::kRowTiles;            // query rows of a warpgroup

template <int kTiles>
__device__ __forceinline__ Columns& columns(float (&row)[kTiles][4], int block) {
  return *reinterpret_cast<Columns*>(row + 8 * block);
}

// wgmma reads shared memory through a proxy of its own, which does not see what cp.async has brought until this is said,
// after the barrier, by who reads.
__device__ __forceinline__ void see_copies() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// A warpgroup's registers a thread from here on; growing waits until others have given up as many (PTX ISA, setmaxnreg).
__device__ __forceinline__ void shrink() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(cfg::kProducerRegisters));
}
__device__ __forceinline__ void grow() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(cfg::kConsumerRegisters));
}

// Before the first wgmma, and after registers that it uses were written.
__device__ __forceinline__ void fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }

__device__ __forceinline__ void wait() {
  asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n" ::: "memory");
}

// The compiler must not take up an accumulator before `wait`, which does not name it.
__device__ __forceinline__ void arrived(Columns& c) {
#pragma unroll
  for (int i = 0; i < 8; ++i) asm volatile("" : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])::"memory");
}

// Matrix descriptor of rows of 128 bytes with the 128-byte swizzle: 1024 bytes from 8 rows to the next 8. Nothing is wider
// than 64 columns, so that the other distance is not used.
__device__ __forceinline__ u64 descriptor(u32 at) {
  constexpr u64 kSwizzle128 = 1ull << 62, kStride = (1024ull >> 4) << 32;
  return kSwizzle128 | kStride | (at >> 4 & 0x3fff);
}

// What a descriptor grows by to columns 16 * slice and up of row `row` in a tile of kTileRows rows.
template <int kTileRows>
__device__ __forceinline__ constexpr u64 step(int row, int slice) {
  return ((slice / 4 * kTileRows + row) * kRowBytes + slice % 4 * 32) >> 4;
}

#define COLUMN(c, i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define COLUMNS(c)                                                                                   \
  COLUMN(c, 0), COLUMN(c, 1), COLUMN(c, 2), COLUMN(c, 3), COLUMN(c, 4), COLUMN(c, 5), COLUMN(c, 6), COLUMN(c, 7)
// c = a * b, or c += a * b with `keep`.
#define WGMMA_OF(type, transposes, a, ...)                                                           \
  asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, %33, 0;\n"                                    \
               "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " "                       \
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "             \
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, " a \
               ", %32, keep, 1, 1, " transposes ";\n}\n"                                             \
               : COLUMNS(c)                                                                          \
               : "l"(b), "r"(static_cast<int>(keep)), __VA_ARGS__)

// Q from shared memory times K, both (rows, HEAD_DIM).
__device__ __forceinline__ void multiply_k(Columns& c, u64 a, u64 b, bool keep) {
  if constexpr (cfg::kDtype == cfg::Dtype::kFp16) {
    WGMMA_OF("f16", "0, 0", "%34", "l"(a));
  } else {
    WGMMA_OF("bf16", "0, 0", "%34", "l"(a));
  }
}

// Q from registers times K.
__device__ __forceinline__ void multiply_k(Columns& c, const u32 (&a)[4], u64 b, bool keep) {
  if constexpr (cfg::kDtype == cfg::Dtype::kFp16) {
    WGMMA_OF("f16", "0", "{%34, %35, %36, %37}", "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]));
  } else {
    WGMMA_OF("bf16", "0", "{%34, %35, %36, %37}", "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]));
  }
}

// P from registers times V, whose rows are the depth of the product: transposed.
__device__ __forceinline__ void multiply_v(Columns& c, const u32 (&a)[4], u64 b) {
  constexpr bool keep = true;
  if constexpr (cfg::kDtype == cfg::Dtype::kFp16) {
    WGMMA_OF("f16", "1", "{%34, %35, %36, %37}", "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]));
  } else {
    WGMMA_OF("bf16", "1", "{%34, %35, %36, %37}", "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]));
  }
}

#undef WGMMA_OF
#undef COLUMNS
#undef COLUMN

// S = Q K^T for this warpgroup's rows and the keys from `key` on; `row` is the first of the calling warp.
__device__ __forceinline__ void scores(float (&s)[cfg::kRowTiles][cfg::kKeys / 8][4],
                                       const u32 (&q)[cfg::kRowTiles][cfg::kHeadDim / 16][4], u32 tile_q, int row,
                                       u32 tile_k, int key) {
  const u64 rows = descriptor(tile_q + (row - row % kRows) * kRowBytes);
  const u64 keys = descriptor(tile_k + key * kRowBytes);
  see_copies();
  fence();
#pragma unroll
  for (int block = 0; block < cfg::kKeys / 64; ++block) {
#pragma unroll
    for (int d = 0; d < cfg::kHeadDim / 16; ++d) {
      const u64 k = keys + step<cfg::kBlockN>(64 * block, d);
#pragma unroll
      for (int i = 0; i < cfg::kRowTiles; ++i) {
        if constexpr (cfg::kQInRegs) {
          multiply_k(columns(s[i], block), q[i][d], k, d > 0);
        } else {
          multiply_k(columns(s[i], block), rows + step<cfg::kBlockM>(0, d), k, d > 0);
        }
      }
    }
  }
  wait();
#pragma unroll
  for (int i = 0; i < cfg::kRowTiles; ++i) {
#pragma unroll
    for (int block = 0; block < cfg::kKeys / 64; ++block) arrived(columns(s[i], block));
  }
}

// O += P V. Each 16 keys are multiplied as soon as their probabilities are packed: the exponentials of the next ones then
// run beside the tensor cores, and their scores' registers are free again. Of the 40 elites of five searches on an H200
// that could also multiply all of them at once, 39 did it so.
__device__ __forceinline__ void accumulate(float (&o)[cfg::kRowTiles][cfg::kHeadDim / 8][4],
                                           float (&sums)[cfg::kRowTiles][4],
                                           const float (&s)[cfg::kRowTiles][cfg::kKeys / 8][4], u32 tile_v, int key) {
  const u64 keys = descriptor(tile_v + key * kRowBytes);
  see_copies();
#pragma unroll
  for (int j = 0; j < cfg::kKeys / 16; ++j) {
    u32 p[cfg::kRowTiles][4];
#pragma unroll
    for (int i = 0; i < cfg::kRowTiles; ++i) {
      ptx::pack_fragment(p[i], s[i][2 * j], s[i][2 * j + 1]);
      if constexpr (cfg::kSumMma) ptx::mma(sums[i], p[i], ptx::ones(), ptx::ones());
    }
    fence();
#pragma unroll
    for (int i = 0; i < cfg::kRowTiles; ++i) {
#pragma unroll
      for (int block = 0; block < cfg::kHeadDim / 64; ++block) {
        multiply_v(columns(o[i], block), p[i], keys + step<cfg::kBlockN>(16 * j, 4 * block));
      }
    }
  }
  wait();
#pragma unroll
  for (int i = 0; i < cfg::kRowTiles; ++i) {
#pragma unroll
    for (int block = 0; block < cfg::kHeadDim / 64; ++block) arrived(columns(o[i], block));
  }
}

}  // namespace warpgroup
