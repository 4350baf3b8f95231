// A block from its first thread's start to its last one's end, barriers, and the launch itself.
#include "runtime.hpp"

#include <link.h>
#include <string.h>
#include <sys/mman.h>

// Threads become ready in the order of their numbers, or in the opposite order.
static void make_all_ready(Machine* m) {
    for (u32 i = 0; i < m->threads; i++) {
        u32 tid = m->order == FIRST_FIRST ? m->threads - 1 - i : i;
        if (m->fibers[tid].state != DONE) make_ready(m, &m->fibers[tid]);
    }
}

// ---- barriers ------------------------------------------------------------------------

static const char* barrier_name(u32 kind) {
    static const char* names[] = {"__syncthreads", "__syncthreads_or", "__syncthreads_and", "__syncthreads_count"};
    return names[kind];
}

static i32 barrier(u32 kind, i32 vote, u64 caller) {
    Machine* m = machine;
    Fiber* f = m->current;
    u32 at = relative(m, caller);
    if (m->finished > 0) {
        fail(m, f, at, 0, "%s after %u threads of the block have returned", barrier_name(kind), m->finished);
    }
    if (m->arrived == 0) {
        m->barrier_at_pc = at;
        m->barrier_kind = kind;
        m->votes = 0;
    } else if (m->barrier_kind != kind || !same_place(m, at, m->barrier_at_pc)) {
        fail(m, f, at, m->barrier_at_pc, "divergent barrier: threads of one block wait at different barriers");
    }
    m->votes += vote != 0;
    m->arrived++;
    f->state = AT_BARRIER;
    f->waits_at = at;
    u32 parity = m->parity;
    if (m->arrived == m->threads) {
        m->arrived = 0;
        m->parity ^= 1;
        m->verdict[parity] = kind == 1 ? m->votes > 0 : kind == 2 ? m->votes == m->threads : (i32)m->votes;
        m->now += TICK;
        m->barrier_at = m->now;
        make_all_ready(m);
    }
    yield(m);
    return m->verdict[parity];
}

EXPORT void emu_syncthreads() {
    barrier(0, 0, CALLER);
}

EXPORT i32 emu_syncthreads_vote(u32 kind, i32 vote) {
    return barrier(kind, vote, CALLER);
}

// ---- a thread's life -----------------------------------------------------------------

static void live() {
    Machine* m = machine;
    m->launch->thunk(m->launch->arguments);
    Fiber* f = m->current;
    Warp* warp = &m->warps[f->warp];
    f->state = DONE;
    m->finished++;
    if (m->arrived > 0) {
        fail(m, f, m->barrier_at_pc, 0, "returns without reaching the barrier where %u threads wait", m->arrived);
    }
    for (u32 i = 0; i < warp->meetings; i++) {
        const Meeting* meeting = &warp->meeting[i];
        if (meeting->mask >> f->lane & 1) {
            fail(m, f, meeting->at, 0, "returns without the warp operation whose mask 0x%08x names its lane %u",
                 meeting->mask, f->lane);
        }
    }
    warp->done |= 1u << f->lane;
    Fiber* next = next_ready(m);
    m->steps = 0;
    m->current = next;
    switch_to(&f->sp, next ? next->sp : m->main_sp);
    __builtin_unreachable();
}

static void set_up_block(Machine* m) {
    u32 threads = m->launch->block;
    m->threads = threads;
    m->finished = m->arrived = m->ready_count = m->parity = m->steps = 0;
    m->order = random_below(m, ORDERS);
    m->now += TICK;
    m->block_start = m->barrier_at = m->now;
    u32 warps = (threads + 31) / 32;
    for (u32 w = 0; w < warps; w++) {
        Warp* warp = &m->warps[w];
        u32 lanes = threads - w * 32 < 32 ? threads - w * 32 : 32;
        warp->lanes = lanes == 32 ? ~0u : (1u << lanes) - 1;
        warp->done = warp->meetings = 0;
        warp->ordered_at = m->now;
        warp->partial = false;
        m->ready_lanes[w] = 0;
        m->warp_order[w] = (u8)w;
    }
    for (u32 w = warps; w > 1; w--) {
        u32 other = random_below(m, w);
        u8 swapped = m->warp_order[other];
        m->warp_order[other] = m->warp_order[w - 1];
        m->warp_order[w - 1] = swapped;
    }
    for (u32 i = 0; i < threads; i++) {
        Fiber* f = &m->fibers[i];
        // Tops of stacks are spread over the cache's sets.
        u8* low = m->stacks + i * STACK;
        u8* top = low + STACK - 64 * (i % 61) - 64;
        f->stack_low = (u64)low;
        f->tid = i;
        f->warp = i / 32;
        f->lane = i % 32;
        f->copies.clear();
        f->open_group = 0;
        f->sp = new_stack(low, top, live);
        f->state = READY;
    }
    make_all_ready(m);
    // What nobody wrote is NaN.
    u32* shared = (u32*)m->shared_low;
    u64 words = (m->dynamic_low + m->launch->shared - m->shared_low) / 4;
    for (u64 i = 0; i < words; i++) shared[i] = 0x7ffffffe;
    u32* rest = (u32*)(m->dynamic_low + m->dynamic_bytes);
    words = (m->shared_low + m->shared_bytes - (u64)rest) / 4;
    for (u64 i = 0; i < words; i++) rest[i] = 0x7ffffffe;
}

