// Attention over a paged cache of codes, whose newest tokens are in f32 (runtime/src/ops/paged): keys below a query
// row's boundary are codes in block (table[k / page], head) (include/kv_block.cuh), keys from it on are rows of the
// sequence's ring. The rest as in paged_attention.cu.
//
// decode: rows that are independent of each other, on tensor cores, quantized_decode.cuh. mma: prompts, on tensor
// cores, prompt_mma.cuh. tiled: f32 arithmetic, paged_tiled.cuh; codes become f32 where a tile is stored.
#include "paged_tiled.cuh"
#include "prompt_codes.cuh"
#include "prompt_sources.cuh"
#include "quantized_decode.cuh"
#include "quantized_tiled.cuh"

template <u32 D, u32 BQ, u32 BK>
__device__ __forceinline__ void quantized_attention_tiled(
    const QuantizedAttention& p, const float* q, const float* qs, const u32* __restrict__ codes,
    const float* __restrict__ ring, const u32* __restrict__ rows, const u32* __restrict__ table, float* __restrict__ o,
    float* __restrict__ lse) {
    typedef Tiled<float, D, BQ, BK> Block;
    KvBlock layout(p);
    float scale = p.scale * LOG2E;
    paged_tiled<D, BQ, BK>(p, q, qs, rows, table, o, lse, [&](Block& block, PagedSpans<BQ>& spans, const Pages& pages, u32 kv) {
        u32 which = spans.which;
        spans.which = which | IN_CODES;
        block.pass(spans, CodeSource<D, BK, Block::THREADS>(layout, pages, codes, p.g, kv), scale);
        __syncthreads();  // Nobody needs the keys and values of codes any more.
        u64 first = (u64)pages.sequence * p.ring;
        auto row = [&](u32 side, u32 key) {
            return ring + ((first + (key & (p.ring - 1))) * 2 * p.g + side * p.g + kv) * p.d;
        };
        spans.which = which | IN_RING;
        block.pass(spans, row_source<float, D, BK, Block::THREADS>(ring, row, p.d, wide_rows(ring, p.d)), scale);
    });
}

template <u32 BITS, u32 D>
__device__ __forceinline__ void quantized_attention_mma(
    const QuantizedAttention& p, const float* q, const float* qs, const u32* __restrict__ codes,
    const float* __restrict__ ring, const u32* __restrict__ rows, const u32* __restrict__ table, float* __restrict__ o,
    float* __restrict__ lse) {
    typedef PromptCodes<BITS, D> Codes;
    __shared__ float largest[2][Codes::WARPS];
    __shared__ float scratch[WARP];
    QuantizedAttention known = p;  // With constants.
    known.bits = BITS;
    known.d = D;
    KvBlock layout(known);
    auto pass = [&](PromptBlock<D, true>& block, PagedSpans<PROMPT_ROWS>& spans, const Pages& pages, u32 kv,
                    unsigned char* rest) {
        u32 which = spans.which;
        spans.which = which | IN_CODES;
        Codes source(layout, pages, spans, codes, p.g, kv, rest, largest);
        block.pass(spans, source);
        u64 first = (u64)pages.sequence * p.ring;
        auto row = [&](u32 side, u32 key) {
            return ring + ((first + (key & (p.ring - 1))) * 2 * p.g + side * p.g + kv) * D;
        };
        spans.which = which | IN_RING;
        auto newest = single_source<D>(spans, scratch, row);
        block.pass(spans, newest);
    };
    prompt_mma<D, true>(p, q, qs, rows, table, o, lse, p.page, pass);
}

// Entries: head size up to 64, 128, 256; query rows and keys of a tile as in `Tiles::forward`.

