// evoengine header, format 1
//
//   template: attention
//   template_digest: 0bc2f21083b4efd7
//   space: attention
//   space_digest: cce254580a8f
//   entry: evo_attention
//   config: wm_4.rt_1.bn_96.wkv_1.st_1.pw_0.sl_xor.qr_1.ov_0.lr_0.sh_0.mc_2
//   shape: B1_H32_KV8_S2048_D128_bf16_causal
//   problem: {"batch": 1, "heads": 32, "kv_heads": 8, "seq_q": 2048, "seq_k": 2048, "head_dim": 128, "dtype": "bf16", "causal": true, "diagonal": 0, "scale": 0.08838834764831845}
//   study: attention-B1_H32_KV8_S2048_D128_bf16_causal-h200-ad8b5d88
//   trial: 97
//   device: NVIDIA H200
//   arch: sm_90
//   driver: 580.159.04
//   compiler: NVRTC 13.0.88
//   cubin_sha256: e82e2a8cfca063b584aebf160e72d4caf9f07775f059c7f199dc7f93a0d32274
//   registers: 242
//   spill_bytes: 0
//   method: device time per launch, warm L2, CUDA-graph windows interleaved with the default config and the baselines
//   median_us: 147.70742825099398
//   noise: 0.013424234828760869
//   speedup_over_sdpa: 0.5582011967706743
//   speedup_over_default: 1.0322744108530975
//   estimated_us: none
//   evoengine_version: 0.1.0
//   date: 2026-11-21
//   command: evoengine search --budget 200 --seconds 60 --shape 1,32,2048,128,kv_heads=8,causal,dtype=bf16 --json -q
//   min_arch: 80
//   grid: seq_q/64 heads/1 batch/1

#pragma once

#ifndef EVO_WARPS_M
#define EVO_WARPS_M 4
#elif EVO_WARPS_M != 4
#error "EVO_WARPS_M is already defined, and not as the 4 that was tuned"
#endif
#ifndef EVO_ROW_TILES
#define EVO_ROW_TILES 1
#elif EVO_ROW_TILES != 1
#error "EVO_ROW_TILES is already defined, and not as the 1 that was tuned"
#endif
#ifndef EVO_BLOCK_N
#define EVO_BLOCK_N 96
#elif EVO_BLOCK_N != 96
#error "EVO_BLOCK_N is already defined, and not as the 96 that was tuned"
#endif
#ifndef EVO_WARPS_KV
#define EVO_WARPS_KV 1
#elif EVO_WARPS_KV != 1
#error "EVO_WARPS_KV is already defined, and not as the 1 that was tuned"
#endif
#ifndef EVO_STAGES
#define EVO_STAGES 1
#elif EVO_STAGES != 1
#error "EVO_STAGES is already defined, and not as the 1 that was tuned"
#endif
#ifndef EVO_PRODUCER_WARPS
#define EVO_PRODUCER_WARPS 0
#elif EVO_PRODUCER_WARPS != 0
#error "EVO_PRODUCER_WARPS is already defined, and not as the 0 that was tuned"
#endif
#ifndef EVO_SMEM_LAYOUT
#define EVO_SMEM_LAYOUT 2
#elif EVO_SMEM_LAYOUT != 2
#error "EVO_SMEM_LAYOUT is already defined, and not as the 2 that was tuned"
#endif
#ifndef EVO_Q_IN_REGS
#define EVO_Q_IN_REGS 1
#elif EVO_Q_IN_REGS != 1
#error "EVO_Q_IN_REGS is already defined, and not as the 1 that was tuned"
#endif
#ifndef EVO_OVERLAP
#define EVO_OVERLAP 0
#elif EVO_OVERLAP != 0
#error "EVO_OVERLAP is already defined, and not as the 0 that was tuned"
#endif
#ifndef EVO_LAZY_RESCALE
#define EVO_LAZY_RESCALE 0
#elif EVO_LAZY_RESCALE != 0
#error "EVO_LAZY_RESCALE is already defined, and not as the 0 that was tuned"
#endif
#ifndef EVO_SKIP_HIDDEN
#define EVO_SKIP_HIDDEN 0
#elif EVO_SKIP_HIDDEN != 0
#error "EVO_SKIP_HIDDEN is already defined, and not as the 0 that was tuned"
#endif
#ifndef EVO_MIN_CTAS
#define EVO_MIN_CTAS 2
#elif EVO_MIN_CTAS != 2
#error "EVO_MIN_CTAS is already defined, and not as the 2 that was tuned"
#endif
#ifndef EVO_HEAD_DIM
#define EVO_HEAD_DIM 128
#elif EVO_HEAD_DIM != 128
#error "EVO_HEAD_DIM is already defined, and not as the 128 that was tuned"
#endif
#ifndef EVO_CAUSAL
#define EVO_CAUSAL 1
#elif EVO_CAUSAL != 1
#error "EVO_CAUSAL is already defined, and not as the 1 that was tuned"
#endif
#ifndef EVO_DTYPE
#define EVO_DTYPE 1
#elif EVO_DTYPE != 1
#error "EVO_DTYPE is already defined, and not as the 1 that was tuned"
#endif
#ifndef EVO_SMEM_BYTES
#define EVO_SMEM_BYTES 65536
#elif EVO_SMEM_BYTES != 65536
#error "EVO_SMEM_BYTES is already defined, and not as the 65536 that was tuned"
#endif

// Launch of evo_attention; on the tuned shape the grid is (32, 32, 1).
// Above 49152 B, set cudaFuncAttributeMaxDynamicSharedMemorySize on the kernel before the launch.
#define EVO_ATTENTION_BLOCK_THREADS 128
#define EVO_ATTENTION_SMEM_BYTES 65536
#define EVO_ATTENTION_TUNED_GRID_X 32
#define EVO_ATTENTION_TUNED_GRID_Y 32
#define EVO_ATTENTION_TUNED_GRID_Z 1
#define EVO_ATTENTION_GRID_X(seq_q) (((seq_q) + 63) / 64)
#define EVO_ATTENTION_GRID_Y(heads) (((heads) + 0) / 1)
#define EVO_ATTENTION_GRID_Z(batch) (((batch) + 0) / 1)
#if defined(__CUDACC__) && !defined(__CUDACC_RTC__)
static inline dim3 evo_attention_grid(unsigned int batch, unsigned int heads, unsigned int seq_q) {
  return dim3(EVO_ATTENTION_GRID_X(seq_q), EVO_ATTENTION_GRID_Y(heads), EVO_ATTENTION_GRID_Z(batch));
}
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "evo_attention needs sm_80 or newer"
#endif
#ifdef __CUDA_ARCH__
#if __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
#if EVO_ATTENTION_SMEM_BYTES > 101376
#error "65536 B of shared memory a CTA, this architecture allows 101376 B"
#endif
#elif __CUDA_ARCH__ >= 900
#if EVO_ATTENTION_SMEM_BYTES > 232448
#error "65536 B of shared memory a CTA, this architecture allows 232448 B"
#endif
#else
#if EVO_ATTENTION_SMEM_BYTES > 166912
#error "65536 B of shared memory a CTA, this architecture allows 166912 B"
#endif
#endif
#endif
// sha256 of the lines above: d6989cf75932aeb1d267c47c7a71b1153da46dd6ddd7ceeeca21930ad024d49a
