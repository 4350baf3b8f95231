// Draws one token a row. logits[m,v], control[4] = [temperature, top_k, 0, 0],
// random[2] = [seed, step] -> token[m]
//
// Temperature 0: the largest logit, lowest index among equals. Otherwise the top_k largest (0: all, and
// all that equal the k-th), then the argmax of logit / temperature + Gumbel noise (Maddison, Tarlow
// and Minka 2014). Logits are compared as integers that keep their order, so NaN, infinities and
// zeros of both signs do what the contract says.
//
// A row of few logits that belong to one thread block would keep one processor of many busy, so a
// row is drawn in three launches:
// 1. sample_groups: a warp takes a group of neighbouring logits and finds its largest.
// 2. sample_scores: only for draws among all logits; a block scores SPAN logits and finds its best.
// 3. sample_pick: a block a row. Greedy: the best group. All: the best span. Top k: the k-th
//    largest of the groups' maxima bounds the k-th largest logit from below, so only the few
//    groups that reach the bound are read again. If they hold more than CANDIDATES logits that
//    reach it, or there are fewer groups than k, the k-th largest is searched in the whole row.
// A choice is (key, ~index) in 64 bits: the largest has the largest key and, among equals, the
// lowest index, in whatever order choices are compared.
#include "tritter.cuh"

struct Sample {
    u32 m, v;
};

// `sample.rs` has the first three as well.
constexpr u32 GROUPS = 1024;  // at most, of a row
constexpr u32 SPAN = 1024;
constexpr u32 GROUPS_A_BLOCK = 8;
constexpr u32 CANDIDATES = 4096;

constexpr u32 MINUS_INFINITY = 0x007fffffu;  // as keys
constexpr u32 PLUS_INFINITY = 0xff800000u;

// Logits of a group: GROUPS groups of a multiple of 32.
__device__ __forceinline__ u32 group_size(u32 v) {
    return WARP * ((v - 1u) / (WARP * GROUPS) + 1u);
}

__device__ __forceinline__ u32 ceil_div(u32 a, u32 b) {
    return (a - 1u) / b + 1u;
}

// Order-preserving image of an f32; NaN goes to -infinity and -0 to 0.
__device__ __forceinline__ u32 key_of(float x) {
    u32 word = f32_bits(x);
    u32 magnitude = word & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return MINUS_INFINITY;
    }
    if (magnitude == 0u) {
        return 0x80000000u;
    }
    return word >> 31 ? ~word : word | 0x80000000u;
}

__device__ __forceinline__ u64 choice_of(u32 key, u32 index) {
    return (u64)key << 32 | (u32)~index;
}

__device__ __forceinline__ u32 choice_key(u64 choice) {
    return (u32)(choice >> 32);
}

__device__ __forceinline__ u32 choice_index(u64 choice) {
    return ~(u32)choice;
}

__device__ __forceinline__ u64 warp_best(u64 choice) {
#pragma unroll
    for (u32 stride = WARP / 2; stride > 0; stride /= 2) {
        u32 high = __shfl_xor_sync(FULL_MASK, (u32)(choice >> 32), stride);
        u32 low = __shfl_xor_sync(FULL_MASK, (u32)choice, stride);
        u64 other = (u64)high << 32 | low;
        choice = other > choice ? other : choice;
    }
    return choice;
}

// The best of the block, for every thread. `scratch` holds 32; begins and ends with a barrier.
__device__ __forceinline__ u64 block_best(u64 choice, u64* scratch) {
    choice = warp_best(choice);
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
        scratch[threadIdx.x / WARP] = choice;
    }
    __syncthreads();
    choice = threadIdx.x % WARP < blockDim.x / WARP ? scratch[threadIdx.x % WARP] : 0;
    choice = warp_best(choice);
    __syncthreads();
    return choice;
}

__device__ __forceinline__ u32 warp_count(u32 n) {
#pragma unroll
    for (u32 stride = WARP / 2; stride > 0; stride /= 2) {
        n += __shfl_xor_sync(FULL_MASK, n, stride);
    }
    return n;
}

// The sum over the block, for every thread. `counts` is two halves of 32 words, used in turn by
// `round`, so that one barrier is enough.
__device__ __forceinline__ u32 block_count(u32 n, u32* counts, u32 round) {
    u32* half = counts + (round % 2) * WARP;
    n = warp_count(n);
    if (threadIdx.x % WARP == 0) {
        half[threadIdx.x / WARP] = n;
    }
    __syncthreads();
    n = threadIdx.x % WARP < blockDim.x / WARP ? half[threadIdx.x % WARP] : 0;
    return warp_count(n);
}

// The largest key that at least `count` keys reach, or any key that exactly `count` reach, bit by
// bit; 0 if there are fewer. reached(c) is how many of this thread's keys reach c.
template <typename Reached>
__device__ __forceinline__ u32 nth_key(const Reached& reached, u32 count, u32* counts) {
    u32 least = 0;
    __syncthreads();
    for (u32 bit = 0; bit < 32; bit++) {
        u32 candidate = least | 0x80000000u >> bit;
        u32 n = block_count(reached(candidate), counts, bit);
        if (n >= count) {
            least = candidate;
        }
        if (n == count) {
            break;
        }
    }
    __syncthreads();
    return least;
}

