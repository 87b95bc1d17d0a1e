/* The client ends: WebSocket subscribers (RFC 6455) and keep-alive HTTP/1.1 connections that publish, on one epoll. */
#ifndef CLIENT_H
#define CLIENT_H

#include <netinet/in.h>
#include <stdbool.h>

#include "measure.h"

/* How far behind its successors a message may arrive and still be told from a duplicate. Requests in flight together may
 * be served in any order, and a new connection may wait long for its first turn. */
#define SEEN_NUMBERS 4096

enum kind { SUBSCRIBER, PUBLISHER };

enum state {
    UNUSED,     /* no socket */
    CONNECTING, /* TCP */
    UPGRADING,  /* a subscriber waits for the 101 */
    ENTERING,   /* a subscriber waits for the frame that says it follows */
    OPEN,       /* a subscriber follows; a publisher is free */
    BUSY,       /* a publisher waits for its answer */
};

struct diagnosis {
    char *name;
    uint64_t subscribers; /* those that follow */
    uint64_t number;      /* of the last message sent; the first is 1 */
};

struct connection {
    int fd;
    enum kind kind;
    enum state state;
    struct diagnosis *diagnosis; /* a subscriber's; a publisher's: of the request in hand */
    char *path, *token;          /* a subscriber's; NULL: none */
    uint64_t began_ns;           /* of the attempt to connect; of the request in hand: when it was due */
    unsigned char *rest;         /* the beginning of a frame or answer whose end has not come */
    size_t rest_bytes;
    uint64_t newest; /* the highest number delivered */
    uint64_t seen[SEEN_NUMBERS / 64]; /* bit n % SEEN_NUMBERS: n was delivered, for the newest SEEN_NUMBERS numbers */
    uint64_t seq;    /* the server's own number of the last event; 0: none yet */
};

/* What happened since the last report. */
struct counters {
    uint64_t opened, failed;              /* subscribers that follow; that could not connect or enter */
    uint64_t closed, goodbyes;            /* subscribers the server dropped; Close frames of the server */
    uint64_t posted, accepted, refused;   /* requests; answered 2xx; answered otherwise or not at all */
    uint64_t expected, delivered;         /* owed for requests not refused; distinct deliveries */
    uint64_t duplicates, reordered;       /* beyond the distinct; among the distinct, later than a successor */
    uint64_t seq_breaks, gaps;            /* events whose `seq` is not one more, gaps aside; gap frames */
    uint64_t missed;                      /* numbers that gap frames said are gone */
    uint64_t pings;                       /* answered */
    uint64_t reopened;                    /* publishers' connections that the server ended between requests */
};

struct clients {
    struct sockaddr_in subscribe_to, publish_to;
    char *post_path, *post_token; /* NULL: no token */
    char *ready;                  /* what the frame that says "you follow" contains; NULL: the 101 says it */
    size_t padding;               /* characters that bring a message to its size */
    int epoll;
    uint64_t entering; /* subscribers between connect and OPEN */
    struct counters counters;
    struct samples setup, delivery, post;
};

/* Begin to connect. */
void client_open(struct clients *all, struct connection *one);

/* End a connection; `UNUSED` afterwards. */
void client_close(struct clients *all, struct connection *one);

/* Publish the next message of `diagnosis`, saying it was sent at `sent_ns`. `publisher` must be OPEN. */
void client_post(struct clients *all, struct connection *publisher, struct diagnosis *diagnosis, uint64_t sent_ns);

/* Wait for events for up to `wait_ms` and handle them. */
void clients_poll(struct clients *all, int wait_ms);

#endif
