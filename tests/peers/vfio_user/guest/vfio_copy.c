// SPDX-License-Identifier: Apache-2.0
/*
 * The copy engine driven through VFIO, behind the guest's IOMMU.
 *
 *   vfio_copy ADDRESS GROUP intx|msi|msix ROUNDS
 *
 * The device ADDRESS, e.g. 0000:01:00.0, is bound to vfio-pci and in this group.  Bus addresses are
 * of the program's choosing.  What is checked:
 *
 * - without Bus Master Enable the engine halts, by the address of its ring;
 * - ROUNDS times 16 copies of up to 64 KiB arrive, each round told by an interrupt;
 * - what is mapped for reading only cannot be written, and what was mapped cannot be reached any
 *   more: RESULT says so, and FAULT the address;
 * - memory that is unmapped while it is copied is unmapped, and its copies end;
 * - VFIO's reset leaves registers as at power-on, and a device that works.
 */
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include "user.h"

#define DEPTH 16u
#define PIECE 65536u
#define RING_AT 0x100000000ull
#define SOURCE_AT 0x7000000000ull /* 39 bits: what the IOMMU has at least */
#define TARGET_AT 0x200000ull
#define NOWHERE 0x5000000000ull

static int container, device;
static unsigned int kind;
static unsigned long long config_offset;

static void map(void *memory, uint64_t size, uint64_t address, uint32_t flags) {
    struct vfio_iommu_type1_dma_map what = {
        .argsz = sizeof(what), .flags = flags, .vaddr = (uintptr_t)memory, .iova = address,
        .size = size};
    CHECK(ioctl(container, VFIO_IOMMU_MAP_DMA, &what) == 0);
}

static void unmap(uint64_t address, uint64_t size) {
    struct vfio_iommu_type1_dma_unmap what = {
        .argsz = sizeof(what), .iova = address, .size = size};
    CHECK(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &what) == 0);
    CHECK(what.size == size);
}

static void *memory(size_t size) {
    void *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mapped != MAP_FAILED);
    memset(mapped, 1, size); /* or what is mapped for reading is the page of zeros */
    return mapped;
}

static void open_device(const char *address, const char *group_number) {
    char path[64];
    snprintf(path, sizeof(path), "/dev/vfio/%s", group_number);
    container = open("/dev/vfio/vfio", O_RDWR);
    CHECK(container >= 0);
    int group = open(path, O_RDWR);
    CHECK(group >= 0);
    struct vfio_group_status status = {.argsz = sizeof(status)};
    CHECK(ioctl(group, VFIO_GROUP_GET_STATUS, &status) == 0);
    CHECK(status.flags & VFIO_GROUP_FLAGS_VIABLE);
    CHECK(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
    CHECK(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
    device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address);
    CHECK(device >= 0);
}

static struct vfio_region_info region(unsigned int index) {
    struct vfio_region_info info = {.argsz = sizeof(info), .index = index};
    CHECK(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) == 0);
    return info;
}

static void command(uint16_t set, uint16_t clear) {
    uint16_t value;
    CHECK(pread(device, &value, 2, (off_t)(config_offset + PCI_COMMAND)) == 2);
    value = htole16((uint16_t)((le16toh(value) | set) & ~clear));
    CHECK(pwrite(device, &value, 2, (off_t)(config_offset + PCI_COMMAND)) == 2);
}

/* Every vector that there is goes to one eventfd. */
static int connect_interrupts(void) {
    struct vfio_irq_info info = {.argsz = sizeof(info), .index = kind};
    CHECK(ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &info) == 0);
    CHECK(info.count >= 1);
    if (kind == VFIO_PCI_INTX_IRQ_INDEX)
        CHECK(info.count == 1 && info.flags & VFIO_IRQ_INFO_MASKABLE);
    int event = eventfd(0, EFD_NONBLOCK);
    CHECK(event >= 0);
    size_t size = sizeof(struct vfio_irq_set) + info.count * sizeof(int32_t);
    struct vfio_irq_set *set = calloc(1, size);
    CHECK(set);
    set->argsz = (uint32_t)size;
    set->flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    set->index = kind;
    set->count = info.count;
    for (uint32_t vector = 0; vector < info.count; vector++)
        memcpy(set->data + vector * sizeof(int32_t), &event, sizeof(int32_t));
    CHECK(ioctl(device, VFIO_DEVICE_SET_IRQS, set) == 0);
    printf("%u vectors\n", info.count);
    free(set);
    return event;
}

static void unmask(struct engine *engine) {
    (void)engine;
    struct vfio_irq_set set = {
        .argsz = sizeof(set),
        .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK,
        .index = kind,
        .count = 1,
    };
    CHECK(ioctl(device, VFIO_DEVICE_SET_IRQS, &set) == 0);
}

static void expect_fault(struct engine *engine, uint64_t from, uint64_t to, uint64_t at) {
    uint32_t index = describe(engine, from, to, PAGE, FLAG_INTERRUPT);
    CHECK(go(engine, index) == RESULT_FAULT);
    CHECK(le32toh(engine->ring[index].moved) == 0);
    CHECK(get64(engine, FAULT) == at);
}

