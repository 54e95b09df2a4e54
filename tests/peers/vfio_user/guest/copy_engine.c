// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * A driver of the copy engine for the guest's kernel, as somebody would write it: the DMA API, one
 * coherent ring, streaming mappings of what is copied, and interrupts by INTx, MSI or MSI-X.
 *
 * What a test does with a device is under it in /sys/bus/pci/devices:
 *
 *   copy      (written) "ROUNDS BYTES DEPTH": so often DEPTH copies of BYTES, each mapped, compared
 *             and unmapped; with a fourth word "held" they are mapped once. Fails with ENODEV when
 *             the device is gone, ETIMEDOUT, EIO (a copy failed), EBADMSG (bytes are wrong).
 *   unmapped_source, unmapped_target
 *             (read) a copy from, or to, what is no longer mapped: "RESULT FAULT ADDRESS", hexadecimal
 *   state     (read) "KIND VECTORS DONE FAILED": interrupts, and how many of each line came
 *
 * Whoever likes may have it under the kernel's license: on s390x, modules under others get no access
 * to a function's registers.
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/slab.h>

#include "copy_engine.h"

#define NAME "copy_engine"
#define RING_ENTRIES 128
#define MOST_DEPTH 64
#define PATIENCE (5 * HZ)
#define UNMAPPED_BYTES (4 * PAGE_SIZE) /* from where whole pages come from */

static char *irq = "msix";
module_param(irq, charp, 0444);
MODULE_PARM_DESC(irq, "intx, msi or msix");

struct descriptor {
	__le64 source, target;
	__le32 length, flags, result, moved;
};

struct buffer {
	void *source, *target;
	dma_addr_t from, to;
};

struct copy_engine {
	struct pci_dev *pci;
	void __iomem *bar;
	struct descriptor *ring;
	dma_addr_t ring_address;
	struct mutex lock; /* of everything below, and of the registers but IRQ */
	struct completion signal;
	int vectors;
	unsigned int tail;
	atomic_t done, failed;
	struct buffer buffers[MOST_DEPTH];
};

static irqreturn_t acknowledge(struct copy_engine *engine, u32 causes)
{
	u32 told = readl(engine->bar + IRQ), raised = told & causes;

	if (!raised || told == ~0u) /* all ones: the device is gone */
		return IRQ_NONE;
	writel(raised, engine->bar + IRQ);
	if (raised & CAUSE_DONE)
		atomic_inc(&engine->done);
	if (raised & (CAUSE_FAILED | CAUSE_HALTED))
		atomic_inc(&engine->failed);
	complete(&engine->signal);
	return IRQ_HANDLED;
}

static irqreturn_t on_any(int number, void *engine)
{
	return acknowledge(engine, CAUSES);
}

static irqreturn_t on_done(int number, void *engine)
{
	return acknowledge(engine, CAUSE_DONE);
}

static irqreturn_t on_failed(int number, void *engine)
{
	return acknowledge(engine, CAUSE_FAILED | CAUSE_HALTED);
}

static bool is_gone(struct copy_engine *engine)
{
	return readl(engine->bar + STATUS) == ~0u;
}

/* Tells the engine of its ring; it has to be reset. */
static void set_up(struct copy_engine *engine)
{
	engine->tail = 0;
	writeq(engine->ring_address, engine->bar + RING);
	writel(RING_ENTRIES, engine->bar + ENTRIES);
	writel(CAUSES, engine->bar + IRQ_ENABLE);
}

/* The engine's own reset: what it was doing has stopped when this returns 0. */
static int reset(struct copy_engine *engine)
{
	unsigned long deadline = jiffies + PATIENCE;

	writel(CONTROL_RESET, engine->bar + CONTROL);
	while (readl(engine->bar + STATUS) & STATUS_RESETTING) {
		if (is_gone(engine))
			return -ENODEV;
		if (time_after(jiffies, deadline))
			return -ETIMEDOUT;
		usleep_range(100, 1000);
	}
	return 0;
}

/* Puts a descriptor into the ring; `go` tells the engine. */
static unsigned int describe(struct copy_engine *engine, dma_addr_t from, dma_addr_t to, u32 length,
			     u32 flags)
{
	unsigned int index = engine->tail;
	struct descriptor *one = &engine->ring[index];

	one->source = cpu_to_le64(from);
	one->target = cpu_to_le64(to);
	one->length = cpu_to_le32(length);
	one->flags = cpu_to_le32(flags);
	one->result = 0;
	one->moved = 0;
	engine->tail = (index + 1) % RING_ENTRIES;
	return index;
}

