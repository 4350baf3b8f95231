// Decoding over codes on tensor cores: a block takes one part of one row's keys for up to 8 heads that share a
// key-value head; each of its warps takes pages of its own, 32 tokens at a time, and brings them to shared memory
// several turns ahead.
//
// Codes are small whole numbers, which f16 holds exactly: masked out of their word they are, as they stand, f16
// below 2^-14 with the value code * 2^-24 (subnormal numbers, which tensor cores take as they are: Fasi et al.,
// Numerical behavior of NVIDIA tensor cores, 2021), so unpacking is an `and` for two codes. To make them normal numbers
// (`code_pair` of prompt_codes.cuh) would take one more instruction for every two codes, where this is one or two. The
// other factor is f32 cut into two f16 (22 bits), which fill the 16 rows that mma16 has for 8 heads: row g takes the
// upper parts of head g, row g + 8 the lower ones, and both sums are added at the end. To keep clear of f16's bounds
// it is brought up by a power of two.
//
// Scores: sum_c q_c (code_c scale_c + zero_c) = sum_c (q_c scale_c) code_c + sum_c q_c zero_c, both factors once a
// page. Values: sum_t w_t (code_tc scale_t + zero_t) = sum_t (w_t scale_t) code_tc + sum_t w_t zero_t for the groups of
// channels that share scales.
#pragma once
#include "attention_decode.cuh"
#include "halves.cuh"
#include "kv_block.cuh"
#include "paged.cuh"

struct QuantizedAttention {
    u32 m, h, d, g;
    float scale;
    u32 window, sinks, page, ring, p, s, e, bits, precise, parts, prompt;
};

// Tokens of a turn, and heads of a block.
#define CODE_TOKENS 32u
#define CODE_HEADS 8u

// Turns that a warp has in use or under way, and words that it folds for an element of a head: left factors of mma16
// are 4 words a lane and 16 elements.
#define CODE_STAGES 2u
#define CODE_FOLDED 8u

// Shared memory of a turn of a warp, in words: codes of the keys, those of the values (rows are 4 words longer, so that
// rows that are read together lie in different banks), key parameters, value parameters.
template <u32 BITS, u32 D>
struct CodeStage {
    static const u32 ROW = D * BITS / 32;
    static const u32 VALUE_ROW = ROW + 4;
    static const u32 VALUES = CODE_TOKENS * ROW;
    static const u32 KEY_PARAMETERS = VALUES + CODE_TOKENS * VALUE_ROW;

    static __device__ __forceinline__ u32 value_parameters(const KvBlock& block) {
        return KEY_PARAMETERS + D * (block.precise ? 2 : 1);
    }

    static __device__ __forceinline__ u32 words(const KvBlock& block) {
        return value_parameters(block) + CODE_TOKENS * block.groups * (block.precise ? 2 : 1);
    }

    // Starts bringing the tokens from `token` on of a block; the key parameters only if `first`. A warp's lanes share it.
    static __device__ __forceinline__ void
    fetch(u32* stage, const KvBlock& block, const u32* from, u32 token, bool first) {
        u32 lane = threadIdx.x % WARP;
        u32 entry = block.precise ? 2 : 1;
        const u32* keys = from + token * ROW;
        const u32* values = from + block.values + token * ROW;
        // Chunks of 16 bytes: a lane has one column and every so many rows.
        u32 column = lane % (ROW / 4) * 4;
        u32 row = lane / (ROW / 4);
        const u32 STEP = WARP / (ROW / 4);
        keys += row * ROW + column;
        values += row * ROW + column;
        u32* to_keys = stage + row * ROW + column;
        u32* to_values = stage + VALUES + row * VALUE_ROW + column;
#pragma unroll
        for (u32 i = 0; i < CODE_TOKENS; i += STEP) {
            copy_async16(to_keys + i * ROW, keys + i * ROW, true);
            copy_async16(to_values + i * VALUE_ROW, values + i * ROW, true);
        }
        if (first) {
            for (u32 c = lane; c < D * entry / 4; c += WARP) {
                copy_async16(stage + KEY_PARAMETERS + 4 * c, from + block.key_parameters + 4 * c, true);
            }
        }
        u32 of_token = block.groups * entry;
        const u32* parameters = from + block.value_parameters + token * of_token;
        for (u32 c = lane; c < CODE_TOKENS * of_token / 4; c += WARP) {
            copy_async16(stage + value_parameters(block) + 4 * c, parameters + 4 * c, true);
        }
    }
};

