// What the rows over a paged cache share: which keys a query row sees, in which part of them and in which store,
// and where pages lie (runtime/src/ops/paged). A query row is (row of the table, first key, last key, boundary).
#pragma once
#include "attention.cuh"

// Keys that a query row sees, the sinks apart: first .. sink-1 are sinks, recent .. end-1 are none.
template <typename P>
__device__ __forceinline__ Span row_span(const P& p, const u32* rows, u32 row) {
    u32 capacity = p.e * p.page;
    u32 first = rows[4 * row + 1];
    u32 last = rows[4 * row + 2];
    Span s = masked(first, last < capacity ? last + 1 : capacity, p.window, p.sinks);
    s.recent = s.recent > s.sink ? s.recent : s.sink;
    return s;
}

// Part j of those keys, which are numbered in rising order and cut into parts of whole multiples of 128.
__device__ __forceinline__ Span part_of(Span s, u32 j, u32 parts) {
    u32 before = s.sink - s.first;
    u32 n = before + (s.end - s.recent);
    u32 size = ((n + parts - 1) / parts + 127) / 128 * 128;
    u64 low = (u64)j * size;
    u64 high = low + size;
    u32 from = low < n ? (u32)low : n;
    u32 to = high < n ? (u32)high : n;
    Span part;
    part.first = s.first + (from < before ? from : before);
    part.sink = s.first + (to < before ? to : before);
    part.recent = s.recent + (from > before ? from - before : 0);
    part.end = s.recent + (to > before ? to - before : 0);
    return part;
}

// Which keys a pass takes: with their own query sinks, others, or both; and those of either store.
#define SINKS 1u
#define OTHERS 2u
#define IN_CODES 4u
#define IN_RING 8u

__device__ __forceinline__ Span select(Span s, u32 boundary, u32 which) {
    if (!(which & OTHERS)) {
        s.recent = s.end = s.sink;
    }
    if (!(which & SINKS)) {
        s.first = s.sink = s.recent;
    }
    u32 low = which & IN_CODES ? 0 : boundary;
    u32 high = which & IN_RING ? 0xffffffffu : boundary;
    u32* bound = &s.first;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        bound[i] = bound[i] < low ? low : bound[i] > high ? high : bound[i];
    }
    return s;
}

// Pages of one sequence. Numbers that come from memory are held to the pool.
struct Pages {
    const u32* table;
    u32 shift, mask, last, sequence;

    template <typename P>
    __device__ __forceinline__ Pages(const P& p, const u32* rows, u32 row, const u32* tables)
        : shift(31 - __clz(p.page)), mask(p.page - 1), last(p.p - 1) {
        sequence = rows[4 * row];
        sequence = sequence < p.s ? sequence : p.s - 1;
        table = tables + (u64)sequence * p.e;
    }

    __device__ __forceinline__ u32 of(u32 key) const {
        u32 page = table[key >> shift];
        return page < last ? page : last;
    }

    // Row of a cache of tokens.
    __device__ __forceinline__ u64 token(u32 key) const {
        return ((u64)of(key) << shift) + (key & mask);
    }
};

// Spans of a tile of N query rows, in shared memory, of which a pass takes a selection. Rows past the last
// repeat it.
template <u32 N>
struct PagedSpans : Sees<N, PagedSpans<N>> {
    u32 (*bounds)[N];
    u32 which;

    // All threads call; followed by a barrier before the first use.
    template <typename P>
    __device__ __forceinline__ PagedSpans(
        const P& p, const Rows& of, const u32* rows, u32 row, u32 (&bounds)[5][N])
        : bounds(bounds), which(SINKS | OTHERS | IN_CODES | IN_RING) {
        for (u32 r = threadIdx.x; r < N; r += blockDim.x) {
            u32 token = of.token + (row + r < of.count ? row + r : of.count - 1) / of.shared;
            Span s = row_span(p, rows, token);
            if (!p.prompt) {
                s = part_of(s, blockIdx.y, p.parts);
            }
            bounds[0][r] = s.first;
            bounds[1][r] = s.sink;
            bounds[2][r] = s.recent;
            bounds[3][r] = s.end;
            bounds[4][r] = rows[4 * token + 3];
        }
    }

    __device__ __forceinline__ Span of(u32 r) const {
        Span s = {bounds[0][r], bounds[1][r], bounds[2][r], bounds[3][r]};
        return select(s, bounds[4][r], which);
    }
};
