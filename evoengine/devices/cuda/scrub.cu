// Fills the shared memory of every SM with one word, so that a kernel which reads what it never wrote reads NaN.
//
// Launched with one CTA per SM, each asking for all the shared memory a CTA may have: no two fit on one SM. A CTA stays
// for `linger_ns` after its fill, so that the last CTA of the grid cannot land on an SM that the first already left.
extern "C" __global__ void scrub(unsigned word, int words, int linger_ns) {
    extern __shared__ unsigned shared_words[];
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    volatile unsigned* out = shared_words;  // volatile: stores that nobody reads would be removed
    for (int i = threadIdx.x; i < words; i += blockDim.x) out[i] = word;
    do {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - start < (unsigned long long)linger_ns);
}
