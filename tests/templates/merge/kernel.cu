// Column sums of a matrix: each CTA sums its rows, the last to arrive adds the parts. One planted bug at a time.
#ifndef EVO_BUG
#error "EVO missing EVO_BUG"
#endif

#define BUG(id) (EVO_BUG == (id))  // the numbers are template.py's BUGS

extern "C" __global__ void __launch_bounds__(64)
    evo_merge(const float* x, float* parts, unsigned* count, float* y, int rows) {
    __shared__ unsigned ticket;
    float sum = 0.0f;
    for (int row = blockIdx.x; row < rows; row += gridDim.x) sum += x[row * 64 + threadIdx.x];
    if (!(BUG(2) && blockIdx.x == 1)) parts[blockIdx.x * 64 + threadIdx.x] = sum;
    __threadfence();
    if (!BUG(3)) __syncthreads();
    if (threadIdx.x == 0) ticket = atomicAdd(count, 1u);
    __syncthreads();
    if (BUG(4) ? blockIdx.x != gridDim.x - 1 : ticket != gridDim.x - 1) return;
    __threadfence();
    float total = 0.0f;
    for (int part = 0; part < gridDim.x; ++part) total += __ldcg(&parts[part * 64 + threadIdx.x]);
    y[threadIdx.x] = total;
    if (threadIdx.x == 0 && !BUG(1)) *count = 0;
}
