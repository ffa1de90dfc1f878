// SPDX-License-Identifier: GPL-2.0-only
/*
 * edu, the device that comes with QEMU for teaching (docs/specs/edu.rst there): any
 * machine that QEMU emulates can have one, so that tests need no hardware.
 *
 * Its DMA engine copies between memory and a buffer in the device.  A memcpy takes two
 * such DMAs, from the source to the buffer and from there to the destination, and QEMU
 * takes 100 ms for each.  The device does not notice accesses to unmapped IOVAs.
 *
 * By default the device drives 28 address bits and drops the others without a word.
 * The tests need all of them: -device edu,dma_mask=0xffffffffffffffff
 */
#include <errno.h>
#include <unistd.h>

#include <linux/bits.h>
#include <linux/io.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>

#include <libvfio.h>

#define EDU_VENDOR_ID		0x1234	/* nobody's, QEMU uses it for several devices */
#define EDU_DEVICE_ID		0x11e8

#define EDU_IDENT		0x00
#define   EDU_IDENT_MASK	0x0000ffff
#define   EDU_IDENT_EDU		0x000000ed
#define EDU_IRQ_STATUS		0x24
#define EDU_IRQ_RAISE		0x60	/* bits to set in the status: an MSI each time */
#define EDU_IRQ_ACK		0x64	/* bits to clear there */
#define EDU_DMA_SRC		0x80
#define EDU_DMA_DST		0x88
#define EDU_DMA_COUNT		0x90
#define EDU_DMA_CMD		0x98
#define   EDU_DMA_RUN		BIT(0)	/* the device clears it when it is done */
#define   EDU_DMA_TO_MEMORY	BIT(1)

/* Where the DMA engine has the buffer.  QEMU 7.2 aborts if a DMA includes its last byte. */
#define EDU_BUFFER		0x40000
#define EDU_MAX_MEMCPY_SIZE	SZ_2K
#define EDU_MAX_MEMCPY_COUNT	16

#define EDU_MSI_VECTOR		0
#define EDU_IRQ_TEST		BIT(0)

struct edu {
	iova_t src;
	iova_t dst;
	u64 size;
	u64 copies_left;

	/* For edu_check_address_bits(), which has the device copy one to the other. */
	u64 check_src;
	u64 check_dst;
};

static struct edu *to_edu(struct vfio_pci_device *device)
{
	return device->driver.region.vaddr;
}

static void *edu_reg(struct vfio_pci_device *device, unsigned int reg)
{
	return device->bars[0].vaddr + reg;
}

static int edu_probe(struct vfio_pci_device *device)
{
	if (!vfio_pci_device_match(device, EDU_VENDOR_ID, EDU_DEVICE_ID))
		return -EINVAL;

	if (!device->bars[0].vaddr)
		return -EINVAL;

	if ((readl(edu_reg(device, EDU_IDENT)) & EDU_IDENT_MASK) != EDU_IDENT_EDU)
		return -EINVAL;

	return 0;
}

/* There is no bound: a device that hangs runs into the timeout of the test. */
static void edu_dma_wait(struct vfio_pci_device *device)
{
	while (readl(edu_reg(device, EDU_DMA_CMD)) & EDU_DMA_RUN)
		usleep(1000);
}

static void edu_dma_start(struct vfio_pci_device *device, u64 src, u64 dst, u64 size, u64 cmd)
{
	writeq(src, edu_reg(device, EDU_DMA_SRC));
	writeq(dst, edu_reg(device, EDU_DMA_DST));
	writeq(size, edu_reg(device, EDU_DMA_COUNT));
	writeq(cmd | EDU_DMA_RUN, edu_reg(device, EDU_DMA_CMD));
}

static void edu_fill_buffer(struct vfio_pci_device *device)
{
	struct edu *edu = to_edu(device);

	edu_dma_start(device, edu->src, EDU_BUFFER, edu->size, 0);
}

static void edu_empty_buffer(struct vfio_pci_device *device)
{
	struct edu *edu = to_edu(device);

	edu_dma_start(device, EDU_BUFFER, edu->dst, edu->size, EDU_DMA_TO_MEMORY);
}

static void edu_memcpy_start(struct vfio_pci_device *device, iova_t src, iova_t dst, u64 size,
			     u64 count)
{
	struct edu *edu = to_edu(device);

	edu->src = src;
	edu->dst = dst;
	edu->size = size;
	edu->copies_left = count;

	if (count)
		edu_fill_buffer(device);
}

/* The engine has room for one DMA, so all but the first are started here. */
static int edu_memcpy_wait(struct vfio_pci_device *device)
{
	struct edu *edu = to_edu(device);

	while (edu->copies_left) {
		edu_dma_wait(device);
		edu_empty_buffer(device);
		edu_dma_wait(device);

		if (--edu->copies_left)
			edu_fill_buffer(device);
	}

	return 0;
}

/*
 * An IOVA that loses bits may be that of other memory of the test, which would then be
 * overwritten.  The driver's region is what a test maps at its highest addresses.
 */
static void edu_check_address_bits(struct vfio_pci_device *device)
{
	struct edu *edu = to_edu(device);

	edu->check_src = 0x0123456789abcdef;
	edu->check_dst = 0;

	edu_memcpy_start(device, to_iova(device, &edu->check_src),
			 to_iova(device, &edu->check_dst), sizeof(u64), 1);
	VFIO_ASSERT_EQ(edu_memcpy_wait(device), 0);

	VFIO_ASSERT_EQ(READ_ONCE(edu->check_dst), edu->check_src,
		       "IOVA %#lx is out of reach: use -device edu,dma_mask=0xffffffffffffffff\n",
		       device->driver.region.iova);
}

static void edu_irq_ack(struct vfio_pci_device *device)
{
	writel(readl(edu_reg(device, EDU_IRQ_STATUS)), edu_reg(device, EDU_IRQ_ACK));
}

static void edu_init(struct vfio_pci_device *device)
{
	struct vfio_pci_driver *driver = &device->driver;

	VFIO_ASSERT_GE(driver->region.size, sizeof(struct edu));

	/* The device has no reset: somebody may have left it with a DMA under way. */
	edu_dma_wait(device);
	edu_irq_ack(device);

	vfio_pci_cmd_set(device, PCI_COMMAND_MASTER);
	vfio_pci_msi_enable(device, EDU_MSI_VECTOR, 1);

	driver->max_memcpy_size = EDU_MAX_MEMCPY_SIZE;
	driver->max_memcpy_count = EDU_MAX_MEMCPY_COUNT;
	driver->msi = EDU_MSI_VECTOR;

	edu_check_address_bits(device);
}

static void edu_remove(struct vfio_pci_device *device)
{
	vfio_pci_msi_disable(device);
	vfio_pci_cmd_clear(device, PCI_COMMAND_MASTER);
}

static void edu_send_msi(struct vfio_pci_device *device)
{
	writel(EDU_IRQ_TEST, edu_reg(device, EDU_IRQ_RAISE));
	writel(EDU_IRQ_TEST, edu_reg(device, EDU_IRQ_ACK));
}

struct vfio_pci_driver_ops edu_ops = {
	.name = "edu",
	.probe = edu_probe,
	.init = edu_init,
	.remove = edu_remove,
	.memcpy_start = edu_memcpy_start,
	.memcpy_wait = edu_memcpy_wait,
	.send_msi = edu_send_msi,
};
