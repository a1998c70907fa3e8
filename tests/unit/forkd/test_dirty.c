/* SPDX-License-Identifier: MIT */
/* A child process stands in for the VMM: it maps a memfd (the image) privately and some anonymous memory, writes
 * to pages that the test knows, and sleeps. What dirty_copy finds must be exactly those, whichever way it looks. */
#include "common_test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "forkd/vm/dirty.h"
#include "snapstore/image.h"

#define PAGE SNAP_PAGE_SIZE
#define FILE_PAGES 4096u /* 16 MiB of image */
#define ANON_PAGES 2048u
#define N_PAGES (FILE_PAGES + ANON_PAGES)

/* What the guest does to a page. */
enum touch {
        NONE,    /* nothing */
        READ,    /* reads it: the image's page, or the kernel's zero page, is mapped and stays clean */
        WRITE,   /* its content becomes page_content() */
        ZERO,    /* writes zeros: dirty all the same */
        DISCARD, /* writes, then gives it back: clean again */
};

struct guest {
        pid_t pid;
        uint8_t *mem; /* the same address in both processes: FILE_PAGES, a gap, ANON_PAGES */
        uint8_t touch[N_PAGES];
};

static uint8_t *page_at(const struct guest *g, uint64_t page) {
        return g->mem + (page < FILE_PAGES ? page : page + 1) * (size_t) PAGE; /* the gap is one page */
}

static void page_content(uint64_t page, uint8_t *buf) {
        struct rng r = { page };

        for (size_t i = 0; i < PAGE; i += 8) {
                uint64_t v = rng_next(&r);

                memcpy(buf + i, &v, 8);
        }
}

static void guest_touch(const struct guest *g) {
        for (uint64_t p = 0; p < N_PAGES; p++) {
                uint8_t *at = page_at(g, p);

                switch ((enum touch) g->touch[p]) {
                case NONE:
                        break;
                case READ:
                        (void) *(volatile uint8_t *) at;
                        break;
                case WRITE:
                        page_content(p, at);
                        break;
                case ZERO:
                        memset(at, 0, PAGE);
                        break;
                case DISCARD:
                        *(volatile uint8_t *) at = 1;
                        (void) madvise(at, PAGE, MADV_DONTNEED);
                }
        }
}

/* The image's own content is never zero, so that a clean page that was copied would show. */
static int new_image(void) {
        int fd = memfd_create("image", MFD_CLOEXEC);
        uint8_t buf[PAGE];

        memset(buf, 0xee, sizeof(buf));
        for (unsigned i = 0; i < FILE_PAGES; i++)
                assert_ok(io_pwrite_full(fd, buf, PAGE, (uint64_t) i * PAGE));
        return fd;
}

