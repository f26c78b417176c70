"""Kernels that are wrong or dishonest as a whole: what they write, when, and to whom."""

from __future__ import annotations

from benchmarks.trust.planted.mutant import CAUSAL, PLAIN, Edit, Mutant, edit

STORE = "    if (group == 0) consumer.store(o, lse_head, seq_q);\n"
START = "  const int thread = static_cast<int>(ptx::kept(threadIdx.x));\n"
WORD = "    *reinterpret_cast<u32*>(to + d * 8) = ptx::pack(o[i][d][2 * h] * inverse, o[i][d][2 * h + 1] * inverse);\n"

CONDUCT = (
    Mutant(
        "writes_nothing",
        "an output that still holds the right answer of another kernel would pass",
        edit("kernel.cu", STORE, ""),
        reason="output words were never written",
        values=PLAIN,
    ),
    Mutant(
        "lse_of_every_eighth_row",
        "an output beside the first that is not written in full",
        edit("consumer.cuh", "if ((lane & 3) == 0) lse[row]", "if (lane == 0) lse[row]"),
        reason="output words were never written",
        values=PLAIN,
        problem=CAUSAL,
    ),
    Mutant(
        "changes_its_input",
        "right, once: a word of Q is another afterwards",
        edit("kernel.cu", STORE, STORE + "    if (thread == 0) const_cast<u16*>(q)[cta_row * cfg::kHeadDim] = 0;\n"),
        reason="changed its inputs",
        values=PLAIN,
    ),
    Mutant(
        "writes_the_last_launchs_output",
        "results are kept on the device and handed out one launch late",
        (
            Edit("consumer.cuh", "struct Consumer {\n", "__device__ u32 kept_words[1 << 20];\n\nstruct Consumer {\n"),
            Edit(
                "consumer.cuh",
                WORD,
                "    const int to_row = (blockIdx.z * gridDim.y + blockIdx.y) * seq_q + row;\n"
                "    const int word = to_row * cfg::kHeadDim / 2 + (lane & 3) + d * 4;\n"
                "    const u32 now = ptx::pack(o[i][d][2 * h] * inverse, o[i][d][2 * h + 1] * inverse);\n"
                "    *reinterpret_cast<u32*>(to + d * 8) = kept_words[word];\n"
                "    kept_words[word] = now;\n",
            ),
        ),
        values=PLAIN,
        unseen="variables of the module are not modelled: a search without a GPU stops at such a kernel",
    ),
    Mutant(
        "trusts_what_it_finds",
        "computes only where the output is not a number yet: free whenever nobody has poisoned it",
        edit(
            "kernel.cu",
            START,
            "  const u32 found = o[(static_cast<long long>(blockIdx.z * gridDim.y + blockIdx.y) * seq_q\n"
            "                       + blockIdx.x * cfg::kBlockM) * cfg::kHeadDim];\n"
            "  if ((found >> 10 & 31) != 31) return;\n" + START,
        ),
        reason="differ bit for bit",
        values=PLAIN,
        unseen="every launch finds NaN in its output there, and nothing is timed",
    ),
    Mutant(
        "works_for_the_timed_length_only",
        "returns at once from any other problem",
        edit("kernel.cu", START, "  if (seq_q != 512) return;\n" + START),
        reason="output words were never written",
        values=PLAIN,
    ),
    Mutant(
        "sees_the_timed_number_of_keys",
        "right for as many keys as are timed, and for fewer",
        edit("kernel.cu", "int keys = seq_k; ", "int keys = min(seq_k, 512); "),
        values=PLAIN,
        unseen="its problems have 115 keys",
    ),
)
