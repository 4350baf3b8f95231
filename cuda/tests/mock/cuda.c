// A driver library without a device, for tests of cuda/src/nvidia: the functions that it calls, with
// memory on the host and a stream that does nothing until somebody waits. So a staging buffer that is
// written too early, or a result that is read too early, shows as wrong bytes. Every misuse that the
// real driver would leave undefined ends the process with a line that begins with "mock:".
//
// Environment: MOCK_VERSION (12090), MOCK_DEVICES (2), MOCK_POOLS (1), MOCK_MEMORY (bytes, 64 MiB).
// Compiled with -DWITHOUT_PARAM_INFO it lacks what drivers before CUDA 12.4 lack.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef uint64_t Address;
enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NO_CONTEXT = 201, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700 };

#define CHECK(condition, ...) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "mock: %s: ", __func__); \
            fprintf(stderr, __VA_ARGS__); \
            fprintf(stderr, "\n"); \
            _Exit(99); \
        } \
    } while (0)

// Everything that has a handle; `tag` tells what it is and that it lives.
typedef enum { CONTEXT = 1, STREAM, EVENT, POOL, MODULE, FUNCTION, GRAPH, EXEC } Tag;
typedef struct Object {
    Tag tag;
    int live;
    int timing;              // event: knows when
    double when;             // event: milliseconds
    uint64_t recorded;       // event: number of the last operation that records it
    int max_shared;          // function
    struct Object* module;   // function
    struct Op* nodes;        // graph, executable graph
    struct Object* last;     // graph: node added last
} Object;

typedef struct Op {
    enum { SET, UP, DOWN, FREE, KERNEL, RECORD, NODE } kind;
    uint64_t number;
    Address to, from;
    void* host;
    size_t bytes;
    Object* object;  // event or function
    unsigned char params[12];
    Address operands[4];
    struct Op* next;
} Op;

typedef struct Block {
    Address address;
    size_t bytes;
    unsigned char* host;
    int given_back;  // in the order of submission
    struct Block* next;
} Block;

typedef struct Pinned {
    unsigned char* bytes;
    size_t length;
    unsigned flags;
    struct Pinned* next;
} Pinned;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread Object* current;
static Object* context;
static int retained;
static int objects[16];
static Op *queue, **tail = &queue;
static uint64_t submitted, executed;
static Block* blocks;
static Pinned* pinned;
static size_t used;
static Address next_address = 0x7f0000000000;
static double now;
static Result sticky;

static long setting(const char* name, long otherwise) {
    const char* value = getenv(name);
    return value ? atol(value) : otherwise;
}

static Object* make(Tag tag) {
    Object* object = calloc(1, sizeof *object);
    object->tag = tag;
    object->live = 1;
    objects[tag]++;
    return object;
}

#define ALIVE(object, kind) \
    CHECK((object) && (object)->tag == (kind) && (object)->live, "a handle that is none or not alive")

static void destroy(Object* object) {
    object->live = 0;  // Never freed, so that a second destruction is seen.
    objects[object->tag]--;
}

// The block that holds a range.
static Block* block_of(Address at, size_t bytes) {
    for (Block* b = blocks; b; b = b->next) {
        if (at >= b->address && at + bytes <= b->address + b->bytes) return b;
    }
    return NULL;
}

static unsigned char* memory(Address at, size_t bytes) {
    Block* b = block_of(at, bytes);
    CHECK(b, "%zu bytes at %llx are not memory", bytes, (unsigned long long)at);
    return b->host + (at - b->address);
}

static Pinned* pinned_of(const void* at, size_t bytes) {
    for (Pinned* p = pinned; p; p = p->next) {
        const unsigned char* byte = at;
        if (byte >= p->bytes && byte + bytes <= p->bytes + p->length) return p;
    }
    return NULL;
}

static void remove_block(Address address) {
    for (Block** b = &blocks; *b; b = &(*b)->next) {
        if ((*b)->address == address) {
            Block* gone = *b;
            used -= gone->bytes;
            *b = gone->next;
            free(gone->host);
            free(gone);
            return;
        }
    }
    CHECK(0, "%llx is given back and is not memory", (unsigned long long)address);
}

