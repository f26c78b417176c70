// Is the kernel right on this machine? Against a double-precision reference on the CPU, on the shape it was tuned for and
// on lengths that no tile divides. Exit code 0: right; 1: wrong; 77: no GPU here.
#include "attention.h"
#include "tuned_shape.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#define CHECK(call)                                                                                    \
  do {                                                                                                 \
    const cudaError_t status = (call);                                                                 \
    if (status != cudaSuccess) {                                                                       \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(status));  \
      std::exit(1);                                                                                    \
    }                                                                                                  \
  } while (false)

namespace {

constexpr int kNoGpu = 77;
constexpr int kRows = 32;              // rows a head that are checked of a long sequence: the reference is slow
constexpr int kRepeats = 5;            // launches whose outputs must not differ by a bit
constexpr std::size_t kGuard = 4096;   // bytes before and behind the output that must stay as they are
constexpr double kFactor = 2.0;        // FlashAttention's rule: at most twice as wrong as plain half-precision code...
constexpr double kRowFactor = 4.0;     // ...and four times in the worst row, which fluctuates more
constexpr double kInfinity = std::numeric_limits<double>::infinity();

const evo::AttentionBuild build = evo::attention_build();

std::uint16_t to_bits(float value) {
  if (build.bf16) return static_cast<__nv_bfloat16_raw>(__float2bfloat16(value)).x;
  return static_cast<__half_raw>(__float2half(value)).x;
}

float from_bits(std::uint16_t bits) {
  if (build.bf16) return __bfloat162float(__nv_bfloat16_raw{bits});
  return __half2float(__half_raw{bits});
}

float rounded(float value) { return from_bits(to_bits(value)); }

// Device memory that frees itself.
class Buffer {
 public:
  explicit Buffer(std::size_t bytes) {
    if (bytes > 0) CHECK(cudaMalloc(&data_, bytes));
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  unsigned char* get() const { return static_cast<unsigned char*>(data_); }

 private:
  void* data_ = nullptr;
};

struct Tensor {
  std::vector<float> values;
  std::vector<std::uint16_t> bits;

  Tensor(std::size_t count, unsigned seed) : values(count), bits(count) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < count; ++i) {
      bits[i] = to_bits(normal(random));
      values[i] = from_bits(bits[i]);
    }
  }
};

// One row of the output, and its log-sum-exp.
struct Row {
  std::vector<double> o;
  double lse = -kInfinity;
};

int visible_keys(const evo::AttentionShape& shape, int row) {
  return build.causal ? std::clamp(row + shape.diagonal + 1, 0, shape.seq_k) : shape.seq_k;
}

Row reference(const evo::AttentionShape& shape, const float* q, const float* k, const float* v, int row) {
  const int keys = visible_keys(shape, row);
  Row result{std::vector<double>(build.head_dim, 0.0)};
  if (keys == 0) return result;
  std::vector<double> weights(keys);
  double highest = -kInfinity;
  for (int j = 0; j < keys; ++j) {
    double sum = 0.0;
    for (int d = 0; d < build.head_dim; ++d) sum += static_cast<double>(q[d]) * k[j * std::size_t(build.head_dim) + d];
    weights[j] = sum * shape.scale;
    highest = std::max(highest, weights[j]);
  }
  double total = 0.0;
  for (double& weight : weights) total += weight = std::exp(weight - highest);
  for (int j = 0; j < keys; ++j) {
    for (int d = 0; d < build.head_dim; ++d) {
      result.o[d] += weights[j] / total * v[j * std::size_t(build.head_dim) + d];
    }
  }
  result.lse = highest + std::log(total);
  return result;
}

// The obvious implementation in half precision: fp32 sums, everything in between rounded to the tensors' type.
Row plain(const evo::AttentionShape& shape, const float* q, const float* k, const float* v, int row) {
  const int keys = visible_keys(shape, row);
  Row result{std::vector<double>(build.head_dim, 0.0)};
  if (keys == 0) return result;
  std::vector<float> weights(keys);
  float highest = -std::numeric_limits<float>::infinity();
  for (int j = 0; j < keys; ++j) {
    float sum = 0.0f;
    for (int d = 0; d < build.head_dim; ++d) sum += q[d] * k[j * std::size_t(build.head_dim) + d];
    weights[j] = rounded(rounded(sum) * shape.scale);
    highest = std::max(highest, weights[j]);
  }
  float total = 0.0f;
  for (float& weight : weights) total += weight = std::exp(weight - highest);
  std::vector<float> o(build.head_dim, 0.0f);
  for (int j = 0; j < keys; ++j) {
    const float weight = rounded(weights[j] / total);
    for (int d = 0; d < build.head_dim; ++d) o[d] += weight * v[j * std::size_t(build.head_dim) + d];
  }
  for (int d = 0; d < build.head_dim; ++d) result.o[d] = rounded(o[d]);
  result.lse = highest + std::log(total);
  return result;
}

// Errors of one output against the truth: the largest, and of each row and slice the root of the sum of squares.
struct Errors {
  double largest = 0.0;
  std::vector<double> rows;
  std::vector<double> slices;

  void add_slice() { slices.push_back(0.0); }
  void add_row(const std::vector<double>& found, const std::vector<double>& truth) {
    double squares = 0.0;
    for (std::size_t d = 0; d < truth.size(); ++d) {
      const double error = std::fabs(found[d] - truth[d]);
      largest = std::max(largest, error);
      squares += error * error;
    }
    rows.push_back(std::sqrt(squares));
    slices.back() += squares;
  }
};

double mean_square_root(const std::vector<double>& values) {
  double squares = 0.0;
  for (const double value : values) squares += value * value;
  return values.empty() ? 1.0 : std::max(std::sqrt(squares / values.size()), 1e-30);
}

std::vector<int> rows_to_check(int seq_q) {
  std::vector<int> rows;
  if (seq_q <= 512) {
    for (int row = 0; row < seq_q; ++row) rows.push_back(row);
  } else {
    for (int i = 0; i < kRows; ++i) rows.push_back(static_cast<int>((seq_q - 1LL) * i / (kRows - 1)));
  }
  return rows;
}

