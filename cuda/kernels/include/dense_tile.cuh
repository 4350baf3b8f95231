// What the tiled dense products share: C[rows, cols] (+)= A[rows, depth] B[depth, cols], where `depth`
// is summed over. matmul_nt, _nn and _tn differ only in how A and B lie in memory.
//
// A block computes one tile of C. It walks along the depth in steps of 64 bytes; for each step the
// *panels* of A and B (tile rows or columns x 64 bytes of depth) are copied to shared memory by
// cp.async, several steps ahead of the arithmetic (dense_mma.cuh: tensor cores; dense_simt.cuh: f32).
//
// Where tiles are few and the depth is long, gridDim.z blocks share the depth of a tile: each writes
// its f32 sums to scratch memory, and a second kernel (`sum_splits`) adds them in the order of z.
#pragma once
#include "tritter.cuh"

// One factor. Its axes are the span (rows of A, columns of B), which C keeps, and the depth.
template <typename T>
struct Factor {
    const T* data;  // span 0, depth 0
    u32 stride;     // elements from one stored row to the next
    u32 span;
    u32 depth;
};

// The product. Columns from `cols` to `padded` are the padding of 16-bit rows and become 0.
template <typename Y>
struct Output {
    Y* data;
    u32 stride;
    u32 rows;
    u32 cols;
    u32 padded;
    bool add;  // C += instead of C =
};

// ---- panels in shared memory ---------------------------------------------------------

// A panel of SPAN x 64 bytes of depth as a grid of 16-byte chunks. Its lines are stored rows of the
// factor: DEPTH_MAJOR (depth is contiguous), a line is one index of the span and 64 bytes long; else it
// is one index of the depth and all of the span.
//
// ldmatrix reads the same chunk of eight neighbouring lines. 16-bit chunks are swizzled by XOR so that these lie in
// different banks. The f32 kernels read depth-major lines likewise, but at every chunk with its own
// instruction; there 16 unused bytes after each line have the same effect and keep addresses constant.
template <typename T, u32 SPAN, bool DEPTH_MAJOR_>
struct Panel {
    typedef T Element;
    static constexpr bool DEPTH_MAJOR = DEPTH_MAJOR_;
    static constexpr u32 DEPTH = 64 / sizeof(T);
    static constexpr u32 CHUNK = 16 / sizeof(T);
    static constexpr u32 LINES = DEPTH_MAJOR ? SPAN : DEPTH;
    static constexpr u32 CHUNKS = DEPTH_MAJOR ? 4 : SPAN / CHUNK;
    static constexpr u32 LINE = CHUNKS * 16 + (sizeof(T) == 4 && DEPTH_MAJOR ? 16 : 0);
    static constexpr u32 BYTES = LINES * LINE;

    // Byte offset of a chunk.
    static __device__ __forceinline__ u32 at(u32 line, u32 chunk) {
        if (sizeof(T) == 2) {
            chunk ^= DEPTH_MAJOR ? line / 2 % 4 : line % 8;  // two depth-major lines fill the 128 bytes of all banks
        }
        return line * LINE + chunk * 16;
    }

    // Which index of the span a depth-major line holds. The f32 kernels give a thread four
    // neighbouring columns; lines SPAN / 4 apart, so that neighbouring lanes read neighbouring lines.
    static __device__ __forceinline__ u32 span_of(u32 line) {
        return sizeof(T) == 4 ? line % (SPAN / 4) * 4 + line / (SPAN / 4) : line;
    }
};

// Copies the first `count` elements of 16 bytes and fills the rest with zeros. WORD: bytes of one
// copy, 16 (all or nothing) or 4. `valid` is any valid address.
template <u32 WORD, typename T>
__device__ __forceinline__ void copy_chunk(unsigned char* to, const T* from, const T* valid, u32 count) {
    constexpr u32 ELEMENTS = WORD / sizeof(T);
#pragma unroll
    for (u32 i = 0; i < 16 / WORD; i++) {
        bool take = i * ELEMENTS < count;
        const T* source = take ? from + i * ELEMENTS : valid;
        if (WORD == 16) {
            copy_async16(to, source, take);
        } else {
            copy_async4(to + i * 4, source, take);
        }
    }
}