// y = 2 x for the m*k elements of rms_norm's operands; eps below 0 is an illegal access.
static void run(Op* op) {
    unsigned size[2];
    float eps;
    memcpy(size, op->params, 8);
    memcpy(&eps, op->params + 8, 4);
    if (eps < 0) {
        sticky = ILLEGAL_ADDRESS;
        return;
    }
    size_t count = (size_t)size[0] * size[1];
    float* x = (float*)memory(op->operands[0], count * 4);
    float* y = (float*)memory(op->operands[2], count * 4);
    for (size_t i = 0; i < count; i++) y[i] = 2 * x[i];
    now += 1.5;
}

// Executes what was submitted, up to an operation.
static void execute(uint64_t until) {
    while (queue && queue->number <= until && !sticky) {
        Op* op = queue;
        queue = op->next;
        if (!queue) tail = &queue;
        switch (op->kind) {
            case SET: memset(memory(op->to, op->bytes), 0, op->bytes); break;
            case UP: memcpy(memory(op->to, op->bytes), op->host, op->bytes); now += 0.25; break;
            case DOWN: memcpy(op->host, memory(op->from, op->bytes), op->bytes); break;
            case FREE: remove_block(op->to); break;
            case KERNEL: run(op); break;
            case RECORD: op->object->when = now; break;
            case NODE: break;
        }
        executed = op->number;
        free(op);
    }
}

static void submit(Op op) {
    Op* copy = malloc(sizeof op);
    *copy = op;
    copy->number = ++submitted;
    copy->next = NULL;
    *tail = copy;
    tail = &copy->next;
}

static void valid(Address at, size_t bytes) {
    Block* b = block_of(at, bytes);
    CHECK(b && !b->given_back, "%zu bytes at %llx are not memory", bytes, (unsigned long long)at);
}

#define ENTER \
    pthread_mutex_lock(&lock); \
    if (sticky) return leave(sticky); \
    CHECK(current && current == context && context->live, "the context is not current")

static Result leave(Result result) {
    pthread_mutex_unlock(&lock);
    return result;
}

// ---- devices and the context -----------------------------------------------------------

Result cuInit(unsigned flags) { return flags ? INVALID : setting("MOCK_DEVICES", 2) < 0 ? 100 : OK; }
Result cuDriverGetVersion(int* version) { return *version = (int)setting("MOCK_VERSION", 12090), OK; }
Result cuDeviceGetCount(int* count) { return *count = (int)setting("MOCK_DEVICES", 2), OK; }

Result cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal < setting("MOCK_DEVICES", 2) ? OK : 101;
}

Result cuDeviceGetName(char* name, int length, int device) {
    snprintf(name, (size_t)length, "Mock %d", device);
    return OK;
}

Result cuDeviceTotalMem_v2(size_t* bytes, int device) {
    (void)device;
    return *bytes = (size_t)setting("MOCK_MEMORY", 64 << 20), OK;
}

// Device 0 is too old; for device 1 there are no ready kernels.
Result cuDeviceGetAttribute(int* value, int attribute, int device) {
    switch (attribute) {
        case 75: *value = device == 0 ? 7 : 10; break;
        case 76: *value = device == 0 ? 5 : 0; break;
        case 16: *value = 84; break;
        case 97: *value = 227 << 10; break;
        case 115: *value = (int)setting("MOCK_POOLS", 1); break;
        default: CHECK(0, "attribute %d", attribute);
    }
    return OK;
}

Result cuDevicePrimaryCtxRetain(Object** out, int device) {
    CHECK(device == 1, "device %d", device);
    if (!retained++) context = make(CONTEXT);
    return *out = context, OK;
}

Result cuDevicePrimaryCtxRelease_v2(int device) {
    CHECK(device == 1 && retained > 0, "released too often");
    if (--retained) return OK;
    if (!sticky) {
        CHECK(!queue, "work is under way");
        for (int tag = STREAM; tag <= EXEC; tag++) {
            CHECK(tag == FUNCTION || !objects[tag], "%d objects of kind %d are left", objects[tag], tag);
        }
        CHECK(!blocks && !pinned, "memory is left");
    }
    destroy(context);
    fprintf(stderr, "mock: closed\n");
    return OK;
}

Result cuCtxSetCurrent(Object* wanted) {
    ALIVE(wanted, CONTEXT);
    current = wanted;
    return OK;
}

// ---- stream and events -----------------------------------------------------------------

