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
// A warp computes a fragment of 16 rows.
constexpr int WARPS = ROWS / 16;
constexpr int THREADS = 32 * WARPS;
// Blocks that share a multiprocessor: each waits often, for memory and at its barriers.
constexpr int BLOCKS = 3;

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

// By the unit that is good to a few units of the last place of an f32.
__device__ __forceinline__ float power_of_2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(power) : "f"(x));
  return power;
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

// The keys, or the values, that a tile's sequence sees: those of an earlier pass first.
struct Source {
  // Where the first key would be, if all were rows of this tensor.
  const bf16 *past, *own;
  uint32_t past_length;
  int stride;

  __device__ Source(const Tile& tile, const bf16* past_rows, const bf16* own_rows, int kv_heads, int head, int dim)
      : past(past_rows + (static_cast<int64_t>(tile.prefix) * kv_heads + head) * dim),
        own(own_rows + ((static_cast<int64_t>(tile.own) - tile.prefix_length) * kv_heads + head) * dim),
        past_length(tile.prefix_length),
        stride(kv_heads * dim) {}

  __device__ const bf16* row(uint32_t at) const {
    return (at < past_length ? past : own) + static_cast<int64_t>(at) * stride;
  }
};

// Rows `from..from + KEYS`, of which there are `count` in all.
template <int DIM>
__device__ __forceinline__ void load_keys(bf16* to, const Source& source, int from, int count) {
  constexpr int PARTS = DIM / 8;
  const int part = threadIdx.x % PARTS;
#pragma unroll
  for (int i = 0; i < KEYS * PARTS / THREADS; i++) {
    const int key = threadIdx.x / PARTS + i * (THREADS / PARTS);
    // The last one again, where there are no more.
    const int at = min(from + key, count - 1);
    copy16(place<DIM>(to, key, part), source.row(at) + part * 8, from + key < count);
  }
}

// q, out: [queries, heads, DIM]; keys and values: [rows, kv_heads, DIM]. The tile is `blockIdx.x`, the head of
// the keys `blockIdx.y`. `scale` is that of the scores, times log2(e).
template <int DIM>
__device__ void attend(const bf16* q, const bf16* own_keys, const bf16* own_values, const bf16* past_keys,
                       const bf16* past_values, const Tile* tiles, bf16* out, int heads, float scale) {
  __shared__ __align__(16) bf16 queries[ROWS * DIM];
  __shared__ __align__(16) bf16 keys[KEYS * DIM];
  __shared__ __align__(16) bf16 values[KEYS * DIM];
  const Tile tile = tiles[blockIdx.x];
  const int kv_heads = gridDim.y, kv_head = blockIdx.y;
  const int group = heads / kv_heads;
  const int rows = tile.queries * group;
  const int most_seen = tile.seen + tile.queries - 1;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_row = warp * 16;

  // Of a row of the tile: its query (by a division that is exact below 256), and its place in `q` and `out`.
  const uint32_t inverse_group = (65536 + group - 1) / group;
  const auto query_of = [&](int row) { return row < rows ? static_cast<int>(row * inverse_group >> 16) : 0; };
  const auto offset_of = [&](int row) {
    const int query = query_of(row), head = row < rows ? row - query * group : 0;
    return (static_cast<size_t>(tile.query + query) * heads + kv_head * group + head) * DIM;
  };
  const Source key_source(tile, past_keys, own_keys, kv_heads, kv_head, DIM);
  const Source value_source(tile, past_values, own_values, kv_heads, kv_head, DIM);
  const int part = threadIdx.x % (DIM / 8);
#pragma unroll
  for (int i = 0; i < ROWS * (DIM / 8) / THREADS; i++) {
    const int row = threadIdx.x / (DIM / 8) + i * (THREADS / (DIM / 8));
    copy16(place<DIM>(queries, row, part), q + offset_of(row) + part * 8, row < rows);
  }
  load_keys<DIM>(keys, key_source, 0, most_seen);
  commit();

  // A thread holds parts of two rows of the fragment: `lane / 4` and eight further.
  const int pair = lane % 4 * 2;
  int seen[2];
  float sums[DIM / 8][4] = {};
  float largest[2], total[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    seen[half] = tile.seen + query_of(first_row + half * 8 + lane / 4);
    largest[half] = -INFINITY;
    total[half] = 0;
  }

  for (int from = 0; from < most_seen; from += KEYS) {
    wait<0>();
    // The keys are there, and nobody reads the values of the round before any more.
    __syncthreads();
    load_keys<DIM>(values, value_source, from, most_seen);
    commit();

    float scores[KEYS / 8][4] = {};
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
      uint32_t a[4];
      load_matrices(a, place<DIM>(queries, first_row + lane % 16, k * 2 + lane / 16));
#pragma unroll
      for (int n = 0; n < KEYS / 16; n++) {
        uint32_t b[4];
        const int key = n * 16 + lane / 16 * 8 + lane % 8;
        load_matrices(b, place<DIM>(keys, key, k * 2 + lane / 8 % 2));
        multiply(scores[2 * n], a, b[0], b[1]);
        multiply(scores[2 * n + 1], a, b[2], b[3]);
      }
    }
    __syncthreads();
    // The keys of the next round replace those that have been read.
    if (from + KEYS < most_seen) load_keys<DIM>(keys, key_source, from + KEYS, most_seen);
    commit();

    if (from + KEYS > tile.seen) {
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
          if (from + n * 8 + pair + i % 2 >= seen[i / 2]) scores[n][i] = -INFINITY;
    }
    float highest[2] = {largest[0], largest[1]};
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) highest[i / 2] = fmaxf(highest[i / 2], scores[n][i]);
    float origin[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      // Every row sees the first key, so that the highest is a number from the first round on.
      highest[half] = row_max(highest[half]);
      origin[half] = highest[half] * scale;
      const float shrink = power_of_2(largest[half] * scale - origin[half]);
      largest[half] = highest[half];
      total[half] *= shrink;
#pragma unroll
      for (int n = 0; n < DIM / 8; n++) {
        sums[n][2 * half] *= shrink;
        sums[n][2 * half + 1] *= shrink;
      }
    }
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        scores[n][i] = power_of_2(scores[n][i] * scale - origin[i / 2]);
        total[i / 2] += scores[n][i];
      }

    // All but the keys of the next round: the values.
    wait<1>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
      uint32_t weights[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float* of = scores[2 * k + i / 2] + i % 2 * 2;
        weights[i] = pack2(of[0], of[1]);
      }
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
    const int row = first_row + half * 8 + lane / 4;
    if (row >= rows) continue;
    bf16* to = out + offset_of(row) + pair;
#pragma unroll
    for (int n = 0; n < DIM / 8; n++)
      *reinterpret_cast<uint32_t*>(to + n * 8) =
          pack2(sums[n][2 * half] * inverse, sums[n][2 * half + 1] * inverse);
  }
}

#define ATTENTION(DIM)                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                    \
      attention_##DIM(const bf16* q, const bf16* own_keys, const bf16* own_values, const bf16* past_keys,          \
                      const bf16* past_values, const Tile* tiles, bf16* out, int heads, float scale) {             \
    attend<DIM>(q, own_keys, own_values, past_keys, past_values, tiles, out, heads, scale);                        \
  }

ATTENTION(64)
ATTENTION(128)