// A thread's part in copying one factor's panels, step by step along the depth.
//
// Beyond the end of the depth panels are filled with zeros, in both factors, so that nothing meets
// garbage. Beyond the end of the span the last (or first) line is repeated: its products land in rows
// or columns of C that are not stored.
template <typename P, u32 THREADS, u32 WORD>
struct Feed {
    typedef typename P::Element T;
    static constexpr u32 COPIES = P::LINES * P::CHUNKS / THREADS;
    static constexpr u32 STEP = THREADS / P::CHUNKS;  // lines from one copy to the next
    static_assert(THREADS % P::CHUNKS == 0 && P::LINES * P::CHUNKS % THREADS == 0, "whole copies");
    static_assert(sizeof(T) == 4 || STEP % 8 == 0, "the swizzle repeats from copy to copy");

    const T* from[P::DEPTH_MAJOR ? COPIES : 1];
    const T* valid;
    u64 stride;
    u32 to;
    u32 depth;  // of this thread's first element in the next panel
    u32 end;
    u32 count;  // elements of a chunk that lie inside the span (not depth-major)

    __device__ __forceinline__ Feed(const Factor<T>& f, u32 first, u32 begin, u32 end_) {
        u32 line = threadIdx.x / P::CHUNKS;
        u32 chunk = threadIdx.x % P::CHUNKS;
        valid = f.data;
        stride = f.stride;
        to = P::at(line, chunk);
        end = end_;
        if (P::DEPTH_MAJOR) {
            depth = begin + chunk * P::CHUNK;
#pragma unroll
            for (u32 i = 0; i < COPIES; i++) {
                u32 at = min(first + P::span_of(line + i * STEP), f.span - 1);
                from[i] = f.data + at * stride + depth;
            }
        } else {
            depth = begin + line;
            u32 at = first + chunk * P::CHUNK;
            at = at < f.span ? at : 0;
            count = f.span - at;
            from[0] = f.data + depth * stride + at;
        }
    }

    // Starts copying the next panel.
    __device__ __forceinline__ void next(unsigned char* panel) {
#pragma unroll
        for (u32 i = 0; i < COPIES; i++) {
            unsigned char* chunk = panel + to + i * STEP * P::LINE;
            if (P::DEPTH_MAJOR) {
                copy_chunk<WORD>(chunk, from[i], valid, depth < end ? end - depth : 0);
                from[i] += P::DEPTH;
            } else {
                copy_chunk<WORD>(chunk, from[0] + i * STEP * stride, valid, depth + i * STEP < end ? count : 0);
            }
        }
        if (!P::DEPTH_MAJOR) {
            from[0] += P::DEPTH * stride;
        }
        depth += P::DEPTH;
    }
};

// ---- storing -------------------------------------------------------------------------

__device__ __forceinline__ void load_quad(const float* from, float (&v)[4]) {
    float4 quad = *(const float4*)from;
    v[0] = quad.x, v[1] = quad.y, v[2] = quad.z, v[3] = quad.w;
}

__device__ __forceinline__ void load_quad(const bf16* from, float (&v)[4]) {
    uint2 quad = *(const uint2*)from;
    v[0] = bits_f32(quad.x << 16), v[1] = bits_f32(quad.x & 0xffff0000u);
    v[2] = bits_f32(quad.y << 16), v[3] = bits_f32(quad.y & 0xffff0000u);
}

__device__ __forceinline__ void store_quad(float* to, const float (&v)[4]) {
    *(float4*)to = make_float4(v[0], v[1], v[2], v[3]);
}

__device__ __forceinline__ void store_quad(bf16* to, const float (&v)[4]) {
    *(uint2*)to = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
}

__device__ __forceinline__ void store_pair(float* to, float low, float high) {
    to[0] = low;
    to[1] = high;
}

__device__ __forceinline__ void store_pair(bf16* to, float low, float high) {
    *(u32*)to = pack_bf16(low, high);
}

// Can four neighbouring columns from a multiple of four on be moved at once?
template <typename Y>
__device__ __forceinline__ bool whole_quads(const Output<Y>& c) {
    return c.stride % 4 == 0 && ((u64)c.data & (4 * sizeof(Y) - 1)) == 0;
}

