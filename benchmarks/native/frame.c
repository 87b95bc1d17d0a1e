#include "frame.h"

bool frame_read(unsigned char *bytes, size_t count, struct frame *frame) {
    size_t head = 2, length;
    if (count < 2)
        return false;
    length = bytes[1] & 127; /* a server does not mask */
    if (length >= 126) {
        size_t wide = length == 126 ? 2 : 8;
        if (count < head + wide)
            return false;
        length = 0;
        for (size_t i = 0; i < wide; i++)
            length = length << 8 | bytes[head + i];
        head += wide;
    }
    if (count - head < length)
        return false;
    frame->opcode = bytes[0] & 15;
    frame->payload = bytes + head;
    frame->payload_bytes = length;
    frame->bytes = head + length;
    return true;
}

size_t frame_write(unsigned char *into, enum opcode opcode, const unsigned char *payload, size_t payload_bytes) {
    static uint32_t state = 0x9e3779b9;
    if (payload_bytes > 125)
        payload_bytes = 125;
    /* A mask guards proxies against scripts in a browser; here it need only be one, so xorshift will do. */
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    into[0] = 0x80 | (unsigned char)opcode;
    into[1] = 0x80 | (unsigned char)payload_bytes;
    for (int i = 0; i < 4; i++)
        into[2 + i] = (unsigned char)(state >> 8 * i);
    for (size_t i = 0; i < payload_bytes; i++)
        into[6 + i] = payload[i] ^ into[2 + i % 4];
    return 6 + payload_bytes;
}

unsigned char *read_number(unsigned char *from, const unsigned char *end, uint64_t *value) {
    *value = 0;
    while (from < end && *from == ' ')
        from++;
    while (from < end && *from >= '0' && *from <= '9')
        *value = *value * 10 + (uint64_t)(*from++ - '0');
    return from;
}