// Runs the kernel `kRepeats` times on a stream of its own; outputs must agree bit for bit and guards must hold, and every
// element must be written, those that are not compared with a reference too: before a launch all are NaN.
bool launch(const evo::AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
            std::vector<std::uint16_t>& o, std::vector<float>& lse) {
  const std::size_t out_bytes = q.bits.size() * sizeof(std::uint16_t);
  const std::size_t lse_bytes = build.lse ? lse.size() * sizeof(float) : 0;
  Buffer dq(out_bytes), dk(k.bits.size() * 2), dv(v.bits.size() * 2), dlse(lse_bytes);
  Buffer guarded(out_bytes + 2 * kGuard), scratch(evo::attention_scratch_bytes(shape));
  cudaStream_t stream;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CHECK(cudaMemcpyAsync(dq.get(), q.bits.data(), out_bytes, cudaMemcpyHostToDevice, stream));
  CHECK(cudaMemcpyAsync(dk.get(), k.bits.data(), k.bits.size() * 2, cudaMemcpyHostToDevice, stream));
  CHECK(cudaMemcpyAsync(dv.get(), v.bits.data(), v.bits.size() * 2, cudaMemcpyHostToDevice, stream));
  if (scratch.get()) CHECK(cudaMemsetAsync(scratch.get(), 0xff, evo::attention_scratch_bytes(shape), stream));  // NaN
  CHECK(evo::attention_prepare(scratch.get(), shape, stream));
  std::vector<unsigned char> first, all(out_bytes + 2 * kGuard);
  std::vector<float> first_lse;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    CHECK(cudaMemsetAsync(guarded.get(), 0xff, all.size(), stream));  // NaN, so that what is not written shows
    if (lse_bytes) CHECK(cudaMemsetAsync(dlse.get(), 0xff, lse_bytes, stream));
    CHECK(evo::attention(dq.get(), dk.get(), dv.get(), guarded.get() + kGuard,
                         reinterpret_cast<float*>(dlse.get()), scratch.get(), shape, stream));
    CHECK(cudaMemcpyAsync(all.data(), guarded.get(), all.size(), cudaMemcpyDeviceToHost, stream));
    if (lse_bytes) CHECK(cudaMemcpyAsync(lse.data(), dlse.get(), lse_bytes, cudaMemcpyDeviceToHost, stream));
    CHECK(cudaStreamSynchronize(stream));
    if (repeat == 0) {
      first = all;
      first_lse = lse;
    }
    if (first != all || std::memcmp(first_lse.data(), lse.data(), lse_bytes) != 0) {
      std::printf("    launch %d differs from the first\n", repeat + 1);
      return false;
    }
  }
  CHECK(cudaStreamDestroy(stream));
  const auto whole = [](unsigned char byte) { return byte == 0xff; };
  if (!std::all_of(all.begin(), all.begin() + kGuard, whole) || !std::all_of(all.end() - kGuard, all.end(), whole)) {
    std::printf("    written outside the output\n");
    return false;
  }
  std::memcpy(o.data(), all.data() + kGuard, out_bytes);
  const auto row_of = [&](std::size_t at) { return static_cast<int>(at % shape.seq_q); };
  for (std::size_t i = 0; i < o.size(); ++i) {
    if (!std::isnan(from_bits(o[i]))) continue;
    const std::size_t at = i / build.head_dim;
    std::printf("    head %d, row %d: nan\n", static_cast<int>(at / shape.seq_q), row_of(at));
    return false;
  }
  for (std::size_t at = 0; build.lse && at < lse.size(); ++at) {
    if (!std::isnan(lse[at])) continue;
    std::printf("    head %d, row %d: log-sum-exp is nan\n", static_cast<int>(at / shape.seq_q), row_of(at));
    return false;
  }
  return true;
}