Result cuStreamCreate(Object** out, unsigned flags) {
    ENTER;
    CHECK(flags == 1, "a stream that waits for others");
    return *out = make(STREAM), leave(OK);
}

Result cuStreamDestroy_v2(Object* stream) {
    ENTER;
    ALIVE(stream, STREAM);
    execute(submitted);
    destroy(stream);
    return leave(OK);
}

Result cuStreamSynchronize(Object* stream) {
    ENTER;
    ALIVE(stream, STREAM);
    execute(submitted);
    return leave(sticky);
}

Result cuEventCreate(Object** out, unsigned flags) {
    ENTER;
    CHECK(flags == 0 || flags == 2, "flags %u", flags);
    *out = make(EVENT);
    (*out)->timing = flags == 0;
    return leave(OK);
}

Result cuEventDestroy_v2(Object* event) {
    ENTER;
    ALIVE(event, EVENT);
    destroy(event);
    return leave(OK);
}

Result cuEventRecord(Object* event, Object* stream) {
    ENTER;
    ALIVE(event, EVENT);
    ALIVE(stream, STREAM);
    submit((Op){.kind = RECORD, .object = event});
    event->recorded = submitted;
    return leave(OK);
}

// Work of all streams is executed in the order of submission, which is one of those that are allowed.
Result cuStreamWaitEvent(Object* stream, Object* event, unsigned flags) {
    ENTER;
    ALIVE(stream, STREAM);
    ALIVE(event, EVENT);
    CHECK(flags == 0, "flags %u", flags);
    return leave(OK);
}

Result cuEventSynchronize(Object* event) {
    ENTER;
    ALIVE(event, EVENT);
    execute(event->recorded);
    return leave(sticky);
}

Result cuEventElapsedTime(float* milliseconds, Object* start, Object* end) {
    ENTER;
    ALIVE(start, EVENT);
    ALIVE(end, EVENT);
    CHECK(start->timing && end->timing, "an event that does not know when");
    CHECK(start->recorded && end->recorded <= executed, "an event that has not happened");
    *milliseconds = (float)(end->when - start->when);
    return leave(OK);
}

// ---- memory ----------------------------------------------------------------------------

static Result allocate(Address* out, size_t bytes) {
    if (!bytes) return INVALID;
    if (used + bytes > (size_t)setting("MOCK_MEMORY", 64 << 20)) return NO_MEMORY;
    Block* b = malloc(sizeof *b);
    *b = (Block){.address = next_address, .bytes = bytes, .host = malloc(bytes), .next = blocks};
    memset(b->host, 0xee, bytes);
    next_address += (bytes + 1023) / 512 * 512;
    used += bytes;
    blocks = b;
    return *out = b->address, OK;
}

Result cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    ENTER;
    *total = (size_t)setting("MOCK_MEMORY", 64 << 20);
    *free_bytes = *total - used;
    return leave(OK);
}

Result cuMemAlloc_v2(Address* out, size_t bytes) {
    ENTER;
    CHECK(!setting("MOCK_POOLS", 1), "there are pools");
    return leave(allocate(out, bytes));
}

Result cuMemFree_v2(Address address) {
    ENTER;
    CHECK(!queue, "work is under way");
    remove_block(address);
    return leave(OK);
}

Result cuMemPoolCreate(Object** out, const int* properties) {
    ENTER;
    CHECK(properties[0] == 1 && properties[1] == 0 && properties[2] == 1 && properties[3] == 1, "properties");
    return *out = make(POOL), leave(OK);
}

Result cuMemPoolDestroy(Object* pool) {
    ENTER;
    ALIVE(pool, POOL);
    CHECK(!blocks, "memory of the pool is left");
    destroy(pool);
    return leave(OK);
}

Result cuMemPoolTrimTo(Object* pool, size_t keep) {
    ENTER;
    ALIVE(pool, POOL);
    CHECK(!keep, "%zu bytes", keep);
    return leave(OK);
}

Result cuMemPoolSetAttribute(Object* pool, int attribute, void* value) {
    ENTER;
    ALIVE(pool, POOL);
    CHECK(attribute == 4 && *(uint64_t*)value == UINT64_MAX, "attribute %d", attribute);
    return leave(OK);
}

// A pool that holds 4096 bytes more than are used.
Result cuMemPoolGetAttribute(Object* pool, int attribute, void* value) {
    ENTER;
    ALIVE(pool, POOL);
    CHECK(attribute == 5 || attribute == 7, "attribute %d", attribute);
    *(uint64_t*)value = used + (attribute == 5 ? 4096 : 0);
    return leave(OK);
}

