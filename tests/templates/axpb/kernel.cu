// y = a * x + b over n floats, with one planted bug at a time: what the correctness gate has to catch.
#ifndef EVO_BUG
#error "EVO missing EVO_BUG"
#endif
#ifndef EVO_WORK
#error "EVO missing EVO_WORK"
#endif

#define BUG(id) (EVO_BUG == (id))  // the numbers are template.py's BUGS

__device__ int launches;  // zero when the module is loaded
__device__ float before[2048];
__device__ bool answered[2048];
__device__ float* wrote;  // problems of up to 2048 values, which are not the timed one

extern "C" __global__ void __launch_bounds__(256) evo_axpb(float* x, float* y, float a, float b, int n) {
    extern __shared__ float staged[];
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (BUG(1)) return;
    if (BUG(6)) {
        for (;;) asm volatile("nanosleep.u32 1000;");
    }
    if (BUG(7)) *reinterpret_cast<volatile float*>(static_cast<unsigned long long>(16 * (n & 3) + 16)) = a;
    if (BUG(12)) asm volatile("trap;");
    if (BUG(13)) asm volatile("st.global.v2.f32 [%0], {%1, %1};" ::"l"(y + 1), "f"(a) : "memory");
    // Half of the warps at barrier 1, half at barrier 2, and each barrier counts all of them.
    if (BUG(14)) asm volatile("bar.sync %0, 256;" ::"r"(1 + (threadIdx.x >> 5 & 1)) : "memory");

    const float in = i < n ? x[i] : 0.0f;
    // EVO_WORK dependent multiply-adds whose result never shows. The compiler must not see how many: it unrolls a loop by
    // what divides its length, and 4020 steps may take less time than 4000. n is positive.
    const int steps = n > 0 ? EVO_WORK : 0;
    float busy = in;
#pragma unroll 4
    for (int step = 0; step < steps; ++step) busy = fmaf(busy, 0.999f, 1e-6f);
    float out = fmaf(a, in, BUG(8) ? b * 1.001f : b);
    if (busy == 12345.678f) out = busy;

    if (!BUG(9)) staged[threadIdx.x] = out;
    __syncthreads();
    out = BUG(9) ? out + *static_cast<volatile float*>(&staged[threadIdx.x]) * 0.0f : staged[threadIdx.x];

    if (BUG(5) && i == 0) out = __int_as_float(__float_as_int(out) ^ static_cast<int>(clock64() >> 3 & 1));
    if (BUG(10)) {
        if (i == 0) atomicAdd(&launches, 1);
        if (*static_cast<volatile int*>(&launches) > 100) out += 1.0f;
    }
    if (BUG(15)) {  // 256 KB a thread: 66 GiB for all that an H200 can hold at a time
        volatile char large[1 << 18];
        large[i * 4099 & ((1 << 18) - 1)] = 0;
        out += large[i * 4099 & ((1 << 18) - 1)];
    }
    if (BUG(16) && n <= 2048 && i < n) {
        if (answered[i]) out = before[i];
        before[i] = out;
        answered[i] = true;
    }
    if (BUG(17) && n <= 2048) {
        if (!wrote) wrote = y;  // every thread that sees none writes the same
        y = wrote;
    }
    if (BUG(18) && fabsf(in) > 100.0f) out = 0.0f;
    if (i < n && !(BUG(2) && i >= n - 32)) y[i] = out;
    if (BUG(3) && i == n - 1) y[n] = out;
    if (BUG(4) && i == 0) x[0] = in + 1.0f;
}
