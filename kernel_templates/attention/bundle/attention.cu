#include "config.h"

#include "kernel/kernel.cu"

#include "attention.h"

#include <cstdint>

namespace evo {

namespace {

constexpr int kLongest = 1 << 24;                            // lengths, of which the kernel computes in 32 bits
constexpr unsigned kMaxGrid = 65535;                         // of the second and the third dimension
constexpr std::size_t kAlign = 256;

dim3 grid_of(const AttentionShape& shape) {
  return evo_attention_grid(static_cast<unsigned>(shape.batch), static_cast<unsigned>(shape.heads),
                            static_cast<unsigned>(shape.seq_q));
}

bool possible(const AttentionShape& shape) {
  for (const int extent : {shape.batch, shape.heads, shape.kv_heads, shape.seq_q, shape.seq_k}) {
    if (extent < 1 || extent > kLongest) return false;
  }
  if (shape.batch > 65535 || shape.heads > 65535 || shape.heads % shape.kv_heads != 0) return false;
  if (shape.diagonal < -kLongest || shape.diagonal > kLongest || !(shape.scale > 0.0f)) return false;
  const dim3 grid = grid_of(shape);
  return grid.y <= kMaxGrid && grid.z <= kMaxGrid;
}

std::size_t ctas_of(const AttentionShape& shape) {
  const dim3 grid = grid_of(shape);
  return static_cast<std::size_t>(grid.x) * grid.y * grid.z;
}

// Counters of the CTAs that share rows come first, what those leave for each other behind.
std::size_t counter_bytes(const AttentionShape& shape) { return sizeof(unsigned) * (ctas_of(shape) / cfg::kSplitKv); }

std::size_t partials_offset(const AttentionShape& shape) {
  return (counter_bytes(shape) + kAlign - 1) / kAlign * kAlign;
}

bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

}  // namespace

AttentionBuild attention_build() {
  return {cfg::kHeadDim, cfg::kDtype == cfg::Dtype::kBf16, cfg::kCausal, cfg::kLse, cfg::kBlockN};
}

std::size_t attention_scratch_bytes(const AttentionShape& shape) {
  if (cfg::kSplitKv == 1 || !possible(shape)) return 0;
  return partials_offset(shape) + sizeof(float) * ctas_of(shape) * cfg::kBlockM * (cfg::kHeadDim + 2);
}

cudaError_t attention_prepare(void* scratch, const AttentionShape& shape, cudaStream_t stream) {
  if (!possible(shape)) return cudaErrorInvalidValue;
  if (cfg::kSplitKv == 1) return cudaSuccess;
  if (scratch == nullptr) return cudaErrorInvalidValue;
  return cudaMemsetAsync(scratch, 0, counter_bytes(shape), stream);
}

cudaError_t attention(const void* q, const void* k, const void* v, void* o, float* lse, void* scratch,
                      const AttentionShape& shape, cudaStream_t stream) {
  if (!possible(shape) || !q || !k || !v || !o) return cudaErrorInvalidValue;
  if (cfg::kLse != (lse != nullptr) || (cfg::kSplitKv > 1 && !scratch)) return cudaErrorInvalidValue;
  if (!aligned(q) || !aligned(k) || !aligned(v) || !aligned(o) || !aligned(scratch)) return cudaErrorMisalignedAddress;

  // Above 48 KB a launch needs leave, once for every device; asking again costs less than knowing which have it.
  if (cfg::kSmemBytes > 48 * 1024) {
    const cudaError_t allowed =
        cudaFuncSetAttribute(evo_attention, cudaFuncAttributeMaxDynamicSharedMemorySize, cfg::kSmemBytes);
    if (allowed != cudaSuccess) return allowed;
  }
  int seq_q = shape.seq_q;
  int seq_k = shape.seq_k;
  int kv_heads = shape.kv_heads;
  int queries_per_kv = shape.heads / shape.kv_heads;
  int diagonal = shape.diagonal;
  float scale_log2 = static_cast<float>(static_cast<double>(shape.scale) * 1.4426950408889634);  // the kernel has exp2
#if EVO_SPLIT_KV > 1
  unsigned* arrivals = static_cast<unsigned*>(scratch);
  unsigned char* partials = static_cast<unsigned char*>(scratch) + partials_offset(shape);
#endif
  void* arguments[] = {
      &q, &k, &v, &o,
#if EVO_LSE
      &lse,
#endif
#if EVO_SPLIT_KV > 1
      &partials, &arrivals,
#endif
      &seq_q, &seq_k, &kv_heads, &queries_per_kv, &diagonal, &scale_log2,
  };
  return cudaLaunchKernel(reinterpret_cast<const void*>(evo_attention), grid_of(shape), dim3(cfg::kThreads), arguments,
                          cfg::kSmemBytes, stream);
}

}  // namespace evo