// A warp's softmax over codes, of row lane / 4 of 8: `sum` and `zeros` over the keys of this lane alone.
template <u32 BITS, u32 D>
struct CodeWarp {
    typedef CodeStage<BITS, D> Stage;
    static const u32 PAIRS = D / 8;             // Of channels that a lane has of a token.
    static const u32 IN_WORD = 32 / BITS;
    static const u32 WORDS = Stage::ROW / 4;    // Of a lane.
    static const u32 IN_BYTE = 8 / BITS;
    static const u32 MASK = BITS == 8 ? 0x00ff00ffu : BITS == 4 ? 0x000f000fu : 0x00030003u;
    u32 lane, four;
    uint4* folded;                              // Queries times scales: left factors of mma16, one of each lane side by side.
    float up, offset;                           // The factor of what is folded, and the queries times zeros.
    float most, sum, zeros[D / 32], out[D / 8][4];
    u32 lift;                                   // Exponent of the largest scale of values so far.

    // `folded`: CODE_FOLDED words of shared memory for each element of a head.
    __device__ __forceinline__ CodeWarp(u32* folded)
        : lane(threadIdx.x % WARP), four(threadIdx.x % 4), folded((uint4*)folded + threadIdx.x % WARP), up(1.0f),
          offset(0.0f), most(NOTHING), sum(0.0f), lift(30) {
#pragma unroll
        for (u32 i = 0; i < D / 32; i++) {
            zeros[i] = 0.0f;
        }
#pragma unroll
        for (u32 i = 0; i < D / 2; i++) {
            out[i / 4][i % 4] = 0.0f;
        }
    }

    // Word j of the lane in a row of codes: lanes take 16 bytes next to each other.
    __device__ __forceinline__ u32 word(u32 j) const {
        return WORDS <= 4 ? four * WORDS + j : (j / 4 * 4 + four) * 4 + j % 4;
    }

    // Codes number i of both halves of a word as a pair. They are masked out where they stand in their bytes, which
    // makes them larger by `larger(i)`.
    static __device__ __forceinline__ u32 pair_of(u32 word, u32 i) {
        return word >> (i / IN_BYTE * 8) & MASK << (i % IN_BYTE * BITS);
    }

    static __device__ __forceinline__ float larger(u32 i) {
        return (float)(1u << (i % IN_BYTE * BITS));
    }

    // Four queries times scales, and their sum of products with zeros.
    static __device__ __forceinline__ float
    scale4(const KvBlock& block, const u32* parameters, const float* query, float* x) {
        float4 q = *(const float4*)query;
        float2 of[4];
        if (block.precise) {
            float4 low = *(const float4*)parameters;
            float4 high = *(const float4*)(parameters + 4);
            of[0] = make_float2(low.x, low.y);
            of[1] = make_float2(low.z, low.w);
            of[2] = make_float2(high.x, high.y);
            of[3] = make_float2(high.z, high.w);
        } else {
            uint4 pairs = *(const uint4*)parameters;
            unpack(pairs.x, f16{}, of[0].x, of[0].y);
            unpack(pairs.y, f16{}, of[1].x, of[1].y);
            unpack(pairs.z, f16{}, of[2].x, of[2].y);
            unpack(pairs.w, f16{}, of[3].x, of[3].y);
        }
        x[0] = q.x * of[0].x;
        x[1] = q.y * of[1].x;
        x[2] = q.z * of[2].x;
        x[3] = q.w * of[3].x;
        return q.x * of[0].y + q.y * of[1].y + (q.z * of[2].y + q.w * of[3].y);
    }

    // Folds a page's scales and zeros of keys into the row's query. The factor that keeps clear of f16's bounds is
    // that of the last page, if it still does.
    __device__ __forceinline__ void fold(const KvBlock& block, const u32* stage, const float* query) {
        bool again = true;
#pragma unroll 1
        while (again) {
            float high = reduce_quad<Max>(fold_with(block, stage + Stage::KEY_PARAMETERS, query));
            float largest = high * up;
            bool amiss = largest > 32768.0f || (largest < 256.0f && high > power(30));
            up = amiss ? power(266 - exponent(high)) : up;  // To 2^12.
            again = __any_sync(FULL_MASK, amiss);
        }
        offset = reduce_quad<Sum>(offset);
    }

