// Attention over a paged cache in f32 or f16: a row of cache[t,2gd] is a token, g key heads of d elements, then g
// value heads; key k of a query row lies in row table[k / page] * page + k % page (runtime/src/ops/paged).
//
// s_k = scale q k (with qs in place of q for sinks), lse = ln sum_k exp(s_k), o = sum_k exp(s_k - lse) v_k over the
// keys that the mask leaves, for each part of them. Weights are kept as powers of two: log2(e) is part of the scale.
//
// decode: rows that are independent of each other, attention_decode.cuh. mma: prompts over f16 on tensor cores,
// prompt_mma.cuh. tiled: f32 arithmetic, paged_tiled.cuh.
#include "attention_decode.cuh"
#include "paged_tiled.cuh"
#include "prompt_sources.cuh"

struct PagedAttention {
    u32 m, h, d, g;
    float scale;
    u32 window, sinks, page, p, s, e, parts, prompt;
};

template <typename C, u32 D, u32 BQ, u32 BK>
__device__ __forceinline__ void paged_attention_tiled(
    const PagedAttention& p, const float* q, const float* qs, const C* __restrict__ cache, const u32* __restrict__ rows,
    const u32* __restrict__ table, float* __restrict__ o, float* __restrict__ lse) {
    typedef Tiled<float, D, BQ, BK> Block;
    paged_tiled<D, BQ, BK>(p, q, qs, rows, table, o, lse, [&](Block& block, PagedSpans<BQ>& spans, const Pages& pages, u32 kv) {
        auto row = [&](u32 side, u32 key) { return cache + (pages.token(key) * 2 * p.g + side * p.g + kv) * p.d; };
        spans.which |= IN_CODES | IN_RING;
        block.pass(spans, row_source<C, D, BK, Block::THREADS>(cache, row, p.d, wide_rows(cache, p.d)), p.scale * LOG2E);
    });
}

template <u32 D>
__device__ __forceinline__ void paged_attention_mma(
    const PagedAttention& p, const float* q, const float* qs, const f16* __restrict__ cache, const u32* __restrict__ rows,
    const u32* __restrict__ table, float* __restrict__ o, float* __restrict__ lse) {
    auto pass = [&](PromptBlock<D, false>& block, PagedSpans<PROMPT_ROWS>& spans, const Pages& pages, u32 kv,
                    unsigned char*) {
        auto row = [&](u32 side, u32 key) { return cache + (pages.token(key) * 2 * p.g + side * p.g + kv) * D; };
        spans.which |= IN_CODES | IN_RING;
        block.queries.split();
        auto source = half_source<D>(spans, cache, row);
        block.pass(spans, source);
    };
    prompt_mma<D, false>(p, q, qs, rows, table, o, lse, D, pass);
}

template <typename C, u32 ROWS>
__device__ __forceinline__ void paged_attention_decode(
    const PagedAttention& p, const float* __restrict__ q, const float* __restrict__ qs, const C* __restrict__ cache,
    const u32* __restrict__ rows, const u32* __restrict__ table, float* __restrict__ o, float* __restrict__ lse) {
    DecodeBlock<ROWS> block(p);
    Pages pages(p, rows, block.token, table);
    Span part = part_of(row_span(p, rows, block.token), blockIdx.x, p.parts);
    const C* head = cache + (u64)block.kv * p.d;
    auto place = [&](u32 key) { return head + pages.token(key) * 2 * p.g * p.d; };
    extern __shared__ __align__(16) unsigned char smem[];
    bool wide = p.d % 8 == 0 && aligned16(cache);
    Softmax<ROWS> state;
    state.clear();
    block.each_span(p, q, qs, part, [&](const float (&queries)[ROWS][8], u32 from, u32 to) {
        decode_keys<C>(block, state, queries, smem, p.g * p.d, p.d, wide, from, to, place);
    });
    float* slots = (float*)smem;
    block.keep(state, slots);
    block.finish(p, DECODE_THREADS / WARP, [&](u32 w) { return slots + w * block.slot_size(); }, o, lse);
}

