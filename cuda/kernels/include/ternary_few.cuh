// Few rows of x (tokens) by ternary weights: the time is that of reading w once.
//
// Rows of w are taken in *pairs*, a low and a high one, that the op names: what belongs together in its
// result. A *group* is eight pairs, 16 rows, the left operand of the tensor cores; the right one is
// up to 8 tokens. With a single token 7/8 of a product are waste, and yet it takes less than integer dot
// products would: no sum over lanes, and few instructions for the bytes of w that it meets.
//
// A block brings its tokens' x to shared memory in the order of the codes (the op's `stage`), and then
// goes through groups of w: `splits` warps share k, `slots` groups are under way side by side, and
// weights are read AHEAD units before they are needed, across the ends of groups. The first are
// under way while x is made, and more are asked for in L2.
//
// Rows of w that are no multiples of 16 bytes begin at any of four words of a 16-byte chunk. Pairs whose
// numbers are equal modulo 4 begin at the same, so a block takes only those of one *phase*, and shifts x
// by as many words; what a chunk has of neighbouring rows meets zeros.
#pragma once
#include "ternary_codes.cuh"

// Units that a warp has under way. This and the next two also stand in runtime/src/ops/ternary_few.rs.
// With 12 warps two blocks fit a processor with the registers that they take.
#define AHEAD 2u
#define FEW_WARPS 12u
#define FEW_TOKENS 8u
#define FEW_THREADS (FEW_WARPS * WARP)
// Bytes of w that a block asks for in L2 before it has x.
#define FEW_PREFETCH 65536u

__device__ __forceinline__ i32 warp_sum(i32 x) {
#pragma unroll
    for (u32 stride = WARP / 2; stride > 0; stride /= 2) {
        i32 other = __shfl_xor_sync(FULL_MASK, x, stride);
        x += other;
    }
    return x;
}

// How a block's work lies in w and in shared memory.
template <typename Codes>
struct FewPlan {
    u32 k, words, phases, phase, shift;
    u32 splits, slots, units;  // warps that share k, groups side by side, units of a warp
    u32 staged, stride;        // bytes of a token's x, and from one token to the next
    u32 warps, share;          // share: most tokens of a block
    unsigned char* rows;
    float2* facts;  // [share][warps]: what the warps found in a token's x
    i32* partial;   // [2][slots][share][splits][16]
    i32* x_sums;    // [share][warps]
    float* scales;  // [share]

    __device__ __forceinline__ FewPlan(u32 m, u32 k_, unsigned char* smem) : k(k_) {
        words = (k + Codes::WORD - 1) / Codes::WORD;
        phases = words % 4 == 0 ? 1 : 4;
        phase = blockIdx.x % phases;
        shift = phase * words % 4;
        u32 all = ((words + phases + 2) / 4 + 3) / 4;
        units = (all + AHEAD * FEW_WARPS - 1) / (AHEAD * FEW_WARPS) * AHEAD;
        splits = max((all + units - 1) / units, 2u);
        warps = blockDim.x / WARP;
        slots = warps / splits;
        staged = splits * units * 4 * Codes::CHUNK;
        // Odd multiples of 64 bytes: two tokens' rows lie in different banks.
        stride = (staged + 127) / 128 * 128 + 64;
        share = (m + gridDim.y - 1) / gridDim.y;
        rows = smem;
        facts = (float2*)(smem + share * stride);
        partial = (i32*)(facts + share * warps);
        x_sums = partial + 2 * slots * share * splits * 16;
        scales = (float*)(x_sums + share * warps);
    }

    // Makes zero what lies before and behind the words of a token's x.
    __device__ __forceinline__ void clear_ends(u32 token) const {
        u32 front = shift * (Codes::WORD / 4);
        u32 count = (k + 4 * Codes::GRAIN - 1) / (4 * Codes::GRAIN) * Codes::GRAIN;
        for (u32 c = threadIdx.x; c < staged / 4 - count; c += blockDim.x) {
            Codes::zero4(rows + token * stride, c < front ? c : c + count);
        }
    }
};

// Where a thread reads w: its place in the rows of pair g of a group.
// In vectors of 16 bytes, which are fewer than 2^32.
struct Reader {
    u32 low_row, high_row;

    // Pairs that do not exist are replaced by the phase's first; their results are dropped.
    template <typename Codes, typename Op>
    __device__ __forceinline__ void seek(const FewPlan<Codes>& plan, const Op& op, u32 group) {
        u32 pair = (group * 8 + threadIdx.x % WARP / 4) * plan.phases + plan.phase;
        pair = pair < op.pairs() ? pair : plan.phase;
        low_row = (u32)(((u64)op.low(pair) * plan.words - plan.shift) / 4);
        high_row = (u32)(((u64)op.high(pair) * plan.words - plan.shift) / 4);
    }

    __device__ __forceinline__ void read(const uint4* w, u32 place, uint4& low, uint4& high) const {
        low = load_once(w + (low_row + place));
        high = load_once(w + (high_row + place));
    }
};

