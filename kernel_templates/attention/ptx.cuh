// The instructions the kernel is made of. No CUDA header: half and bfloat16 travel as bits.
#pragma once
#include "config.cuh"

using u16 = unsigned short;
using u32 = unsigned int;

namespace ptx {

__device__ __forceinline__ u32 shared_address(const void* pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// .cg: 16-byte copies bypass L1, where nothing of K or V is read twice by one SM's CTA.
template <int kTo, int kFrom>
__device__ __forceinline__ void cp_async_at(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %3], 16;\n" ::"r"(to), "l"(from), "n"(kTo), "n"(kFrom)
               : "memory");
}

// Zero-fills the 16 bytes when `bytes` is 0; `from` is not read then.
__device__ __forceinline__ void cp_async_or_zero(u32 to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Four 8x8 matrices; lane l passes the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix(u32 (&to)[4], u32 from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from));
}

__device__ __forceinline__ void ldmatrix_transposed(u32 (&to)[4], u32 from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from));
}

// c (16x8, fp32) += a (16x16, row) * b (16x8, column).
__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  if constexpr (cfg::kDtype == cfg::Dtype::kFp16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Two floats as one word of halves, `low` in the low half.
__device__ __forceinline__ u32 pack(float low, float high) {
  u32 word;
  if constexpr (cfg::kDtype == cfg::Dtype::kFp16) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
}

// Columns of two accumulator tiles as the A operand of the next mma: the layouts agree.
__device__ __forceinline__ void pack_fragment(u32 (&to)[4], const float (&low)[4], const float (&high)[4]) {
  to[0] = pack(low[0], low[1]);
  to[1] = pack(low[2], low[3]);
  to[2] = pack(high[0], high[1]);
  to[3] = pack(high[2], high[3]);
}

// Two ones.
__device__ __forceinline__ u32 ones() { return cfg::kDtype == cfg::Dtype::kFp16 ? 0x3c003c00u : 0x3f803f80u; }

__device__ __forceinline__ float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float max(float a, float b) {
  float c;
  asm("max.f32 %0, %1, %2;\n" : "=f"(c) : "f"(a), "f"(b));
  return c;
}

// A row of an accumulator lives in four neighbouring lanes.
__device__ __forceinline__ float quad_max(float x) {
  x = max(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return max(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ __forceinline__ void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// mbarrier: PTX ISA 9.0, 9.7.13.15. `arrivals` complete a phase; phases alternate parity 0, 1, 0, ...
__device__ __forceinline__ void mbarrier_init(u32 barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(u32 barrier) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}\n" ::"r"(barrier) : "memory");
}

// Arrives once every copy that this thread has started so far has landed.
__device__ __forceinline__ void cp_async_arrive(u32 barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];\n" ::"r"(barrier) : "memory");
}

// Returns when the phase of parity `parity` is complete. try_wait sleeps in hardware; sm_80 and sm_89 can only ask.
__device__ __forceinline__ void mbarrier_wait(u32 barrier, u32 parity) {
  u32 done;
  do {
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
#else
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
#endif
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  } while (!done);
}

// `value`, the same in the whole warp or the thread's own index, as something that the compiler has to keep: it else
// reads the thread index and the shared window anew inside an unrolled loop, at some 30 cycles a time, to save two
// registers. S=2048 on an H200, unrolled: 29.8 us with, 31.7 without; rolled, it only costs (4.67 against 4.60 us at the
// mission shape).
__device__ __forceinline__ u32 kept(u32 value) {
  if constexpr (!cfg::kUnroll) return value;
  return __shfl_sync(0xffffffffu, value, threadIdx.x);
}

__device__ __forceinline__ float negative_infinity() { return __int_as_float(static_cast<int>(0xff800000u)); }

}  // namespace ptx
