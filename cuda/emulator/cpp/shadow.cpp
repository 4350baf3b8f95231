// Every load and store of a checked kernel: bounds, permissions, races, reads of what nobody wrote.
//
// The compiler calls `__tsan_readN` and `__tsan_writeN` before each access. Two accesses to a byte
// by different threads, at least one of them a write, must be ordered: by a barrier of the block
// between them, by a __syncwarp if both threads are lanes of one warp, or by the launch's end.
// Shuffles, votes and matrix operations order nothing, as in CUDA's memory model.
#include "runtime.hpp"

#include <stdio.h>
#include <string.h>

static u32 thread_of(u64 stamp) {
    return (u32)(stamp >> 2) & 1023;
}

// Is what `stamp` did ordered before what `f` does now? Nothing before `horizon` counts.
static inline bool ordered(const Machine* m, const Fiber* f, u64 stamp, u64 horizon) {
    if (stamp < horizon) return true;
    if (stamp < m->block_start) return false;  // another block
    if (stamp < m->barrier_at) return true;
    u32 tid = thread_of(stamp);
    if (tid == f->tid) return true;
    if (tid / 32 != f->warp) return false;
    const Warp* warp = &m->warps[f->warp];
    return stamp < warp->ordered_at || (warp->partial && stamp < warp->pair[f->lane][tid % 32]);
}

// Where a byte lies, for people.
static const char* place(const Machine* m, u64 address, char (&text)[96]) {
    if (in_shared(m, address, 1)) {
        if (address - m->dynamic_low < m->dynamic_bytes) {
            u64 offset = address - m->dynamic_low;
            snprintf(text, sizeof text, "byte %llu of dynamic shared memory", (unsigned long long)offset);
        } else {
            snprintf(text, sizeof text, "static shared memory");
        }
        return text;
    }
    for (u32 i = 0; i < m->launch->operand_count; i++) {
        const Operand* o = &m->launch->operands[i];
        if (address - o->address < o->bytes) {
            snprintf(text, sizeof text, "byte %llu of operand %u", (unsigned long long)(address - o->address), i);
            return text;
        }
    }
    snprintf(text, sizeof text, "memory of no operand");
    return text;
}

[[noreturn]] static void race(
    Machine* m, Fiber* f, u64 address, u64 stamp, bool wrote, bool writes, u32 at, u32 other) {
    char text[96], whose[48];
    if (stamp < m->block_start) {
        snprintf(whose, sizeof whose, "thread %u of another block", thread_of(stamp));
    } else {
        snprintf(whose, sizeof whose, "thread %u", thread_of(stamp));
    }
    fail(m, f, at, other, "race: %s %s that %s has %s, with nothing that orders the two", writes ? "writes" : "reads",
         place(m, address, text), whose, wrote ? "written" : "read");
}

// Why the copy that is under way into a byte has not landed.
static const char* why_pending(const Machine* m, u64 stamp, u64 address) {
    const Fiber* f = &m->fibers[thread_of(stamp)];
    for (const Copy& copy : f->copies) {
        if (address - (u64)copy.to < copy.bytes && copy.group == f->open_group) return "its group was not committed";
    }
    return "its group was not waited for";
}

// What one access does to one cell. `fresh`: stamps before it are no write that may be read.
static inline void touch(Machine* m, Fiber* f, Cell* c, u64 address, Kind kind, u64 horizon, u64 fresh, u32 at) {
    char text[96];
    u64 stamp = m->now | f->tid << 2;
    if (kind == WRITE_LANDED) {
        c->write = stamp;
        c->write_at = at;
        return;
    }
    if ((c->write & PENDING) && c->write >= horizon) {
        fail(m, f, at, c->write_at, "%s %s while an asynchronous copy into it is under way (%s)",
             kind == READ ? "reads" : "writes", place(m, address, text), why_pending(m, c->write, address));
    }
    if ((kind == READ || kind == WRITE_ATOMIC) && c->write < fresh) {
        fail(m, f, at, 0, "reads %s, which nobody has written", place(m, address, text));
    }
    bool atomic = kind == WRITE_ATOMIC && (c->write & ATOMIC);
    if (!atomic && !ordered(m, f, c->write, horizon)) {
        race(m, f, address, c->write, true, kind != READ, at, c->write_at);
    }
    if (kind == READ) {
        u64 last = c->read;
        bool other = last >= horizon && (last < m->block_start || thread_of(last) != f->tid);
        // The last reader moves to `far` unless somebody there is as far away.
        if (other && last < m->block_start) {
            c->far = last;
            c->far_at = c->read_at;
        } else if (other && last >= m->barrier_at) {
            bool keep = thread_of(last) / 32 != f->warp ? c->far >= horizon && c->far < m->block_start
                                                        : !ordered(m, f, c->far, horizon);
            if (!keep) {
                c->far = last;
                c->far_at = c->read_at;
            }
        }
        c->read = stamp;
        c->read_at = at;
        return;
    }
    if (!ordered(m, f, c->read, horizon)) race(m, f, address, c->read, false, true, at, c->read_at);
    if (!ordered(m, f, c->far, horizon)) race(m, f, address, c->far, false, true, at, c->far_at);
    c->write = stamp | (kind == WRITE_ATOMIC ? ATOMIC : kind == WRITE_PENDING ? PENDING : 0);
    c->write_at = at;
    c->read = c->far = 0;
}

