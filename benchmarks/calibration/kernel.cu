// Single instructions of the attention template's PTX, one per build, and ways of warps and CTAs to wait for each other:
// EVO_READS words in and EVO_WRITES words out per lane, EVO_THREADS lanes per CTA. No CUDA header, and every instruction
// under test is inline PTX: nothing folds or fuses it.
#if !defined(EVO_PROBE) || !defined(EVO_READS) || !defined(EVO_WRITES) || !defined(EVO_THREADS)
#error "EVO missing EVO_PROBE, EVO_READS, EVO_WRITES or EVO_THREADS"
#endif

using u32 = unsigned int;

enum Probe {  // in the order of PROBES in probes.py
  kMmaF16, kMmaBf16, kChainF16, kChainBf16, kLdmatrix, kLdmatrixTrans, kBfly, kIdx, kUp, kDown, kCpAsync, kCvtF16,
  kCvtBf16, kEx2, kMax, kArithmetic, kVote,
  kHalfMma, kHalfEx2, kRing, kLastCta
};

__device__ __forceinline__ u32 shared_address(const void* pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ float as_float(u32 word) { return __int_as_float(static_cast<int>(word)); }
__device__ __forceinline__ u32 as_word(float value) { return static_cast<u32>(__float_as_int(value)); }

#define MMA(type)                                                                                           \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "                               \
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"                          \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                             \
               : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(x[4]), "r"(x[5]))

// x: C (4 words), then A (4) and B (2) of every step. y: what the steps, one after the other, made of C.
template <bool kHalf, int kSteps>
__device__ __forceinline__ void mma(const u32* x, u32* y) {
  float c[4];
  for (int i = 0; i < 4; ++i) c[i] = as_float(x[i]);
  x += 4;
  for (int step = 0; step < kSteps; ++step, x += 6) {
    if constexpr (kHalf) MMA("f16");
    else MMA("bf16");
  }
  for (int i = 0; i < 4; ++i) y[i] = as_word(c[i]);
}

// x: one 16-byte row per lane, and which lane's row this lane gives the address of.
template <bool kTransposed>
__device__ __forceinline__ void ldmatrix(const u32* x, u32* y) {
  __shared__ alignas(16) u32 rows[32][4];
  for (int i = 0; i < 4; ++i) rows[threadIdx.x][i] = x[i];
  __syncthreads();
  const u32 from = shared_address(rows[x[4]]);
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(y[0]), "=r"(y[1]), "=r"(y[2]), "=r"(y[3]) : "r"(from) : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(y[0]), "=r"(y[1]), "=r"(y[2]), "=r"(y[3]) : "r"(from) : "memory");
  }
}

// x: value, lane operand, clamp and segment operand, each lane its own. y: value, and whether its lane was in range.
#define SHFL(mode)                                                                                          \
  asm volatile("{ .reg .pred inside; shfl.sync." mode ".b32 %0|inside, %2, %3, %4, -1; selp.u32 %1, 1, 0, inside; }\n" \
               : "=r"(y[0]), "=r"(y[1]) : "r"(x[0]), "r"(x[1]), "r"(x[2]))

// x: 16 bytes, how many of them count, 12 bytes that keep the alignment. y: the 16 bytes that arrived.
__device__ __forceinline__ void cp_async(const u32* x, u32* y) {
  __shared__ alignas(16) u32 tile[32][4];
  for (int i = 0; i < 4; ++i) tile[threadIdx.x][i] = 0xA5A5A5A5u;
  __syncthreads();
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n"
               "cp.async.commit_group;\n"
               "cp.async.wait_group 0;\n"
               :: "r"(shared_address(tile[threadIdx.x])), "l"(__cvta_generic_to_global(x)), "r"(x[4]) : "memory");
  __syncthreads();
  for (int i = 0; i < 4; ++i) y[i] = tile[threadIdx.x][i];
}

__device__ __forceinline__ void arithmetic(float a, float b, float c, u32* y) {
  float fma, sum, product, inverse, quotient;
  asm volatile("fma.rn.f32 %0, %1, %2, %3;\n" : "=f"(fma) : "f"(a), "f"(b), "f"(c));
  asm volatile("add.f32 %0, %1, %2;\n" : "=f"(sum) : "f"(a), "f"(c));
  asm volatile("mul.f32 %0, %1, %2;\n" : "=f"(product) : "f"(a), "f"(b));
  asm volatile("rcp.rn.f32 %0, %1;\n" : "=f"(inverse) : "f"(b));
  asm volatile("div.rn.f32 %0, %1, %2;\n" : "=f"(quotient) : "f"(a), "f"(b));
  y[0] = as_word(fma), y[1] = as_word(sum), y[2] = as_word(product), y[3] = as_word(inverse), y[4] = as_word(quotient);
}

// x: this lane's vote. y: what any, all and ballot make of the warp's.
__device__ __forceinline__ void vote(u32 yes, u32* y) {
  asm volatile("{ .reg .pred mine, any, all; setp.ne.u32 mine, %3, 0; vote.sync.any.pred any, mine, -1; "
               "vote.sync.all.pred all, mine, -1; vote.sync.ballot.b32 %2, mine, -1; "
               "selp.u32 %0, 1, 0, any; selp.u32 %1, 1, 0, all; }\n"
               : "=r"(y[0]), "=r"(y[1]), "=r"(y[2]) : "r"(yes));
}