static void copies(struct engine *engine, unsigned char *source, unsigned char *target,
                   unsigned long rounds) {
    for (uint32_t round = 0; round < rounds; round++) {
        uint32_t index = 0, size = PIECE - round % 1000;
        fill(source, DEPTH * PIECE, round);
        for (uint32_t one = 0; one < DEPTH; one++)
            index = describe(engine, SOURCE_AT + one * PIECE, TARGET_AT + one * PIECE, size,
                             one + 1 == DEPTH ? FLAG_INTERRUPT : 0);
        CHECK(go(engine, index) == RESULT_OK);
        for (uint32_t one = 0; one < DEPTH; one++)
            CHECK(!memcmp(source + one * PIECE, target + one * PIECE, size));
    }
}

/* Its copies are under way, or not begun, or done, when the target goes. */
static void unmap_under_way(struct engine *engine, unsigned char *target) {
    for (uint32_t round = 0; round < 10; round++) {
        uint32_t first = engine->tail, index = 0;
        for (uint32_t one = 0; one < DEPTH; one++)
            index = describe(engine, SOURCE_AT, TARGET_AT, DEPTH * PIECE, 0);
        engine->ring[index].flags = htole32(FLAG_INTERRUPT);
        __sync_synchronize();
        put(engine, TAIL, engine->tail);
        unmap(TARGET_AT, DEPTH * PIECE);
        memset(target, 0x5a, DEPTH * PIECE);
        while (!(le32toh(engine->ring[index].result) & RESULT_DONE))
            interrupted(engine);
        for (uint32_t one = 0; one < DEPTH; one++) {
            uint32_t result = le32toh(engine->ring[(first + one) % RING_ENTRIES].result);
            CHECK(result == RESULT_OK || result == RESULT_FAULT);
        }
        for (size_t byte = 0; byte < DEPTH * PIECE; byte++)
            CHECK(target[byte] == 0x5a); /* nothing was written after the unmapping */
        map(target, DEPTH * PIECE, TARGET_AT, VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE);
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 5);
    kind = !strcmp(argv[3], "intx")  ? VFIO_PCI_INTX_IRQ_INDEX
           : !strcmp(argv[3], "msi") ? VFIO_PCI_MSI_IRQ_INDEX
                                     : VFIO_PCI_MSIX_IRQ_INDEX;
    open_device(argv[1], argv[2]);
    config_offset = region(VFIO_PCI_CONFIG_REGION_INDEX).offset;
    struct vfio_region_info bar = region(VFIO_PCI_BAR0_REGION_INDEX);
    struct engine engine = {.ring_address = RING_AT, .width = 8};
    engine.bar = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, device,
                      (off_t)bar.offset);
    CHECK(engine.bar != MAP_FAILED);
    unsigned char *source = memory(DEPTH * PIECE), *target = memory(DEPTH * PIECE);
    engine.ring = memory(PAGE);
    map((void *)engine.ring, PAGE, RING_AT, VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE);
    map(source, DEPTH * PIECE, SOURCE_AT, VFIO_DMA_MAP_FLAG_READ);
    map(target, DEPTH * PIECE, TARGET_AT, VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE);

    command(PCI_COMMAND_MEMORY, PCI_COMMAND_MASTER);
    engine.interrupt = connect_interrupts();
    if (kind == VFIO_PCI_INTX_IRQ_INDEX) {
        engine.after = unmask;
        reset(&engine);
        set_up(&engine);
        describe(&engine, SOURCE_AT, TARGET_AT, PAGE, FLAG_INTERRUPT);
        put(&engine, TAIL, 1);
        CHECK(interrupted(&engine) == CAUSE_HALTED);
        CHECK(get(&engine, STATUS) == STATUS_HALTED);
        CHECK(get64(&engine, FAULT) == RING_AT);
        printf("not a bus master\n");
    }
    command(PCI_COMMAND_MASTER, 0);
    reset(&engine);
    set_up(&engine);
    copies(&engine, source, target, strtoul(argv[4], NULL, 10));
    printf("copied\n");

    expect_fault(&engine, SOURCE_AT, SOURCE_AT + PIECE, SOURCE_AT + PIECE);
    expect_fault(&engine, NOWHERE, TARGET_AT, NOWHERE);
    unmap(SOURCE_AT, DEPTH * PIECE);
    expect_fault(&engine, SOURCE_AT, TARGET_AT, SOURCE_AT);
    map(source, DEPTH * PIECE, SOURCE_AT, VFIO_DMA_MAP_FLAG_READ);
    copies(&engine, source, target, 1);
    printf("refused\n");

    unmap_under_way(&engine, target);
    printf("unmapped under way\n");

    CHECK(ioctl(device, VFIO_DEVICE_RESET) == 0);
    command(PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 0);
    CHECK(get64(&engine, RING) == 0 && get(&engine, ENTRIES) == 0 && get(&engine, HEAD) == 0);
    set_up(&engine);
    copies(&engine, source, target, 1);
    printf("reset\n");
    return 0;
}
