#define _GNU_SOURCE
#include "measure.h"

#include <stdlib.h>
#include <time.h>

#define SAMPLES_MAX (16u * 1024 * 1024) /* 128 MB; later samples are dropped */

static uint64_t read_clock(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * NS_PER_S + (uint64_t)time.tv_nsec;
}

uint64_t now_ns(void) { return read_clock(CLOCK_MONOTONIC); }

uint64_t own_cpu_ns(void) { return read_clock(CLOCK_PROCESS_CPUTIME_ID); }

void *allocate(void *old, size_t bytes) {
    void *memory = realloc(old, bytes);
    if (!memory) {
        fputs("load: out of memory\n", stderr);
        exit(1);
    }
    return memory;
}

void samples_add(struct samples *samples, uint64_t ns) {
    if (samples->count == samples->capacity) {
        if (samples->capacity >= SAMPLES_MAX)
            return;
        samples->capacity = samples->capacity ? samples->capacity * 2 : 4096;
        samples->ns = allocate(samples->ns, samples->capacity * sizeof *samples->ns);
    }
    samples->ns[samples->count++] = ns;
}

static int ascending(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/* Nearest rank: the smallest sample that at least this percentage of the samples does not exceed. */
static double percentile_ms(const struct samples *samples, unsigned percent) {
    size_t rank = (samples->count * percent + 99) / 100;
    return (double)samples->ns[rank ? rank - 1 : 0] / 1e6;
}

void samples_print(FILE *out, const char *name, struct samples *samples) {
    if (!samples->count)
        return;
    qsort(samples->ns, samples->count, sizeof *samples->ns, ascending);
    fprintf(out, ",\"%s\":{\"count\":%zu,\"p50\":%.3f,\"p99\":%.3f,\"max\":%.3f}", name, samples->count,
            percentile_ms(samples, 50), percentile_ms(samples, 99), percentile_ms(samples, 100));
}
