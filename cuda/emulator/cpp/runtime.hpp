// State of the emulator: one machine for each driver, fibers for the threads of one block, and
// shadow cells that remember who touched each word of memory last.
//
// Compiled once, without sanitizers. Kernels see only what emulated.cuh declares; Rust sees the
// `extern "C"` functions and the plain structs at the head of this file (see src/machine.rs,
// which must agree with them).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <vector>

typedef uint8_t u8;
typedef uint16_t u16;
typedef int32_t i32;
typedef uint32_t u32;
typedef uint64_t u64;

#define EXPORT extern "C" __attribute__((visibility("default")))
#define CALLER ((u64)__builtin_return_address(0))

// ---- what Rust passes ----------------------------------------------------------------

// Who touched a word (or a byte) last. Stamps grow with time, so nothing is ever cleared.
struct Cell {
    u64 write, read, far;          // last write, last read, a read by somebody as far away as possible
    u32 write_at, read_at, far_at;  // program counters
    u32 split;                     // a word whose four bytes have cells of their own
};

struct Operand {
    u64 address, bytes;
    u32 reads, writes;
    u32 fresh;    // reads need a write in this sequence of launches first
    u32 padding;
    Cell* words;  // the cell of the word at `address`, then of each word after it
    Cell* splits; // four cells for each of these words
};

struct Launch {
    void (*thunk)(void** arguments);
    void** arguments;
    u8* (*dynamic)();  // the calling thread's dynamic shared memory
    u32 grid[3];
    u32 block, shared, checked;
    u32 continues;  // belongs to the same op as the launch before
    u32 operand_count;
    const Operand* operands;
    u64 seed;
    // Do two program counters belong to the same place of the source (which a compiler may
    // have duplicated)?
    u32 (*same_place)(void* context, u32 a, u32 b);
    void* context;
};

struct Fault {
    char text[512];
    char file[256];  // where the sanitizers said so themselves
    u32 line;
    u32 block[3];
    u32 thread;  // ~0 if no thread in particular
    u32 at, other;  // program counters, relative to the library; 0 if unknown
};

// ---- threads -------------------------------------------------------------------------

enum State : u8 { READY, AT_BARRIER, IN_WARP, DONE };

struct Copy {
    u8* to;
    const u8* from;
    u32 bytes;
    bool take;
    u32 group;
    u32 at;
    u64 issued;
};

struct Fiber {
    void* sp;
    u64 stack_low;
    u32 tid, warp, lane;
    State state;
    u32 waits_at;
    std::vector<Copy> copies;  // in flight, oldest first
    u32 open_group;            // groups that this thread has committed
};

// A warp operation that some lanes have reached.
struct Meeting {
    u32 kind, mask, arrived, at;
};

const u32 SLOTS = 16;

struct Warp {
    u64 ordered_at;  // stamp of the last __syncwarp of the whole warp
    bool partial;    // some __syncwarp had a smaller mask: see pair
    u32 lanes, done;
    u32 meetings;
    Meeting meeting[32];
    u32 in[32][SLOTS];
    u32 out[32][SLOTS];
    u64 pair[32][32];
};

// ---- the machine ---------------------------------------------------------------------

const u64 STACK = 256 << 10;
const u32 MAX_THREADS = 1024;

// A stamp is tick << 12 | thread << 2 | flags. Ticks count barriers, syncs, blocks and launches.
const u64 ATOMIC = 1, PENDING = 2;
const u64 TICK = 1 << 12;

struct Machine {
    const Launch* launch;
    Fault* fault;
    bool checked, failed;
    Fiber* current;
    void* main_sp;
    bool asked, answer;  // a fiber wants to know launch->same_place
    u32 question[2];
    u8* stacks;
    Fiber fibers[MAX_THREADS];
    Warp warps[32];

    // Threads that can run, and how the next one is chosen.
    u32 order;
    u64 random;
    u32 ready_count;
    u16 ready[MAX_THREADS];
    u32 ready_lanes[32];
    u8 warp_order[32];

    // The block under way.
    u32 block[3];
    u32 threads, finished;
    u32 arrived, barrier_at_pc, barrier_kind;
    u32 votes, parity;
    i32 verdict[2];

    // Time.
    u64 now, launch_start, sequence_start, block_start, barrier_at;
    std::vector<u64> block_starts;  // of this launch, in the order in which blocks ran
    std::vector<u32> block_order;

    // The library and its shared memory: static variables and the dynamic array lie in one
    // thread-local segment.
    u64 library_low, library_high;
    u64 shared_low, shared_bytes;
    u64 dynamic_low, dynamic_bytes;  // the array; only its first launch->shared bytes may be used
    std::vector<Cell> shared_words, shared_splits;
    u32 last_operand;
    u32 steps;  // accesses of the current thread since it was last switched to
};

extern thread_local Machine* machine __attribute__((tls_model("initial-exec")));

// fibers.cpp
enum Order : u32 { RANDOM, LAST_FIRST, WARP_BY_WARP, FIRST_FIRST, ORDERS };
void switch_to(void** save, void* load);
void* new_stack(u8* low, u8* top, void (*entry)());
u64 random_next(Machine* m);
u32 random_below(Machine* m, u32 n);
void make_ready(Machine* m, Fiber* f);
Fiber* next_ready(Machine* m);
// Lets others run until somebody makes this thread ready.
void yield(Machine* m);
bool same_place(Machine* m, u32 a, u32 b);
u32 relative(const Machine* m, u64 pc);
// Ends the launch with a fault of thread `f`. Only what needs no destructor may be on the stack.
[[noreturn]] void fail(Machine* m, const Fiber* f, u64 at, u64 other, const char* format, ...)
    __attribute__((format(printf, 5, 6)));
// The same while no fiber runs.
void fail_in_main(Machine* m, const Fiber* f, u32 at, u32 other, const char* format, ...)
    __attribute__((format(printf, 5, 6)));

// shadow.cpp
enum Kind : u32 { READ, WRITE, WRITE_ATOMIC, WRITE_PENDING, WRITE_LANDED };
void access(Machine* m, Fiber* f, u64 address, u64 bytes, Kind kind, u32 at);
bool written_since(Machine* m, u64 address, u64 bytes, u64 stamp);
bool in_shared(const Machine* m, u64 address, u64 bytes);
