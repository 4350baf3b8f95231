// dw[ids[i] - row0] += dy[i] for ids in rows row0..row0+v of dw[v,d], in the order of i.
//
// A block a token. The first token with an id adds the gradients of all tokens with that id; the
// other blocks leave. So no two blocks write one row, nothing is added atomically, and results
// repeat. The block looks through the ids 1,024 at a time: a warp votes on 32 of them, and what
// matches is listed in order. Then each thread adds the listed rows to its columns, four rows'
// loads under way at a time.
#include "elementwise.cuh"

struct GatherGrad {
    u32 m, d, v, row0;
};

#define BATCH 1024u
#define BATCH_WORDS (BATCH / WARP)

// Lists the tokens of a batch whose id is `id`, in order, and gives their number. `votes` and
// `list` are shared memory. Begins and ends with a barrier.
__device__ __forceinline__ u32 list_tokens(const u32* ids, u32 id, u32 first, u32 m, u32* votes, u32* list) {
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 mine[BATCH / TILE_THREADS];
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < BATCH / TILE_THREADS; i++) {
        u32 word = i * (TILE_THREADS / WARP) + warp;
        u64 token = (u64)first + word * WARP + lane;
        bool equal = token < m && ids[token] == id;
        mine[i] = __ballot_sync(FULL_MASK, equal);
        if (lane == 0) {
            votes[word] = mine[i];
        }
    }
    __syncthreads();
    // Matches up to and with word `lane`.
    u32 up_to = __popc(votes[lane]);
#pragma unroll
    for (u32 stride = 1; stride < WARP; stride *= 2) {
        u32 before = __shfl_up_sync(FULL_MASK, up_to, stride);
        up_to += lane >= stride ? before : 0;
    }
    u32 count = __shfl_sync(FULL_MASK, up_to, BATCH_WORDS - 1);
#pragma unroll
    for (u32 i = 0; i < BATCH / TILE_THREADS; i++) {
        u32 word = i * (TILE_THREADS / WARP) + warp;
        u32 last = __shfl_sync(FULL_MASK, up_to, word);
        if (mine[i] >> lane & 1u) {
            list[last - __popc(mine[i] >> lane)] = first + word * WARP + lane;
        }
    }
    __syncthreads();
    return count;
}

// Adds the listed rows of dy to N columns of a row of dw.
template <u32 N, typename T>
__device__ __forceinline__ void add_rows(const T* dy, u64 stride, const u32* list, u32 count, float* dw) {
    const u32 ROWS = 4;
    float sum[N];
    load<N>(dw, sum);
    for (u32 first = 0; first < count; first += ROWS) {
        float x[ROWS][N];
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            if (first + r < count) {
                load<N>(dy + list[first + r] * stride, x[r]);
            }
        }
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            if (first + r < count) {
#pragma unroll
                for (u32 j = 0; j < N; j++) {
                    sum[j] += x[r][j];
                }
            }
        }
    }
    store<N>(dw, sum);
}

template <typename T>
__device__ __forceinline__ void gather_grad(const GatherGrad& p, const u32* ids, const T* dy, float* dw) {
    __shared__ u32 votes[BATCH_WORDS];
    __shared__ u32 list[BATCH];
    u32 token = blockIdx.x;
    u32 id = ids[token];
    // Ids before the window wrap to large numbers.
    u32 row = id - p.row0;
    if (row >= p.v) {
        return;
    }
    bool seen = false;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < token; i += TILE_THREADS) {
        seen |= ids[i] == id;
    }
    int earlier = __syncthreads_or(seen);
    if (earlier != 0) {
        return;
    }
    u64 stride = row_stride<T>(p.d);
    float* to = dw + (u64)row * p.d;
    bool vectors = p.d % 4 == 0 && aligned16(dy) && aligned16(dw);
    for (u32 first = token; first < p.m; first += BATCH) {
        u32 count = list_tokens(ids, id, first, p.m, votes, list);
        if (count == 0) {
            continue;
        }
        if (vectors) {
            for (u32 j = 4 * threadIdx.x; j < p.d; j += 4 * TILE_THREADS) {
                add_rows<4>(dy + j, stride, list, count, to + j);
            }
        } else {
            for (u32 j = threadIdx.x; j < p.d; j += TILE_THREADS) {
                add_rows<1>(dy + j, stride, list, count, to + j);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
    gather_grad_f32(GatherGrad p, const u32* ids, const float* dy, float* dw) {
    gather_grad(p, ids, dy, dw);
}

extern "C" __global__ void __launch_bounds__(256)
    gather_grad_bf16(GatherGrad p, const u32* ids, const bf16* dy, float* dw) {
    gather_grad(p, ids, dy, dw);
}
