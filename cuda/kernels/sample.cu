// Draws one token a row. logits[m,v], control[m,8] = [temperature, top_k, top_p, min_p, repeat_penalty,
// 0, 0, 0], random[m,2] = [seed, step], recent[m,r] (the last ids, a ring) -> token[m], also at
// recent[step mod r]
//
// `sample.rs` has the definition. Logits are compared as integers that keep their order (keys), so NaN,
// infinities and zeros of both signs do what the contract says. Weights of a nucleus are summed as
// integers, so no order of threads shows.
//
// A row of few logits that belong to one thread block would keep one processor of many busy, so a
// row is drawn in three launches:
// 1. sample_groups: a warp takes a group of neighbouring logits and finds its largest.
// 2. sample_scores: only where no top-k is asked for; a block scores SPAN logits and finds its best,
//    or sums their weights where a nucleus is asked for.
// 3. sample_pick: a block a row. Greedy: the best group. All: the best span. Top k: the k-th
//    largest of the groups' maxima bounds the k-th largest logit from below, so only the few
//    groups that reach the bound are read again. If they hold more than CANDIDATES logits that
//    reach it, or there are fewer groups than k, the k-th largest is searched in the whole row. A
//    nucleus is searched in the list of the top k, or in the list that the NUCLEUS largest maxima
//    bound; if that weighs too little, in the whole row.
// A choice is (key, ~index) in 64 bits: the largest has the largest key and, among equals, the
// lowest index, in whatever order choices are compared.
#include "tritter.cuh"

struct Sample {
    u32 m, v, r;
};

// `sample.rs` has the first three as well.
constexpr u32 GROUPS = 1024;  // at most, of a row
constexpr u32 SPAN = 1024;
constexpr u32 GROUPS_A_BLOCK = 8;
constexpr u32 CANDIDATES = 4096;
constexpr u32 NUCLEUS = 768;  // of 1024 maxima: random logits fill a third of the list
constexpr u32 FILTER = 64;    // words of a bit for each hash of a recent id
constexpr u32 MOST_RECENT = 256;

constexpr u32 MINUS_INFINITY = 0x007fffffu;  // as keys
constexpr u32 PLUS_INFINITY = 0xff800000u;

// What a row asks for; what is off is 0, a penalty that is off is 1.
struct Control {
    float temperature, top_p, min_p, penalty;
    u32 top_k;

    __device__ __forceinline__ Control(const float* c, u32 v) {
        temperature = c[0] > 0.0f ? c[0] : 0.0f;
        top_k = c[1] >= 1.0f && c[1] < (float)v ? (u32)c[1] : 0;
        top_p = c[2] > 0.0f && c[2] < 1.0f ? c[2] : 0.0f;
        min_p = c[3] > 0.0f ? c[3] : 0.0f;
        penalty = c[4] > 0.0f ? c[4] : 1.0f;
    }
};

// The ids that are penalised, and a bit for each of their hashes.
struct Ring {
    u32 filter[FILTER];
    u32 ids[MOST_RECENT];
};

// A row of logits with its penalties.
struct Row {
    const float* x;
    const Ring* ring;
    u32 r;
    float penalty;

    __device__ __forceinline__ float at(u32 j) const {
        float logit = x[j];
        if (penalty == 1.0f || !(ring->filter[j / 32u % FILTER] >> (j % 32u) & 1u)) {
            return logit;
        }
        if ((f32_bits(logit) & 0x7f800000u) == 0x7f800000u) {
            return logit;  // infinities and NaN stay
        }
        for (u32 i = 0; i < r; i++) {
            if (ring->ids[i] == j) {
                float changed = logit > 0.0f ? logit / penalty : logit * penalty;
                return fminf(fmaxf(changed, -3.402823466e38f), 3.402823466e38f);
            }
        }
        return logit;
    }
};

