/* The floor: the work of a broadcast server and nothing else, in C. It shows what the load generator can take.
 *
 *   floor
 *
 * Listens on a free port of 127.0.0.1 and says which. GET /ws/NAME upgrades; the body of any POST is sent, as it came
 * and with one send() each, to the subscribers of the NAME in its `diagnosis_id`. It trusts its only client: no
 * authentication, no limits, nothing kept. Not to be used for anything else. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHANNELS_MAX 4096
#define NAME_BYTES 64
#define REQUEST_BYTES 8192
#define EVENTS_MAX 512

struct channel {
    char name[NAME_BYTES];
    int *sockets;
    size_t count, capacity;
};

struct peer {
    int fd;
    bool upgraded;
    size_t held;
    char *request; /* freed at the upgrade */
};

static struct channel channels[CHANNELS_MAX];
static size_t channel_count;

static struct channel *channel_named(const char *name, size_t bytes) {
    if (bytes >= NAME_BYTES)
        exit(1);
    for (size_t i = 0; i < channel_count; i++)
        if (!strncmp(channels[i].name, name, bytes) && !channels[i].name[bytes])
            return &channels[i];
    if (channel_count == CHANNELS_MAX)
        exit(1);
    memcpy(channels[channel_count].name, name, bytes);
    return &channels[channel_count++];
}

static void subscribe(struct peer *peer) {
    /* The generator's key is always the same, and so is the answer to it (RFC 6455 section 4.2.2). */
    static const char answer[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                 "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    const char *name = peer->request + strlen("GET /ws/");
    struct channel *channel = channel_named(name, strcspn(name, "? "));
    if (channel->count == channel->capacity) {
        channel->capacity = channel->capacity ? channel->capacity * 2 : 16;
        channel->sockets = realloc(channel->sockets, channel->capacity * sizeof *channel->sockets);
        if (!channel->sockets)
            exit(1);
    }
    channel->sockets[channel->count++] = peer->fd;
    peer->upgraded = true;
    free(peer->request);
    peer->request = NULL;
    send(peer->fd, answer, sizeof answer - 1, MSG_NOSIGNAL);
}

/* Whether the request was whole. */
static bool publish(struct peer *peer, char *body) {
    static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    static char frame[REQUEST_BYTES + 4];
    const char *field = strcasestr(peer->request, "\r\ncontent-length:"), *name = strstr(body, "\"diagnosis_id\":\"");
    size_t bytes = field ? (size_t)atoi(field + 17) : 0, head = 2;
    if ((size_t)(peer->request + peer->held - body) < bytes)
        return false;
    if (!name)
        exit(1);
    name += strlen("\"diagnosis_id\":\"");
    struct channel *channel = channel_named(name, strcspn(name, "\""));
    frame[0] = (char)0x81;
    frame[1] = (char)bytes;
    if (bytes > 125) {
        frame[1] = 126;
        frame[2] = (char)(bytes >> 8);
        frame[3] = (char)bytes;
        head = 4;
    }
    memcpy(frame + head, body, bytes);
    for (size_t i = 0; i < channel->count; i++)
        send(channel->sockets[i], frame, head + bytes, MSG_NOSIGNAL);
    send(peer->fd, answer, sizeof answer - 1, MSG_NOSIGNAL);
    peer->held = 0;
    return true;
}

/* Whether the connection lives on. */
static bool serve(struct peer *peer) {
    char ignored[4096];
    if (peer->upgraded) {
        ssize_t got = recv(peer->fd, ignored, sizeof ignored, 0);
        return got > 0 || (got < 0 && errno == EAGAIN);
    }
    ssize_t got = recv(peer->fd, peer->request + peer->held, REQUEST_BYTES - 1 - peer->held, 0);
    if (got <= 0)
        return got < 0 && errno == EAGAIN;
    peer->held += (size_t)got;
    peer->request[peer->held] = 0;
    char *end = strstr(peer->request, "\r\n\r\n");
    if (!end)
        return peer->held < REQUEST_BYTES - 1;
    if (!strncmp(peer->request, "GET /ws/", 8))
        subscribe(peer);
    else
        publish(peer, end + 4);
    return true;
}

static void accept_all(int listener, int epoll) {
    int fd, yes = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct peer *peer = calloc(1, sizeof *peer);
        if (!peer || !(peer->request = malloc(REQUEST_BYTES)))
            exit(1);
        peer->fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = peer};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    struct rlimit files;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS_MAX];
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096) ||
        getsockname(listener, (struct sockaddr *)&address, &size) ||
        epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event)) {
        perror("floor");
        return 1;
    }
    fprintf(stderr, "listening on http://127.0.0.1:%d\n", ntohs(address.sin_port));
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS_MAX, -1);
        for (int i = 0; i < count; i++) {
            struct peer *peer = events[i].data.ptr;
            if (!peer) {
                accept_all(listener, epoll);
            } else if (!serve(peer)) {
                /* A subscriber leaves only when the whole run is over: its number is not taken out of the channel. */
                close(peer->fd);
                free(peer->request);
                free(peer);
            }
        }
    }
}
