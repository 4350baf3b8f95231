// Fibers: switching between the threads of a block, who runs next, and giving up.
#include "runtime.hpp"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

thread_local Machine* machine __attribute__((tls_model("initial-exec"))) = nullptr;

// ---- switching -----------------------------------------------------------------------

#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
// Saves what the ABI says a callee must keep, exchanges stacks, restores.
asm(R"(
.text
.hidden emu_switch
.globl emu_switch
.type emu_switch, @function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch, .-emu_switch
)");
extern "C" void emu_switch(void** save, void* load);

void switch_to(void** save, void* load) {
    emu_switch(save, load);
}

void* new_stack(u8*, u8* top, void (*entry)()) {
    u64* sp = (u64*)top;
    *--sp = 0;  // keeps the stack aligned as after a call, and ends backtraces
    *--sp = (u64)entry;
    for (u32 i = 0; i < 6; i++) *--sp = 0;
    return sp;
}
#else
#include <ucontext.h>

// The portable way, about eleven times slower: a context lies at the low end of each stack.
static thread_local ucontext_t main_context;

void switch_to(void** save, void* load) {
    if (*save == nullptr) *save = &main_context;
    swapcontext((ucontext_t*)*save, (ucontext_t*)load);
}

void* new_stack(u8* low, u8* top, void (*entry)()) {
    ucontext_t* context = (ucontext_t*)low;
    getcontext(context);
    u8* start = low + ((sizeof(ucontext_t) + 63) & ~(size_t)63);
    context->uc_stack.ss_sp = start;
    context->uc_stack.ss_size = top - start;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}
#endif

// ---- failing -------------------------------------------------------------------------

u32 relative(const Machine* m, u64 pc) {
    // The call, not the instruction after it.
    return pc > m->library_low && pc <= m->library_high ? (u32)(pc - 1 - m->library_low) : 0;
}

static void report(Machine* m, const Fiber* f, u32 at, u32 other, const char* format, va_list arguments) {
    Fault* fault = m->fault;
    m->failed = true;
    vsnprintf(fault->text, sizeof fault->text, format, arguments);
    memcpy(fault->block, m->block, sizeof fault->block);
    fault->thread = f ? f->tid : ~0u;
    fault->at = at;
    fault->other = other;
}

void fail(Machine* m, const Fiber* f, u64 at, u64 other, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    report(m, f, (u32)at, (u32)other, format, arguments);
    va_end(arguments);
    // This launch is over. No fiber is ever resumed: their stacks hold nothing that must be freed.
    void* nowhere = m->current->sp;
    switch_to(&nowhere, m->main_sp);
    __builtin_unreachable();
}

void fail_in_main(Machine* m, const Fiber* f, u32 at, u32 other, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    report(m, f, at, other, format, arguments);
    va_end(arguments);
}

bool same_place(Machine* m, u32 a, u32 b) {
    if (a == b) return true;
    // Rust answers, on its own stack.
    m->asked = true;
    m->question[0] = a;
    m->question[1] = b;
    switch_to(&m->current->sp, m->main_sp);
    return m->answer;
}

// ---- choosing who runs ---------------------------------------------------------------

u64 random_next(Machine* m) {
    // splitmix64
    u64 z = (m->random += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

u32 random_below(Machine* m, u32 n) {
    return (u32)(((random_next(m) >> 32) * n) >> 32);
}

void make_ready(Machine* m, Fiber* f) {
    f->state = READY;
    if (m->order == WARP_BY_WARP) {
        m->ready_lanes[f->warp] |= 1u << f->lane;
    } else {
        m->ready[m->ready_count] = (u16)f->tid;
    }
    m->ready_count++;
}

Fiber* next_ready(Machine* m) {
    if (m->ready_count == 0) return nullptr;
    m->ready_count--;
    if (m->order == WARP_BY_WARP) {
        for (u32 i = 0;; i++) {
            u32 warp = m->warp_order[i];
            u32 lanes = m->ready_lanes[warp];
            if (lanes == 0) continue;
            u32 lane = __builtin_ctz(lanes);
            m->ready_lanes[warp] &= lanes - 1;
            return &m->fibers[warp * 32 + lane];
        }
    }
    u32 last = m->ready_count;
    if (m->order == RANDOM) {
        u32 i = random_below(m, last + 1);
        u16 chosen = m->ready[i];
        m->ready[i] = m->ready[last];
        return &m->fibers[chosen];
    }
    return &m->fibers[m->ready[last]];
}

void yield(Machine* m) {
    Fiber* self = m->current;
    Fiber* next = next_ready(m);
    m->steps = 0;
    if (next == self) return;
    m->current = next;
    switch_to(&self->sp, next ? next->sp : m->main_sp);
}
