// SPDX-License-Identifier: Apache-2.0
/*
 * The copy engine driven through UIO, without an IOMMU: bus addresses are physical ones.
 *
 *   uio_copy ADDRESS UIO ROUNDS
 *
 * The device ADDRESS, e.g. 0000:01:00.0, is bound to uio_pci_generic, whose file is UIO.  The kernel
 * masks INTx by the Command register's Interrupt Disable each time it comes, when the Status
 * register's Interrupt Status says that it is the device's; here it is permitted again.
 */
#include <linux/pci_regs.h>

#include "user.h"

#define DEPTH 16u

static int config;

static uint16_t command(uint16_t set, uint16_t clear) {
    uint16_t value, after;
    CHECK(pread(config, &value, 2, PCI_COMMAND) == 2);
    after = htole16((uint16_t)((le16toh(value) | set) & ~clear));
    CHECK(pwrite(config, &after, 2, PCI_COMMAND) == 2);
    return le16toh(value);
}

static void permit(struct engine *engine) {
    (void)engine;
    CHECK(command(0, PCI_COMMAND_INTX_DISABLE) & PCI_COMMAND_INTX_DISABLE);
}

static uint64_t physical(const void *memory) {
    static int map = -1;
    uint64_t entry;
    if (map < 0)
        map = open("/proc/self/pagemap", O_RDONLY);
    CHECK(map >= 0);
    CHECK(pread(map, &entry, 8, (off_t)((uintptr_t)memory / PAGE * 8)) == 8);
    CHECK(entry >> 63); /* present */
    return (entry & ((1ull << 55) - 1)) * PAGE + (uintptr_t)memory % PAGE;
}

static void *memory(size_t size) {
    void *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
    CHECK(mapped != MAP_FAILED);
    return mapped;
}

int main(int argc, char **argv) {
    CHECK(argc == 4);
    char path[96];
    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource0", argv[1]);
    int resource = open(path, O_RDWR | O_SYNC);
    CHECK(resource >= 0);
    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/config", argv[1]);
    config = open(path, O_RDWR);
    CHECK(config >= 0);
    struct engine engine = {.after = permit, .width = 4};
    engine.bar = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, resource, 0);
    CHECK(engine.bar != MAP_FAILED);
    engine.interrupt = open(argv[2], O_RDWR);
    CHECK(engine.interrupt >= 0);
    engine.ring = memory(PAGE);
    engine.ring_address = physical((void *)engine.ring);
    unsigned char *source = memory(DEPTH * PAGE), *target = memory(DEPTH * PAGE);

    command(PCI_COMMAND_MEMORY, PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);
    reset(&engine);
    set_up(&engine);
    describe(&engine, physical(source), physical(target), PAGE, FLAG_INTERRUPT);
    put(&engine, TAIL, 1);
    CHECK(interrupted(&engine) == CAUSE_HALTED);
    CHECK(get64(&engine, FAULT) == engine.ring_address);
    printf("not a bus master\n");

    command(PCI_COMMAND_MASTER, 0);
    reset(&engine);
    set_up(&engine);
    unsigned long rounds = strtoul(argv[3], NULL, 10);
    for (uint32_t round = 0; round < rounds; round++) {
        uint32_t index = 0;
        fill(source, DEPTH * PAGE, round);
        for (uint32_t one = 0; one < DEPTH; one++)
            index = describe(&engine, physical(source + one * PAGE), physical(target + one * PAGE),
                             PAGE, one + 1 == DEPTH ? FLAG_INTERRUPT : 0);
        CHECK(go(&engine, index) == RESULT_OK);
        CHECK(!memcmp(source, target, DEPTH * PAGE));
    }
    printf("copied\n");

    uint32_t index = describe(&engine, 1ull << 60, physical(target), PAGE, FLAG_INTERRUPT);
    CHECK(go(&engine, index) == RESULT_FAULT);
    CHECK(get64(&engine, FAULT) == 1ull << 60);
    printf("refused\n");
    return 0;
}