Result cuMemAllocFromPoolAsync(Address* out, size_t bytes, Object* pool, Object* stream) {
    ENTER;
    ALIVE(pool, POOL);
    ALIVE(stream, STREAM);
    return leave(allocate(out, bytes));
}

Result cuMemFreeAsync(Address address, Object* stream) {
    ENTER;
    ALIVE(stream, STREAM);
    valid(address, 1);
    Block* b = block_of(address, 1);
    CHECK(b->address == address, "not the beginning");
    b->given_back = 1;
    submit((Op){.kind = FREE, .to = address});
    return leave(OK);
}

Result cuMemHostAlloc(void** out, size_t bytes, unsigned flags) {
    ENTER;
    CHECK(bytes && (flags == 0 || flags == 4), "flags %u", flags);
    Pinned* p = malloc(sizeof *p);
    *p = (Pinned){.bytes = malloc(bytes), .length = bytes, .flags = flags, .next = pinned};
    pinned = p;
    return *out = p->bytes, leave(OK);
}

Result cuMemFreeHost(void* bytes) {
    ENTER;
    Pinned* gone = pinned_of(bytes, 1);
    CHECK(gone && gone->bytes == bytes, "not from cuMemHostAlloc");
    for (Op* op = queue; op; op = op->next) {
        const unsigned char* host = op->host;
        CHECK(!host || host < gone->bytes || host >= gone->bytes + gone->length, "a copy is under way");
    }
    for (Pinned** p = &pinned; *p; p = &(*p)->next) {
        if (*p == gone) {
            *p = gone->next;
            break;
        }
    }
    free(gone->bytes);
    free(gone);
    return leave(OK);
}

Result cuMemsetD8Async(Address to, unsigned char value, size_t bytes, Object* stream) {
    ENTER;
    ALIVE(stream, STREAM);
    CHECK(!value && bytes, "%zu bytes of %u", bytes, value);
    valid(to, bytes);
    submit((Op){.kind = SET, .to = to, .bytes = bytes});
    return leave(OK);
}

Result cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, Object* stream) {
    ENTER;
    ALIVE(stream, STREAM);
    Pinned* p = pinned_of(from, bytes);
    CHECK(bytes && p && p->flags == 4, "from memory that is not write-combined");
    valid(to, bytes);
    submit((Op){.kind = UP, .to = to, .host = (void*)from, .bytes = bytes});
    return leave(OK);
}

Result cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, Object* stream) {
    ENTER;
    ALIVE(stream, STREAM);
    Pinned* p = pinned_of(to, bytes);
    CHECK(bytes && p && p->flags == 0, "to memory that is not cached");
    valid(from, bytes);
    submit((Op){.kind = DOWN, .from = from, .host = to, .bytes = bytes});
    return leave(OK);
}

// ---- kernels ---------------------------------------------------------------------------

// Images that begin with "refuse" are for no device.
Result cuModuleLoadData(Object** out, const char* image) {
    ENTER;
    if (!strncmp(image, "refuse", 6)) return leave(209);
    return *out = make(MODULE), leave(OK);
}

Result cuModuleUnload(Object* module) {
    ENTER;
    ALIVE(module, MODULE);
    CHECK(!objects[EXEC], "a graph still has kernels");
    for (Op* op = queue; op; op = op->next) CHECK(op->kind != KERNEL, "a kernel is under way");
    destroy(module);
    return leave(OK);
}

Result cuModuleGetFunction(Object** out, Object* module, const char* name) {
    ENTER;
    ALIVE(module, MODULE);
    if (strcmp(name, "rms_norm_f32")) return leave(NOT_FOUND);
    *out = make(FUNCTION);
    (*out)->module = module;
    (*out)->max_shared = (48 << 10) - 128;
    return leave(OK);
}

Result cuFuncGetAttribute(int* value, int attribute, Object* function) {
    ENTER;
    ALIVE(function, FUNCTION);
    CHECK(attribute == 0 || attribute == 1, "attribute %d", attribute);
    *value = attribute == 0 ? 256 : 128;
    return leave(OK);
}