static void run_block(Machine* m) {
    set_up_block(m);
    Fiber* first = next_ready(m);
    m->current = first;
    switch_to(&m->main_sp, first->sp);
    while (m->asked) {
        m->asked = false;
        m->answer = m->launch->same_place(m->launch->context, m->question[0], m->question[1]);
        switch_to(&m->main_sp, m->current->sp);
    }
    m->current = nullptr;
    if (m->failed || m->finished == m->threads) return;
    // Nobody can run: name two that wait for each other.
    const Fiber* barrier = nullptr;
    const Fiber* warp = nullptr;
    const Fiber* other_warp = nullptr;
    for (u32 i = 0; i < m->threads; i++) {
        const Fiber* f = &m->fibers[i];
        if (f->state == AT_BARRIER) barrier = f;
        if (f->state == IN_WARP && warp && !other_warp && warp->warp == f->warp && warp->waits_at != f->waits_at) {
            other_warp = f;
        }
        if (f->state == IN_WARP && !warp) warp = f;
    }
    if (barrier && warp) {
        fail_in_main(m, warp, warp->waits_at, barrier->waits_at,
                     "lanes missing: waits in a warp operation while thread %u waits at a barrier", barrier->tid);
    } else if (warp && other_warp) {
        fail_in_main(m, warp, warp->waits_at, other_warp->waits_at,
                     "lanes missing: waits in a warp operation while lane %u of its warp waits in another",
                     other_warp->lane);
    } else {
        fail_in_main(m, warp, warp ? warp->waits_at : 0, 0, "lanes missing: waits in a warp operation for ever");
    }
}

// ---- the launch ----------------------------------------------------------------------

struct Search {
    u64 inside;
    Machine* m;
};

static int look(dl_phdr_info* info, size_t, void* data) {
    Search* search = (Search*)data;
    u64 low = info->dlpi_addr, high = low, tls = 0;
    for (u32 i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr)* segment = &info->dlpi_phdr[i];
        u64 end = low + segment->p_vaddr + segment->p_memsz;
        if (segment->p_type == PT_LOAD && end > high) high = end;
        if (segment->p_type == PT_TLS) tls = segment->p_memsz;
    }
    if (search->inside < low || search->inside >= high) return 0;
    search->m->library_low = low;
    search->m->library_high = high;
    search->m->shared_low = (u64)info->dlpi_tls_data;
    search->m->shared_bytes = tls & ~(u64)3;
    return 1;
}

static void find_shared(Machine* m, u64 array_bytes) {
    m->dynamic_low = (u64)m->launch->dynamic();  // also makes the thread-local segment exist
    m->dynamic_bytes = array_bytes;
    Search search = {(u64)m->launch->dynamic, m};
    dl_iterate_phdr(look, &search);
    u64 words = m->shared_bytes / 4 + 1;
    if (m->checked && m->shared_words.size() < words) {
        m->shared_words.resize(words);
        m->shared_splits.resize(words * 4);
    }
}

EXPORT Machine* emu_machine_new() {
    void* stacks = mmap(nullptr, MAX_THREADS * STACK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) return nullptr;
    Machine* m = new Machine();
    m->stacks = (u8*)stacks;
    m->now = TICK;
    return m;
}

EXPORT void emu_machine_free(Machine* m) {
    munmap(m->stacks, MAX_THREADS * STACK);
    delete m;
}

// Runs a launch to its end; 0 if a fault was found.
EXPORT u32 emu_launch(Machine* m, const Launch* launch, u64 array_bytes, Fault* fault) {
    memset(fault, 0, sizeof *fault);
    m->launch = launch;
    m->fault = fault;
    m->checked = launch->checked;
    m->failed = false;
    m->main_sp = nullptr;
    m->random = launch->seed;
    m->last_operand = 0;
    find_shared(m, array_bytes);
    m->now += TICK;
    m->launch_start = m->now;
    if (!launch->continues) m->sequence_start = m->now;
    m->block_starts.clear();
    m->block_order.clear();
    Machine* outer = machine;
    machine = m;
    u64 blocks = (u64)launch->grid[0] * launch->grid[1] * launch->grid[2];
    // Blocks run forwards, backwards, or from somewhere in the middle.
    bool backwards = random_next(m) & 1;
    u64 first = random_next(m) % blocks;
    for (u64 i = 0; i < blocks && !m->failed; i++) {
        u64 block = (first + (backwards ? blocks - i : i)) % blocks;
        m->block[0] = (u32)(block % launch->grid[0]);
        m->block[1] = (u32)(block / launch->grid[0] % launch->grid[1]);
        m->block[2] = (u32)(block / launch->grid[0] / launch->grid[1]);
        run_block(m);
    }
    machine = outer;
    return !m->failed;
}

// ---- who am I ------------------------------------------------------------------------

struct Index {
    u32 x, y, z;
};

EXPORT Index emu_thread_index() {
    return Index{machine->current->tid, 0, 0};
}

EXPORT Index emu_block_index() {
    return Index{machine->block[0], machine->block[1], machine->block[2]};
}

EXPORT Index emu_block_size() {
    return Index{machine->launch->block, 1, 1};
}

EXPORT Index emu_grid_size() {
    return Index{machine->launch->grid[0], machine->launch->grid[1], machine->launch->grid[2]};
}

EXPORT void emu_trap() {
    fail(machine, machine->current, relative(machine, CALLER), 0, "__trap");
}