static inline void touch_all(
    Machine* m, Fiber* f, Cell* words, Cell* splits, u64 low, u64 address, u64 bytes, Kind kind, u64 horizon, u64 fresh,
    u32 at) {
    u64 offset = address - low;
    u64 end = offset + bytes;
    while (offset < end) {
        u64 word = offset / 4;
        Cell* c = &words[word];
        if (!c->split && offset % 4 == 0 && end - offset >= 4) {
            touch(m, f, c, low + offset, kind, horizon, fresh, at);
            offset += 4;
            continue;
        }
        Cell* bytes4 = &splits[word * 4];
        if (!c->split) {
            for (u32 i = 0; i < 4; i++) bytes4[i] = *c;
            c->split = 1;
        }
        u64 stop = (word + 1) * 4 < end ? (word + 1) * 4 : end;
        for (; offset < stop; offset++) touch(m, f, &bytes4[offset % 4], low + offset, kind, horizon, fresh, at);
    }
}

bool in_shared(const Machine* m, u64 address, u64 bytes) {
    return address - m->shared_low < m->shared_bytes && address + bytes <= m->shared_low + m->shared_bytes;
}

static inline bool inside(const Operand* o, u64 address, u64 bytes) {
    u64 offset = address - o->address;
    return offset < o->bytes && bytes <= o->bytes - offset;
}

static inline bool allows(const Operand* o, bool write) {
    return write ? o->writes : (o->reads || o->fresh);
}

[[noreturn]] static void outside(Machine* m, Fiber* f, u64 address, u64 bytes, bool write, u32 at) {
    const char* verb = write ? "writes" : "reads";
    u32 n = m->launch->operand_count;
    for (u32 i = 0; i < n; i++) {
        const Operand* o = &m->launch->operands[i];
        if (inside(o, address, bytes)) {
            fail(m, f, at, 0, "%s operand %u, which the launch may only %s", verb, i, write ? "read" : "write");
        }
    }
    u32 nearest = 0;
    u64 distance = ~(u64)0;
    for (u32 i = 0; i < n; i++) {
        const Operand* o = &m->launch->operands[i];
        u64 end = o->address + o->bytes;
        u64 d = address < o->address ? o->address - address : address >= end ? address - end : 0;
        if (d < distance) {
            distance = d;
            nearest = i;
        }
    }
    if (distance > 1 << 20) {
        fail(m, f, at, 0, "%s %llu bytes at 0x%llx, which is in no operand", verb, (unsigned long long)bytes,
             (unsigned long long)address);
    }
    const Operand* o = &m->launch->operands[nearest];
    fail(m, f, at, 0, "out of bounds: %s %llu bytes at offset %lld of operand %u, which has %llu bytes", verb,
         (unsigned long long)bytes, (long long)(address - o->address), nearest, (unsigned long long)o->bytes);
}

static inline const Operand* find(Machine* m, Fiber* f, u64 address, u64 bytes, bool write, u32 at) {
    const Operand* operands = m->launch->operands;
    u32 n = m->launch->operand_count;
    for (u32 i = 0, j = m->last_operand; i < n; i++, j = j + 1 == n ? 0 : j + 1) {
        const Operand* o = &operands[j];
        if (inside(o, address, bytes) && allows(o, write)) {
            m->last_operand = j;
            return o;
        }
    }
    outside(m, f, address, bytes, write, at);
}

// More accesses than a thread makes between two barriers in any test.
const u32 ENDLESS = 1 << 26;