Result cuFuncSetAttribute(Object* function, int attribute, int value) {
    ENTER;
    ALIVE(function, FUNCTION);
    if (attribute != 8 || value + 128 > 227 << 10) return leave(INVALID);
    function->max_shared = value;
    return leave(OK);
}

#ifndef WITHOUT_PARAM_INFO
Result cuFuncGetParamInfo(Object* function, size_t index, size_t* offset, size_t* size) {
    ENTER;
    ALIVE(function, FUNCTION);
    if (index >= 5) return leave(INVALID);
    *offset = index ? 16 + 8 * (index - 1) : 0;
    *size = index ? 8 : 12;
    return leave(OK);
}
#endif

static Op kernel(Object* function, const unsigned* shape, unsigned shared, void** arguments) {
    ALIVE(function, FUNCTION);
    ALIVE(function->module, MODULE);
    CHECK(shape[0] && shape[1] && shape[2] && shape[3] && shape[3] <= 256, "the launch is impossible");
    CHECK(shape[4] == 1 && shape[5] == 1, "blocks are not in x alone");
    CHECK((int)shared <= function->max_shared, "%u bytes of shared memory", shared);
    Op op = {.kind = KERNEL, .object = function};
    CHECK((uintptr_t)arguments[0] % 8 == 0, "misaligned parameters");
    memcpy(op.params, arguments[0], 12);
    for (int i = 0; i < 4; i++) {
        memcpy(&op.operands[i], arguments[1 + i], 8);
        valid(op.operands[i], 4);
    }
    return op;
}

Result cuLaunchKernel(Object* function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, Object* stream, void** arguments, void** extra) {
    ENTER;
    ALIVE(stream, STREAM);
    CHECK(!extra, "extra arguments");
    unsigned shape[] = {x, y, z, bx, by, bz};
    submit(kernel(function, shape, shared, arguments));
    return leave(OK);
}

typedef struct {
    Object* function;
    unsigned shape[6];
    unsigned shared;
    void **arguments, **extra;
    void *kernel, *context;
} Node;

Result cuGraphCreate(Object** out, unsigned flags) {
    ENTER;
    CHECK(!flags, "flags");
    return *out = make(GRAPH), leave(OK);
}

Result cuGraphDestroy(Object* graph) {
    ENTER;
    ALIVE(graph, GRAPH);
    destroy(graph);
    return leave(OK);
}

Result cuGraphAddKernelNode_v2(Object** out, Object* graph, Object** before, size_t count, const Node* node) {
    ENTER;
    ALIVE(graph, GRAPH);
    CHECK(graph->last ? count == 1 && *before == graph->last : !count, "not after the node before");
    CHECK(!node->extra && !node->kernel && !node->context, "parameters");
    Op* op = malloc(sizeof *op);
    *op = kernel(node->function, node->shape, node->shared, node->arguments);
    op->next = NULL;
    Op** end = &graph->nodes;
    while (*end) end = &(*end)->next;
    *end = op;
    graph->last = *out = calloc(1, sizeof(Object));
    return leave(OK);
}

Result cuGraphInstantiateWithFlags(Object** out, Object* graph, unsigned long long flags) {
    ENTER;
    ALIVE(graph, GRAPH);
    CHECK(!flags && graph->nodes, "flags, or nothing to do");
    *out = make(EXEC);
    (*out)->nodes = graph->nodes;
    return leave(OK);
}

Result cuGraphExecDestroy(Object* graph) {
    ENTER;
    ALIVE(graph, EXEC);
    destroy(graph);
    return leave(OK);
}

Result cuGraphUpload(Object* graph, Object* stream) {
    ENTER;
    ALIVE(graph, EXEC);
    ALIVE(stream, STREAM);
    return leave(OK);
}

Result cuGraphLaunch(Object* graph, Object* stream) {
    ENTER;
    ALIVE(graph, EXEC);
    ALIVE(stream, STREAM);
    for (Op* op = graph->nodes; op; op = op->next) {
        for (int i = 0; i < 4; i++) valid(op->operands[i], 4);
        submit(*op);
    }
    return leave(OK);
}

// ---- words -----------------------------------------------------------------------------

Result cuGetErrorName(Result code, const char** name) {
    *name = code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : code == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : NULL;
    return *name ? OK : INVALID;
}

Result cuGetErrorString(Result code, const char** words) {
    *words = code == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" : NULL;
    return *words ? OK : INVALID;
}