// Stores four columns from `col` on, a multiple of four, those that exist.
template <typename Y>
__device__ __forceinline__ void store4(const Output<Y>& c, bool quads, u32 row, u32 col, float (&v)[4]) {
    if (row >= c.rows || col >= c.padded) {
        return;
    }
    Y* to = c.data + (u64)row * c.stride + col;
    if (quads && col + 4 <= c.cols) {
        if (c.add) {
            float old[4];
            load_quad(to, old);
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                v[i] += old[i];
            }
        }
        store_quad(to, v);
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        bool inside = col + i < c.cols;
        v[i] = inside ? (c.add ? to_f32(to[i]) : 0.0f) + v[i] : 0.0f;
    }
#pragma unroll
    for (u32 i = 0; i < 4; i += 2) {
        if (col + i + 1 < c.padded) {
            store_pair(to + i, v[i], v[i + 1]);
        } else if (col + i < c.padded) {
            to[i] = Convert<Y>::from(v[i]);
        }
    }
}

// ---- the product ---------------------------------------------------------------------

// Rows of tiles that blocks walk through column by column: at any time the blocks under way form
// about a square of C and share its panels in L2.
#define RASTER 16u

// C's tile (row, col) of block blockIdx.x among `rows` x `cols` tiles.
__device__ __forceinline__ uint2 tile_of_block(u32 rows, u32 cols) {
    u32 band = blockIdx.x / (RASTER * cols) * RASTER;
    u32 height = min(RASTER, rows - band);
    u32 within = blockIdx.x - band * cols;
    return make_uint2(band + within % height, within / height);
}

// Row length of the sums in scratch memory.
__device__ __forceinline__ u32 split_stride(u32 cols) {
    return (cols + 3u) & ~3u;
}

// Computes this block's tile. Grid: tiles in x, shares of the depth in z. `Tile` (dense_mma.cuh,
// dense_simt.cuh) has ROWS x COLS of C, steps of DEPTH, `run` and `each4`, which gives the sums as
// (row, col, four columns) relative to the tile.
template <typename Tile, typename T, typename Y>
__device__ __forceinline__ void
product(const Factor<T>& a, const Factor<T>& b, const Output<Y>& c, float* __restrict__ scratch) {
    u32 tile_rows = (c.rows + Tile::ROWS - 1) / Tile::ROWS;
    u32 tile_cols = (c.cols + Tile::COLS - 1) / Tile::COLS;
    uint2 at = tile_of_block(tile_rows, tile_cols);
    u32 row = at.x * Tile::ROWS;
    u32 col = at.y * Tile::COLS;
    u64 steps = (a.depth + Tile::DEPTH - 1) / Tile::DEPTH;
    u32 begin = (u32)(steps * blockIdx.z / gridDim.z) * Tile::DEPTH;
    u32 end = (u32)(steps * (blockIdx.z + 1) / gridDim.z) * Tile::DEPTH;
    Tile tile;
    tile.run(a, b, row, col, begin, min(end, a.depth));
    if (gridDim.z == 1) {
        bool quads = whole_quads(c);
        tile.each4([&](u32 i, u32 j, float(&v)[4]) { store4(c, quads, row + i, col + j, v); });
    } else {
        u32 stride = split_stride(c.cols);
        float* sums = scratch + (u64)blockIdx.z * c.rows * stride;
        tile.each4([&](u32 i, u32 j, float(&v)[4]) {
            if (row + i < c.rows && col + j < stride) {
                store_quad(sums + (u64)(row + i) * stride + col + j, v);
            }
        });
    }
}

// The second kernel of a split product: C (+)= the sum of the gridDim.y sums in scratch memory. All
// blocks of the grid share the work, in quads of columns (fewer than 2^32 of them).
template <typename Y>
__device__ __forceinline__ void sum_splits(const Output<Y>& c, const float* __restrict__ scratch) {
    u32 stride = split_stride(c.cols);
    u32 count = c.rows * (stride / 4);
    bool quads = whole_quads(c);
    u32 threads = gridDim.x * gridDim.y * blockDim.x;
    for (u32 i = (blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += threads) {
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (u32 z = 0; z < gridDim.y; z++) {
            float v[4];
            load_quad(scratch + ((u64)z * count + i) * 4, v);
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                sum[e] += v[e];
            }
        }
        store4(c, quads, i / (stride / 4), i % (stride / 4) * 4, sum);
    }
}