void access(Machine* m, Fiber* f, u64 address, u64 bytes, Kind kind, u32 at) {
    if (address - f->stack_low < STACK) return;
    if (++m->steps > ENDLESS) fail(m, f, at, 0, "runs for ever: %u accesses without a barrier", ENDLESS);
    bool write = kind != READ;
    if (address - m->shared_low < m->shared_bytes) {
        u64 offset = address - m->dynamic_low;
        if (offset < m->dynamic_bytes && offset + bytes > m->launch->shared) {
            fail(m, f, at, 0, "%s bytes %llu..%llu of dynamic shared memory, of which the launch has %u bytes",
                 write ? "writes" : "reads", (unsigned long long)offset, (unsigned long long)(offset + bytes),
                 m->launch->shared);
        }
        touch_all(m, f, m->shared_words.data(), m->shared_splits.data(), m->shared_low, address, bytes, kind,
                  m->block_start, m->block_start, at);
        return;
    }
    if (!write && address >= m->library_low && address < m->library_high) return;  // a constant
    const Operand* o = find(m, f, address, bytes, write, at);
    u64 fresh = o->fresh ? m->sequence_start : 0;
    touch_all(m, f, o->words, o->splits, o->address, address, bytes, kind, m->launch_start, fresh, at);
}

// Has anybody written to these bytes of an operand after `stamp`?
bool written_since(Machine* m, u64 address, u64 bytes, u64 stamp) {
    for (u32 i = 0; i < m->launch->operand_count; i++) {
        const Operand* o = &m->launch->operands[i];
        if (!inside(o, address, bytes)) continue;
        for (u64 b = address - o->address; b < address - o->address + bytes; b++) {
            const Cell* c = &o->words[b / 4];
            if ((c->split ? o->splits[b].write : c->write) > stamp) return true;
        }
        return false;
    }
    return false;
}

// ---- what the compiler calls ---------------------------------------------------------

static inline void plain(void* address, u64 bytes, Kind kind, u64 caller) {
    Machine* m = machine;
    access(m, m->current, (u64)address, bytes, kind, relative(m, caller));
}

#define ACCESS(N)                                           \
    EXPORT void __tsan_read##N(void* p) {                   \
        plain(p, N, READ, CALLER);                          \
    }                                                       \
    EXPORT void __tsan_write##N(void* p) {                  \
        plain(p, N, WRITE, CALLER);                         \
    }                                                       \
    EXPORT void __tsan_unaligned_read##N(void* p) {         \
        plain(p, N, READ, CALLER);                          \
    }                                                       \
    EXPORT void __tsan_unaligned_write##N(void* p) {        \
        plain(p, N, WRITE, CALLER);                         \
    }

ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)

EXPORT void __tsan_read_range(void* p, size_t bytes) {
    plain(p, bytes, READ, CALLER);
}

EXPORT void __tsan_write_range(void* p, size_t bytes) {
    plain(p, bytes, WRITE, CALLER);
}

EXPORT void __tsan_init() {}

// ---- what the other checks of the compiler call ---------------------------------------

struct SourcePlace {
    const char* file;
    u32 line, column;
};

[[noreturn]] static void sanitizer(const SourcePlace* where, u64 caller, const char* text) {
    Machine* m = machine;
    snprintf(m->fault->file, sizeof m->fault->file, "%s", where->file ? where->file : "");
    m->fault->line = where->line;
    fail(m, m->current, relative(m, caller), 0, "%s", text);
}

struct TypeMismatch {
    SourcePlace where;
    const void* type;
    u8 log_alignment, check;
};

EXPORT void __ubsan_handle_type_mismatch_v1_abort(TypeMismatch* data, u64 pointer) {
    char text[96];
    if (pointer == 0) {
        snprintf(text, sizeof text, "accesses a null pointer");
    } else {
        snprintf(text, sizeof text, "misaligned: accesses 0x%llx, which must be a multiple of %u",
                 (unsigned long long)pointer, 1u << data->log_alignment);
    }
    sanitizer(&data->where, CALLER, text);
}

EXPORT void __ubsan_handle_out_of_bounds_abort(SourcePlace* data, u64 index) {
    char text[96];
    snprintf(text, sizeof text, "index %lld is outside its array", (long long)index);
    sanitizer(data, CALLER, text);
}

EXPORT void __ubsan_handle_shift_out_of_bounds_abort(SourcePlace* data, u64, u64 by) {
    char text[96];
    snprintf(text, sizeof text, "shifts by %lld, which is not less than the type's width", (long long)by);
    sanitizer(data, CALLER, text);
}
