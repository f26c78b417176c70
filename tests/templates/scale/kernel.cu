// y = alpha * x over n floats: the smallest template with live knobs, a rule and a header.
#include "config.cuh"

extern "C" __global__ void __launch_bounds__(cfg::kThreads) evo_scale(const float* x, float* y, float alpha, int n) {
    __shared__ float staged[cfg::kThreads];
    for (int item = 0; item < cfg::kItems; ++item) {
        const int i = (blockIdx.x * cfg::kItems + item) * cfg::kThreads + threadIdx.x;
        staged[threadIdx.x] = i < n ? x[i] : 0.0f;
        __syncthreads();
        if (i < n) y[i] = alpha * staged[threadIdx.x];
        __syncthreads();
    }
}