// Called by the whole block, which belongs to one row.
__device__ __forceinline__ Row load_row(
    const Sample& p, const float* logits, const u32* recent, float penalty, u32 row, Ring& ring) {
    if (penalty != 1.0f) {
        for (u32 i = threadIdx.x; i < p.r; i += blockDim.x) {
            ring.ids[i] = recent[row * p.r + i];
        }
        __syncthreads();
        for (u32 word = threadIdx.x; word < FILTER; word += blockDim.x) {
            u32 bits = 0;
            for (u32 i = 0; i < p.r; i++) {
                u32 id = ring.ids[i];
                bits |= id / 32u % FILTER == word ? 1u << id % 32u : 0u;
            }
            ring.filter[word] = bits;
        }
        __syncthreads();
    }
    return Row{logits + (u64)row * p.v, &ring, p.r, penalty};
}

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

__device__ __forceinline__ u64 warp_sum(u64 n) {
#pragma unroll
    for (u32 stride = WARP / 2; stride > 0; stride /= 2) {
        u32 high = __shfl_xor_sync(FULL_MASK, (u32)(n >> 32), stride);
        u32 low = __shfl_xor_sync(FULL_MASK, (u32)n, stride);
        n += (u64)high << 32 | low;
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

// The same of 64-bit sums; `sums` is two halves of 32.
__device__ __forceinline__ u64 block_sum(u64 n, u64* sums, u32 round) {
    u64* half = sums + (round % 2) * WARP;
    n = warp_sum(n);
    if (threadIdx.x % WARP == 0) {
        half[threadIdx.x / WARP] = n;
    }
    __syncthreads();
    n = threadIdx.x % WARP < blockDim.x / WARP ? half[threadIdx.x % WARP] : 0;
    return warp_sum(n);
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

// The largest key from which on the weights reach `enough` together; 0 if there is none.
// weighed(c) is the sum of the weights of this thread's keys that reach c.
template <typename Weighed>
__device__ __forceinline__ u32 nucleus_key(const Weighed& weighed, float enough, u64* sums) {
    u32 least = 0;
    __syncthreads();
    for (u32 bit = 0; bit < 32; bit++) {
        u32 candidate = least | 0x80000000u >> bit;
        if ((float)block_sum(weighed(candidate), sums, bit) >= enough) {
            least = candidate;
        }
    }
    __syncthreads();
    return least;
}

// The four-word PCG hash of Jarzynski and Olano (JCGT 9(3), 2020), first word.
__device__ __forceinline__ u32 hash(u32 seed, u32 step, u32 index) {
    u32 x = seed * 1664525u + 1013904223u;
    u32 y = step * 1664525u + 1013904223u;
    u32 z = 1013904223u;  // of 0
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
    float temperature, most, min_p;
    u32 seed, step;

    __device__ __forceinline__ float scaled(float x) const {
        return fmaxf((x - most) / temperature, -1e30f);
    }

    // A weight as a whole number.
    __device__ __forceinline__ u32 weight(float x) const {
        return (u32)(fminf(expf(scaled(x)), 1.0f) * 2147483648.0f);
    }

    // The choice of a logit that is likely enough; 0 for others.
    __device__ __forceinline__ u64 score(float x, u32 index) const {
        float score = scaled(x);
        if (min_p > 0.0f && x < most && expf(score) < min_p) {
            return 0;
        }
        return choice_of(key_of(score + gumbel(hash(seed, step, index))), index);
    }
};

// Is a row with this best logit drawn from? Otherwise the best is taken.
__device__ __forceinline__ bool draws(float temperature, u64 best) {
    u32 key = choice_key(best);
    return temperature > 0.0f && key > MINUS_INFINITY && key < PLUS_INFINITY;
}

extern "C" __global__ void __launch_bounds__(256) sample_groups(
    Sample p, const float* logits, const float* control, const u32* random, u32* recent,
    u32* token, u64* scratch) {
    u32 size = group_size(p.v);
    u32 groups = ceil_div(p.v, size);
    u32 blocks = ceil_div(groups, GROUPS_A_BLOCK);
    u32 row = blockIdx.x / blocks;
    u32 group = blockIdx.x % blocks * GROUPS_A_BLOCK + threadIdx.x / WARP;
    u32 lane = threadIdx.x % WARP;
    __shared__ Ring ring;
    Row x = load_row(p, logits, recent, Control(control + 8 * row, p.v).penalty, row, ring);
    u64 best = 0;
    if (group < groups) {
        u32 first = group * size;
        u32 end = p.v - first < size ? p.v : first + size;
#pragma unroll 4
        for (u32 j = first + lane; j < end; j += WARP) {
            u64 choice = choice_of(key_of(x.at(j)), j);
            best = choice > best ? choice : best;
        }
    }
    best = warp_best(best);
    if (group < groups && lane == 0) {
        scratch[(u64)row * groups + group] = best;
    }
}

extern "C" __global__ void __launch_bounds__(256) sample_scores(
    Sample p, const float* logits, const float* control, const u32* random, u32* recent,
    u32* token, u64* scratch) {
    __shared__ u64 bests[WARP];
    u32 groups = ceil_div(p.v, group_size(p.v));
    u32 spans = ceil_div(p.v, SPAN);
    u32 row = blockIdx.x / spans;
    u32 span = blockIdx.x % spans;
    Control c(control + 8 * row, p.v);
    // The same in all threads, as everything that this kernel leaves early for.
    if (!(c.temperature > 0.0f) || c.top_k > 0) {
        return;
    }
    u64 best = 0;
    for (u32 i = threadIdx.x; i < groups; i += blockDim.x) {
        u64 choice = scratch[(u64)row * groups + i];
        best = choice > best ? choice : best;
    }
    best = block_best(best, bests);
    if (!draws(c.temperature, best)) {
        return;
    }
    __shared__ Ring ring;
    Row x = load_row(p, logits, recent, c.penalty, row, ring);
    Draw draw = {c.temperature, x.at(choice_index(best)), c.min_p, random[2 * row], random[2 * row + 1]};
    u32 end = p.v - span * SPAN < SPAN ? p.v : span * SPAN + SPAN;
    u64 made = 0;
    if (c.top_p > 0.0f) {
        for (u32 j = span * SPAN + threadIdx.x; j < end; j += blockDim.x) {
            float logit = x.at(j);
            made += key_of(logit) > MINUS_INFINITY ? draw.weight(logit) : 0;
        }
        made = warp_sum(made);
        __syncthreads();
        if (threadIdx.x % WARP == 0) {
            bests[threadIdx.x / WARP] = made;
        }
        __syncthreads();
        made = warp_sum(threadIdx.x % WARP < blockDim.x / WARP ? bests[threadIdx.x % WARP] : 0);
    } else {
#pragma unroll 2
        for (u32 j = span * SPAN + threadIdx.x; j < end; j += blockDim.x) {
            float logit = x.at(j);
            u64 choice = key_of(logit) > MINUS_INFINITY ? draw.score(logit, j) : 0;
            made = choice > made ? choice : made;
        }
        made = block_best(made, bests);
    }
    if (threadIdx.x == 0) {
        scratch[(u64)p.m * groups + (u64)row * spans + span] = made;
    }
}

// What the block of sample_pick shares.
struct Pick {
    u64 bests[WARP];
    u64 sums[2 * WARP];
    Ring ring;
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
    Pick& pick, const Row& x, u32 v, u32 group_best, u32 groups, u32 bound) {
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
            float logit = x.at(j);
            if (key_of(logit) >= bound) {
                u32 at = atomicAdd(&pick.candidates, 1u);
                if (at < CANDIDATES) {
                    pick.ids[at] = j;
                    pick.logits[at] = logit;
                }
            }
        }
    }
    __syncthreads();
}

// The best score among the n logits that logit(i), id(i) give, of those that top-k and top-p leave;
// what weighs `all` together is what top-p is a part of, 0 where that is for top-k to say.
template <typename Logit, typename Id>
__device__ __forceinline__ u64 draw_among(
    Pick& pick, const Draw& draw, const Control& c, u32 n, u64 all, const Logit& logit, const Id& id) {
    u32 least = MINUS_INFINITY + 1u;
    if (c.top_k > 0) {
        auto reached = [&](u32 key) {
            u32 count = 0;
            for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
                count += key_of(logit(i)) >= key ? 1u : 0u;
            }
            return count;
        };
        u32 nth = nth_key(reached, c.top_k, pick.counts);
        least = nth > least ? nth : least;
    }
    if (c.top_p > 0.0f) {
        auto weighed = [&](u32 key) {
            u64 sum = 0;
            for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
                float x = logit(i);
                sum += key_of(x) >= key && key_of(x) >= least ? draw.weight(x) : 0;
            }
            return sum;
        };
        if (c.top_k > 0) {
            __syncthreads();
            all = block_sum(weighed(least), pick.sums, 0);
        }
        u32 reached = nucleus_key(weighed, c.top_p * (float)all, pick.sums);
        least = reached > least ? reached : least;
    }
    u64 drawn = 0;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
        float x = logit(i);
        u64 choice = key_of(x) >= least ? draw.score(x, id(i)) : 0;
        drawn = choice > drawn ? choice : drawn;
    }
    return block_best(drawn, pick.bests);
}

