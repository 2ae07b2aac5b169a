// Causal attention of packed sequences of any lengths, bf16 with sums in f32: the scores of a tile of queries
// never leave the registers (FlashAttention-2, arXiv 2307.08691, section 3.1). Query heads that share a head of
// the keys are rows of the same tile, so that few queries still fill it.

#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

// Rows of a tile: queries times the query heads of a head of the keys. attention.rs cuts tiles by it.
constexpr int ROWS = 64;
// Keys that are in shared memory at a time.
constexpr int KEYS = 64;
constexpr int WARPS = ROWS / 16;
constexpr int THREADS = 32 * WARPS;

// Queries of one sequence next to each other; cuda/attention.rs has the same.
struct Tile {
  // Row of the first query, and how many there are.
  uint32_t query, queries;
  // Keys that the first query sees; each further query sees one more.
  uint32_t seen;
  // Rows of the earlier pass that come first, and how many there are; the first own row.
  uint32_t prefix, prefix_length, own;
};

__device__ __forceinline__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// 16 bytes to shared memory in the background; zeros if `there` is false.
__device__ __forceinline__ void copy16(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from),
               "r"(there ? 16 : 0));
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;\n"); }

// Waits for all but the newest `pending` groups.
template <int pending>
__device__ __forceinline__ void wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(pending));
}

__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(from)));
}

__device__ __forceinline__ void load_transposed(uint32_t (&to)[4], const void* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(from)));
}

// c [16, 8] plus a [16, 16] times b [16, 8].
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
               "{%0,%1,%2,%3};\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t pack2(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

// Over the four threads that hold a row.
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Where the 16 bytes `part` of a key are in shared memory: spread, so that the eight rows of a matrix lie in
// different banks.
template <int DIM>
__device__ __forceinline__ bf16* place(bf16* keys, int key, int part) {
  return keys + key * DIM + (part ^ (key % 8)) * 8;
}

// Keys (or values) `from..from + KEYS` of a tile's sequence.
template <int DIM>
__device__ __forceinline__ void load_keys(bf16* to, const Tile& tile, const bf16* own, const bf16* past, int from,
                                          int keys, int head, int kv_heads) {
  constexpr int PARTS = DIM / 8;
#pragma unroll
  for (int i = threadIdx.x; i < KEYS * PARTS; i += THREADS) {
    const int key = i / PARTS, part = i % PARTS;
    const uint32_t at = from + key;
    const bool there = at < static_cast<uint32_t>(keys);
    const bf16* tensor = at < tile.prefix_length ? past : own;
    const size_t row = at < tile.prefix_length ? tile.prefix + at : tile.own + (at - tile.prefix_length);
    const bf16* address = tensor + ((there ? row : 0) * kv_heads + head) * DIM + part * 8;
    copy16(place<DIM>(to, key, part), there ? address : own, there);
  }
}