/* Until an interrupt has come and the descriptor says that it is done. */
static int wait_for(struct copy_engine *engine, unsigned int index)
{
	unsigned long deadline = jiffies + PATIENCE;

	do {
		long left = deadline - jiffies;

		if (left <= 0 || !wait_for_completion_timeout(&engine->signal, left)) {
			if (is_gone(engine))
				return -ENODEV;
			dev_err(&engine->pci->dev, "no interrupt: status %x head %u tail %u irq %x\n",
				readl(engine->bar + STATUS), readl(engine->bar + HEAD),
				engine->tail, readl(engine->bar + IRQ));
			return -ETIMEDOUT;
		}
	} while (!(le32_to_cpu(READ_ONCE(engine->ring[index].result)) & RESULT_DONE));
	dma_rmb();
	return 0;
}

static int go(struct copy_engine *engine, unsigned int last)
{
	reinit_completion(&engine->signal);
	writel(engine->tail, engine->bar + TAIL); /* orders what is in memory before it */
	return wait_for(engine, last);
}

static int map(struct copy_engine *engine, struct buffer *buffer, u32 length)
{
	struct device *device = &engine->pci->dev;

	buffer->from = dma_map_single(device, buffer->source, length, DMA_TO_DEVICE);
	if (dma_mapping_error(device, buffer->from))
		return -ENOMEM;
	buffer->to = dma_map_single(device, buffer->target, length, DMA_FROM_DEVICE);
	if (dma_mapping_error(device, buffer->to)) {
		dma_unmap_single(device, buffer->from, length, DMA_TO_DEVICE);
		return -ENOMEM;
	}
	return 0;
}

static void unmap_source(struct copy_engine *engine, struct buffer *buffer, u32 length)
{
	dma_unmap_single(&engine->pci->dev, buffer->from, length, DMA_TO_DEVICE);
}

static void unmap_target(struct copy_engine *engine, struct buffer *buffer, u32 length)
{
	dma_unmap_single(&engine->pci->dev, buffer->to, length, DMA_FROM_DEVICE);
}

static void unmap(struct copy_engine *engine, struct buffer *buffer, u32 length)
{
	unmap_source(engine, buffer, length);
	unmap_target(engine, buffer, length);
}

static int map_all(struct copy_engine *engine, u32 length, unsigned int depth)
{
	unsigned int done;
	int error = 0;

	for (done = 0; done < depth && !error; done++)
		error = map(engine, &engine->buffers[done], length);
	while (error && --done > 0)
		unmap(engine, &engine->buffers[done - 1], length);
	return error;
}

static void unmap_all(struct copy_engine *engine, u32 length, unsigned int depth)
{
	while (depth--)
		unmap(engine, &engine->buffers[depth], length);
}

static int compare(struct copy_engine *engine, u32 length, unsigned int depth, unsigned int first)
{
	unsigned int one;

	for (one = 0; one < depth; one++) {
		struct descriptor *told = &engine->ring[(first + one) % RING_ENTRIES];
		struct buffer *buffer = &engine->buffers[one];

		if (le32_to_cpu(told->result) != RESULT_OK || le32_to_cpu(told->moved) != length)
			return -EIO;
		if (memcmp(buffer->source, buffer->target, length))
			return -EBADMSG;
	}
	return 0;
}

static int copy_once(struct copy_engine *engine, u32 length, unsigned int depth, bool held)
{
	unsigned int first = engine->tail, last = first, one;
	int error;

	for (one = 0; one < depth; one++) {
		/* Another byte at each end; what is between them is compared, too. */
		u8 *source = engine->buffers[one].source;

		source[0]++;
		source[length - 1]--;
	}
	error = held ? 0 : map_all(engine, length, depth);
	if (error)
		return error;
	if (held)
		for (one = 0; one < depth; one++)
			dma_sync_single_for_device(&engine->pci->dev, engine->buffers[one].from,
						   length, DMA_TO_DEVICE);
	for (one = 0; one < depth; one++)
		last = describe(engine, engine->buffers[one].from, engine->buffers[one].to, length,
				one + 1 == depth ? FLAG_INTERRUPT : 0);
	error = go(engine, last);
	if (error && error != -ENODEV)
		reset(engine); /* before its memory is taken away */
	if (held)
		for (one = 0; one < depth; one++)
			dma_sync_single_for_cpu(&engine->pci->dev, engine->buffers[one].to, length,
						DMA_FROM_DEVICE);
	else
		unmap_all(engine, length, depth);
	if (error && error != -ENODEV)
		set_up(engine);
	return error ? error : compare(engine, length, depth, first);
}