extern "C" __global__ void __launch_bounds__(256) quantized_attention_tiled64(
    QuantizedAttention p, const float* q, const float* qs, const u32* codes, const float* ring, const u32* rows,
    const u32* table, float* o, float* lse) {
    quantized_attention_tiled<64, 64, 64>(p, q, qs, codes, ring, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(256) quantized_attention_tiled128(
    QuantizedAttention p, const float* q, const float* qs, const u32* codes, const float* ring, const u32* rows,
    const u32* table, float* o, float* lse) {
    quantized_attention_tiled<128, 64, 32>(p, q, qs, codes, ring, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 1) quantized_attention_tiled256(
    QuantizedAttention p, const float* q, const float* qs, const u32* codes, const float* ring, const u32* rows,
    const u32* table, float* o, float* lse) {
    quantized_attention_tiled<256, 32, 16>(p, q, qs, codes, ring, rows, table, o, lse);
}

// Entries: bits of a code, head size.

extern "C" __global__ void __launch_bounds__(128, 3) quantized_attention_decode2_64(
    QuantizedAttention p, const float* q, const float* qs, const u32* codes, const float* ring, const u32* rows,
    const u32* table, float* o, float* lse) {
    quantized_attention_decode<2, 64>(p, q, qs, codes, ring, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 3) quantized_attention_decode2_128(
    QuantizedAttention p, const float* q, const float* qs, const u32* codes, const float* ring, const u32* rows,
    const u32* table, float* o, float* lse) {
    quantized_attention_decode<2, 128>(p, q, qs, codes, ring, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 3) quantized_attention_decode4_64(
    QuantizedAttention p, const float* q, const float* qs, const u32* codes, const float* ring, const u32* rows,
    const u32* table, float* o, float* lse) {
    quantized_attention_decode<4, 64>(p, q, qs, codes, ring, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 3) quantized_attention_decode4_128(
    QuantizedAttention p, const float* q, const float* qs, const u32* codes, const float* ring, const u32* rows,
    const u32* table, float* o, float* lse) {
    quantized_attention_decode<4, 128>(p, q, qs, codes, ring, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 2) quantized_attention_decode8_64(
    QuantizedAttention p, const float* q, const float* qs, const u32* codes, const float* ring, const u32* rows,
    const u32* table, float* o, float* lse) {
    quantized_attention_decode<8, 64>(p, q, qs, codes, ring, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 2) quantized_attention_decode8_128(
    QuantizedAttention p, const float* q, const float* qs, const u32* codes, const float* ring, const u32* rows,
    const u32* table, float* o, float* lse) {
    quantized_attention_decode<8, 128>(p, q, qs, codes, ring, rows, table, o, lse);
}

// Entries: bits of a code, head size; for prompts.

extern "C" __global__ void __launch_bounds__(128, 2) quantized_attention_mma2_64(
    QuantizedAttention p, const float* q, const float* qs, const u32* codes, const float* ring, const u32* rows,
    const u32* table, float* o, float* lse) {
    quantized_attention_mma<2, 64>(p, q, qs, codes, ring, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 2) quantized_attention_mma2_128(
    QuantizedAttention p, const float* q, const float* qs, const u32* codes, const float* ring, const u32* rows,
    const u32* table, float* o, float* lse) {
    quantized_attention_mma<2, 128>(p, q, qs, codes, ring, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 2) quantized_attention_mma4_64(
    QuantizedAttention p, const float* q, const float* qs, const u32* codes, const float* ring, const u32* rows,
    const u32* table, float* o, float* lse) {
    quantized_attention_mma<4, 64>(p, q, qs, codes, ring, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 2) quantized_attention_mma4_128(
    QuantizedAttention p, const float* q, const float* qs, const u32* codes, const float* ring, const u32* rows,
    const u32* table, float* o, float* lse) {
    quantized_attention_mma<4, 128>(p, q, qs, codes, ring, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 2) quantized_attention_mma8_64(
    QuantizedAttention p, const float* q, const float* qs, const u32* codes, const float* ring, const u32* rows,
    const u32* table, float* o, float* lse) {
    quantized_attention_mma<8, 64>(p, q, qs, codes, ring, rows, table, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 2) quantized_attention_mma8_128(
    QuantizedAttention p, const float* q, const float* qs, const u32* codes, const float* ring, const u32* rows,
    const u32* table, float* o, float* lse) {
    quantized_attention_mma<8, 128>(p, q, qs, codes, ring, rows, table, o, lse);
}