// q, out: [queries, heads, DIM]; keys and values: [rows, kv_heads, DIM]. The tile is `blockIdx.x`, the head of
// the keys `blockIdx.y`. `scale` is that of the scores, times log2(e).
template <int DIM>
__device__ void attend(const bf16* q, const bf16* own_keys, const bf16* own_values, const bf16* past_keys,
                       const bf16* past_values, const Tile* tiles, bf16* out, int heads, float scale) {
  __shared__ __align__(16) bf16 keys[KEYS * DIM];
  __shared__ __align__(16) bf16 values[KEYS * DIM];
  const Tile tile = tiles[blockIdx.x];
  const int kv_heads = gridDim.y, kv_head = blockIdx.y;
  const int group = heads / kv_heads;
  const int rows = tile.queries * group;
  const int most_seen = tile.seen + tile.queries - 1;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // A thread holds parts of two rows of a 16-row fragment: `lane / 4` and eight further.
  const int pair = lane % 4 * 2;
  bool valid[2];
  int seen[2];
  size_t offset[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = warp * 16 + lane / 4 + half * 8;
    valid[half] = row < rows;
    const int query = valid[half] ? row / group : 0, head = valid[half] ? row % group : 0;
    seen[half] = tile.seen + query;
    offset[half] = (static_cast<size_t>(tile.query + query) * heads + kv_head * group + head) * DIM + pair;
  }
  uint32_t queries[DIM / 16][4];
#pragma unroll
  for (int k = 0; k < DIM / 16; k++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const bf16* at = q + offset[i % 2] + k * 16 + i / 2 * 8;
      queries[k][i] = valid[i % 2] ? *reinterpret_cast<const uint32_t*>(at) : 0;
    }
  }
  float sums[DIM / 8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY};
  float total[2] = {0, 0};

  load_keys<DIM>(keys, tile, own_keys, past_keys, 0, most_seen, kv_head, kv_heads);
  commit();
  for (int from = 0; from < most_seen; from += KEYS) {
    wait<0>();
    // The keys are there, and nobody reads the values of the round before any more.
    __syncthreads();
    load_keys<DIM>(values, tile, own_values, past_values, from, most_seen, kv_head, kv_heads);
    commit();

    float scores[KEYS / 8][4] = {};
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
#pragma unroll
      for (int n = 0; n < KEYS / 16; n++) {
        uint32_t b[4];
        const int key = n * 16 + lane / 16 * 8 + lane % 8;
        load_matrices(b, place<DIM>(keys, key, k * 2 + lane / 8 % 2));
        multiply(scores[2 * n], queries[k], b[0], b[1]);
        multiply(scores[2 * n + 1], queries[k], b[2], b[3]);
      }
    }
    __syncthreads();
    // The keys of the next round replace those that have been read.
    if (from + KEYS < most_seen)
      load_keys<DIM>(keys, tile, own_keys, past_keys, from + KEYS, most_seen, kv_head, kv_heads);
    commit();

    float highest[2] = {largest[0], largest[1]};
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (from + n * 8 + pair + i % 2 >= seen[i / 2]) scores[n][i] = -INFINITY;
        highest[i / 2] = fmaxf(highest[i / 2], scores[n][i]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      highest[half] = row_max(highest[half]);
      // Every row sees the first key, so that the highest is a number from the first round on.
      const float shrink = exp2f((largest[half] - highest[half]) * scale);
      largest[half] = highest[half];
      total[half] *= shrink;
#pragma unroll
      for (int n = 0; n < DIM / 8; n++) {
        sums[n][2 * half] *= shrink;
        sums[n][2 * half + 1] *= shrink;
      }
    }
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        scores[n][i] = exp2f((scores[n][i] - largest[i / 2]) * scale);
        total[i / 2] += scores[n][i];
      }
    }

    wait<1>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
      const uint32_t weights[4] = {
          pack2(scores[2 * k][0], scores[2 * k][1]), pack2(scores[2 * k][2], scores[2 * k][3]),
          pack2(scores[2 * k + 1][0], scores[2 * k + 1][1]), pack2(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < DIM / 16; n++) {
        uint32_t b[4];
        const int key = k * 16 + lane / 8 % 2 * 8 + lane % 8;
        load_transposed(b, place<DIM>(values, key, n * 2 + lane / 16));
        multiply(sums[2 * n], weights, b[0], b[1]);
        multiply(sums[2 * n + 1], weights, b[2], b[3]);
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float inverse = 1 / row_sum(total[half]);
    if (!valid[half]) continue;
#pragma unroll
    for (int n = 0; n < DIM / 8; n++)
      *reinterpret_cast<uint32_t*>(out + offset[half] + n * 8) =
          pack2(sums[n][2 * half] * inverse, sums[n][2 * half + 1] * inverse);
  }
}

#define ATTENTION(DIM)                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, 3)                                                            \
      attention_##DIM(const bf16* q, const bf16* own_keys, const bf16* own_values, const bf16* past_keys,          \
                      const bf16* past_values, const Tile* tiles, bf16* out, int heads, float scale) {             \
    attend<DIM>(q, own_keys, own_values, past_keys, past_values, tiles, out, heads, scale);                        \
  }

ATTENTION(64)
ATTENTION(128)