// Entries: head size up to 64, 128, 256; query rows and keys of a tile as in `Tiles::forward`.

extern "C" __global__ void __launch_bounds__(256) paged_attention_tiled64_f32(
    PagedAttention p, const float* q, const float* qs, const float* cache, const u32* rows, const u32* table, float* o, float* lse) {
    paged_attention_tiled<float, 64, 64, 64>(p, q, qs, cache, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(256) paged_attention_tiled64_f16(
    PagedAttention p, const float* q, const float* qs, const f16* cache, const u32* rows, const u32* table, float* o, float* lse) {
    paged_attention_tiled<f16, 64, 64, 64>(p, q, qs, cache, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(256) paged_attention_tiled128_f32(
    PagedAttention p, const float* q, const float* qs, const float* cache, const u32* rows, const u32* table, float* o, float* lse) {
    paged_attention_tiled<float, 128, 64, 32>(p, q, qs, cache, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(256) paged_attention_tiled128_f16(
    PagedAttention p, const float* q, const float* qs, const f16* cache, const u32* rows, const u32* table, float* o, float* lse) {
    paged_attention_tiled<f16, 128, 64, 32>(p, q, qs, cache, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 1) paged_attention_tiled256_f32(
    PagedAttention p, const float* q, const float* qs, const float* cache, const u32* rows, const u32* table, float* o, float* lse) {
    paged_attention_tiled<float, 256, 32, 16>(p, q, qs, cache, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 1) paged_attention_tiled256_f16(
    PagedAttention p, const float* q, const float* qs, const f16* cache, const u32* rows, const u32* table, float* o, float* lse) {
    paged_attention_tiled<f16, 256, 32, 16>(p, q, qs, cache, rows, table, o, lse);
}

// Entries: head size. Two blocks may use all registers of a processor.

extern "C" __global__ void __launch_bounds__(128, 2) paged_attention_mma64_f16(
    PagedAttention p, const float* q, const float* qs, const f16* cache, const u32* rows, const u32* table, float* o, float* lse) {
    paged_attention_mma<64>(p, q, qs, cache, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 2) paged_attention_mma128_f16(
    PagedAttention p, const float* q, const float* qs, const f16* cache, const u32* rows, const u32* table, float* o, float* lse) {
    paged_attention_mma<128>(p, q, qs, cache, rows, table, o, lse);
}

// Entries: heads of a block.

extern "C" __global__ void __launch_bounds__(128, 4) paged_attention_decode1_f32(
    PagedAttention p, const float* q, const float* qs, const float* cache, const u32* rows, const u32* table, float* o, float* lse) {
    paged_attention_decode<float, 1>(p, q, qs, cache, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 4) paged_attention_decode1_f16(
    PagedAttention p, const float* q, const float* qs, const f16* cache, const u32* rows, const u32* table, float* o, float* lse) {
    paged_attention_decode<f16, 1>(p, q, qs, cache, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 4) paged_attention_decode4_f32(
    PagedAttention p, const float* q, const float* qs, const float* cache, const u32* rows, const u32* table, float* o, float* lse) {
    paged_attention_decode<float, 4>(p, q, qs, cache, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 4) paged_attention_decode4_f16(
    PagedAttention p, const float* q, const float* qs, const f16* cache, const u32* rows, const u32* table, float* o, float* lse) {
    paged_attention_decode<f16, 4>(p, q, qs, cache, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 2) paged_attention_decode8_f32(
    PagedAttention p, const float* q, const float* qs, const float* cache, const u32* rows, const u32* table, float* o, float* lse) {
    paged_attention_decode<float, 8>(p, q, qs, cache, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 2) paged_attention_decode8_f16(
    PagedAttention p, const float* q, const float* qs, const f16* cache, const u32* rows, const u32* table, float* o, float* lse) {
    paged_attention_decode<f16, 8>(p, q, qs, cache, rows, table, o, lse);
}