// Asks for the block's first weights in L2, but for those that are read at once.
template <typename Codes, typename Op>
__device__ __forceinline__ void prefetch_rows(
    const FewPlan<Codes>& plan, const Op& op, const uint4* w, u32 first_set, u32 sets, u32 step) {
    u32 lines = (plan.words + 15) / 16;
    u32 of_set = plan.slots * 16 * lines;
    u32 at = plan.units > AHEAD ? 0 : of_set;
    u32 most = min((sets - first_set + step - 1) / step * of_set, at + FEW_PREFETCH / 64);
#pragma unroll 1
    for (at += threadIdx.x; at < most; at += blockDim.x) {
        u32 row = at / lines;
        u32 group = (first_set + row / (plan.slots * 16) * step) * plan.slots + row / 16 % plan.slots;
        u32 pair = (group * 8 + row % 8) * plan.phases + plan.phase;
        if (pair < op.pairs()) {
            u32 number = row % 16 < 8 ? op.low(pair) : op.high(pair);
            prefetch_l2((const u32*)w + (u64)number * plan.words + at % lines * 16);
        }
    }
}

// Grid: blocks in x, a multiple of the phases; shares of at most TOKENS tokens in y. The op has
//   pairs(), low(pair), high(pair): the pairs of rows of w;
//   stage<Codes, TOKENS>(plan, i0, tokens): x, x_sums and scales to shared memory, without a last barrier;
//   early(token, pair): what the result needs from memory, asked for before the sums are there;
//   finish(token, pair, low, high, scale, early): the sums of t x and the token's scale become results.
template <typename Codes, u32 TOKENS, typename Op>
__device__ __forceinline__ void ternary_few(u32 m, u32 k, const uint4* __restrict__ w, const Op& op) {
    extern __shared__ __align__(16) unsigned char smem[];
    FewPlan<Codes> plan(m, k, smem);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 slot = warp / plan.splits, split = warp % plan.splits;
    u32 i0 = blockIdx.y * plan.share;
    u32 tokens = TOKENS == 1 ? 1 : min(plan.share, m - i0);
    u32 groups = ((op.pairs() + plan.phases - 1) / plan.phases + 7) / 8;
    u32 sets = (groups + plan.slots - 1) / plan.slots;
    u32 set = blockIdx.x / plan.phases, step = gridDim.x / plan.phases;

    // Weights do not wait for x. Places past a row's end repeat the last one, they meet zeros.
    u32 last = (plan.shift + plan.words - 1) / 4;
    u32 first = split * plan.units * 4 + lane % 4;
    Reader reader;
    reader.seek(plan, op, set * plan.slots + slot);
    uint4 low[AHEAD], high[AHEAD];
#pragma unroll
    for (u32 u = 0; u < AHEAD; u++) {
        reader.read(w, min(first + u * 4, last), low[u], high[u]);
    }
    prefetch_rows(plan, op, w, set, sets, step);

    op.template stage<Codes, TOKENS>(plan, i0, tokens);
    __syncthreads();

    // This thread's results, if it has any: a pair of a group and a token.
    u32 result_slot = threadIdx.x / (8 * tokens);
    u32 token = threadIdx.x / 8 % tokens;
    bool finishes = result_slot < plan.slots;
    i32 x_sum = 0;
    if (finishes) {
#pragma unroll 1
        for (u32 v = 0; v < plan.warps; v++) {
            x_sum += plan.x_sums[token * plan.warps + v];
        }
    }

    // Column g of the right operand is token g. Those that do not exist repeat the last one; their
    // results are dropped.
    u32 column = TOKENS == 1 ? 0 : min(lane / 4, tokens - 1);
    const unsigned char* x = plan.rows + column * plan.stride + split * plan.units * (4 * Codes::CHUNK);
    u32 next_unit = 0, next_set = set, side = 0;
#pragma unroll 1
    for (; set < sets; set += step) {
        u32 pair = ((set * plan.slots + result_slot) * 8 + threadIdx.x % 8) * plan.phases + plan.phase;
        bool mine = finishes && pair < op.pairs();
        typename Op::Early early;
        if (mine) {
            early = op.early(i0 + token, pair);
        }
        Codes sum;
        sum.clear();
#pragma unroll 1
        for (u32 unit = 0; unit < plan.units; unit += AHEAD) {
            next_unit += AHEAD;
            if (next_unit == plan.units) {
                next_unit = 0;
                next_set += step;
                if (next_set < sets) {
                    reader.seek(plan, op, next_set * plan.slots + slot);
                }
            }
#pragma unroll
            for (u32 u = 0; u < AHEAD; u++) {
                sum.multiply(low[u], high[u], x + (unit + u) * (4 * Codes::CHUNK));
                if (next_set < sets) {
                    reader.read(w, min(first + (next_unit + u) * 4, last), low[u], high[u]);
                }
            }
        }
        // Sums over the warps. This thread has pair lane / 4 with tokens 2 (lane % 4) and one more.
        i32* partial = plan.partial + side * (plan.slots * plan.share * plan.splits * 16);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 of = lane % 4 * 2 + i % 2;
            if (of < tokens) {
                partial[((slot * plan.share + of) * plan.splits + split) * 16 + lane / 4 + i / 2 * 8] = sum.sum(i);
            }
        }
        __syncthreads();
        // The next group's sums go to the other side, so that one barrier a group is enough.
        side ^= 1;
        if (mine) {
            const i32* from = partial + (result_slot * plan.share + token) * plan.splits * 16 + threadIdx.x % 8;
            i32 low_sum = -x_sum, high_sum = -x_sum;
#pragma unroll 4
            for (u32 v = 0; v < plan.splits; v++) {
                low_sum += from[v * 16];
                high_sum += from[v * 16 + 8];
            }
            op.finish(i0 + token, pair, low_sum, high_sum, plan.scales[token], early);
        }
    }
}
