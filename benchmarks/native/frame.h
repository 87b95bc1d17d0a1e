/* WebSocket frames as a client reads and writes them (RFC 6455 section 5). Pure. */
#ifndef FRAME_H
#define FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum opcode { FRAME_TEXT = 1, FRAME_CLOSE = 8, FRAME_PING = 9, FRAME_PONG = 10 };

#define FRAME_CONTROL_MAX (2 + 4 + 125) /* head, mask, payload */

struct frame {
    unsigned opcode;
    unsigned char *payload;
    size_t payload_bytes;
    size_t bytes; /* of the whole frame */
};

/* Read the frame that begins at `bytes`; false: its end has not come yet. */
bool frame_read(unsigned char *bytes, size_t count, struct frame *frame);

/* Write a masked control frame into `into` (FRAME_CONTROL_MAX bytes); returns its size. */
size_t frame_write(unsigned char *into, enum opcode opcode, const unsigned char *payload, size_t payload_bytes);

/* Read decimal digits into `value` (0 if there are none), skipping blanks before them; returns where they end. */
unsigned char *read_number(unsigned char *from, const unsigned char *end, uint64_t *value);

#endif
