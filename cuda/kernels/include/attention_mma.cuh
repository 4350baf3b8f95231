// Tiles of attention for tensor cores: rows of D 16-bit floats in shared memory, in chunks of 16 bytes, and
// their fragments for mma16. A head size below D is padded with zeros.
//
// Chunk c of row r lies at position c ^ (r % 8) of its row, so that the eight rows of a matrix that
// ldmatrix reads lie in different banks.
#pragma once
#include "attention.cuh"

template <u32 D>
struct Chunks {
    static const u32 ROW = 2 * D;
    unsigned char* tile;

    __device__ __forceinline__ unsigned char* at(u32 row, u32 chunk) const {
        return tile + row * ROW + (chunk ^ row % 8) * 16;
    }

    __device__ __forceinline__ Chunks from_row(u32 row) const {
        Chunks rows = {tile + row * ROW};
        return rows;
    }

    // Starts copying N rows of d elements; row(r) is the address of row r, or null for zeros.
    template <u32 N, u32 THREADS, u32 UNROLL, typename T, typename Row>
    __device__ __forceinline__ void load(const T* base, u32 d, Row row) const {
        u32 chunk = threadIdx.x % (D / 8);
        bool inside = chunk * 8 < d;
#pragma unroll UNROLL
        for (u32 i = 0; i < N; i += THREADS / (D / 8)) {
            u32 r = i + threadIdx.x / (D / 8);
            const T* from = row(r);
            bool take = from != nullptr && inside;
            copy_async16(at(r, chunk), take ? from + chunk * 8 : base, take);
        }
    }

    // Rows row .. row+15 and columns 8 * chunk .. + 15 as the left factor of mma16.
    __device__ __forceinline__ void left(u32 (&a)[4], u32 row, u32 chunk) const {
        u32 lane = threadIdx.x % WARP;
        load_matrix4(a, at(row + lane % 16, chunk + lane / 16));
    }

    // The same elements transposed as the right factor: these are columns row .. row+7 in b[0] and
    // row+8 .. row+15 in b[1].
    __device__ __forceinline__ void right_transposed(u32 (&b)[2][2], u32 row, u32 chunk) const {
        u32 lane = threadIdx.x % WARP;
        u32 x[4];
        load_matrix4(x, at(row + lane % 8 + lane / 16 * 8, chunk + lane / 8 % 2));
        b[0][0] = x[0];
        b[0][1] = x[1];
        b[1][0] = x[2];
        b[1][1] = x[3];
    }

    // The same elements as the right factor: columns 8 * chunk .. + 7 in b[0], the next 8 in b[1].
    __device__ __forceinline__ void right(u32 (&b)[2][2], u32 row, u32 chunk) const {
        u32 lane = threadIdx.x % WARP;
        u32 x[4];
        load_matrix4_transposed(x, at(row + lane % 16, chunk + lane / 16));
        b[0][0] = x[0];
        b[0][1] = x[1];
        b[1][0] = x[2];
        b[1][1] = x[3];
    }

    // Stores 16 rows of sums (as mma16 leaves them) times a factor for rows g and g + 8 of lane l,
    // g = l / 4.
    __device__ __forceinline__ void store(u32 row, const float (&x)[D / 8][4], float low, float high) const {
        u32 lane = threadIdx.x % WARP;
#pragma unroll
        for (u32 n = 0; n < D / 8; n++) {
            *(u32*)(at(row + lane / 4, n) + lane % 4 * 4) = pack_bf16(x[n][0] * low, x[n][1] * low);
            *(u32*)(at(row + lane / 4 + 8, n) + lane % 4 * 4) = pack_bf16(x[n][2] * high, x[n][3] * high);
        }
    }

    // Copies N rows that this warp has stored to rows of d elements; row(r) is the address or null.
    template <u32 N, typename Row>
    __device__ __forceinline__ void write(u32 first, u32 d, Row row) const {
        u32 lane = threadIdx.x % WARP;
        const u32 WIDE = D / 8 < WARP ? D / 8 : WARP;
        u32 chunk = lane % WIDE;
#pragma unroll
        for (u32 i = 0; i < N; i += WARP / WIDE) {
            u32 r = i + lane / WIDE;
            bf16* to = row(r);
            if (to != nullptr && chunk * 8 < d) {
                *(uint4*)(to + chunk * 8) = *(const uint4*)at(first + r, chunk);
            }
        }
    }
};