/* Starts the guest and waits until it has done what g->touch says. */
static void guest_start(struct guest *g, int map_flags) {
        int image = new_image(), p[2];
        char c;

        g->mem = mmap(NULL, (N_PAGES + 1) * (size_t) PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_true(g->mem != MAP_FAILED);
        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        g->pid = fork();
        if (g->pid == 0) {
                uint8_t *anon = page_at(g, FILE_PAGES);

                (void) prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves nobody behind */
                if (mmap(g->mem, FILE_PAGES * (size_t) PAGE, PROT_READ | PROT_WRITE, map_flags | MAP_FIXED, image, 0) ==
                            MAP_FAILED ||
                    mmap(anon, ANON_PAGES * (size_t) PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                         0) == MAP_FAILED)
                        _exit(1);
                (void) munmap(page_at(g, FILE_PAGES - 1) + PAGE, PAGE); /* the gap */
                /* With huge pages one write would dirty 512. */
                (void) madvise(anon, ANON_PAGES * (size_t) PAGE, MADV_NOHUGEPAGE);
                guest_touch(g);
                (void) !write(p[1], "x", 1);
                for (;;)
                        (void) pause();
        }
        (void) close(p[1]);
        assert_int_equal(io_read_full(p[0], &c, 1), 1);
        (void) close(p[0]);
        (void) close(image);
}

static void guest_end(struct guest *g) {
        (void) kill(g->pid, SIGKILL);
        assert_int_equal(waitpid(g->pid, NULL, 0), g->pid);
        (void) munmap(g->mem, (N_PAGES + 1) * (size_t) PAGE);
}

/* As a VMM lays it out: the second region lies elsewhere in the process than in guest RAM. */
static void guest_regions(const struct guest *g, struct vmm_region r[2]) {
        r[0] = (struct vmm_region){ (uintptr_t) g->mem, FILE_PAGES * (uint64_t) PAGE, 0 };
        r[1] = (struct vmm_region){ (uintptr_t) page_at(g, FILE_PAGES), ANON_PAGES * (uint64_t) PAGE,
                                    FILE_PAGES * (uint64_t) PAGE };
}

static struct snap_writer *new_writer(int fd) {
        struct snap_writer_params p = { .ram_bytes = N_PAGES * (uint64_t) PAGE, .codec = SNAP_CODEC_LZ4 };
        struct snap_writer *w;

        assert_ok(snap_writer_new(fd, -1, &p, &w));
        return w;
}

static void check_image(const struct guest *g, int fd) {
        cleanup_snap_decoder struct snap_decoder *d = NULL;
        cleanup_snap_image struct snap_image *img = NULL;
        uint8_t got[PAGE], want[PAGE];

        assert_ok(snap_image_open(fd, &img));
        assert_ok(snap_decoder_new(&d));
        for (uint64_t p = 0; p < N_PAGES; p++) {
                if (g->touch[p] == WRITE)
                        page_content(p, want);
                else
                        memset(want, 0, PAGE); /* not copied, or copied and zero */
                assert_ok(snap_image_read_page(img, d, p, got));
                if (memcmp(got, want, PAGE) != 0)
                        fail_msg("page %llu, touched %u, is wrong", (unsigned long long) p, g->touch[p]);
        }
}

static void copy_and_check(const struct guest *g, enum dirty_method method) {
        cleanup_fd int fd = memfd_create("copy", MFD_CLOEXEC);
        struct snap_writer *w = new_writer(fd);
        struct snap_writer_stats ws;
        struct dirty_stats ds = { 0 };
        struct vmm_region regions[2];
        struct dirty_buf *buf;
        uint64_t dirty = 0, mapped_zero = 0;

        guest_regions(g, regions);
        for (uint64_t p = 0; p < N_PAGES; p++) {
                dirty += g->touch[p] == WRITE || g->touch[p] == ZERO;
                mapped_zero += p >= FILE_PAGES && g->touch[p] == READ;
        }
        assert_ok(dirty_buf_new(&buf));
        assert_ok(dirty_copy_by(method, g->pid, regions, 2, buf, w, &ds));
        assert_ok(dirty_buf_write(buf, w));
        assert_ok(snap_writer_finish(w, &ws));
        snap_writer_free(w);
        dirty_buf_free(buf);
        /* Words cannot tell the kernel's zero page from another: copied, found to be zero. */
        assert_int_equal(ds.pages, dirty + (method == DIRTY_WORDS ? mapped_zero : 0));
        check_image(g, fd);
}

static bool can_scan(void) {
        struct guest g = { 0 };
        struct vmm_region regions[2];
        struct dirty_stats ds;
        struct dirty_buf *buf;
        int fd = memfd_create("probe", MFD_CLOEXEC), r;
        struct snap_writer *w = new_writer(fd);

        guest_start(&g, MAP_PRIVATE);
        guest_regions(&g, regions);
        assert_ok(dirty_buf_new(&buf));
        r = dirty_copy_by(DIRTY_SCAN, g.pid, regions, 2, buf, w, &ds);
        dirty_buf_free(buf);
        snap_writer_free(w);
        (void) close(fd);
        guest_end(&g);
        return r != -ENOTTY;
}

static void check_both_ways(struct guest *g) {
        guest_start(g, MAP_PRIVATE);
        copy_and_check(g, DIRTY_WORDS);
        if (can_scan())
                copy_and_check(g, DIRTY_SCAN);
        copy_and_check(g, DIRTY_ANY);
        guest_end(g);
}

static void test_scan_is_there(void **state) {
        skip_unless(can_scan(), "PAGEMAP_SCAN needs Linux 6.7");
}

static void test_nothing(void **state) {
        struct guest g = { 0 };

        check_both_ways(&g);
}

static void test_edges(void **state) {
        struct guest g = { 0 };

        g.touch[0] = g.touch[FILE_PAGES - 1] = g.touch[FILE_PAGES] = g.touch[N_PAGES - 1] = WRITE;
        for (uint64_t p = 500; p < 530; p++) /* across a region of the image */
                g.touch[p] = WRITE;
        for (uint64_t p = 1000; p < 1700; p++) /* longer than a list of runs, or of words */
                g.touch[p] = WRITE;
        check_both_ways(&g);
}

static void test_every_kind(void **state) {
        struct guest g = { 0 };
        struct rng r = { 77 };

        for (uint64_t p = 0; p < N_PAGES; p++)
                g.touch[p] = (uint8_t) rng_below(&r, 5);
        check_both_ways(&g);
}

/* More runs than are read at once, and than one scan returns. */
static void test_scattered(void **state) {
        struct guest g = { 0 };

        for (uint64_t p = 0; p < N_PAGES; p += 2)
                g.touch[p] = WRITE;
        check_both_ways(&g);
}

static void test_all_dirty(void **state) {
        struct guest g = { 0 };

        memset(g.touch, WRITE, sizeof(g.touch));
        check_both_ways(&g);
}

/* ---- a layout that is not as described must never make an image with pages missing ---- */

static int copy_regions(const struct guest *g, const struct vmm_region *regions, size_t n) {
        cleanup_fd int fd = memfd_create("copy", MFD_CLOEXEC);
        struct snap_writer *w = new_writer(fd);
        struct dirty_stats ds = { .pages = 77 };
        struct dirty_buf *buf;
        int r;

        assert_ok(dirty_buf_new(&buf));
        r = dirty_copy(g->pid, regions, n, buf, w, &ds);
        if (r == 0)
                r = dirty_buf_write(buf, w);
        else
                assert_int_equal(ds.pages, 77);
        snap_writer_free(w);
        dirty_buf_free(buf);
        return r;
}

static void test_wrong_layout(void **state) {
        struct guest g = { .touch = { [3] = WRITE, [FILE_PAGES + 3] = WRITE } };
        struct vmm_region ok[2], bad[2];

        guest_start(&g, MAP_PRIVATE);
        guest_regions(&g, ok);
        assert_ok(copy_regions(&g, ok, 2));
        for (unsigned i = 0; i < 7; i++) {
                memcpy(bad, ok, sizeof(bad));
                switch (i) {
                case 0:
                        bad[0].host_addr += 1;
                        break;
                case 1:
                        bad[1].size -= 512;
                        break;
                case 2:
                        bad[0].offset += 8;
                        break;
                case 3: /* reaches into the gap */
                        bad[0].size += PAGE;
                        break;
                case 4: /* nothing is mapped there */
                        bad[1].host_addr = PAGE;
                        break;
                case 5: /* around the end of the address space */
                        bad[1].host_addr = -(uint64_t) PAGE;
                        break;
                case 6:
                        bad[1].size = -(uint64_t) PAGE;
                        break;
                }
                if (copy_regions(&g, bad, 2) != -EFAULT)
                        fail_msg("layout %u is taken", i);
        }
        memcpy(bad, ok, sizeof(bad));
        bad[1].offset += PAGE * (uint64_t) ANON_PAGES; /* it is in memory, but not in guest RAM */
        assert_fails(copy_regions(&g, bad, 2), ERANGE);
        guest_end(&g);
}

/* Were the image mapped shared, nothing in it would look dirty: every write of the guest would be lost. */
static void test_shared_mapping(void **state) {
        struct guest g = { .touch = { [3] = WRITE } };
        struct vmm_region regions[2];

        guest_start(&g, MAP_SHARED);
        guest_regions(&g, regions);
        assert_fails(copy_regions(&g, regions, 2), EFAULT);
        guest_end(&g);
}

static void test_dead_vmm(void **state) {
        struct guest g = { .touch = { [3] = WRITE } };
        struct vmm_region regions[2];
        siginfo_t si;

        guest_start(&g, MAP_PRIVATE);
        guest_regions(&g, regions);
        (void) kill(g.pid, SIGKILL);
        assert_int_equal(waitid(P_PID, (id_t) g.pid, &si, WEXITED | WNOWAIT), 0);
        assert_true(copy_regions(&g, regions, 2) < 0); /* a zombie: no memory, but a number */
        guest_end(&g);
        assert_fails(copy_regions(&g, regions, 2), ESRCH);
}

/* ---- what was discarded ---- */

/* A parent in which no page is zero, in which the discarded of @g's pages are zeroed. */
static void put_discarded(const struct guest *g, enum dirty_method method, int fd, const struct dirty_range *gone, size_t n,
                          int want) {
        cleanup_free uint8_t *data = malloc(N_PAGES * (size_t) PAGE);
        struct snap_writer *w = new_writer(fd);
        struct snap_writer_stats ws;
        struct vmm_region regions[2];

        guest_regions(g, regions);
        memset(data, 0xaa, N_PAGES * (size_t) PAGE);
        assert_ok(snap_writer_put(w, 0, data, N_PAGES));
        assert_int_equal(dirty_put_discarded_by(method, g->pid, regions, 2, gone, n, w), want);
        assert_ok(snap_writer_finish(w, &ws));
        snap_writer_free(w);
}

static bool in_ranges(uint64_t page, const struct dirty_range *gone, size_t n) {
        for (size_t i = 0; i < n; i++)
                if (page >= gone[i].first && page < gone[i].first + gone[i].n)
                        return true;
        return false;
}

static void check_discarded(const struct guest *g, enum dirty_method method) {
        const struct dirty_range gone[] = { { 0, 1 }, { 100, 900 }, { FILE_PAGES - 20, 300 }, { N_PAGES - 1, 1 } };
        cleanup_snap_decoder struct snap_decoder *d = NULL;
        cleanup_snap_image struct snap_image *img = NULL;
        cleanup_fd int fd = memfd_create("copy", MFD_CLOEXEC);
        uint8_t page[PAGE];

        put_discarded(g, method, fd, gone, ARRAY_LEN(gone), 0);
        assert_ok(snap_image_open(fd, &img));
        assert_ok(snap_decoder_new(&d));
        for (uint64_t p = 0; p < N_PAGES; p++) {
                enum touch t = g->touch[p];
                bool own = t == WRITE || t == ZERO || (t == READ && p >= FILE_PAGES && method == DIRTY_WORDS);

                assert_ok(snap_image_read_page(img, d, p, page));
                if (page[0] != (in_ranges(p, gone, ARRAY_LEN(gone)) && !own ? 0 : 0xaa))
                        fail_msg("page %llu, touched %u, is %02x", (unsigned long long) p, t, page[0]);
        }
}

static void test_discarded(void **state) {
        const struct dirty_range outside[] = { { N_PAGES - 1, 2 } }, far[] = { { UINT64_MAX / PAGE, UINT64_MAX / PAGE } };
        cleanup_fd int fd = memfd_create("copy", MFD_CLOEXEC), again = memfd_create("copy", MFD_CLOEXEC);
        struct guest g = { 0 };
        struct rng r = { 78 };

        for (uint64_t p = 0; p < N_PAGES; p++)
                g.touch[p] = (uint8_t) rng_below(&r, 5);
        guest_start(&g, MAP_PRIVATE);
        check_discarded(&g, DIRTY_WORDS);
        if (can_scan())
                check_discarded(&g, DIRTY_SCAN);
        check_discarded(&g, DIRTY_ANY);
        put_discarded(&g, DIRTY_ANY, fd, outside, 1, -ERANGE);
        put_discarded(&g, DIRTY_ANY, again, far, 1, -ERANGE);
        guest_end(&g);
}

/* ---- out of a memfd ---- */

static void test_memfd(void **state) {
        cleanup_fd int from = memfd_create("nascent", MFD_CLOEXEC), fd = memfd_create("copy", MFD_CLOEXEC);
        struct guest g = { 0 };
        struct snap_writer *w = new_writer(fd);
        struct snap_writer_stats ws;
        uint8_t buf[PAGE] = { 0 };
        struct dirty_buf *b;
        uint64_t pages = 0;
        struct stat st;

        assert_int_equal(ftruncate(from, N_PAGES * (off_t) PAGE), 0);
        g.touch[0] = g.touch[N_PAGES - 1] = g.touch[77] = WRITE;
        g.touch[78] = ZERO;
        for (uint64_t p = 1000; p < 1000 + 3000; p++) /* more than is read at once */
                g.touch[p] = WRITE;
        for (uint64_t p = 0; p < N_PAGES; p++) {
                if (g.touch[p] == WRITE)
                        page_content(p, buf);
                else
                        memset(buf, 0, PAGE);
                if (g.touch[p] != NONE)
                        assert_ok(io_pwrite_full(from, buf, PAGE, p * PAGE));
        }
        assert_ok(dirty_buf_new(&b));
        assert_ok(dirty_copy_memfd(from, b, w, &pages));
        assert_int_equal(pages, 3004);
        assert_ok(snap_writer_finish(w, &ws));
        assert_int_equal(ws.zero_pages, 1);
        snap_writer_free(w);
        check_image(&g, fd);
        assert_int_equal(fstat(from, &st), 0);
        assert_int_equal(st.st_blocks, 3004 * (PAGE / 512)); /* no hole was filled by looking at it */

        /* Larger than the image's RAM: somebody else's. */
        assert_int_equal(ftruncate(from, (N_PAGES + 1) * (off_t) PAGE), 0);
        assert_ok(io_pwrite_full(from, buf, PAGE, N_PAGES * (uint64_t) PAGE));
        assert_int_equal(ftruncate(fd, 0), 0);
        w = new_writer(fd);
        assert_fails(dirty_copy_memfd(from, b, w, &pages), ERANGE);
        snap_writer_free(w);
        dirty_buf_free(b);
}

/* ---- more than the buffer holds ---- */

static void test_more_than_the_buffer(void **state) {
        enum { PAGES = 66 << 8 }; /* 66 MiB */
        struct snap_writer_params wp = { .ram_bytes = PAGES * (uint64_t) PAGE, .codec = SNAP_CODEC_NONE };
        cleanup_snap_decoder struct snap_decoder *d = NULL;
        cleanup_snap_image struct snap_image *img = NULL;
        cleanup_fd int fd = memfd_create("copy", MFD_CLOEXEC);
        uint8_t *mem = mmap(NULL, PAGES * (size_t) PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), page[PAGE];
        struct vmm_region region = { (uintptr_t) mem, PAGES * (uint64_t) PAGE, 0 };
        struct snap_writer_stats ws;
        struct dirty_stats ds;
        struct dirty_buf *buf;
        struct snap_writer *w;

        for (uint64_t p = 0; p < PAGES; p++)
                memcpy(mem + p * PAGE, &(uint64_t){ p + 1 }, 8);
        assert_ok(snap_writer_new(fd, -1, &wp, &w));
        assert_ok(dirty_buf_new(&buf));
        assert_ok(dirty_copy(getpid(), &region, 1, buf, w, &ds)); /* of ourselves: nobody writes meanwhile */
        assert_int_equal(ds.pages, PAGES);
        assert_ok(dirty_buf_write(buf, w));
        assert_ok(snap_writer_finish(w, &ws));
        assert_int_equal(ws.put_pages, PAGES);
        snap_writer_free(w);
        dirty_buf_free(buf);
        assert_ok(snap_image_open(fd, &img));
        assert_ok(snap_decoder_new(&d));
        for (uint64_t p = 0; p < PAGES; p += 15) {
                assert_ok(snap_image_read_page(img, d, p, page));
                assert_memory_equal(page, mem + p * PAGE, PAGE);
        }
        (void) munmap(mem, PAGES * (size_t) PAGE);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_scan_is_there), cmocka_unit_test(test_nothing),
                cmocka_unit_test(test_edges),         cmocka_unit_test(test_every_kind),
                cmocka_unit_test(test_scattered),     cmocka_unit_test(test_all_dirty),
                cmocka_unit_test(test_wrong_layout),  cmocka_unit_test(test_shared_mapping),
                cmocka_unit_test(test_dead_vmm),      cmocka_unit_test(test_more_than_the_buffer),
                cmocka_unit_test(test_discarded),     cmocka_unit_test(test_memfd),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
