// Attention over a paged cache by tiles (attention_tiled.cuh). A prompt's rows are tiled as in attention; of rows
// that are independent of each other a block takes one row's part of the keys for the heads that share a key-value
// head. Grid: tiles times key-value heads, parts, rows (a prompt has one of each of the last two).
#pragma once
#include "attention_tiled.cuh"
#include "paged.cuh"

// `pass(block, spans, pages, kv)` takes in the keys of `spans`, whatever stores they are in.
template <u32 D, u32 BQ, u32 BK, typename P, typename Pass>
__device__ __forceinline__ void paged_tiled(
    const P& p, const float* __restrict__ q, const float* __restrict__ qs, const u32* __restrict__ rows_of,
    const u32* __restrict__ table, float* __restrict__ o, float* __restrict__ lse, Pass pass) {
    extern __shared__ __align__(16) unsigned char smem[];
    __shared__ u32 bounds[5][BQ];
    Place place(p);
    Rows rows(p, place.kv, p.prompt ? 0 : blockIdx.z, p.prompt ? p.m : 1);
    u32 start = place.tile * BQ;
    PagedSpans<BQ> spans(p, rows, rows_of, start, bounds);
    Pages pages(p, rows_of, rows.token, table);
    Tiled<float, D, BQ, BK> block(smem, p.d);
    bool apart = p.sinks > 0 && q != qs;
#pragma unroll 1
    for (u32 turn = apart ? 0 : 1; turn < 2; turn++) {
        block.load_queries(turn == 0 ? qs : q, rows, start);
        spans.which = turn == 0 ? SINKS : apart ? OTHERS : SINKS | OTHERS;
        __syncthreads();
        pass(block, spans, pages, place.kv);
        __syncthreads();  // Nobody needs the queries any more.
    }
    u64 part = (u64)blockIdx.y * p.m * p.h;
    block.store(o + part * p.d, lse + part, rows, start);
}
