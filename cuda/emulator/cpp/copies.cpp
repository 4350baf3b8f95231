// Asynchronous copies (their data lands when their group is waited for) and atomics.
#include "runtime.hpp"

#include <string.h>

// ---- cp.async ------------------------------------------------------------------------

EXPORT void emu_cp_async(void* to, const void* from, u32 bytes, u32 take) {
    Machine* m = machine;
    Fiber* f = m->current;
    u32 at = relative(m, CALLER);
    u64 a = (u64)to, b = (u64)from;
    if (a % bytes || b % bytes) {
        fail(m, f, at, 0, "cp.async: misaligned: both addresses must be multiples of %u (0x%llx, 0x%llx)", bytes,
             (unsigned long long)a, (unsigned long long)b);
    }
    if (!in_shared(m, a, bytes)) fail(m, f, at, 0, "cp.async: the destination lies outside shared memory");
    if (m->checked) {
        if (take) access(m, f, b, bytes, READ, at);
        access(m, f, a, bytes, WRITE_PENDING, at);
    }
    f->copies.push_back({(u8*)to, (const u8*)from, bytes, take != 0, f->open_group, at, m->now | 0xfff});
    m->now += TICK;  // what happens from here on is later than the start of the copy
}

EXPORT void emu_cp_async_commit() {
    machine->current->open_group++;
}

EXPORT void emu_cp_async_wait(u32 under_way) {
    Machine* m = machine;
    Fiber* f = m->current;
    u32 at = relative(m, CALLER);
    size_t landed = 0;
    for (; landed < f->copies.size() && f->copies[landed].group + under_way < f->open_group; landed++) {
        const Copy copy = f->copies[landed];
        if (m->checked && copy.take) {
            if (written_since(m, (u64)copy.from, copy.bytes, copy.issued)) {
                fail(m, f, copy.at, at, "cp.async: its source was overwritten while the copy was under way");
            }
            access(m, f, (u64)copy.from, copy.bytes, READ, copy.at);
        }
        if (m->checked) access(m, f, (u64)copy.to, copy.bytes, WRITE_LANDED, copy.at);
        if (copy.take) {
            memcpy(copy.to, copy.from, copy.bytes);
        } else {
            memset(copy.to, 0, copy.bytes);
        }
    }
    f->copies.erase(f->copies.begin(), f->copies.begin() + landed);
}

// ---- atomics -------------------------------------------------------------------------

enum Atomic : u32 { ADD, MAX_SIGNED, MAX_UNSIGNED, MIN_SIGNED, MIN_UNSIGNED, OR, AND, EXCHANGE, COMPARE };

EXPORT u32 emu_atomic(u32 kind, u32* at, u32 value, u32 expected) {
    Machine* m = machine;
    Fiber* f = m->current;
    if (m->checked) access(m, f, (u64)at, 4, WRITE_ATOMIC, relative(m, CALLER));
    u32 old = *at;
    switch (kind) {
        case ADD: *at = old + value; break;
        case MAX_SIGNED: *at = (i32)old > (i32)value ? old : value; break;
        case MAX_UNSIGNED: *at = old > value ? old : value; break;
        case MIN_SIGNED: *at = (i32)old < (i32)value ? old : value; break;
        case MIN_UNSIGNED: *at = old < value ? old : value; break;
        case OR: *at = old | value; break;
        case AND: *at = old & value; break;
        case EXCHANGE: *at = value; break;
        case COMPARE: *at = old == expected ? value : old; break;
    }
    return old;
}
