// y = w * x / sqrt(mean(x^2) + epsilon) for every row (RMSNorm, arXiv:1910.07467): fp16 in and out, sums in fp32.
#ifndef EVO_WARPS
#error "EVO missing EVO_WARPS"
#endif
#ifndef EVO_ROWS
#error "EVO missing EVO_ROWS"
#endif
#ifndef EVO_VECTOR
#error "EVO missing EVO_VECTOR"
#endif
#ifndef EVO_KEEP
#error "EVO missing EVO_KEEP"
#endif
#ifndef EVO_HIDDEN
#error "EVO missing EVO_HIDDEN"
#endif

namespace {

using u16 = unsigned short;
constexpr int kThreads = 32 * EVO_WARPS;                     // of one row
constexpr int kStep = kThreads * EVO_VECTOR;                 // columns that they read at once
constexpr int kSteps = (EVO_HIDDEN + kStep - 1) / kStep;

struct alignas(2 * EVO_VECTOR) Halves {
  u16 at[EVO_VECTOR];
};

__device__ float to_float(u16 half) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
}

__device__ u16 to_half(float value) {
  u16 half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
  return half;
}

}  // namespace

// x, y: (rows, HIDDEN); w: (HIDDEN); contiguous, 16-byte aligned. Grid ceil(rows / ROWS).
extern "C" __global__ void __launch_bounds__(kThreads * EVO_ROWS)
    evo_rmsnorm(const u16* __restrict__ x, const u16* __restrict__ w, u16* __restrict__ y, int rows, float epsilon) {
  __shared__ float sums[EVO_ROWS][EVO_WARPS];
  const int slot = threadIdx.x / kThreads;                   // row of this CTA
  const int thread = threadIdx.x % kThreads;
  const int row = blockIdx.x * EVO_ROWS + slot;
  const long long start = static_cast<long long>(row) * EVO_HIDDEN;

  Halves kept[EVO_KEEP ? kSteps : 1];
  float sum = 0.0f;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int column = step * kStep + thread * EVO_VECTOR;
    if (row >= rows || column >= EVO_HIDDEN) continue;
    const Halves read = *reinterpret_cast<const Halves*>(x + start + column);
    if constexpr (EVO_KEEP) kept[step] = read;
#pragma unroll
    for (int i = 0; i < EVO_VECTOR; ++i) sum = fmaf(to_float(read.at[i]), to_float(read.at[i]), sum);
  }

#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if constexpr (EVO_WARPS > 1) {
    if (thread % 32 == 0) sums[slot][thread / 32] = sum;
    __syncthreads();
    sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < EVO_WARPS; ++warp) sum += sums[slot][warp];
  }
  const float scale = rsqrtf(sum / EVO_HIDDEN + epsilon);

#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int column = step * kStep + thread * EVO_VECTOR;
    if (row >= rows || column >= EVO_HIDDEN) continue;
    const Halves read = EVO_KEEP ? kept[EVO_KEEP ? step : 0] : *reinterpret_cast<const Halves*>(x + start + column);
    const Halves weight = *reinterpret_cast<const Halves*>(w + column);
    Halves out;
#pragma unroll
    for (int i = 0; i < EVO_VECTOR; ++i) out.at[i] = to_half(to_float(read.at[i]) * scale * to_float(weight.at[i]));
    *reinterpret_cast<Halves*>(y + start + column) = out;
  }
}