    // The largest of this lane's queries times scales.
    __device__ __forceinline__ float fold_with(const KvBlock& block, const u32* parameters, const float* query) {
        u32 entry = block.precise ? 2 : 1;
        float high = 0.0f;
        offset = 0.0f;
#pragma unroll 1
        for (u32 j = 0; j < WORDS; j++) {
            u32 c = word(j) * IN_WORD;
            const u32 HALF = IN_WORD / 2;
            const u32 SOME = HALF < 4 ? HALF : 4;  // Codes of either half at a time.
#pragma unroll
            for (u32 first = 0; first < HALF; first += SOME) {
                float x[8];
                offset += scale4(block, parameters + (c + first) * entry, query + c + first, x);
                if constexpr (HALF >= 4) {
                    u32 other = c + first + HALF;
                    offset += scale4(block, parameters + other * entry, query + other, x + 4);
                }
#pragma unroll
                for (u32 i = 0; i < 2 * SOME; i++) {
                    high = fmaxf(high, fabsf(x[i]));
                }
#pragma unroll
                for (u32 i = 0; i < SOME; i += 2) {
                    float by = up / larger(first + i);
                    float next = up / larger(first + i + 1);
                    u32 a[4];
                    split_f16(x[i] * by, x[i + SOME] * by, a[0], a[1]);
                    split_f16(x[i + 1] * next, x[i + 1 + SOME] * next, a[2], a[3]);
                    folded[(j * HALF + first + i) / 2 * WARP] = make_uint4(a[0], a[1], a[2], a[3]);
                }
            }
        }
        return high;
    }

