/* The clock and the samples of the load generator. One machine, one clock: a time sent in a message can be compared
 * with the time of its arrival. */
#ifndef MEASURE_H
#define MEASURE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define NS_PER_S 1000000000ull

/* Durations in nanoseconds, all of them kept: a percentile is exact, not taken from buckets. */
struct samples {
    uint64_t *ns;
    size_t count, capacity;
};

uint64_t now_ns(void);

/* CPU time this process has used. */
uint64_t own_cpu_ns(void);

/* malloc and realloc that end the process when there is no memory. */
void *allocate(void *old, size_t bytes);

void samples_add(struct samples *samples, uint64_t ns);

/* Write `,"name":{"count":..,"p50":..,"p99":..,"max":..}` in milliseconds, or nothing if there is no sample. Sorts. */
void samples_print(FILE *out, const char *name, struct samples *samples);

#endif