// The four-word PCG hash of Jarzynski and Olano (JCGT 9(3), 2020), first word.
__device__ __forceinline__ u32 hash(u32 seed, u32 step, u32 row, u32 index) {
    u32 x = seed * 1664525u + 1013904223u;
    u32 y = step * 1664525u + 1013904223u;
    u32 z = row * 1664525u + 1013904223u;
    u32 w = index * 1664525u + 1013904223u;
    x += y * w;
    y += z * x;
    z += x * y;
    w += y * z;
    x ^= x >> 16;
    y ^= y >> 16;
    w ^= w >> 16;
    return x + y * w;
}

// -ln E with E = -ln(1 - w), w uniform in (0, 1); small E, the ones that win, by a series.
__device__ __forceinline__ float gumbel(u32 bits) {
    float w = (float)bits * 2.3283064365386963e-10f + 1.1641532182693481e-10f;
    float e = w + w * w * (0.5f + w * (0.33333334f + w * (0.25f + w * 0.2f)));
    if (w >= 0.03125f) {
        e = -logf(1.0f - fminf(w, 0.99999994f));
    }
    return -logf(e);
}

// What is drawn from a row, the same for all its threads.
struct Draw {
    float temperature, most;
    u32 seed, step, row;

    __device__ __forceinline__ u64 score(float x, u32 index) const {
        float scaled = fmaxf((x - most) / temperature, -1e30f);
        float noisy = scaled + gumbel(hash(seed, step, row, index));
        return choice_of(key_of(noisy), index);
    }
};

// How many logits are kept: 0 is all.
__device__ __forceinline__ u32 kept(float top_k, u32 v) {
    return top_k >= 1.0f && top_k < (float)v ? (u32)top_k : 0;
}

// Is a row with this best logit drawn from? Otherwise the best is taken.
__device__ __forceinline__ bool draws(float temperature, u64 best) {
    u32 key = choice_key(best);
    return temperature > 0.0f && key > MINUS_INFINITY && key < PLUS_INFINITY;
}

extern "C" __global__ void __launch_bounds__(256) sample_groups(
    Sample p, const float* logits, const float* control, const u32* random, u32* token, u64* scratch) {
    u32 size = group_size(p.v);
    u32 groups = ceil_div(p.v, size);
    u32 blocks = ceil_div(groups, GROUPS_A_BLOCK);
    u32 row = blockIdx.x / blocks;
    u32 group = blockIdx.x % blocks * GROUPS_A_BLOCK + threadIdx.x / WARP;
    u32 lane = threadIdx.x % WARP;
    const float* x = logits + (u64)row * p.v;
    u64 best = 0;
    if (group < groups) {
        u32 first = group * size;
        u32 end = p.v - first < size ? p.v : first + size;
#pragma unroll 4
        for (u32 j = first + lane; j < end; j += WARP) {
            u64 choice = choice_of(key_of(x[j]), j);
            best = choice > best ? choice : best;
        }
    }
    best = warp_best(best);
    if (group < groups && lane == 0) {
        scratch[(u64)row * groups + group] = best;
    }
}

extern "C" __global__ void __launch_bounds__(256) sample_scores(
    Sample p, const float* logits, const float* control, const u32* random, u32* token, u64* scratch) {
    __shared__ u64 bests[WARP];
    u32 groups = ceil_div(p.v, group_size(p.v));
    u32 spans = ceil_div(p.v, SPAN);
    u32 row = blockIdx.x / spans;
    u32 span = blockIdx.x % spans;
    float temperature = control[0];
    // The same in all threads, as everything that this kernel leaves early for.
    if (!(temperature > 0.0f) || kept(control[1], p.v) > 0) {
        return;
    }
    u64 best = 0;
    for (u32 i = threadIdx.x; i < groups; i += blockDim.x) {
        u64 choice = scratch[(u64)row * groups + i];
        best = choice > best ? choice : best;
    }
    best = block_best(best, bests);
    if (!draws(temperature, best)) {
        return;
    }
    const float* x = logits + (u64)row * p.v;
    Draw draw = {temperature, x[choice_index(best)], random[0], random[1], row};
    u32 end = p.v - span * SPAN < SPAN ? p.v : span * SPAN + SPAN;
    u64 drawn = 0;
#pragma unroll 2
    for (u32 j = span * SPAN + threadIdx.x; j < end; j += blockDim.x) {
        float logit = x[j];
        u64 choice = key_of(logit) > MINUS_INFINITY ? draw.score(logit, j) : 0;
        drawn = choice > drawn ? choice : drawn;
    }
    drawn = block_best(drawn, bests);
    if (threadIdx.x == 0) {
        scratch[(u64)p.m * groups + (u64)row * spans + span] = drawn;
    }
}

