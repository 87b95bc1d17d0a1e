/* A disk that fails: loaded into a server (LD_PRELOAD), it fails calls on files as `FAULTY_DISK` says.

   That is a file with one line: calls (w: write, s: sync, t: truncate, in any order), the end of the name of the files
   (`*`: of any file), an errno, the number of such calls that succeed first, and of those that fail then. A write that
   fails has written its first half, up to a sector of the file, if the calls name `h`, too. While the line is empty
   nothing fails. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* The errno with which this call fails, 0: it does not. */
static int fault(int fd, char kind, int *is_half) {
    static char before[256];
    static long seen;
    char text[256] = "", calls[16], suffix[128], link[64], name[4096] = "";
    int number, failing = 0;
    long passed, failed;
    const char *plan = getenv("FAULTY_DISK");
    if (plan == NULL) return 0;
    int file = syscall(SYS_openat, AT_FDCWD, plan, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    if (sscanf(text, "%15s %127s %d %ld %ld", calls, suffix, &number, &passed, &failed) != 5) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, name, sizeof name - 1);
    size_t end = strlen(suffix);
    if (strchr(calls, kind) == NULL || length < 1 || name[0] != '/') return 0;
    if (strcmp(suffix, "*") != 0 && (length < (ssize_t)end || strcmp(name + length - end, suffix) != 0)) return 0;
    pthread_mutex_lock(&lock);
    if (strcmp(before, text) != 0) {
        strcpy(before, text);
        seen = 0;
    }
    failing = seen >= passed && seen < passed + failed;
    seen++;
    pthread_mutex_unlock(&lock);
    *is_half = strchr(calls, 'h') != NULL;
    return failing ? number : 0;
}

#define PASS(name, ...) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))(__VA_ARGS__)
#define FAIL(number) return errno = (number), -1

ssize_t pwrite(int fd, const void *from, size_t size, off_t at) {
    int is_half = 0, number = fault(fd, 'w', &is_half);
    off_t half = (at + (off_t)size / 2) / 512 * 512;
    if (number && is_half && half > at) PASS(pwrite, fd, from, half - at, at);
    if (number) FAIL(number);
    return PASS(pwrite, fd, from, size, at);
}

ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at) { return pwrite(fd, from, size, at); }

ssize_t write(int fd, const void *from, size_t size) {
    int is_half = 0, number = fault(fd, 'w', &is_half);
    if (number) FAIL(number);
    return PASS(write, fd, from, size);
}

int fsync(int fd) {
    int is_half, number = fault(fd, 's', &is_half);
    if (number) FAIL(number);
    return PASS(fsync, fd);
}

int fdatasync(int fd) {
    int is_half, number = fault(fd, 's', &is_half);
    if (number) FAIL(number);
    return PASS(fdatasync, fd);
}

int ftruncate(int fd, off_t size) {
    int is_half, number = fault(fd, 't', &is_half);
    if (number) FAIL(number);
    return PASS(ftruncate, fd, size);
}

int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }
