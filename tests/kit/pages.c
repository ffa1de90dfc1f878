// SPDX-License-Identifier: GPL-2.0-only
/* Memory for the lab's programs: see the header. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lab.h"
#include "pages.h"

#define PAGE	4096ul

char *must_map(void *at, size_t size, int prot, int flags, int fd)
{
	char *memory = mmap(at, size, prot, flags, fd, 0);

	if (memory == MAP_FAILED)
		fail("mmap() of %zu bytes: %s", size, strerror(errno));
	return memory;
}

char *same_page(int n)
{
	char *memory = must_map(NULL, n * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	int fd = must(memfd_create("page", MFD_CLOEXEC)), i;

	must(ftruncate(fd, PAGE));
	for (i = 0; i < n; i++)
		must_map(memory + i * PAGE, PAGE, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fd);
	close(fd);
	memory[0] = 1;
	return memory;
}

int open_userfaultfd(int flags)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | flags);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api)) {
		close(fd);
		return -1;
	}
	return fd;
}

int hold_back(int userfaultfd, void *page)
{
	struct uffdio_register range = {
		.range = { (uintptr_t)page, PAGE }, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	return ioctl(userfaultfd, UFFDIO_REGISTER, &range);
}
