// What the attention kernels share: the keys that a token sees, the packing of query heads that read one
// key-value head, and moves of four elements.
#pragma once
#include "tritter.cuh"

// The parameters of attention, attention_grad_q and attention_grad_kv.
struct Attention {
    u32 m, h, d, t, g;
    float scale;
    u32 window, sinks;
};

// The log of the sum of weights of a row that sees nothing.
#define NOTHING (-1e30f)
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
#define NEGATIVE_INFINITY bits_f32(0xff800000u)

// ---- rows and spans --------------------------------------------------------------------

// Keys that a token sees: first .. sink-1 and recent .. end-1, which may overlap; first == end where it
// sees none. None of the four ever decreases from token to token.
struct Span {
    u32 first, sink, recent, end;

    __device__ __forceinline__ bool sees(u32 key) const {
        return key - first < sink - first || key - recent < end - recent;
    }

    // All keys from .. to-1?
    __device__ __forceinline__ bool sees_all(u32 from, u32 to) const {
        return first <= from && to <= end && (recent <= from || to <= sink || recent <= sink);
    }
};

// What a mask leaves of the keys first .. end-1.
__device__ __forceinline__ Span masked(u32 first, u32 end, u32 window, u32 sinks) {
    Span s;
    s.first = first < end ? first : end;
    s.end = end;
    s.sink = end - s.first < sinks ? end : s.first + sinks;
    s.recent = end - s.first < window ? s.first : end - window;
    return s;
}

// Of a first and a last key. A last key past the end counts as the end.
template <typename P>
__device__ __forceinline__ Span span_of(const P& p, u32 first, u32 last) {
    return masked(first, last < p.t ? last + 1 : p.t, p.window, p.sinks);
}

template <typename P>
__device__ __forceinline__ Span span_of(const P& p, const u32* span, u32 token) {
    return span_of(p, span[2 * (u64)token], span[2 * (u64)token + 1]);
}

// The query rows of one key-value head: row r is head kv * shared + r % shared of token r / shared,
// so that all rows of a tile read the same keys and spans never decrease from row to row. They are those of
// `tokens` tokens from `token` on.
struct Rows {
    u32 shared, count, h, head, token;

    template <typename P>
    __device__ __forceinline__ Rows(const P& p, u32 kv) : Rows(p, kv, 0, p.m) {}

    template <typename P>
    __device__ __forceinline__ Rows(const P& p, u32 kv, u32 token, u32 tokens)
        : shared(p.h / p.g), count(tokens * (p.h / p.g)), h(p.h), head(kv * (p.h / p.g)), token(token) {}

    // Index of row r among all (token, head).
    __device__ __forceinline__ u64 at(u32 r) const {
        return (u64)(token + r / shared) * h + head + r % shared;
    }
};

// The block's key-value head and tile of query rows. Tiles that see the most keys (with causal spans
// the last) begin first.
struct Place {
    u32 kv, tile;

    template <typename P>
    __device__ __forceinline__ Place(const P& p)
        : kv(blockIdx.x % p.g), tile(gridDim.x / p.g - 1 - blockIdx.x / p.g) {}
};

// What follows from the spans of a tile of N rows, which `Of::of(r)` gives. None of the four bounds decreases
// from row to row.
template <u32 N, typename Of>
struct Sees {
    __device__ __forceinline__ Span span(u32 r) const {
        return static_cast<const Of*>(this)->of(r);
    }

    // Does the last row, or the first, see all keys from .. to-1? Then all of them are seen, and may be
    // loaded without looking each up. Scores are masked row by row in any case.
    __device__ __forceinline__ bool one_sees(u32 from, u32 to) const {
        return span(N - 1).sees_all(from, to) || span(0).sees_all(from, to);
    }

    // Does a row see this key? Among the rows whose sinks, or whose window, begin at or before the key the
    // last ends last. Keys that nobody sees may hold NaN and must not be multiplied even by zero.
    __device__ __forceinline__ bool somebody_sees(u32 key) const {
        u32 low = 0;
        u32 late = 0;
#pragma unroll
        for (u32 step = N / 2; step > 0; step /= 2) {
            low += span(low + step).first <= key ? step : 0;
            late += span(late + step).recent <= key ? step : 0;
        }
        return span(low).sees(key) || span(late).sees(key);
    }

