/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Boot sector of the vmx lab: starts an unpacked Linux kernel on Bochs.
 *
 * An emulated CPU spends minutes on what a boot loader and the kernel's own
 * decompressor do.  The host has done all that work already: the disk holds
 * the kernel as it lies in memory, a filled-in boot_params and the initramfs.
 * What is left, and is done here, is the part only the machine can do:
 *
 *  - ask the BIOS for the memory map (E820),
 *  - enter long mode with the first 4 GiB mapped one to one,
 *  - copy the pieces from the disk to where the table in sector 1 wants them,
 *  - jump to the kernel's 64-bit entry as Documentation/x86/boot.rst asks.
 *
 * Sector 1 of the disk, all little endian (written by lab/machines/bochs):
 *
 *	u64 kernel entry, u64 address of boot_params,
 *	then any number of { u64 destination, u32 first sector, u32 sectors },
 *	ended by one of 0 sectors.
 *
 * The sectors are read by programmed I/O: Bochs moves a whole sector for one
 * REP INS, so this is faster than the BIOS could be and needs no bounce buffer.
 */

#define E820_MAP	0x2000	/* collected in real mode, 20 bytes an entry */
#define E820_MAX	64	/* what fits the table, and 128 fit boot_params */
#define TABLE		0x3000	/* sector 1 */
#define PML4		0x4000
#define PDPT		0x5000

#define BP_E820_ENTRIES	0x1e8	/* offsets in struct boot_params */
#define BP_E820_TABLE	0x2d0

#define ATA_DATA	0x1f0
#define ATA_COUNT	0x1f2
#define ATA_DRIVE	0x1f6
#define ATA_COMMAND	0x1f7	/* reading it gives the status */
#define ATA_CONTROL	0x3f6
#define ATA_READ	0x20
#define ATA_NO_IRQ	0x02
#define STATUS_ERR	0x01
#define STATUS_DRQ	0x08
#define STATUS_BSY	0x80

#define COM1		0x3f8

	.text
	.code16
	.globl	_start
_start:
	cli
	cld
	xorl	%eax, %eax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	$0x7c00, %sp
	ljmpw	$0, $memory_map

memory_map:
	movw	$E820_MAP, %di
	xorl	%ebx, %ebx
	xorw	%bp, %bp			/* counts the entries */
1:	movl	$0xe820, %eax
	movl	$0x534d4150, %edx		/* "SMAP" */
	movl	$20, %ecx
	int	$0x15
	jc	2f
	cmpl	$0x534d4150, %eax
	jne	2f
	addw	$20, %di
	incw	%bp
	cmpw	$E820_MAX, %bp
	je	2f
	testl	%ebx, %ebx			/* 0: that was the last one */
	jnz	1b
2:	cli

	inb	$0x92, %al			/* A20 gate */
	orb	$2, %al
	outb	%al, $0x92

	/* One to one: one PML4 entry, four 1 GiB pages. */
	movw	$PML4, %di
	xorl	%eax, %eax
	movw	$(2 * 4096 / 4), %cx
	rep stosl
	movl	$(PDPT + 3), PML4
	movw	$PDPT, %di
	movl	$0x83, %eax			/* present, writable, large */
3:	movl	%eax, (%di)
	addw	$8, %di
	addl	$0x40000000, %eax
	jnc	3b				/* wraps after 4 GiB */

	lgdtl	gdt_pointer
	movl	$0x20, %eax			/* CR4.PAE */
	movl	%eax, %cr4
	movl	$PML4, %eax
	movl	%eax, %cr3
	movl	$0xc0000080, %ecx		/* EFER.LME */
	rdmsr
	orw	$0x100, %ax
	wrmsr
	movl	$0x80000001, %eax		/* CR0.PG and PE */
	movl	%eax, %cr0
	ljmpl	$0x10, $long_mode

	.code64
long_mode:
	movl	$0x18, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss

	movw	$ATA_CONTROL, %dx
	movb	$ATA_NO_IRQ, %al
	outb	%al, %dx

	movl	$1, %ebx			/* the table itself comes first */
	movl	$1, %r8d
	movl	$TABLE, %edi
	call	read_sectors

	movl	$(TABLE + 16), %esi
next_piece:
	movq	(%rsi), %rdi
	movl	8(%rsi), %ebx
	movl	12(%rsi), %r8d
	addl	$16, %esi
	testl	%r8d, %r8d
	jz	start_kernel
	call	read_sectors
	jmp	next_piece

start_kernel:
	movq	TABLE + 8, %rbx
	movzwl	%bp, %ecx
	movb	%cl, BP_E820_ENTRIES(%rbx)
	imull	$20, %ecx, %ecx
	movl	$E820_MAP, %esi
	leaq	BP_E820_TABLE(%rbx), %rdi
	rep movsb
	movq	%rbx, %rsi			/* the entry wants it here */
	jmp	*TABLE

/* Read %r8d sectors from sector %ebx on to %rdi; changes all three. */
read_sectors:
	movl	$256, %ecx			/* the most one command reads */
	cmpl	%ecx, %r8d
	cmovbl	%r8d, %ecx
	subl	%ecx, %r8d
	call	wait_ready
	movw	$ATA_COUNT, %dx
	movb	%cl, %al			/* 0 means 256 */
	outb	%al, %dx
	movl	%ebx, %eax
	incl	%edx				/* 28-bit LBA: three bytes */
	outb	%al, %dx
	shrl	$8, %eax
	incl	%edx
	outb	%al, %dx
	shrl	$8, %eax
	incl	%edx
	outb	%al, %dx
	shrl	$8, %eax			/* and four bits; LBA mode */
	orb	$0xe0, %al
	incl	%edx
	outb	%al, %dx
	addl	%ecx, %ebx
	movb	$ATA_READ, %al
	incl	%edx
	outb	%al, %dx
	movl	%ecx, %r9d
4:	call	wait_ready
	testb	$STATUS_DRQ, %al
	jz	4b
	movw	$ATA_DATA, %dx
	movl	$128, %ecx
	rep insl
	decl	%r9d
	jnz	4b
	testl	%r8d, %r8d
	jnz	read_sectors
	ret

/* Wait for the disk; returns its status in %al, does not return on an error. */
wait_ready:
	movw	$ATA_COMMAND, %dx
	inb	%dx, %al
	testb	$STATUS_BSY, %al
	jnz	wait_ready
	testb	$STATUS_ERR, %al
	jnz	disk_error
	ret

disk_error:
	movl	$error_text, %esi
	movl	$(error_end - error_text), %ecx
	movw	$COM1, %dx
	rep outsb
5:	hlt
	jmp	5b

error_text:
	.ascii	"bochs_boot: disk error\r\n"
error_end:

	.balign 8
gdt:
	.quad	0, 0
	.quad	0x00af9a000000ffff		/* 0x10: 64-bit code */
	.quad	0x00cf92000000ffff		/* 0x18: data */
gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.long	gdt

	.org	510
	.word	0xaa55
