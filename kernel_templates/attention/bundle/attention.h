// Launcher of one tuned attention kernel, C++17 over the CUDA runtime API. How to use it: README.md.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace evo {

// What the kernel was compiled for; config.h says where these come from.
struct AttentionBuild {
  int head_dim;
  bool bf16;                                                 // bfloat16 if true, else IEEE half
  bool causal;
  bool lse;                                                  // stores the rows' log-sum-exp too
  int block_n;                                               // keys per tile
};

// Lengths may be any that a grid can hold; the config was tuned for one shape and is right for all.
struct AttentionShape {
  int batch = 1;
  int heads = 1;
  int kv_heads = 1;                                          // divides heads: head h reads key head h / (heads / kv_heads)
  int seq_q = 0;
  int seq_k = 0;
  float scale = 0.0f;                                        // of Q K^T; usually 1 / sqrt(head_dim)
  int diagonal = 0;                                          // causal builds: row i sees key j iff j <= i + diagonal
};

AttentionBuild attention_build();

// Bytes of scratch that a launch needs; 0 for a kernel without.
std::size_t attention_scratch_bytes(const AttentionShape& shape);

// Makes scratch ready, on the stream: once, before the first launch and whenever the shape changes. Every launch leaves
// it ready. Launches that may run at the same time need a scratch each.
cudaError_t attention_prepare(void* scratch, const AttentionShape& shape, cudaStream_t stream);

// O = softmax(scale * Q K^T) V on the stream, zero in rows that see no key.
//   q, o: (batch, heads, seq_q, head_dim); k, v: (batch, kv_heads, seq_k, head_dim); lse: (batch, heads, seq_q), fp32,
//   the natural logarithm of each row's sum of exp(scale * q k), null for a kernel that stores none.
// Contiguous, last index fastest, 16-byte aligned, device memory. Element (b, h, s, d) of q is at
// ((b * heads + h) * seq_q + s) * head_dim + d; there are no other strides.
// cudaErrorInvalidValue for a shape or a pointer that cannot be, cudaErrorMisalignedAddress for one off 16 bytes, and
// whatever the runtime says of the launch. Nothing waits; capture into a graph is allowed.
cudaError_t attention(const void* q, const void* k, const void* v, void* o, float* lse, void* scratch,
                      const AttentionShape& shape, cudaStream_t stream);

}  // namespace evo
