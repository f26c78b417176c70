// y = 2 x over n floats through shared memory, with one planted bug at a time that no output shows.
#ifndef EVO_BUG
#error "EVO missing EVO_BUG"
#endif

#define BUG(id) (EVO_BUG == (id))  // the numbers are template.py's BUGS

__device__ __forceinline__ void look_at(const float* p) {  // a read that the compiler must keep and nobody uses
    asm volatile("{\n.reg .f32 unused;\nld.volatile.global.f32 unused, [%0];\n}\n" ::"l"(p) : "memory");
}

extern "C" __global__ void __launch_bounds__(256) evo_unseen(const float* x, float* y, int n) {
    __shared__ float staged[256];
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (BUG(1) && i == n - 1) look_at(x + n);
    if (BUG(2) && i < n) look_at(y + i);

    staged[threadIdx.x] = i < n ? x[i] : 0.0f;
    if (!BUG(3)) __syncthreads();
    const float neighbour = *static_cast<volatile float*>(&staged[threadIdx.x ^ 32]);
    if (BUG(4)) asm volatile("bar.sync 1, 256;" ::: "memory");
    if (i < n) y[i] = BUG(3) && neighbour != neighbour ? 0.0f : 2.0f * staged[threadIdx.x];
}
