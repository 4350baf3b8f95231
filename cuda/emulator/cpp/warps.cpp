// Warp operations: lanes that a mask names meet, the last one computes for all, and each takes
// its part. Matrix fragments follow the PTX ISA (see the comments in tritter.cuh).
#include "runtime.hpp"

#include <string.h>

enum Operation : u32 { SYNC, SHUFFLE, VOTE, LOAD_MATRIX, MMA16, MMA32 };

static const char* name(u32 kind) {
    static const char* names[] = {"__syncwarp", "a shuffle", "a vote", "ldmatrix", "mma m16n8k16", "mma m16n8k32"};
    return names[kind];
}

// Orders what the lanes of `mask` did before against what they do next.
static void order(Machine* m, Warp* warp, u32 mask) {
    m->now += TICK;
    if (mask == warp->lanes) {
        warp->ordered_at = m->now;
        return;
    }
    if (!warp->partial) memset(warp->pair, 0, sizeof warp->pair);
    warp->partial = true;
    for (u32 i = 0; i < 32; i++) {
        for (u32 j = 0; j < 32; j++) {
            if ((mask >> i & mask >> j & 1) != 0) warp->pair[i][j] = m->now;
        }
    }
}

typedef void (*Combine)(Machine* m, Warp* warp, u32 mask, u32 warp_number, u32 at);

// Waits until all lanes of `mask` are here; the caller's input lies in warp->in[lane].
static u32* meet(u32 kind, u32 mask, u64 caller, const u32* in, u32 words, Combine combine) {
    Machine* m = machine;
    Fiber* f = m->current;
    Warp* warp = &m->warps[f->warp];
    u32 at = relative(m, caller), bit = 1u << f->lane;
    memcpy(warp->in[f->lane], in, words * 4);
    if (mask & ~warp->lanes) {
        fail(m, f, at, 0, "%s: mask 0x%08x names lanes that the block does not have", name(kind), mask);
    }
    if (!(mask & bit)) {
        fail(m, f, at, 0, "%s: mask 0x%08x does not name the calling lane %u", name(kind), mask, f->lane);
    }
    if (mask & warp->done) {
        fail(m, f, at, 0, "%s: lanes missing: mask 0x%08x names lanes that have returned (0x%08x)", name(kind), mask,
             warp->done);
    }
    u32 i = 0;
    while (i < warp->meetings && (warp->meeting[i].kind != kind || warp->meeting[i].mask != mask)) i++;
    Meeting* meeting = &warp->meeting[i];
    if (i == warp->meetings) {
        warp->meetings++;
        *meeting = {kind, mask, 0, at};
    } else if (!same_place(m, at, meeting->at)) {
        fail(m, f, at, meeting->at, "%s: lanes of one mask are at different places", name(kind));
    }
    meeting->arrived |= bit;
    f->state = IN_WARP;
    f->waits_at = at;
    if (meeting->arrived == mask) {
        *meeting = warp->meeting[--warp->meetings];
        if (combine) combine(m, warp, mask, f->warp, at);
        if (kind == SYNC) order(m, warp, mask);
        for (u32 lane = 0; lane < 32; lane++) {
            if (mask >> lane & 1) make_ready(m, &m->fibers[f->warp * 32 + lane]);
        }
    }
    yield(m);
    return warp->out[f->lane];
}

EXPORT void emu_syncwarp(u32 mask) {
    meet(SYNC, mask, CALLER, nullptr, 0, nullptr);
}

// ---- shuffles and votes --------------------------------------------------------------

enum Shuffle : u32 { INDEX, UP, DOWN, XOR };

static void shuffle(Machine* m, Warp* warp, u32 mask, u32 number, u32 at) {
    for (u32 lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1)) continue;
        u32 kind = warp->in[lane][1], argument = warp->in[lane][2], width = warp->in[lane][3];
        u32 first = lane & ~(width - 1), last = first + width - 1, from = lane;
        if (kind == INDEX) from = first + (argument & (width - 1));
        if (kind == UP && lane >= first + argument) from = lane - argument;
        if (kind == DOWN && lane + argument <= last) from = lane + argument;
        if (kind == XOR && (lane ^ argument) <= last) from = lane ^ argument;
        if (!(mask >> from & 1)) {
            fail(m, &m->fibers[number * 32 + lane], at, 0,
                 "a shuffle: lane %u reads lane %u, which mask 0x%08x leaves out", lane, from, mask);
        }
        warp->out[lane][0] = warp->in[from][0];
    }
}

EXPORT u32 emu_shuffle(u32 kind, u32 mask, u32 value, u32 argument, u32 width) {
    Machine* m = machine;
    if (width == 0 || width > 32 || (width & (width - 1))) {
        fail(m, m->current, relative(m, CALLER), 0, "a shuffle: width %u is no power of two up to 32", width);
    }
    u32 in[] = {value, kind, argument, width};
    return *meet(SHUFFLE, mask, CALLER, in, 4, shuffle);
}

static void vote(Machine*, Warp* warp, u32 mask, u32, u32) {
    u32 ballot = 0;
    for (u32 lane = 0; lane < 32; lane++) {
        if ((mask >> lane & 1) && warp->in[lane][0]) ballot |= 1u << lane;
    }
    for (u32 lane = 0; lane < 32; lane++) warp->out[lane][0] = ballot;
}