// The best score among the logits of a row that top-k and top-p leave. The row has `groups` groups;
// `group_best` is the best key of group threadIdx.x. `all` is what the row weighs, asked for where
// there is no top-k.
__device__ __forceinline__ u64 draw_part(
    Pick& pick, const Draw& draw, const Control& c, const Row& x, u32 v, u64 all, u32 group_best, u32 groups) {
    u32 wanted = c.top_k > 0 ? c.top_k : NUCLEUS;
    u32 bound = 0;
    if (wanted <= groups) {
        auto maxima = [&](u32 key) { return group_best >= key ? 1u : 0u; };
        bound = nth_key(maxima, wanted, pick.counts);
    }
    bound = bound > MINUS_INFINITY ? bound : MINUS_INFINITY + 1u;
    u32 candidates = CANDIDATES + 1;
    if (wanted <= groups || v <= CANDIDATES) {
        list_candidates(pick, x, v, group_best, groups, bound);
        candidates = pick.candidates;
    }
    bool listed = candidates <= CANDIDATES;
    if (listed && c.top_k == 0) {
        u64 held = 0;
        for (u32 i = threadIdx.x; i < candidates; i += blockDim.x) {
            held += draw.weight(pick.logits[i]);
        }
        __syncthreads();
        listed = (float)block_sum(held, pick.sums, 0) >= c.top_p * (float)all;
    }
    if (listed) {
        auto logit = [&](u32 i) { return pick.logits[i]; };
        auto id = [&](u32 i) { return pick.ids[i]; };
        return draw_among(pick, draw, c, candidates, all, logit, id);
    }
    auto logit = [&](u32 i) { return x.at(i); };
    auto id = [&](u32 i) { return i; };
    return draw_among(pick, draw, c, v, all, logit, id);
}