// What the block of sample_pick shares.
struct Pick {
    u64 bests[WARP];
    u32 counts[2 * WARP];
    u32 groups[GROUPS];
    u32 reached;     // groups that reach the bound
    u32 candidates;  // logits in them that do, those that found no room included
    u32 ids[CANDIDATES];
    float logits[CANDIDATES];
};

// Lists the groups whose best logit reaches the bound and the logits in them that do. The order in
// the lists may differ from run to run; nothing that is computed from them depends on it.
__device__ __forceinline__ void list_candidates(
    Pick& pick, const float* __restrict__ x, u32 v, u32 group_best, u32 groups, u32 bound) {
    if (threadIdx.x == 0) {
        pick.reached = 0;
        pick.candidates = 0;
    }
    __syncthreads();
    if (threadIdx.x < groups && group_best >= bound) {
        pick.groups[atomicAdd(&pick.reached, 1u)] = threadIdx.x;
    }
    __syncthreads();
    u32 size = group_size(v);
    u32 reached = pick.reached;
    for (u32 i = threadIdx.x / WARP; i < reached; i += blockDim.x / WARP) {
        u32 first = pick.groups[i] * size;
        u32 end = v - first < size ? v : first + size;
        for (u32 j = first + threadIdx.x % WARP; j < end; j += WARP) {
            if (key_of(x[j]) >= bound) {
                u32 at = atomicAdd(&pick.candidates, 1u);
                if (at < CANDIDATES) {
                    pick.ids[at] = j;
                    pick.logits[at] = x[j];
                }
            }
        }
    }
    __syncthreads();
}

// The best score among the top k logits of a row, which has `groups` groups; `group_best` is the best
// key of group threadIdx.x.
__device__ __forceinline__ u64 draw_top(
    Pick& pick, const Draw& draw, const float* __restrict__ x, u32 v, u32 k, u32 group_best, u32 groups) {
    u32 bound = 0;
    if (k <= groups) {
        auto maxima = [&](u32 c) { return group_best >= c ? 1u : 0u; };
        bound = nth_key(maxima, k, pick.counts);
    }
    bound = bound > MINUS_INFINITY ? bound : MINUS_INFINITY + 1u;
    u32 candidates = v;
    if (k <= groups || v <= CANDIDATES) {
        list_candidates(pick, x, v, group_best, groups, bound);
        candidates = pick.candidates;
    }
    u64 drawn = 0;
    if (candidates <= CANDIDATES) {
        auto reached = [&](u32 c) {
            u32 n = 0;
            for (u32 i = threadIdx.x; i < candidates; i += blockDim.x) {
                n += key_of(pick.logits[i]) >= c ? 1u : 0u;
            }
            return n;
        };
        u32 least = nth_key(reached, k, pick.counts);
        for (u32 i = threadIdx.x; i < candidates; i += blockDim.x) {
            float logit = pick.logits[i];
            u64 choice = key_of(logit) >= least ? draw.score(logit, pick.ids[i]) : 0;
            drawn = choice > drawn ? choice : drawn;
        }
    } else {
        auto reached = [&](u32 c) {
            u32 n = 0;
#pragma unroll 4
            for (u32 j = threadIdx.x; j < v; j += blockDim.x) {
                n += key_of(x[j]) >= c ? 1u : 0u;
            }
            return n;
        };
        u32 least = nth_key(reached, k, pick.counts);
        least = least > MINUS_INFINITY ? least : MINUS_INFINITY + 1u;
        for (u32 j = threadIdx.x; j < v; j += blockDim.x) {
            float logit = x[j];
            u64 choice = key_of(logit) >= least ? draw.score(logit, j) : 0;
            drawn = choice > drawn ? choice : drawn;
        }
    }
    return block_best(drawn, pick.bests);
}

extern "C" __global__ void __launch_bounds__(1024) sample_pick(
    Sample p, const float* logits, const float* control, const u32* random, u32* token, const u64* scratch) {
    __shared__ Pick pick;
    u32 row = blockIdx.x;
    u32 groups = ceil_div(p.v, group_size(p.v));
    u32 spans = ceil_div(p.v, SPAN);
    const float* x = logits + (u64)row * p.v;
    float temperature = control[0];
    u32 k = kept(control[1], p.v);

    u64 mine = threadIdx.x < groups ? scratch[(u64)row * groups + threadIdx.x] : 0;
    u64 chosen = block_best(mine, pick.bests);
    if (draws(temperature, chosen)) {
        if (k > 0) {
            Draw draw = {temperature, x[choice_index(chosen)], random[0], random[1], row};
            chosen = draw_top(pick, draw, x, p.v, k, choice_key(mine), groups);
        } else {
            u64 best = 0;
            for (u32 i = threadIdx.x; i < spans; i += blockDim.x) {
                u64 choice = scratch[(u64)p.m * groups + (u64)row * spans + i];
                best = choice > best ? choice : best;
            }
            chosen = block_best(best, pick.bests);
        }
    }
    if (threadIdx.x == 0) {
        token[row] = choice_index(chosen);
    }
}
