// What a block does between its matrix products, on bf16: one pass over memory each, 16 bytes a thread
// and load. Compiled to PTX by build.rs, launched by block.rs and rows.rs.

#include <cuda_bf16.h>
#include <stdint.h>

// Numbers of one 16-byte load.
constexpr int PACK = 8;

__device__ __forceinline__ void unpack(uint4 packed, float* numbers) {
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    // bf16 is the upper half of an f32.
    numbers[2 * i] = __uint_as_float(words[i] << 16);
    numbers[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

__device__ __forceinline__ uint32_t pack2(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

__device__ __forceinline__ uint4 pack(const float* numbers) {
  return make_uint4(pack2(numbers[0], numbers[1]), pack2(numbers[2], numbers[3]), pack2(numbers[4], numbers[5]),
                    pack2(numbers[6], numbers[7]));
}

// The row `blockIdx.x` of `x` [rows, packs * 8] at a root mean square of 1, times `weight`.
extern "C" __global__ void rms_norm(const uint4* x, const uint4* weight, uint4* out, int packs, float eps) {
  __shared__ float of_warp[32];
  const uint4* row = x + static_cast<size_t>(blockIdx.x) * packs;
  float a[PACK], w[PACK];
  float sum = 0;
  for (int i = threadIdx.x; i < packs; i += blockDim.x) {
    unpack(row[i], a);
#pragma unroll
    for (int j = 0; j < PACK; j++) sum += a[j] * a[j];
  }
  for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  for (int warp = 0; warp < blockDim.x / 32; warp++) sum += of_warp[warp];
  const float factor = rsqrtf(sum / (packs * PACK) + eps);
  for (int i = threadIdx.x; i < packs; i += blockDim.x) {
    unpack(row[i], a);
    unpack(weight[i], w);
#pragma unroll
    for (int j = 0; j < PACK; j++) a[j] *= factor * w[j];
    out[static_cast<size_t>(blockIdx.x) * packs + i] = pack(a);
  }
}

// The sum of `a` and `b` [packs * 8].
extern "C" __global__ void add(const uint4* a, const uint4* b, uint4* out, size_t packs) {
  const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= packs) return;
  float x[PACK], y[PACK];
  unpack(a[i], x);
  unpack(b[i], y);
#pragma unroll
  for (int j = 0; j < PACK; j++) x[j] += y[j];
  out[i] = pack(x);
}

// silu of the gates times ups, which stand side by side: `gate_up` [tokens, 2 * packs * 8] to `out`
// [tokens, packs * 8]. The token is `blockIdx.x`, which may be larger than `blockIdx.y`.
extern "C" __global__ void swiglu(const uint4* gate_up, uint4* out, int packs) {
  const int i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= packs) return;
  const uint4* row = gate_up + static_cast<size_t>(blockIdx.x) * 2 * packs;
  float gate[PACK], up[PACK];
  unpack(row[i], gate);
  unpack(row[packs + i], up);
#pragma unroll
  for (int j = 0; j < PACK; j++) gate[j] = gate[j] / (1 + __expf(-gate[j])) * up[j];
  out[static_cast<size_t>(blockIdx.x) * packs + i] = pack(gate);
}

// `heads` heads of 2 * `half` numbers from column `from` of the row `blockIdx.x` of `x` [tokens, width],
// rotated by `cos` and `sin` [tokens, half]: `out` [tokens, heads, 2 * half]. All counts but `heads` in
// packs of 8.
extern "C" __global__ void rotate(const uint4* x, const float4* cos, const float4* sin, uint4* out, int width,
                                  int from, int heads, int half) {
  const size_t token = blockIdx.x;
  for (int i = threadIdx.x; i < heads * half; i += blockDim.x) {
    const int at = i / half * 2 * half + i % half;
    const uint4* in = x + token * width + from + at;
    float a[PACK], b[PACK], c[PACK], s[PACK];
    unpack(in[0], a);
    unpack(in[half], b);
    const size_t angle = (token * half + i % half) * 2;
    *reinterpret_cast<float4*>(c) = cos[angle];
    *reinterpret_cast<float4*>(c + 4) = cos[angle + 1];
    *reinterpret_cast<float4*>(s) = sin[angle];
    *reinterpret_cast<float4*>(s + 4) = sin[angle + 1];
    float first[PACK], second[PACK];
#pragma unroll
    for (int j = 0; j < PACK; j++) {
      first[j] = a[j] * c[j] - b[j] * s[j];
      second[j] = a[j] * s[j] + b[j] * c[j];
    }
    uint4* to = out + token * heads * 2 * half + at;
    to[0] = pack(first);
    to[half] = pack(second);
  }
}

// `x` [tokens, packs * 8] plus `row` [packs * 8]. The token is `blockIdx.x`.
extern "C" __global__ void add_bias(const uint4* x, const uint4* row, uint4* out, int packs) {
  const int i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= packs) return;
  const size_t at = static_cast<size_t>(blockIdx.x) * packs + i;
  float a[PACK], b[PACK];
  unpack(x[at], a);
  unpack(row[i], b);
#pragma unroll
  for (int j = 0; j < PACK; j++) a[j] += b[j];
  out[at] = pack(a);
}

// The rows `rows` of `x` [count, packs * 16 bytes], whatever numbers these are; zeros for a row that is not there.
// The row is `blockIdx.x`.
extern "C" __global__ void gather(const uint4* x, const uint32_t* rows, uint4* out, int packs, uint32_t count) {
  const uint32_t row = rows[blockIdx.x];
  const size_t from = static_cast<size_t>(row) * packs, to = static_cast<size_t>(blockIdx.x) * packs;
  for (int i = threadIdx.x; i < packs; i += blockDim.x)
    out[to + i] = row < count ? x[from + i] : make_uint4(0, 0, 0, 0);
}

// `x` [packs * 8] in f32.
extern "C" __global__ void widen(const uint4* x, float4* out, size_t packs) {
  const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= packs) return;
  float a[PACK];
  unpack(x[i], a);
  out[2 * i] = make_float4(a[0], a[1], a[2], a[3]);
  out[2 * i + 1] = make_float4(a[4], a[5], a[6], a[7]);
}

// `count` packs of 8 from column `from` of the row `blockIdx.x` of `x` [tokens, width]: `out` [tokens, count].
extern "C" __global__ void columns(const uint4* x, uint4* out, int width, int from, int count) {
  const size_t token = blockIdx.x;
  for (int i = threadIdx.x; i < count; i += blockDim.x) out[token * count + i] = x[token * width + from + i];
}
