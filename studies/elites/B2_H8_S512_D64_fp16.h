// evoengine header, format 1
//
//   template: attention
//   template_digest: 1119eb2527f4f60a
//   space: attention
//   space_digest: b5af367bd56a
//   entry: evo_attention
//   config: wm_4.rt_1.bn_512.wkv_2.st_1.pw_4.mb_0.un_0.ll_0.qr_1.ov_0.lr_0.sm_1.ms_1.ot_1.hf_0.sp_1.mc_1.wg_2
//   shape: B2_H8_S512_D64_fp16
//   problem: {"batch": 2, "heads": 8, "kv_heads": 8, "seq_q": 512, "seq_k": 512, "head_dim": 64, "dtype": "fp16", "causal": false, "diagonal": 0, "scale": 0.125, "lse": false}
//   study: B2_H8_S512_D64_fp16
//   trial: 248
//   device: NVIDIA H200
//   arch: sm_90a
//   driver: 580.159.04
//   compiler: NVRTC 13.0.88
//   cubin_sha256: 55de1c34e52a06a4ab9fac9a1f2294e42e2d664c6c9e51ca181211a1e9e6f4b4
//   registers: 168
//   spill_bytes: 288
//   method: device time per launch, warm L2, CUDA-graph windows interleaved with the default config and the baselines in a final run: FASTER against the default config
//   median_us: 5.522696489698432
//   noise: 0.004777045250515453
//   speedup_over_sdpa: 1.6736469576562787
//   speedup_over_default: 1.5703891819716336
//   estimated_us: none
//   evoengine_version: 0.1.0
//   date: 2026-12-01
//   command: evoengine search --shape 2,8,512,64 --budget 400 --seconds 42 --warm-start auto --study B2_H8_S512_D64_fp16 --storage h.db --json -q
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
#define EVO_BLOCK_N 512
#elif EVO_BLOCK_N != 512
#error "EVO_BLOCK_N is already defined, and not as the 512 that was tuned"
#endif
#ifndef EVO_WARPS_KV
#define EVO_WARPS_KV 2
#elif EVO_WARPS_KV != 2
#error "EVO_WARPS_KV is already defined, and not as the 2 that was tuned"
#endif
#ifndef EVO_STAGES
#define EVO_STAGES 1
#elif EVO_STAGES != 1
#error "EVO_STAGES is already defined, and not as the 1 that was tuned"
#endif
#ifndef EVO_PRODUCER_WARPS
#define EVO_PRODUCER_WARPS 4
#elif EVO_PRODUCER_WARPS != 4
#error "EVO_PRODUCER_WARPS is already defined, and not as the 4 that was tuned"
#endif
#ifndef EVO_MBARRIER
#define EVO_MBARRIER 0
#elif EVO_MBARRIER != 0
#error "EVO_MBARRIER is already defined, and not as the 0 that was tuned"
#endif
#ifndef EVO_UNROLL
#define EVO_UNROLL 0
#elif EVO_UNROLL != 0
#error "EVO_UNROLL is already defined, and not as the 0 that was tuned"
#endif
#ifndef EVO_LATE_LOADS
#define EVO_LATE_LOADS 0
#elif EVO_LATE_LOADS != 0
#error "EVO_LATE_LOADS is already defined, and not as the 0 that was tuned"
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
#ifndef EVO_SUM_MMA
#define EVO_SUM_MMA 1
#elif EVO_SUM_MMA != 1
#error "EVO_SUM_MMA is already defined, and not as the 1 that was tuned"
#endif
#ifndef EVO_MASK_SPLIT
#define EVO_MASK_SPLIT 1
#elif EVO_MASK_SPLIT != 1
#error "EVO_MASK_SPLIT is already defined, and not as the 1 that was tuned"
#endif
#ifndef EVO_ONE_TILE
#define EVO_ONE_TILE 1
#elif EVO_ONE_TILE != 1
#error "EVO_ONE_TILE is already defined, and not as the 1 that was tuned"
#endif
#ifndef EVO_HEAVY_FIRST
#define EVO_HEAVY_FIRST 0
#elif EVO_HEAVY_FIRST != 0
#error "EVO_HEAVY_FIRST is already defined, and not as the 0 that was tuned"
#endif
#ifndef EVO_SPLIT_KV
#define EVO_SPLIT_KV 1
#elif EVO_SPLIT_KV != 1
#error "EVO_SPLIT_KV is already defined, and not as the 1 that was tuned"
#endif
#ifndef EVO_MIN_CTAS
#define EVO_MIN_CTAS 1
#elif EVO_MIN_CTAS != 1
#error "EVO_MIN_CTAS is already defined, and not as the 1 that was tuned"
#endif
#ifndef EVO_WGMMA
#define EVO_WGMMA 2
#elif EVO_WGMMA != 2
#error "EVO_WGMMA is already defined, and not as the 2 that was tuned"
#endif
#ifndef EVO_HEAD_DIM
#define EVO_HEAD_DIM 64
#elif EVO_HEAD_DIM != 64
#error "EVO_HEAD_DIM is already defined, and not as the 64 that was tuned"
#endif
#ifndef EVO_CAUSAL
#define EVO_CAUSAL 0
#elif EVO_CAUSAL != 0
#error "EVO_CAUSAL is already defined, and not as the 0 that was tuned"
#endif
#ifndef EVO_DTYPE
#define EVO_DTYPE 0
#elif EVO_DTYPE != 0
#error "EVO_DTYPE is already defined, and not as the 0 that was tuned"
#endif
#ifndef EVO_LSE
#define EVO_LSE 0
#elif EVO_LSE != 0
#error "EVO_LSE is already defined, and not as the 0 that was tuned"
#endif
#ifndef EVO_SMEM_BYTES
#define EVO_SMEM_BYTES 139264
#elif EVO_SMEM_BYTES != 139264
#error "EVO_SMEM_BYTES is already defined, and not as the 139264 that was tuned"
#endif

// Launch of evo_attention; on the tuned shape the grid is (8, 8, 2).
// Above 49152 B, set cudaFuncAttributeMaxDynamicSharedMemorySize on the kernel before the launch.
#define EVO_ATTENTION_BLOCK_THREADS 384
#define EVO_ATTENTION_SMEM_BYTES 139264
#define EVO_ATTENTION_TUNED_GRID_X 8
#define EVO_ATTENTION_TUNED_GRID_Y 8
#define EVO_ATTENTION_TUNED_GRID_Z 2
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
#error "139264 B of shared memory a CTA, this architecture allows 101376 B"
#endif
#elif __CUDA_ARCH__ >= 900
#if EVO_ATTENTION_SMEM_BYTES > 232448
#error "139264 B of shared memory a CTA, this architecture allows 232448 B"
#endif
#else
#if EVO_ATTENTION_SMEM_BYTES > 166912
#error "139264 B of shared memory a CTA, this architecture allows 166912 B"
#endif
#endif
#endif
// sha256 of the lines above: 964f96b2fd8a74625a62bd4b4f2155219416d0e3058a881353edad4cf6932ca9