static void free_buffers(struct copy_engine *engine)
{
	unsigned int one;

	for (one = 0; one < MOST_DEPTH; one++) {
		kfree(engine->buffers[one].source);
		kfree(engine->buffers[one].target);
		engine->buffers[one].source = engine->buffers[one].target = NULL;
	}
}

static int allocate_buffers(struct copy_engine *engine, u32 length, unsigned int depth)
{
	unsigned int one, byte;

	for (one = 0; one < depth; one++) {
		u8 *source = kmalloc(length, GFP_KERNEL), *target = kzalloc(length, GFP_KERNEL);

		engine->buffers[one].source = source;
		engine->buffers[one].target = target;
		if (!source || !target) {
			free_buffers(engine);
			return -ENOMEM;
		}
		for (byte = 0; byte < length; byte++)
			source[byte] = (byte * 2654435761u + one) >> 13;
	}
	return 0;
}

static ssize_t copy_store(struct device *device, struct device_attribute *attribute,
			  const char *text, size_t size)
{
	struct copy_engine *engine = dev_get_drvdata(device);
	unsigned int rounds, length, depth;
	char word[8] = "";
	bool held;
	int error, words = sscanf(text, "%u %u %u %7s", &rounds, &length, &depth, word);

	held = words == 4 && !strcmp(word, "held");
	if (words < 3 || !length || length > LONGEST || !depth || depth > MOST_DEPTH)
		return -EINVAL;
	mutex_lock(&engine->lock);
	error = allocate_buffers(engine, length, depth);
	if (!error && held)
		error = map_all(engine, length, depth);
	if (!error) {
		while (rounds-- && !error && !signal_pending(current))
			error = copy_once(engine, length, depth, held);
		if (held)
			unmap_all(engine, length, depth);
	}
	free_buffers(engine);
	mutex_unlock(&engine->lock);
	return error ? error : size;
}
static DEVICE_ATTR_WO(copy);

/* A copy one end of which is no longer mapped. */
static ssize_t copy_unmapped(struct device *device, char *text, bool target)
{
	struct copy_engine *engine = dev_get_drvdata(device);
	struct buffer *buffer = &engine->buffers[0];
	unsigned int index;
	ssize_t size;
	int error;

	mutex_lock(&engine->lock);
	error = allocate_buffers(engine, UNMAPPED_BYTES, 1);
	if (!error)
		error = map(engine, buffer, UNMAPPED_BYTES);
	if (!error) {
		if (target)
			unmap_target(engine, buffer, UNMAPPED_BYTES);
		else
			unmap_source(engine, buffer, UNMAPPED_BYTES);
		index = describe(engine, buffer->from, buffer->to, UNMAPPED_BYTES, FLAG_INTERRUPT);
		error = go(engine, index);
		if (target)
			unmap_source(engine, buffer, UNMAPPED_BYTES);
		else
			unmap_target(engine, buffer, UNMAPPED_BYTES);
	}
	size = error ? error
		     : scnprintf(text, PAGE_SIZE, "%x %llx %llx\n",
				 le32_to_cpu(engine->ring[index].result),
				 readq(engine->bar + FAULT),
				 (u64)(target ? buffer->to : buffer->from));
	free_buffers(engine);
	mutex_unlock(&engine->lock);
	return size;
}

static ssize_t unmapped_source_show(struct device *device, struct device_attribute *attribute,
				    char *text)
{
	return copy_unmapped(device, text, false);
}
static DEVICE_ATTR_RO(unmapped_source);

static ssize_t unmapped_target_show(struct device *device, struct device_attribute *attribute,
				    char *text)
{
	return copy_unmapped(device, text, true);
}
static DEVICE_ATTR_RO(unmapped_target);

static ssize_t state_show(struct device *device, struct device_attribute *attribute, char *text)
{
	struct copy_engine *engine = dev_get_drvdata(device);
	const char *kind = engine->pci->msix_enabled ? "msix" : engine->pci->msi_enabled ? "msi" : "intx";

	return scnprintf(text, PAGE_SIZE, "%s %d %d %d\n", kind, engine->vectors,
			 atomic_read(&engine->done), atomic_read(&engine->failed));
}
static DEVICE_ATTR_RO(state);

static struct attribute *attributes[] = {
	&dev_attr_copy.attr,
	&dev_attr_unmapped_source.attr,
	&dev_attr_unmapped_target.attr,
	&dev_attr_state.attr,
	NULL,
};

static const struct attribute_group group = { .attrs = attributes };
static const struct attribute_group *groups[] = { &group, NULL };

