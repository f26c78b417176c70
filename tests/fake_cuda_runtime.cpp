// The CUDA runtime and a bundle's launcher on a CPU: memory is the host's, and the kernel is a plain loop with one of a
// few bugs, FAKE_BUG, so that a bundle's own test can be seen to pass and to fail where there is no GPU.
#include "attention.h"
#include "tuned_shape.h"

#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

static const std::string bug = std::getenv("FAKE_BUG") ? std::getenv("FAKE_BUG") : "none";
static int launches = 0;

extern "C" {
cudaError_t cudaGetDeviceCount(int* count) { return *count = bug != "no device", cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error"; }
cudaError_t cudaMalloc(void** data, std::size_t bytes) { return *data = std::malloc(bytes), cudaSuccess; }
cudaError_t cudaFree(void* data) { return std::free(data), cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = nullptr, cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int byte, std::size_t bytes, cudaStream_t) {
  return std::memset(to, byte, bytes), cudaSuccess;
}
}

namespace evo {

AttentionBuild attention_build() { return {TUNED_HEAD_DIM, false, TUNED_CAUSAL != 0, TUNED_LSE != 0, 64}; }
std::size_t attention_scratch_bytes(const AttentionShape&) { return 64; }
cudaError_t attention_prepare(void* scratch, const AttentionShape&, cudaStream_t) {
  return std::memset(scratch, 0, 4), cudaSuccess;
}

cudaError_t attention(const void* q, const void* k, const void* v, void* o, float* lse, void* scratch,
                      const AttentionShape& shape, cudaStream_t) {
  if (bug == "launch fails" || *static_cast<const int*>(scratch) != 0) return cudaErrorInvalidValue;
  ++launches;
  const auto* queries = static_cast<const __half*>(q);
  const auto* keys = static_cast<const __half*>(k);
  const auto* values = static_cast<const __half*>(v);
  auto* out = static_cast<__half*>(o);
  constexpr int kDim = TUNED_HEAD_DIM;
  const int group = shape.heads / shape.kv_heads;
  for (int head = 0; head < shape.batch * shape.heads; ++head) {
    const int kv = head / shape.heads * shape.kv_heads + head % shape.heads / (bug == "wrong head" ? 1 : group);
    const int last = shape.batch * shape.kv_heads - 1;
    const std::size_t at = std::size_t(kv < last ? kv : last) * shape.seq_k;
    for (int row = 0; row < shape.seq_q; ++row) {
      const std::size_t line = std::size_t(head) * shape.seq_q + row;
      int seen = TUNED_CAUSAL ? row + shape.diagonal + 1 : shape.seq_k;
      seen = seen < 0 ? 0 : (seen < shape.seq_k ? seen : shape.seq_k);
      if (bug == "last key dropped" && seen == shape.seq_k) --seen;
      std::vector<float> weights(seen + 1), sums(kDim, 0.0f);
      float total = 0.0f;
      for (int j = 0; j < seen; ++j) {
        float score = 0.0f;
        for (int d = 0; d < kDim; ++d) score += __half2float(queries[line * kDim + d]) * __half2float(keys[(at + j) * kDim + d]);
        total += weights[j] = std::exp(score * shape.scale);
      }
      for (int j = 0; j < seen; ++j) {
        for (int d = 0; d < kDim; ++d) sums[d] += weights[j] / total * __half2float(values[(at + j) * kDim + d]);
      }
      const bool between = shape.seq_q > 512 && row == 20;  // two of those that the test compares with its reference
      if (lse && !(between && bug == "an lse between unwritten")) {
        lse[line] = std::log(total) + (bug == "wrong lse" ? 0.01f : 0.0f);
      }
      if (bug == "last row unwritten" && row == shape.seq_q - 1) continue;
      if (between && bug == "a row between unwritten") continue;
      for (int d = 0; d < kDim; ++d) out[line * kDim + d] = __float2half(sums[d]);
    }
  }
  if (bug == "lse race" && launches % 3 == 0) lse[0] *= 1.0001f;
  if (bug == "race" && launches % 3 == 0) out[0] = __float2half(__half2float(out[0]) * 1.001f);
  if (bug == "out of bounds") out[std::size_t(shape.batch) * shape.heads * shape.seq_q * kDim] = __float2half(0.0f);
  return cudaSuccess;
}

}  // namespace evo