bool right(const evo::AttentionShape& shape) {
  std::printf("batch %d, heads %d/%d, %d queries, %d keys", shape.batch, shape.heads, shape.kv_heads, shape.seq_q,
              shape.seq_k);
  std::printf(build.causal ? ", diagonal %d\n" : "\n", shape.diagonal);
  const std::size_t dim = build.head_dim;
  const std::size_t queries = std::size_t(shape.batch) * shape.heads * shape.seq_q;
  const std::size_t keys = std::size_t(shape.batch) * shape.kv_heads * shape.seq_k;
  const Tensor q(queries * dim, 1), k(keys * dim, 2), v(keys * dim, 3);
  std::vector<std::uint16_t> o(queries * dim);
  std::vector<float> lse(queries);
  if (!launch(shape, q, k, v, o, lse)) return false;

  Errors ours, half;
  std::vector<double> row_norms;
  std::vector<double> slice_squares;
  double peak = 0.0, lse_error = 0.0, lse_half = 0.0, lse_peak = 0.0;
  const std::vector<int> rows = rows_to_check(shape.seq_q);
  for (int head = 0; head < shape.batch * shape.heads; ++head) {
    const std::size_t kv = std::size_t(head / shape.heads) * shape.kv_heads +
                           head % shape.heads / (shape.heads / shape.kv_heads);
    const float* key = k.values.data() + kv * shape.seq_k * dim;
    const float* value = v.values.data() + kv * shape.seq_k * dim;
    ours.add_slice();
    half.add_slice();
    slice_squares.push_back(0.0);
    for (const int row : rows) {
      const std::size_t at = std::size_t(head) * shape.seq_q + row;
      const float* query = q.values.data() + at * dim;
      const Row truth = reference(shape, query, key, value, row);
      const Row obvious = plain(shape, query, key, value, row);
      std::vector<double> found(dim);
      double squares = 0.0;
      for (std::size_t d = 0; d < dim; ++d) {
        found[d] = from_bits(o[at * dim + d]);
        peak = std::max(peak, std::fabs(truth.o[d]));
        squares += truth.o[d] * truth.o[d];
        if (!std::isfinite(found[d]) || (visible_keys(shape, row) == 0 && found[d] != 0.0)) {
          std::printf("    head %d, row %d: %g\n", head, row, found[d]);
          return false;
        }
      }
      ours.add_row(found, truth.o);
      half.add_row(obvious.o, truth.o);
      row_norms.push_back(std::sqrt(squares));
      slice_squares.back() += squares;
      if (!build.lse) continue;
      if (std::isinf(truth.lse) || std::isnan(lse[at])) {
        if (double(lse[at]) == truth.lse) continue;
        std::printf("    head %d, row %d: log-sum-exp %g is not %g\n", head, row, lse[at], truth.lse);
        return false;
      }
      lse_error = std::max(lse_error, std::fabs(lse[at] - truth.lse));
      lse_half = std::max(lse_half, std::fabs(obvious.lse - truth.lse));
      lse_peak = std::max(lse_peak, std::fabs(truth.lse));
    }
  }

  // An error of half a rounding is nobody's fault, and an exact baseline must not demand an exact kernel.
  const double floor = 0.5 * (build.bf16 ? std::ldexp(1.0, -8) : std::ldexp(1.0, -11));
  const double limit = kFactor * std::max(half.largest, floor * peak);
  std::printf("    largest error %.2e, allowed %.2e\n", ours.largest, limit);
  bool good = ours.largest <= limit;
  const double typical_row = mean_square_root(row_norms);
  double worst_half_row = floor;
  for (std::size_t i = 0; i < row_norms.size(); ++i) {
    worst_half_row = std::max(worst_half_row, half.rows[i] / std::max(row_norms[i], typical_row));
  }
  for (std::size_t i = 0; i < row_norms.size(); ++i) {
    good = good && ours.rows[i] / std::max(row_norms[i], typical_row) <= kRowFactor * worst_half_row;
  }
  for (std::size_t i = 0; i < slice_squares.size(); ++i) {
    const double norm = std::max(std::sqrt(slice_squares[i]), 1e-30);
    good = good && std::sqrt(ours.slices[i]) / norm <= kFactor * std::max(std::sqrt(half.slices[i]) / norm, floor);
  }
  if (build.lse) good = good && lse_error <= kFactor * std::max(lse_half, 16 * std::ldexp(1.0, -24) * lse_peak);
  if (!good) std::printf("    WRONG\n");
  return good;
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no GPU with a driver here: nothing was tested\n");
    return kNoGpu;
  }
  evo::AttentionShape tuned;
  tuned.batch = TUNED_BATCH;
  tuned.heads = TUNED_HEADS;
  tuned.kv_heads = TUNED_KV_HEADS;
  tuned.seq_q = TUNED_SEQ_Q;
  tuned.seq_k = TUNED_SEQ_K;
  tuned.scale = static_cast<float>(TUNED_SCALE);
  tuned.diagonal = TUNED_DIAGONAL;
  bool good = right(tuned);

  for (const auto& lengths : {std::make_pair(203, 331), std::make_pair(37, build.block_n / 2 + 3)}) {
    evo::AttentionShape ragged = tuned;
    ragged.batch = 2;
    ragged.heads = 4;
    ragged.kv_heads = 2;
    ragged.seq_q = lengths.first;
    ragged.seq_k = lengths.second;
    ragged.diagonal = build.causal ? ragged.seq_k - ragged.seq_q : 0;
    good = right(ragged) && good;
    if (build.causal) {
      ragged.diagonal = -3;                                  // the first rows see no key
      good = right(ragged) && good;
    }
  }
  std::printf(good ? "right\n" : "WRONG\n");
  return good ? 0 : 1;
}