// x: C (2 words), then A (4) and B (2), all halves. y: C + A B in half precision.
__device__ __forceinline__ void half_mma(const u32* x, u32* y) {
  u32 low = x[0], high = x[1];
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};\n"
               : "+r"(low), "+r"(high)
               : "r"(x[2]), "r"(x[3]), "r"(x[4]), "r"(x[5]), "r"(x[6]), "r"(x[7]));
  y[0] = low, y[1] = high;
}

__device__ __forceinline__ void wait(u32 barrier, u32 parity) {
  u32 done;
  do {
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }\n"
                 : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
  } while (!done);
}

// Two warps hand tiles over in a ring of two slots. x: a start value and the tiles, 4 words each. y: what the first warp
// makes of the start value and the tiles, words of other lanes among them; the second warp's start value.
__device__ __forceinline__ void ring(const u32* x, u32* y) {
  __shared__ alignas(16) u32 tiles[2][32][4];
  __shared__ alignas(8) unsigned long long full[2], empty[2];
  const u32 lane = threadIdx.x % 32;
  if (threadIdx.x < 2) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;\n" :: "r"(shared_address(&full[threadIdx.x])), "r"(32) : "memory");
    asm volatile("mbarrier.init.shared.b64 [%0], %1;\n" :: "r"(shared_address(&empty[threadIdx.x])), "r"(1) : "memory");
  }
  __syncthreads();
  u32 sum[4] = {x[0], x[1], x[2], x[3]};
#pragma unroll 1
  for (u32 turn = 0; turn + 1 < EVO_READS / 4; ++turn) {
    const u32 slot = turn % 2, parity = turn / 2 % 2;
    if (threadIdx.x < 32) {
      wait(shared_address(&full[slot]), parity);
      for (int i = 0; i < 4; ++i) sum[i] = sum[i] * 3 + tiles[slot][(lane * 5 + turn) % 32][i];
      __syncwarp();
      if (lane == 0) {
        asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }\n"
                     :: "r"(shared_address(&empty[slot])) : "memory");
      }
    } else {
      wait(shared_address(&empty[slot]), parity ^ 1);
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n"
                   "cp.async.mbarrier.arrive.noinc.shared.b64 [%2];\n"
                   :: "r"(shared_address(tiles[slot][lane])), "l"(__cvta_generic_to_global(x + 4 * (turn + 1))),
                      "r"(shared_address(&full[slot])) : "memory");
    }
  }
  for (int i = 0; i < 4; ++i) y[i] = sum[i];
}

// CTAs leave x in `parts` for the last of them, which weighs and adds them up. y, of all CTAs: the sum.
__device__ __forceinline__ void last_cta(const u32* x, u32* y, u32* parts, u32* count) {
  __shared__ u32 ticket;
  parts[blockIdx.x * EVO_THREADS + threadIdx.x] = x[0];
  asm volatile("fence.acq_rel.gpu;\n" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;\n"
                 : "=r"(ticket) : "l"(__cvta_generic_to_global(count)) : "memory");
  }
  __syncthreads();
  if (ticket != gridDim.x - 1) return;
  u32 sum = 0;
#pragma unroll 1
  for (u32 cta = 0; cta < gridDim.x; ++cta) {
    u32 part;
    asm volatile("ld.global.cg.u32 %0, [%1];\n"
                 : "=r"(part) : "l"(__cvta_generic_to_global(parts + cta * EVO_THREADS + threadIdx.x)) : "memory");
    sum = sum * 3 + part;
  }
  for (u32 cta = 0; cta < gridDim.x; ++cta) y[cta * EVO_THREADS + threadIdx.x] = sum ^ cta;
  if (threadIdx.x == 0) *count = 0;
}

extern "C" __global__ void __launch_bounds__(EVO_THREADS) evo_probe(const u32* x, u32* all, u32* parts, u32* count) {
  const int lane = blockIdx.x * EVO_THREADS + threadIdx.x;
  x += lane * EVO_READS;
  u32* y = all + lane * EVO_WRITES;
  float result;
  switch (EVO_PROBE) {
    case kMmaF16: mma<true, 1>(x, y); break;
    case kMmaBf16: mma<false, 1>(x, y); break;
    case kChainF16: mma<true, (EVO_READS - 4) / 6>(x, y); break;
    case kChainBf16: mma<false, (EVO_READS - 4) / 6>(x, y); break;
    case kLdmatrix: ldmatrix<false>(x, y); break;
    case kLdmatrixTrans: ldmatrix<true>(x, y); break;
    case kBfly: SHFL("bfly"); break;
    case kIdx: SHFL("idx"); break;
    case kUp: SHFL("up"); break;
    case kDown: SHFL("down"); break;
    case kCpAsync: cp_async(x, y); break;
    case kCvtF16: asm volatile("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(y[0]) : "f"(as_float(x[0])), "f"(as_float(x[1]))); break;
    case kCvtBf16: asm volatile("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(y[0]) : "f"(as_float(x[0])), "f"(as_float(x[1]))); break;
    case kEx2:
      asm volatile("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(as_float(x[0])));
      y[0] = as_word(result);
      break;
    case kMax:
      asm volatile("max.f32 %0, %1, %2;\n" : "=f"(result) : "f"(as_float(x[0])), "f"(as_float(x[1])));
      y[0] = as_word(result);
      break;
    case kArithmetic: arithmetic(as_float(x[0]), as_float(x[1]), as_float(x[2]), y); break;
    case kVote: vote(x[0], y); break;
    case kHalfMma: half_mma(x, y); break;
    case kHalfEx2: asm volatile("ex2.approx.f16x2 %0, %1;\n" : "=r"(y[0]) : "r"(x[0])); break;
    case kRing: ring(x, y); break;
    case kLastCta: last_cta(x, all, parts, count); break;
  }
}
