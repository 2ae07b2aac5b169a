// What a head does between its matrix products, in f32: candle's operations would do it in many passes, and the
// driver would compile all of candle's kernels for them before the first answer, which takes half a minute.

#include <stdint.h>

__device__ __forceinline__ float silu(float x) { return x / (1 + __expf(-x)); }

// Over the threads of a warp.
__device__ __forceinline__ float warp_sum(float x) {
  for (int other = 16; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
  return x;
}

// `x` [count / width, width] plus `row` [width], or silu of that.
extern "C" __global__ void add_row(const float* x, const float* row, float* out, size_t count, int width,
                                   int with_silu) {
  const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float sum = x[i] + row[i % width];
  out[i] = with_silu ? silu(sum) : sum;
}

// The sum of `a` and `b` [count].
extern "C" __global__ void add_numbers(const float* a, const float* b, float* out, size_t count) {
  const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) out[i] = a[i] + b[i];
}

// Each of the parts of a row of `x` [rows, parts * width], less `center` [parts * width] if it is `centered`, at
// the length `length`; parts of zeros stay. The row is `blockIdx.x`, the part `blockIdx.y`.
extern "C" __global__ void unit_parts(const float* x, const float* center, float* out, int width, int centered,
                                      float length) {
  __shared__ float of_warp[32];
  const size_t from = (static_cast<size_t>(blockIdx.x) * gridDim.y + blockIdx.y) * width;
  const float* middle = center + blockIdx.y * width;
  float sum = 0;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const float of_center = x[from + i] - (centered ? middle[i] : 0);
    sum += of_center * of_center;
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  for (int warp = 0; warp < blockDim.x / 32; warp++) sum += of_warp[warp];
  const float factor = length / fmaxf(sqrtf(sum), 1e-12f);
  for (int i = threadIdx.x; i < width; i += blockDim.x)
    out[from + i] = (x[from + i] - (centered ? middle[i] : 0)) * factor;
}

// `x` [count / width, width] less `mean` [width], times `scale` [width].
extern "C" __global__ void standardize(const float* x, const float* mean, const float* scale, float* out,
                                       size_t count, int width) {
  const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) out[i] = (x[i] - mean[i % width]) * scale[i % width];
}

// The probability of each candidate span, one a warp: its tokens' features `parts` [tokens, 5 * units] at
// `rows` [count, 5] (none where a row is `tokens`) and its width's, `widths` [count] into `width` [.., units].
extern "C" __global__ void span_scores(const float* parts, const uint32_t* rows, const uint32_t* widths,
                                       const float* width, const float* output, const float* bias, float* out,
                                       int count, int tokens, int units) {
  const int span = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (span >= count) return;
  float logit = 0;
  for (int unit = lane; unit < units; unit += 32) {
    float sum = width[static_cast<size_t>(widths[span]) * units + unit];
    for (int part = 0; part < 5; part++) {
      const uint32_t row = rows[static_cast<size_t>(span) * 5 + part];
      if (row < tokens) sum += parts[(static_cast<size_t>(row) * 5 + part) * units + unit];
    }
    logit += silu(sum) * output[unit];
  }
  logit = warp_sum(logit) + bias[0];
  if (lane == 0) out[span] = 1 / (1 + __expf(-logit));
}