extern "C" __global__ void __launch_bounds__(1024) sample_pick(
    Sample p, const float* logits, const float* control, const u32* random, u32* recent,
    u32* token, const u64* scratch) {
    __shared__ Pick pick;
    u32 row = blockIdx.x;
    u32 groups = ceil_div(p.v, group_size(p.v));
    u32 spans = ceil_div(p.v, SPAN);
    Control c(control + 8 * row, p.v);
    Row x = load_row(p, logits, recent, c.penalty, row, pick.ring);
    u32 step = random[2 * row + 1];

    u64 mine = threadIdx.x < groups ? scratch[(u64)row * groups + threadIdx.x] : 0;
    u64 chosen = block_best(mine, pick.bests);
    if (draws(c.temperature, chosen)) {
        // The spans' best scores, or the sum of their weights.
        u64 best = 0;
        u64 all = 0;
        if (c.top_k == 0) {
            for (u32 i = threadIdx.x; i < spans; i += blockDim.x) {
                u64 made = scratch[(u64)p.m * groups + (u64)row * spans + i];
                best = made > best ? made : best;
                all += made;
            }
        }
        if (c.top_k > 0 || c.top_p > 0.0f) {
            all = block_sum(all, pick.sums, 1);
            Draw draw = {c.temperature, x.at(choice_index(chosen)), c.min_p, random[2 * row], step};
            chosen = draw_part(pick, draw, c, x, p.v, all, choice_key(mine), groups);
        } else {
            chosen = block_best(best, pick.bests);
        }
    }
    if (threadIdx.x == 0) {
        token[row] = choice_index(chosen);
        recent[row * p.r + step % p.r] = choice_index(chosen);
    }
}