    // The first key from `key` on at which a tile of keys is worth a look: past those that lie behind all
    // sinks and before all windows.
    __device__ __forceinline__ u32 skip(u32 key) const {
        u32 recent = span(0).recent;
        return span(N - 1).sink <= key && key < recent ? recent : key;
    }

    __device__ __forceinline__ u32 start() const {
        return skip(span(0).first);
    }

    __device__ __forceinline__ u32 stop() const {
        return span(N - 1).end;
    }
};

// The spans of a tile of N rows, in shared memory. Rows past the last repeat it.
template <u32 N>
struct Spans : Sees<N, Spans<N>> {
    u32* first;
    u32* end;
    u32 window, sinks;

    // All threads call; followed by a barrier before the first use.
    __device__ __forceinline__ Spans(
        const Attention& p, const Rows& rows, const u32* span, u32 row, u32 (&first)[N], u32 (&end)[N])
        : first(first), end(end), window(p.window), sinks(p.sinks) {
        for (u32 r = threadIdx.x; r < N; r += blockDim.x) {
            u32 known = row + r < rows.count ? row + r : rows.count - 1;
            Span s = span_of(p, span, known / rows.shared);
            first[r] = s.first;
            end[r] = s.end;
        }
    }

    __device__ __forceinline__ Span of(u32 r) const {
        return masked(first[r], end[r], window, sinks);
    }
};

// What rows of a tile see of its keys.
struct Sight {
    Span low, high;  // Of the first and of the last row.

    // May some row see some of the keys from .. to-1?
    __device__ __forceinline__ bool some(u32 from, u32 to) const {
        bool by_sinks = low.first < to && from < high.sink;
        bool by_window = low.recent < to && from < high.end;
        return by_sinks || by_window;
    }

    // Does every row certainly see them all?
    __device__ __forceinline__ bool all(u32 from, u32 to) const {
        return high.first <= from && to <= low.end && (high.recent <= from || to <= low.sink);
    }
};

// The number of tokens at the beginning of 0 .. n-1 for which `test` holds; it holds for no token
// after one for which it does not. All lanes of the warp call with the same arguments and get the
// result; each round asks 32 tokens.
template <typename Test>
__device__ __forceinline__ u32 count_leading(u32 n, Test test) {
    u32 low = 0;
    u32 high = n;
    while (low < high) {
        u32 step = (high - low + WARP - 1) / WARP;
        u32 token = low + threadIdx.x % WARP * step;
        bool holds = token < high && test(token);
        u32 held = __popc(__ballot_sync(FULL_MASK, holds));
        if (held == 0) {
            return low;
        }
        u32 next = low + held * step;
        low += (held - 1) * step + 1;
        high = next < high ? next : high;
    }
    return low;
}

// Over the four lanes that share a row of sums.
template <typename Op>
__device__ __forceinline__ float reduce_quad(float x) {
#pragma unroll
    for (u32 stride = 2; stride > 0; stride /= 2) {
        float other = __shfl_xor_sync(FULL_MASK, x, stride);
        x = Op::of(x, other);
    }
    return x;
}

// ---- elements --------------------------------------------------------------------------

// The two 16-bit elements of a word.
__device__ __forceinline__ void unpack(u32 word, bf16, float& low, float& high) {
    low = bits_f32(word << 16);
    high = bits_f32(word & 0xffff0000u);
}

__device__ __forceinline__ void unpack(u32 word, f16, float& low, float& high) {
    f16 x;
    x.bits = (u16)word;
    low = to_f32(x);
    x.bits = (u16)(word >> 16);
    high = to_f32(x);
}

// Elements c .. c+3 of a row of d (even), as far as there are; c is a multiple of 4. With `wide`
// the row starts at a multiple of four elements in memory and d is one.
__device__ __forceinline__ void store4(float* row, u32 c, u32 d, bool wide, const float (&x)[4]) {
    if (wide) {
        *(float4*)(row + c) = make_float4(x[0], x[1], x[2], x[3]);
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (c + i < d) {
                row[c + i] = x[i];
            }
        }
    }
}

__device__ __forceinline__ void store4(bf16* row, u32 c, u32 d, bool, const float (&x)[4]) {
    *(u32*)(row + c) = pack_bf16(x[0], x[1]);
    if (c + 2 < d) {
        *(u32*)(row + c + 2) = pack_bf16(x[2], x[3]);
    }
}