// Starts loading BK keys or values for a tile of BQ query rows; those that no row sees become 0.
template <u32 D, u32 BQ, u32 BK, u32 THREADS>
struct KeyLoader {
    Spans<BQ> spans;
    u64 stride;   // Elements from key to key.
    u32 head, d;  // Where the head begins in a key, and its size.

    __device__ __forceinline__ void keys(const Chunks<D>& tile, const bf16* x, u32 key) const {
        const bf16* from = x + key * stride + head;
        if (spans.one_sees(key, key + BK)) {
            tile.template load<BK, THREADS, BK>(x, d, [&](u32 r) { return from + r * stride; });
        } else {
            tile.template load<BK, THREADS, 1>(x, d, [&](u32 r) {
                return spans.somebody_sees(key + r) ? from + r * stride : (const bf16*)nullptr;
            });
        }
        copy_async_commit();
    }
};

// Sums of M tiles of 16 rows and N tiles of 8 columns.
template <u32 M, u32 N>
__device__ __forceinline__ void clear_sums(float (&x)[M][N][4]) {
#pragma unroll
    for (u32 i = 0; i < M * N * 4; i++) {
        x[i / (N * 4)][i / 4 % N][i % 4] = 0.0f;
    }
}

// Two neighbouring tiles of 16 x 8 sums, rounded, as the left factor of mma16.
__device__ __forceinline__ void left_of_sums(u32 (&a)[4], const float (&x)[4], const float (&y)[4]) {
    a[0] = pack_bf16(x[0], x[1]);
    a[1] = pack_bf16(x[2], x[3]);
    a[2] = pack_bf16(y[0], y[1]);
    a[3] = pack_bf16(y[2], y[3]);
}

// s[16 M, 8 N] = a b^T for rows row .. of a and all rows of b.
template <u32 D, u32 M, u32 N>
__device__ __forceinline__ void multiply_transposed(
    float (&s)[M][N][4], const Chunks<D>& left, u32 row, const Chunks<D>& right) {
    clear_sums(s);
#pragma unroll
    for (u32 l = 0; l < D / 8; l += 2) {
        u32 a[M][4];
#pragma unroll
        for (u32 m = 0; m < M; m++) {
            left.left(a[m], row + 16 * m, l);
        }
#pragma unroll
        for (u32 n = 0; n < N; n += 2) {
            u32 b[2][2];
            right.right_transposed(b, 8 * n, l);
#pragma unroll
            for (u32 m = 0; m < M; m++) {
                mma16<bf16>(s[m][n], a[m], b[0]);
                mma16<bf16>(s[m][n + 1], a[m], b[1]);
            }
        }
    }
}

// out[16 M, D] += a b for the 16 J rows of b.
template <u32 D, u32 M, u32 J>
__device__ __forceinline__ void multiply_add(
    float (&out)[M][D / 8][4], const u32 (&a)[M][J][4], const Chunks<D>& right) {
#pragma unroll
    for (u32 j = 0; j < J; j++) {
#pragma unroll
        for (u32 n = 0; n < D / 8; n += 2) {
            u32 b[2][2];
            right.right(b, 16 * j, n);
#pragma unroll
            for (u32 m = 0; m < M; m++) {
                mma16<bf16>(out[m][n], a[m][j], b[0]);
                mma16<bf16>(out[m][n + 1], a[m][j], b[1]);
            }
        }
    }
}

// Scores of 16 rows and 8 N keys from `key`: those that rows g and g + 8 of lane l, g = l / 4, do not
// see become negative infinity, of which 2^x is 0.
template <u32 N>
__device__ __forceinline__ void mask_columns(float (&s)[N][4], u32 key, Span low, Span high) {
#pragma unroll
    for (u32 i = 0; i < 4 * N; i++) {
        u32 at = key + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
        bool sees = i % 4 < 2 ? low.sees(at) : high.sees(at);
        s[i / 4][i % 4] = sees ? s[i / 4][i % 4] : NEGATIVE_INFINITY;
    }
}