    // Takes in the tokens of a stage, of which `first` .. `end`-1 are seen.
    __device__ __forceinline__ void take(const KvBlock& block, const u32* stage, u32 first, u32 end) {
        float s[CODE_TOKENS / 8][4];
        scores(stage, s);
        const u32* parameters = stage + Stage::value_parameters(block);
        bool whole = first == 0 && end == CODE_TOKENS;
        float unit = 16777216.0f / up;
        float high = most;
#pragma unroll
        for (u32 n = 0; n < CODE_TOKENS / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                s[n][i] = (s[n][i] + s[n][i + 2]) * unit + offset;
                if (!whole) {
                    u32 token = 8 * n + 2 * four + i;
                    s[n][i] = token - first < end - first ? s[n][i] : NEGATIVE_INFINITY;
                }
                high = fmaxf(high, s[n][i]);
            }
        }
        high = reduce_quad<Max>(high);
        float widest = 0.0f;  // Of this lane's token.
#pragma unroll 1
        for (u32 group = 0; group < block.groups; group++) {
            widest = fmaxf(widest, fabsf(block.parameter(parameters, lane * block.groups + group).x));
        }
        widest = lane - first < end - first ? widest : 0.0f;
        bool higher = high > most || widest >= power(lift + 1);
        bool rises = __any_sync(FULL_MASK, higher);
        if (rises) {  // After the first tokens maxima seldom rise.
            u32 biased = exponent(warp_reduce<Max>(widest));
            rise(high, biased > lift ? biased : lift);
        }
#pragma unroll
        for (u32 n = 0; n < CODE_TOKENS / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                s[n][i] = fast_exp2(s[n][i] - most);
                sum += s[n][i];
            }
        }
        weigh(block, stage, parameters, s, whole);
    }

    __device__ __forceinline__ void rise(float high, u32 biased) {
        float shrink = fast_exp2(most - high);
        float lower_unit = shrink * fast_exp2((float)lift - (float)biased);
        most = high;
        lift = biased;
        sum *= shrink;
#pragma unroll
        for (u32 i = 0; i < D / 32; i++) {
            zeros[i] *= shrink;
        }
#pragma unroll
        for (u32 i = 0; i < D / 2; i++) {
            out[i / 4][i % 4] *= lower_unit;
        }
    }

    // s[n][i] + s[n][i + 2] counts the products of row lane / 4 and token 8 n + 2 (lane % 4) + i. Sums of several
    // tokens are under way at a time.
    __device__ __forceinline__ void scores(const u32* stage, float (&s)[CODE_TOKENS / 8][4]) const {
        const u32 TILES = CODE_TOKENS / 8;
        const u32 SOME = WORDS < 4 ? WORDS : 4;  // Words of a token that are held at a time.
#pragma unroll
        for (u32 i = 0; i < 4 * TILES; i++) {
            s[i / 4][i % 4] = 0.0f;
        }
#pragma unroll
        for (u32 first = 0; first < WORDS; first += SOME) {
            u32 words[TILES][SOME];
#pragma unroll
            for (u32 n = 0; n < TILES; n++) {
                load_words(words[n], stage + (8 * n + lane / 4) * Stage::ROW + word(first));
            }
#pragma unroll
            for (u32 pair = 0; pair < SOME * IN_WORD / 2; pair += 2) {
                uint4 of = folded[(first * IN_WORD / 2 + pair) / 2 * WARP];
                u32 a[4] = {of.x, of.y, of.z, of.w};
#pragma unroll
                for (u32 n = 0; n < TILES; n++) {
                    u32 b[2];
#pragma unroll
                    for (u32 i = 0; i < 2; i++) {
                        u32 j = (pair + i) / (IN_WORD / 2);
                        b[i] = pair_of(words[n][j], (pair + i) % (IN_WORD / 2));
                    }
                    mma16<f16>(s[n], a, b);
                }
            }
        }
    }

    template <u32 N>
    static __device__ __forceinline__ void load_words(u32 (&words)[N], const u32* from) {
        if constexpr (N == 4) {
            uint4 some = *(const uint4*)from;
            words[0] = some.x;
            words[1] = some.y;
            words[2] = some.z;
            words[3] = some.w;
        } else if constexpr (N == 2) {
            uint2 some = *(const uint2*)from;
            words[0] = some.x;
            words[1] = some.y;
        } else {
            words[0] = *from;
        }
    }

    // The codes of channels 4 unit .. + 3 of two tokens as pairs, one in each half of a word.
    static __device__ __forceinline__ void
    pairs_of(const u32* values, u32 token, u32 unit, u32 (&pairs)[4]) {
        const u32* low = values + token * Stage::VALUE_ROW;
        const u32* high = low + Stage::VALUE_ROW;
        if constexpr (BITS == 8) {
            u32 x = low[unit];
            u32 y = high[unit];
            u32 first = __byte_perm(x, y, 0x5410);
            u32 last = __byte_perm(x, y, 0x7632);
            pairs[0] = pair_of(first, 0);
            pairs[1] = pair_of(first, 1);
            pairs[2] = pair_of(last, 0);
            pairs[3] = pair_of(last, 1);
        } else {
            u32 both;
            if constexpr (BITS == 4) {
                both = (u32)((const u16*)low)[unit] | (u32)((const u16*)high)[unit] << 16;
            } else {
                both = (u32)((const u8*)low)[unit] | (u32)((const u8*)high)[unit] << 16;
            }
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                pairs[i] = pair_of(both, i);
            }
        }
    }

    // The parameters of a group of this lane's tokens; those of tokens that are not seen may be anything.
    __device__ __forceinline__ void load_parameters(
        const KvBlock& block, const u32* parameters, u32 group, float2 (&of)[CODE_TOKENS / 4]) const {
        u32 at = 2 * four * block.groups + group;
        if (block.precise) {
#pragma unroll
            for (u32 i = 0; i < CODE_TOKENS / 4; i++) {
                u32 entry = at + (i / 2 * 8 + i % 2) * block.groups;
                of[i] = *(const float2*)(parameters + 2 * entry);
            }
        } else {
#pragma unroll
            for (u32 i = 0; i < CODE_TOKENS / 4; i++) {
                unpack(parameters[at + (i / 2 * 8 + i % 2) * block.groups], f16{}, of[i].x, of[i].y);
            }
        }
    }

    // out += weights times values. Column g of tile i of 32 channels is channel 4 g + i.
    __device__ __forceinline__ void weigh(
        const KvBlock& block, const u32* stage, const u32* parameters, const float (&s)[CODE_TOKENS / 8][4], bool whole) {
        u32 a[CODE_TOKENS / 16][4];
        float scale_up = power(268 - lift);
#pragma unroll
        for (u32 j = 0; j < D / 32; j++) {
            if ((j * 32 & (block.page - 1)) == 0) {
                float2 of[CODE_TOKENS / 4];
                load_parameters(block, parameters, j * 32 / block.page, of);
                if (!whole) {
#pragma unroll
                    for (u32 i = 0; i < CODE_TOKENS / 4; i++) {
                        of[i] = s[i / 2][i % 2] > 0.0f ? of[i] : make_float2(0.0f, 0.0f);
                    }
                }
#pragma unroll
                for (u32 n = 0; n < CODE_TOKENS / 8; n++) {
                    float w[2];
#pragma unroll
                    for (u32 i = 0; i < 2; i++) {
                        w[i] = s[n][i] * (of[2 * n + i].x * scale_up);
                        zeros[j] += s[n][i] * of[2 * n + i].y;
                    }
                    split_f16(w[0], w[1], a[n / 2][n % 2 * 2], a[n / 2][n % 2 * 2 + 1]);
                }
            }
#pragma unroll
            for (u32 k = 0; k < CODE_TOKENS / 16; k++) {
                u32 low[4], high[4];
                pairs_of(stage + Stage::VALUES, 16 * k + 2 * four, j * 8 + lane / 4, low);
                pairs_of(stage + Stage::VALUES, 16 * k + 2 * four + 8, j * 8 + lane / 4, high);
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    u32 b[2] = {low[i], high[i]};
                    mma16<f16>(out[4 * j + i], a[k], b);
                }
            }
        }
    }

    // Writes the row's weighted values, largest score and sum of weights as DecodeBlock::finish reads them.
    __device__ __forceinline__ void keep(const KvBlock& block, float* row) {
        sum = reduce_quad<Sum>(sum);
        float lower_unit = power(lift + 10);  // 2^24 / up
        float zero = 0.0f;
#pragma unroll
        for (u32 j = 0; j < D / 32; j++) {
            float own = reduce_quad<Sum>(zeros[j]);
            zero = (j * 32 & (block.page - 1)) == 0 ? own : zero;
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                u32 c = j * 32 + (2 * four + i / 4) * 4 + i % 4;
                const float* x = out[4 * j + i % 4] + i / 4;
                row[c] = (x[0] + x[2]) * (lower_unit / larger(i % 4)) + zero;
            }
        }
        if (four == 0) {
            row[D] = most;
            row[D + 1] = sum;
        }
    }
};

