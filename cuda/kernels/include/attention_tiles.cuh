// Tiles of attention in f32 arithmetic, for every even head size up to 256 and every dtype: rows lie
// in shared memory as f32, 16 threads share R rows, and products are taken with 16-byte reads.
//
// A tile row takes D + 4 floats: 16 threads that read the same columns of consecutive rows then
// touch all banks evenly.
#pragma once
#include "attention.cuh"

// Threads that share rows; a tile of N rows with R a thread takes N / R * LANES threads.
#define LANES 16u

// N rows of d elements on their way to shared memory: start() asks for them, finish() puts them there
// for all threads after the next barrier. Meanwhile f32 is copied asynchronously, and 16-bit elements
// wait in registers. Columns up to the next multiple of 4 become 0.
template <typename T, u32 D, u32 N, u32 THREADS>
struct Incoming {
    static const u32 ROWS = N * LANES / THREADS;
    static const u32 CHUNKS = D / (4 * LANES);
    uint2 words[ROWS][CHUNKS];

    // row(r) is the address of row r, or null for zeros.
    template <typename Row>
    __device__ __forceinline__ void start(float*, const T*, u32 d, bool wide, Row row) {
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            const T* from = row(threadIdx.x / LANES + i * (THREADS / LANES));
#pragma unroll
            for (u32 n = 0; n < CHUNKS; n++) {
                u32 c = (threadIdx.x % LANES + n * LANES) * 4;
                words[i][n] = make_uint2(0, 0);
                if (from && c < d && wide) {
                    words[i][n] = *(const uint2*)(from + c);
                } else if (from && c < d) {
                    words[i][n].x = *(const u32*)(from + c);
                    words[i][n].y = c + 2 < d ? *(const u32*)(from + c + 2) : 0;
                }
            }
        }
    }

    __device__ __forceinline__ void finish(float* tile, u32 d) const {
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            u32 r = threadIdx.x / LANES + i * (THREADS / LANES);
#pragma unroll
            for (u32 n = 0; n < CHUNKS; n++) {
                u32 c = (threadIdx.x % LANES + n * LANES) * 4;
                if (c < d) {
                    float4 x;
                    unpack(words[i][n].x, T{}, x.x, x.y);
                    unpack(words[i][n].y, T{}, x.z, x.w);
                    *(float4*)(tile + r * (D + 4) + c) = x;
                }
            }
        }
    }
};

template <u32 D, u32 N, u32 THREADS>
struct Incoming<float, D, N, THREADS> {
    // `base` is any valid address.
    template <typename Row>
    __device__ __forceinline__ void start(float* tile, const float* base, u32 d, bool wide, Row row) {
        for (u32 r = threadIdx.x / LANES; r < N; r += THREADS / LANES) {
            const float* from = row(r);
            for (u32 c = threadIdx.x % LANES * 4; c < d; c += LANES * 4) {
                float* to = tile + r * (D + 4) + c;
                if (wide) {
                    copy_async16(to, from ? from + c : base, from != nullptr);
                } else {
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        bool take = from != nullptr && c + i < d;
                        copy_async4(to + i, take ? from + c + i : base, take);
                    }
                }
            }
        }
        copy_async_commit();
    }

    __device__ __forceinline__ void finish(float*, u32) const {
        copy_async_wait<0>();
    }
};

// May four elements of these rows be moved at once?
template <typename T>
__device__ __forceinline__ bool wide_rows(const T* x, u32 d) {
    return d % 4 == 0 && aligned16(x);
}

// s[r][c] = the inner product of row r of a and row LANES * c of b. `a` is the thread's first row
// and `b` its first, by lane.
template <u32 D, u32 R, u32 C>
__device__ __forceinline__ void multiply_rows(float (&s)[R][C], const float* a, const float* b, u32 d) {
#pragma unroll
    for (u32 r = 0; r < R; r++) {
#pragma unroll
        for (u32 c = 0; c < C; c++) {
            s[r][c] = 0.0f;
        }
    }
#pragma unroll 1
    for (u32 l = 0; l < d; l += 4) {
        float4 x[R], y[C];
#pragma unroll
        for (u32 r = 0; r < R; r++) {
            x[r] = *(const float4*)(a + r * (D + 4) + l);
        }
#pragma unroll
        for (u32 c = 0; c < C; c++) {
            y[c] = *(const float4*)(b + c * LANES * (D + 4) + l);
        }
#pragma unroll
        for (u32 r = 0; r < R; r++) {
#pragma unroll
            for (u32 c = 0; c < C; c++) {
                s[r][c] += x[r].x * y[c].x;
                s[r][c] += x[r].y * y[c].y;
                s[r][c] += x[r].z * y[c].z;
                s[r][c] += x[r].w * y[c].w;
            }
        }
    }
}

// The thread's part of R rows of D columns: columns 4 * (lane + LANES * n) .. + 3.
template <u32 D, u32 R>
struct Part {
    static const u32 CHUNKS = D / (4 * LANES);
    float x[R][CHUNKS][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (u32 i = 0; i < R * CHUNKS * 4; i++) {
            x[i / (CHUNKS * 4)][i / 4 % CHUNKS][i % 4] = 0.0f;
        }
    }

    __device__ __forceinline__ void multiply(u32 r, float factor) {
#pragma unroll
        for (u32 i = 0; i < CHUNKS * 4; i++) {
            x[r][i / 4][i % 4] *= factor;
        }
    }

    // x += w b for N rows of b. `w` is the thread's first row of weights, rows of N + 4.
    template <u32 N>
    __device__ __forceinline__ void add(const float* w, const float* b, u32 d) {
        u32 column = threadIdx.x % LANES * 4;
#pragma unroll 1
        for (u32 j = 0; j < N; j += 4) {
            float weight[R][4];
#pragma unroll
            for (u32 r = 0; r < R; r++) {
                float4 four = *(const float4*)(w + r * (N + 4) + j);
                weight[r][0] = four.x;
                weight[r][1] = four.y;
                weight[r][2] = four.z;
                weight[r][3] = four.w;
            }
#pragma unroll
            for (u32 i = 0; i < CHUNKS * 4; i++) {
                u32 c = column + i / 4 * LANES * 4;
                if (c < d) {
                    float4 y = *(const float4*)(b + (j + i % 4) * (D + 4) + c);
#pragma unroll
                    for (u32 r = 0; r < R; r++) {
                        x[r][i / 4][0] += weight[r][i % 4] * y.x;
                        x[r][i / 4][1] += weight[r][i % 4] * y.y;
                        x[r][i / 4][2] += weight[r][i % 4] * y.z;
                        x[r][i / 4][3] += weight[r][i % 4] * y.w;
                    }
                }
            }
        }
    }

    // Writes row r times a factor to the start of a row of d elements.
    template <typename T>
    __device__ __forceinline__ void store(T* row, u32 r, float factor, u32 d, bool wide) const {
#pragma unroll
        for (u32 n = 0; n < CHUNKS; n++) {
            u32 c = (threadIdx.x % LANES + n * LANES) * 4;
            if (c < d) {
                float y[4];
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    y[i] = x[r][n][i] * factor;
                }
                store4(row, c, d, wide, y);
            }
        }
    }
};

// Sum and maximum over the threads that share rows; every one gets the same bits.
template <typename Op>
__device__ __forceinline__ float reduce_lanes(float x) {
#pragma unroll
    for (u32 stride = LANES / 2; stride > 0; stride /= 2) {
        float other = __shfl_xor_sync(FULL_MASK, x, stride);
        x = Op::of(x, other);
    }
    return x;
}