EXPORT u32 emu_ballot(u32 mask, i32 predicate) {
    u32 in[] = {predicate != 0};
    return *meet(VOTE, mask, CALLER, in, 1, vote);
}

// ---- matrices ------------------------------------------------------------------------

// in: address (2 words), matrices, transposed.
static void load_matrix(Machine* m, Warp* warp, u32, u32 number, u32 at) {
    u32 count = warp->in[0][2];
    bool transposed = warp->in[0][3];
    u16 element[4][8][8];
    for (u32 lane = 0; lane < count * 8; lane++) {
        Fiber* f = &m->fibers[number * 32 + lane];
        u64 row;
        memcpy(&row, warp->in[lane], 8);
        if (row % 16) {
            fail(m, f, at, 0, "ldmatrix: misaligned: 0x%llx must be a multiple of 16", (unsigned long long)row);
        }
        if (!in_shared(m, row, 16)) fail(m, f, at, 0, "ldmatrix: the row lies outside shared memory");
        if (m->checked) access(m, f, row, 16, READ, at);
        memcpy(element[lane / 8][lane % 8], (const void*)row, 16);
    }
    for (u32 lane = 0; lane < 32; lane++) {
        u32 g = lane / 4, t = lane % 4;
        for (u32 i = 0; i < count; i++) {
            u32 low = transposed ? element[i][2 * t][g] : element[i][g][2 * t];
            u32 high = transposed ? element[i][2 * t + 1][g] : element[i][g][2 * t + 1];
            warp->out[lane][i] = low | high << 16;
        }
    }
}

EXPORT void emu_ldmatrix(u32* to, u32 count, const void* row, u32 transposed) {
    u32 in[4];
    u64 address = (u64)row;
    memcpy(in, &address, 8);
    in[2] = count;
    in[3] = transposed;
    memcpy(to, meet(LOAD_MATRIX, ~0u, CALLER, in, 4, load_matrix), count * 4);
}

typedef float Row __attribute__((vector_size(32)));

// in: a 8 floats, b 4 floats, d 4 floats. Products of 16-bit floats are exact, sums go up in k.
static void mma16(Machine*, Warp* warp, u32, u32, u32) {
    float a[16][16];
    Row b[16], d[16];
    for (u32 lane = 0; lane < 32; lane++) {
        u32 g = lane / 4, t = lane % 4;
        float in[16];
        memcpy(in, warp->in[lane], sizeof in);
        for (u32 h = 0; h < 2; h++) {
            a[g][2 * t + h] = in[h];
            a[g + 8][2 * t + h] = in[2 + h];
            a[g][2 * t + 8 + h] = in[4 + h];
            a[g + 8][2 * t + 8 + h] = in[6 + h];
            b[2 * t + h][g] = in[8 + h];
            b[2 * t + 8 + h][g] = in[10 + h];
            d[g][2 * t + h] = in[12 + h];
            d[g + 8][2 * t + h] = in[14 + h];
        }
    }
    for (u32 row = 0; row < 16; row++) {
        for (u32 k = 0; k < 16; k++) d[row] += a[row][k] * b[k];
    }
    for (u32 lane = 0; lane < 32; lane++) {
        u32 g = lane / 4, t = lane % 4;
        float out[4] = {d[g][2 * t], d[g][2 * t + 1], d[g + 8][2 * t], d[g + 8][2 * t + 1]};
        memcpy(warp->out[lane], out, sizeof out);
    }
}

EXPORT void emu_mma16_f32(float* d, const float* a, const float* b) {
    u32 in[16];
    memcpy(in, a, 32);
    memcpy(in + 8, b, 16);
    memcpy(in + 12, d, 16);
    memcpy(d, meet(MMA16, ~0u, CALLER, in, 16, mma16), 16);
}

// in: a 4 words, b 2 words, d 4 integers.
static void mma32(Machine*, Warp* warp, u32, u32, u32) {
    int8_t a[16][32], b[8][32];  // b transposed
    for (u32 lane = 0; lane < 32; lane++) {
        u32 g = lane / 4, t = lane % 4;
        const u32* in = warp->in[lane];
        memcpy(&a[g][4 * t], in, 4);
        memcpy(&a[g + 8][4 * t], in + 1, 4);
        memcpy(&a[g][4 * t + 16], in + 2, 4);
        memcpy(&a[g + 8][4 * t + 16], in + 3, 4);
        memcpy(&b[g][4 * t], in + 4, 4);
        memcpy(&b[g][4 * t + 16], in + 5, 4);
    }
    for (u32 lane = 0; lane < 32; lane++) {
        u32 g = lane / 4, t = lane % 4;
        for (u32 i = 0; i < 4; i++) {
            i32 sum = 0;
            for (u32 k = 0; k < 32; k++) sum += (i32)a[g + i / 2 * 8][k] * (i32)b[2 * t + i % 2][k];
            warp->out[lane][i] = warp->in[lane][6 + i] + (u32)sum;
        }
    }
}

EXPORT void emu_mma32_s32(i32* d, const u32* a, const u32* b) {
    u32 in[10];
    memcpy(in, a, 16);
    memcpy(in + 4, b, 8);
    memcpy(in + 6, d, 16);
    memcpy(d, meet(MMA32, ~0u, CALLER, in, 10, mma32), 16);
}