// Grid as of DecodeBlock, for CODE_HEADS heads a block. Dynamic shared memory (sizes as in
// runtime/src/ops/paged/cuda.rs): CODE_HEADS queries, rows of D + 4; then what each warp folds and its
// CODE_STAGES turns, later the warps' results and what the ring's keys need.
template <u32 BITS, u32 D>
__device__ __forceinline__ void quantized_attention_decode(
    const QuantizedAttention& p, const float* __restrict__ q, const float* __restrict__ qs,
    const u32* __restrict__ codes, const float* __restrict__ ring, const u32* __restrict__ rows,
    const u32* __restrict__ table, float* __restrict__ o, float* __restrict__ lse) {
    const u32 HALF = CODE_HEADS / 2;
    const u32 WARPS = DECODE_THREADS / WARP;
    typedef CodeStage<BITS, D> Stage;
    extern __shared__ __align__(16) unsigned char smem[];
    float* queries = (float*)smem;
    u32* folded = (u32*)(queries + CODE_HEADS * (D + 4));
    u32* stages = folded + WARPS * CODE_FOLDED * D;
    DecodeBlock<HALF> block(p, CODE_HEADS);
    Pages pages(p, rows, block.token, table);
    KvBlock layout(p);
    u32 shared = p.h / p.g;
    u32 head = block.head;
    u32 heads = shared - blockIdx.y / p.g * CODE_HEADS;
    heads = heads < CODE_HEADS ? heads : CODE_HEADS;
    Span part = part_of(row_span(p, rows, block.token), blockIdx.x, p.parts);
    u32 boundary = rows[4 * block.token + 3];
    Span coded = select(part, boundary, SINKS | OTHERS | IN_CODES);
    Span newest = select(part, boundary, SINKS | OTHERS | IN_RING);
    u32 warp = threadIdx.x / WARP;

    CodeWarp<BITS, D> state(folded + warp * CODE_FOLDED * D);
    bool together = q == qs && coded.sink == coded.recent;
#pragma unroll 1
    for (u32 turn = 0; turn < 2; turn++) {
        u32 from = turn == 0 || together ? coded.first : coded.recent;
        u32 to = turn == 1 ? coded.end : together ? coded.first : coded.sink;
        if (from >= to) {
            continue;
        }
        __syncthreads();  // Nobody needs the last queries any more.
        const float* query = (turn == 0 ? qs : q) + ((u64)block.token * p.h + head) * D;
        for (u32 i = threadIdx.x; i < CODE_HEADS * D; i += DECODE_THREADS) {
            queries[i / D * (D + 4) + i % D] = i < heads * D ? query[i] * (p.scale * LOG2E) : 0.0f;
        }
        __syncthreads();

        // A warp's turns begin at `key`, tokens of 32 by page, each fourth page.
        u32 size = Stage::words(layout);
        u32* own = stages + warp * CODE_STAGES * size;
        u32 start = ((from >> pages.shift) + warp) << pages.shift;
        start = start < from ? from / CODE_TOKENS * CODE_TOKENS : start;
        auto next = [&](u32 key) {
            key += CODE_TOKENS;
            return (key & pages.mask) == 0 ? key + (WARPS - 1) * p.page : key;
        };
        auto fetch = [&](u32 key, u32 stage) {
            if (key < to) {
                const u32* page = codes + ((u64)pages.of(key) * p.g + block.kv) * layout.words;
                bool first = key == start || (key & pages.mask) == 0;
                Stage::fetch(own + stage * size, layout, page, key & pages.mask, first);
            }
            copy_async_commit();
        };
        u32 ahead = start;
        for (u32 i = 0; i + 1 < CODE_STAGES; i++) {
            fetch(ahead, i);
            ahead = next(ahead);
        }
        u32 stage = 0;
#pragma unroll 1
        for (u32 key = start; key < to; key = next(key)) {
            fetch(ahead, stage == 0 ? CODE_STAGES - 1 : stage - 1);
            ahead = next(ahead);
            copy_async_wait<CODE_STAGES - 1>();
            __syncwarp();
            const u32* here = own + stage * size;
            if (key == start || (key & pages.mask) == 0) {
                state.fold(layout, here, queries + threadIdx.x % WARP / 4 * (D + 4));
            }
            u32 first = from > key ? from - key : 0;
            u32 end = to - key < CODE_TOKENS ? to - key : CODE_TOKENS;
            state.take(layout, here, first, end);
            stage = stage + 1 < CODE_STAGES ? stage + 1 : 0;
            __syncwarp();  // The warp is done with this stage.
        }
        copy_async_wait<0>();
    }

    // The warps' results take the place of what they folded and of their stages: row r of warp w of half i in slot i * WARPS + w.
    __syncthreads();
    float* slots = (float*)folded;
    u32 mine = threadIdx.x % WARP / 4;
    state.keep(layout, slots + ((mine / HALF * WARPS + warp) * HALF + mine % HALF) * (D + 2));
    u32 halves = heads > HALF ? 2 : 1;
    float* ring_slots = slots + 2 * WARPS * HALF * (D + 2);
    bool wide = aligned16(ring) && aligned16(q) && aligned16(qs);
    const float* ring_head = ring + ((u64)pages.sequence * p.ring * 2 * p.g + block.kv) * D;
    auto place = [&](u32 key) { return ring_head + (u64)(key & (p.ring - 1)) * 2 * p.g * D; };
    u32 count = newest.first < newest.sink || newest.recent < newest.end ? 2 * WARPS : WARPS;
#pragma unroll 1
    for (u32 half = 0; half < halves; half++) {
        block.head = head + half * HALF;
        block.rows = heads - half * HALF < HALF ? heads - half * HALF : HALF;
        if (count > WARPS) {
            Softmax<HALF> newer;
            newer.clear();
            block.each_span(p, q, qs, newest, [&](const float (&own)[HALF][8], u32 from, u32 to) {
                decode_keys<float>(block, newer, own, (unsigned char*)ring_slots, p.g * D, D, wide, from, to, place);
            });
            block.keep(newer, ring_slots);
        }
        const float* codes_slots = slots + half * WARPS * block.slot_size();
        block.finish(p, count, [&](u32 w) {
            return w < WARPS ? codes_slots + w * block.slot_size() : ring_slots + (w - WARPS) * block.slot_size();
        }, o, lse);
        __syncthreads();
    }
}
