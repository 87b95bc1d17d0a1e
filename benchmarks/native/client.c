#define _GNU_SOURCE
#include "client.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "frame.h"

#define EVENTS_MAX 512
#define READ_BYTES (256 * 1024) /* a frame or answer must fit; the messages have about 300 bytes */
#define MARKER "bench:"         /* in the comment of a message: bench:<number>:<time sent in ns>: */

static void watch(struct clients *all, struct connection *one, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = one};
    epoll_ctl(all->epoll, operation, one->fd, &event);
}

void client_open(struct clients *all, struct connection *one) {
    const struct sockaddr_in *to = one->kind == SUBSCRIBER ? &all->subscribe_to : &all->publish_to;
    int yes = 1;
    /* Closing resets: thousands of sockets in TIME_WAIT would use up the ports of the next round. */
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    one->began_ns = now_ns();
    one->state = CONNECTING;
    if (one->kind == SUBSCRIBER)
        all->entering++;
    one->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (one->fd < 0) {
        client_close(all, one);
        return;
    }
    setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(one->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    if (connect(one->fd, (const struct sockaddr *)to, sizeof *to) < 0 && errno != EINPROGRESS) {
        client_close(all, one);
        return;
    }
    watch(all, one, EPOLL_CTL_ADD, EPOLLOUT);
}

/* Take back what a request that will not be accepted had promised. */
static void refuse(struct clients *all, struct connection *publisher) {
    all->counters.refused++;
    all->counters.expected -= publisher->diagnosis->subscribers;
}

void client_close(struct clients *all, struct connection *one) {
    if (one->fd >= 0)
        close(one->fd);
    if (one->kind == PUBLISHER) {
        if (one->state == BUSY)
            refuse(all, one);
        else if (one->state == OPEN)
            all->counters.reopened++;
    } else if (one->state == OPEN) {
        /* `subscribers` stays: what it does not get any more is lost. */
        all->counters.closed++;
    } else if (one->state != UNUSED) {
        all->counters.failed++;
        all->entering--;
    }
    free(one->rest);
    one->rest = NULL;
    one->rest_bytes = 0;
    one->fd = -1;
    one->state = UNUSED;
}

/* Everything we send is far smaller than a socket's buffer: what does not fit means a peer that has stopped reading. */
static void send_all(struct clients *all, struct connection *one, const void *bytes, size_t count) {
    if (send(one->fd, bytes, count, MSG_NOSIGNAL) != (ssize_t)count)
        client_close(all, one);
}

/* Who answers is taken for interactive by the kernel, and its TCP acknowledgements are delayed from then on, by timers.
 * Over loopback these run on the core of the server, and only a server that asks for answers would pay for them. */
static void answer_ping(struct clients *all, struct connection *one, const struct frame *ping) {
    unsigned char answer[FRAME_CONTROL_MAX];
    int yes = 1;
    send_all(all, one, answer, frame_write(answer, FRAME_PONG, ping->payload, ping->payload_bytes));
    if (one->fd >= 0)
        setsockopt(one->fd, IPPROTO_TCP, TCP_QUICKACK, &yes, sizeof yes);
}

static void say_refused(const char *what, const unsigned char *answer, size_t bytes) {
    static bool said;
    const unsigned char *end = memchr(answer, '\r', bytes);
    if (!said)
        fprintf(stderr, "load: %s answered: %.*s\n", what, end ? (int)(end - answer) : 0, (const char *)answer);
    said = true;
}

static void entered(struct clients *all, struct connection *one) {
    samples_add(&all->setup, now_ns() - one->began_ns);
    one->state = OPEN;
    one->diagnosis->subscribers++;
    all->entering--;
    all->counters.opened++;
}

static void connected(struct clients *all, struct connection *one) {
    char request[12 * 1024];
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(one->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        client_close(all, one);
        return;
    }
    watch(all, one, EPOLL_CTL_MOD, EPOLLIN | EPOLLRDHUP);
    if (one->kind == PUBLISHER) {
        one->state = OPEN;
        return;
    }
    one->state = UPGRADING;
    int bytes = snprintf(request, sizeof request,
                         "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s%s%s\r\n",
                         one->path, ntohs(all->subscribe_to.sin_port), one->token ? "Authorization: Bearer " : "",
                         one->token ? one->token : "", one->token ? "\r\n" : "");
    if (bytes >= (int)sizeof request)
        client_close(all, one);
    else
        send_all(all, one, request, (size_t)bytes);
}

void client_post(struct clients *all, struct connection *publisher, struct diagnosis *diagnosis, uint64_t sent_ns) {
    static char padding[2048], body[4096], request[16 * 1024];
    if (!padding[0])
        memset(padding, 'x', sizeof padding);
    unsigned long long number = ++diagnosis->number;
    int length = snprintf(body, sizeof body,
                          "{\"diagnosis_id\":\"%s\",\"feedback_id\":%llu,\"rating\":5,\"comment\":\"" MARKER
                          "%llu:%llu:%.*s\"}",
                          diagnosis->name, number, number, (unsigned long long)sent_ns, (int)all->padding, padding);
    int bytes = snprintf(request, sizeof request,
                         "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s%s%sContent-Type: application/json\r\n"
                         "Content-Length: %d\r\n\r\n%s",
                         all->post_path, ntohs(all->publish_to.sin_port),
                         all->post_token ? "Authorization: Bearer " : "", all->post_token ? all->post_token : "",
                         all->post_token ? "\r\n" : "", length, body);
    publisher->diagnosis = diagnosis;
    publisher->began_ns = sent_ns;
    publisher->state = BUSY;
    all->counters.posted++;
    all->counters.expected += diagnosis->subscribers;
    send_all(all, publisher, request, (size_t)bytes);
}

static void count_delivery(struct counters *counters, struct connection *one, uint64_t number) {
    uint64_t bit = 1ull << number % 64, *word = &one->seen[number % SEEN_NUMBERS / 64];
    if (number > one->newest) {
        /* The numbers stepped over take the places of those too old to be kept. */
        if (number - one->newest >= SEEN_NUMBERS)
            memset(one->seen, 0, sizeof one->seen);
        else
            for (uint64_t n = one->newest + 1; n < number; n++)
                one->seen[n % SEEN_NUMBERS / 64] &= ~(1ull << n % 64);
        one->newest = number;
    } else if (one->newest - number >= SEEN_NUMBERS || *word & bit) {
        counters->duplicates++;
        return;
    } else {
        counters->reordered++;
    }
    *word |= bit;
    counters->delivered++;
}

static bool contains(const unsigned char *text, size_t bytes, const char *what) {
    return memmem(text, bytes, what, strlen(what)) != NULL;
}

/* Read the number behind `name`, which has its quotes and colon; false: there is no such field. */
static bool field_number(unsigned char *text, unsigned char *end, const char *name, uint64_t *value) {
    unsigned char *field = memmem(text, (size_t)(end - text), name, strlen(name));
    if (field)
        read_number(field + strlen(name), end, value);
    return field != NULL;
}

/* Who is told of a gap is owed its numbers no more. Before it follows nothing is owed to it. */
static void on_gap(struct clients *all, struct connection *one, unsigned char *text, unsigned char *end) {
    uint64_t count, to;
    all->counters.gaps++;
    if (one->state != OPEN || !field_number(text, end, "\"count\":", &count) || !field_number(text, end, "\"to\":", &to))
        return;
    all->counters.missed += count;
    one->seq = to;
}

static void on_text(struct clients *all, struct connection *one, unsigned char *text, size_t bytes, uint64_t read_ns) {
    size_t head = bytes < 160 ? bytes : 160; /* the envelope stands before the data */
    unsigned char *mark = memmem(text, bytes, MARKER, strlen(MARKER));
    if (mark) {
        uint64_t number, sent_ns, seq;
        unsigned char *end = text + bytes;
        unsigned char *next = read_number(mark + strlen(MARKER), end, &number);
        read_number(next + (next < end), end, &sent_ns);
        count_delivery(&all->counters, one, number);
        samples_add(&all->delivery, read_ns > sent_ns ? read_ns - sent_ns : 0);
        if (field_number(text, mark < text + head ? mark : text + head, "\"seq\":", &seq)) {
            all->counters.seq_breaks += one->seq && seq != one->seq + 1;
            one->seq = seq;
        }
    } else if (one->state == ENTERING && contains(text, bytes, all->ready)) {
        entered(all, one);
    } else if (contains(text, head, "\"type\":\"gap\"")) {
        on_gap(all, one, text, text + bytes);
    }
}

/* Handle the whole frames in `bytes`; returns how many bytes they were. */
static size_t take_frames(struct clients *all, struct connection *one, unsigned char *bytes, size_t count) {
    uint64_t read_ns = now_ns();
    size_t taken = 0;
    struct frame frame;
    while (one->fd >= 0 && frame_read(bytes + taken, count - taken, &frame)) {
        unsigned char answer[FRAME_CONTROL_MAX];
        taken += frame.bytes;
        switch (frame.opcode) {
        case FRAME_PING:
            all->counters.pings++;
            answer_ping(all, one, &frame);
            break;
        case FRAME_CLOSE:
            all->counters.goodbyes++;
            send_all(all, one, answer, frame_write(answer, FRAME_CLOSE, frame.payload, frame.payload_bytes));
            client_close(all, one);
            break;
        case FRAME_TEXT:
            on_text(all, one, frame.payload, frame.payload_bytes, read_ns);
            break;
        }
    }
    return taken;
}

/* Handle the 101 if it is whole; returns how many bytes it was. */
static size_t take_upgrade(struct clients *all, struct connection *one, unsigned char *bytes, size_t count) {
    unsigned char *end = memmem(bytes, count, "\r\n\r\n", 4);
    if (!end)
        return 0;
    if (count < 12 || memcmp(bytes, "HTTP/1.1 101", 12)) {
        say_refused("the upgrade was", bytes, count);
        client_close(all, one);
        return 0;
    }
    one->state = ENTERING;
    if (!all->ready)
        entered(all, one);
    return (size_t)(end + 4 - bytes);
}

/* Handle an answer to a POST if it is whole; returns how many bytes it was. */
static size_t take_answer(struct clients *all, struct connection *one, unsigned char *bytes, size_t count) {
    unsigned char *end = memmem(bytes, count, "\r\n\r\n", 4);
    uint64_t length = 0;
    if (!end)
        return 0;
    *end = 0;
    char *field = strcasestr((char *)bytes, "\r\ncontent-length:");
    if (field)
        read_number((unsigned char *)field + 17, end, &length);
    bool last = strcasestr((char *)bytes, "\r\nconnection: close") != NULL;
    *end = '\r';
    size_t whole = (size_t)(end + 4 - bytes) + length;
    if (whole > count)
        return 0;
    if (one->state != BUSY || !field || count < 12 || bytes[9] != '2') {
        say_refused("a POST was", bytes, count);
        if (one->state == BUSY)
            refuse(all, one);
    } else {
        samples_add(&all->post, now_ns() - one->began_ns);
        all->counters.accepted++;
    }
    one->state = OPEN;
    if (last)
        client_close(all, one);
    return whole;
}

static void readable(struct clients *all, struct connection *one) {
    static unsigned char buffer[READ_BYTES];
    size_t held = one->rest_bytes, taken = 0;
    if (held)
        memcpy(buffer, one->rest, held);
    ssize_t got = recv(one->fd, buffer + held, sizeof buffer - held, 0);
    if (got <= 0) {
        if (got == 0 || (errno != EAGAIN && errno != EINTR))
            client_close(all, one);
        return;
    }
    size_t count = held + (size_t)got;
    if (one->kind == PUBLISHER) {
        taken = take_answer(all, one, buffer, count);
    } else {
        if (one->state == UPGRADING)
            taken = take_upgrade(all, one, buffer, count);
        if (one->state == ENTERING || one->state == OPEN)
            taken += take_frames(all, one, buffer + taken, count - taken);
    }
    if (one->fd < 0)
        return;
    if (taken < count && count - taken >= sizeof buffer) {
        client_close(all, one);
        return;
    }
    one->rest_bytes = count - taken;
    if (one->rest_bytes) {
        one->rest = allocate(one->rest, one->rest_bytes);
        memcpy(one->rest, buffer + taken, one->rest_bytes);
    } else if (one->rest) {
        free(one->rest);
        one->rest = NULL;
    }
}

void clients_poll(struct clients *all, int wait_ms) {
    static struct epoll_event events[EVENTS_MAX];
    int count = epoll_wait(all->epoll, events, EVENTS_MAX, wait_ms);
    for (int i = 0; i < count; i++) {
        struct connection *one = events[i].data.ptr;
        if (one->fd < 0)
            continue;
        if (one->state == CONNECTING)
            connected(all, one);
        else
            readable(all, one);
    }
}
