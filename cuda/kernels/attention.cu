// Attention with online softmax over tiles of keys (FlashAttention-2, Dao 2023).
//
// s_ik = scale q_i k_k, lse_i = ln sum_k exp(s_ik), o_i = sum_k exp(s_ik - lse_i) v_k over the keys
// that the mask leaves of the token's span. Weights are kept as powers of two: log2(e) is part of the scale.
//
// mma: bf16 on tensor cores, attention_flash.cuh. tiled: f32 arithmetic, attention_tiled.cuh.
#include "attention_flash.cuh"
#include "attention_tiled.cuh"

template <typename T, u32 D, u32 BQ, u32 BK>
__device__ __forceinline__ void attention_tiled(
    const Attention& p, const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
    const u32* __restrict__ span, T* __restrict__ o, float* __restrict__ lse) {
    extern __shared__ __align__(16) unsigned char smem[];
    __shared__ u32 first[BQ];
    __shared__ u32 end[BQ];
    typedef Tiled<T, D, BQ, BK> Block;
    Place place(p);
    Rows rows(p, place.kv);
    u32 start = place.tile * BQ;
    Spans<BQ> spans(p, rows, span, start, first, end);
    Block block(smem, p.d);
    block.load_queries(q, rows, start);
    __syncthreads();
    auto row = [&](u32 side, u32 key) { return (side == 0 ? k : v) + ((u64)key * p.g + place.kv) * p.d; };
    bool wide = wide_rows(k, p.d) && wide_rows(v, p.d);
    block.pass(spans, row_source<T, D, BK, Block::THREADS>(k, row, p.d, wide), p.scale * LOG2E);
    block.store(o, lse, rows, start);
}

// Entries: head size up to 64, 128, 256; query rows and keys of a tile as in `tiled` of the row's CUDA table.

extern "C" __global__ void __launch_bounds__(256) attention_tiled64_f32(
    Attention p, const float* q, const float* k, const float* v, const u32* span, float* o, float* lse) {
    attention_tiled<float, 64, 64, 64>(p, q, k, v, span, o, lse);
}

extern "C" __global__ void __launch_bounds__(256) attention_tiled128_f32(
    Attention p, const float* q, const float* k, const float* v, const u32* span, float* o, float* lse) {
    attention_tiled<float, 128, 64, 32>(p, q, k, v, span, o, lse);
}

extern "C" __global__ void __launch_bounds__(128) attention_tiled256_f32(
    Attention p, const float* q, const float* k, const float* v, const u32* span, float* o, float* lse) {
    attention_tiled<float, 256, 32, 16>(p, q, k, v, span, o, lse);
}

extern "C" __global__ void __launch_bounds__(128) attention_tiled256_bf16(
    Attention p, const bf16* q, const bf16* k, const bf16* v, const u32* span, bf16* o, float* lse) {
    attention_tiled<bf16, 256, 32, 16>(p, q, k, v, span, o, lse);
}

// Entries: head size up to 64, 128, 256; query rows of a block. The second bound keeps ptxas from spilling for
// the sake of a third block on a processor.

extern "C" __global__ void __launch_bounds__(128) attention_mma64_64(
    Attention p, const bf16* q, const bf16* k, const bf16* v, const u32* span, bf16* o, float* lse) {
    attention_flash<64, 1, 64>(p, q, k, v, span, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_mma64_128(
    Attention p, const bf16* q, const bf16* k, const bf16* v, const u32* span, bf16* o, float* lse) {
    attention_flash<64, 2, 64>(p, q, k, v, span, o, lse);
}

extern "C" __global__ void __launch_bounds__(128) attention_mma128_64(
    Attention p, const bf16* q, const bf16* k, const bf16* v, const u32* span, bf16* o, float* lse) {
    attention_flash<128, 1, 64>(p, q, k, v, span, o, lse);
}

extern "C" __global__ void __launch_bounds__(128) attention_mma128_128(
    Attention p, const bf16* q, const bf16* k, const bf16* v, const u32* span, bf16* o, float* lse) {
    attention_flash<128, 2, 64>(p, q, k, v, span, o, lse);
}

extern "C" __global__ void __launch_bounds__(128) attention_mma256_64(
    Attention p, const bf16* q, const bf16* k, const bf16* v, const u32* span, bf16* o, float* lse) {
    attention_flash<256, 1, 32>(p, q, k, v, span, o, lse);
}
