/* SPDX-License-Identifier: Apache-2.0
 *
 * What the copy engine's drivers in user space share: the registers through a mapped BAR, a ring, and
 * how a failure is told.  Each program is one static file, ends with status 0 or says what failed.
 */
#ifndef USER_H
#define USER_H

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "copy_engine.h"

#define PAGE 4096u
#define RING_ENTRIES 64u
#define PATIENCE 10000 /* milliseconds */

#define CHECK(what)                                                                                \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #what, strerror(errno));        \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

struct descriptor {
    uint64_t source, target;
    uint32_t length, flags, result, moved;
};

struct engine {
    volatile unsigned char *bar;
    volatile struct descriptor *ring;
    uint64_t ring_address;
    uint32_t tail;
    int interrupt; /* a descriptor that is readable when it has interrupted ... */
    size_t width;  /* ... in so many bytes */
    void (*after)(struct engine *); /* the interrupt is acknowledged: what comes next may */
};

static inline uint32_t get(struct engine *engine, unsigned int offset) {
    return le32toh(*(volatile uint32_t *)(engine->bar + offset));
}

static inline void put(struct engine *engine, unsigned int offset, uint32_t value) {
    *(volatile uint32_t *)(engine->bar + offset) = htole32(value);
}

static inline uint64_t get64(struct engine *engine, unsigned int offset) {
    return le64toh(*(volatile uint64_t *)(engine->bar + offset));
}

static inline void put64(struct engine *engine, unsigned int offset, uint64_t value) {
    *(volatile uint64_t *)(engine->bar + offset) = htole64(value);
}

static inline void set_up(struct engine *engine) {
    engine->tail = 0;
    put64(engine, RING, engine->ring_address);
    put(engine, ENTRIES, RING_ENTRIES);
    put(engine, IRQ_ENABLE, CAUSES);
}

static inline void reset(struct engine *engine) {
    put(engine, CONTROL, CONTROL_RESET);
    for (int turns = 0; get(engine, STATUS) & STATUS_RESETTING; turns++) {
        CHECK(turns < 10000);
        usleep(100);
    }
}

/* Waits for an interrupt, and acknowledges it; gives its causes. */
static inline uint32_t interrupted(struct engine *engine) {
    uint64_t count = 0;
    struct pollfd told = {.fd = engine->interrupt, .events = POLLIN};
    CHECK(poll(&told, 1, PATIENCE) == 1);
    CHECK(read(engine->interrupt, &count, engine->width) == (ssize_t)engine->width);
    uint32_t causes = get(engine, IRQ);
    put(engine, IRQ, causes);
    if (engine->after)
        engine->after(engine);
    return causes;
}

static inline uint32_t describe(struct engine *engine, uint64_t from, uint64_t to, uint32_t length,
                                uint32_t flags) {
    uint32_t index = engine->tail;
    volatile struct descriptor *one = &engine->ring[index];
    one->source = htole64(from);
    one->target = htole64(to);
    one->length = htole32(length);
    one->flags = htole32(flags);
    one->result = 0;
    one->moved = 0;
    engine->tail = (index + 1) % RING_ENTRIES;
    return index;
}

/* Tells the engine of what was described, and waits for an interrupt, and until `index` is done;
 * gives its result. */
static inline uint32_t go(struct engine *engine, uint32_t index) {
    __sync_synchronize();
    put(engine, TAIL, engine->tail);
    do
        interrupted(engine);
    while (!(le32toh(engine->ring[index].result) & RESULT_DONE));
    __sync_synchronize();
    return le32toh(engine->ring[index].result);
}

static inline void fill(unsigned char *bytes, size_t count, uint32_t seed) {
    for (size_t byte = 0; byte < count; byte++)
        bytes[byte] = (unsigned char)((byte * 2654435761u + seed * 40503u) >> 11);
}

#endif