static int set_up_interrupts(struct copy_engine *engine)
{
	struct pci_dev *pci = engine->pci;
	unsigned int kinds = !strcmp(irq, "intx") ? PCI_IRQ_LEGACY
			     : !strcmp(irq, "msi") ? PCI_IRQ_MSI : PCI_IRQ_MSIX;
	unsigned long shared = kinds == PCI_IRQ_LEGACY ? IRQF_SHARED : 0;
	int error;

	engine->vectors = pci_alloc_irq_vectors(pci, 1, 2, kinds);
	if (engine->vectors < 0)
		return engine->vectors;
	error = request_irq(pci_irq_vector(pci, 0), engine->vectors > 1 ? on_done : on_any, shared,
			    NAME, engine);
	if (!error && engine->vectors > 1) {
		error = request_irq(pci_irq_vector(pci, 1), on_failed, 0, NAME, engine);
		if (error)
			free_irq(pci_irq_vector(pci, 0), engine);
	}
	if (error)
		pci_free_irq_vectors(pci);
	return error;
}

static int probe(struct pci_dev *pci, const struct pci_device_id *id)
{
	struct copy_engine *engine = kzalloc(sizeof(*engine), GFP_KERNEL);
	int error;

	if (!engine)
		return -ENOMEM;
	engine->pci = pci;
	mutex_init(&engine->lock);
	init_completion(&engine->signal);
	error = pci_enable_device(pci);
	if (error)
		goto no_device;
	error = pci_request_regions(pci, NAME);
	if (error)
		goto no_regions;
	error = -ENOMEM;
	engine->bar = pci_iomap(pci, 0, 0);
	if (!engine->bar)
		goto no_bar;
	error = dma_set_mask_and_coherent(&pci->dev, DMA_BIT_MASK(64));
	if (error)
		goto no_ring;
	pci_set_master(pci);
	error = -ENOMEM;
	engine->ring = dma_alloc_coherent(&pci->dev, RING_ENTRIES * sizeof(struct descriptor),
					  &engine->ring_address, GFP_KERNEL);
	if (!engine->ring)
		goto no_ring;
	error = reset(engine);
	if (error)
		goto no_interrupts;
	error = set_up_interrupts(engine);
	if (error)
		goto no_interrupts;
	pci_set_drvdata(pci, engine);
	set_up(engine);
	return 0;

no_interrupts:
	dma_free_coherent(&pci->dev, RING_ENTRIES * sizeof(struct descriptor), engine->ring,
			  engine->ring_address);
no_ring:
	pci_iounmap(pci, engine->bar);
no_bar:
	pci_release_regions(pci);
no_regions:
	pci_disable_device(pci);
no_device:
	kfree(engine);
	return error;
}

static void remove(struct pci_dev *pci)
{
	struct copy_engine *engine = pci_get_drvdata(pci);
	int vector;

	reset(engine);
	for (vector = 0; vector < engine->vectors; vector++)
		free_irq(pci_irq_vector(pci, vector), engine);
	pci_free_irq_vectors(pci);
	dma_free_coherent(&pci->dev, RING_ENTRIES * sizeof(struct descriptor), engine->ring,
			  engine->ring_address);
	pci_iounmap(pci, engine->bar);
	pci_release_regions(pci);
	pci_clear_master(pci);
	pci_disable_device(pci);
	kfree(engine);
}

/* Before and after a function level reset, e.g. by the file "reset" in sysfs. */
static void reset_prepare(struct pci_dev *pci)
{
	struct copy_engine *engine = pci_get_drvdata(pci);

	mutex_lock(&engine->lock);
}

static void reset_done(struct pci_dev *pci)
{
	struct copy_engine *engine = pci_get_drvdata(pci);

	set_up(engine);
	mutex_unlock(&engine->lock);
}

static const struct pci_error_handlers handlers = {
	.reset_prepare = reset_prepare,
	.reset_done = reset_done,
};

static const struct pci_device_id ids[] = { { PCI_DEVICE(0xf1da, 0x0003) }, {} };
MODULE_DEVICE_TABLE(pci, ids);

static struct pci_driver driver = {
	.name = NAME,
	.id_table = ids,
	.probe = probe,
	.remove = remove,
	.err_handler = &handlers,
	.dev_groups = groups,
};

static int __init enter(void)
{
	return pci_register_driver(&driver);
}
module_init(enter);

static void __exit leave(void)
{
	pci_unregister_driver(&driver);
}
module_exit(leave);

MODULE_DESCRIPTION("Copy engine");
MODULE_LICENSE("GPL v2");
