/* A load generator for WebSocket broadcast servers: one thread, one epoll, loopback only.
 *
 *   load PLAN
 *
 * PLAN is a file of lines:
 *   subscribe ADDRESS PORT            where subscribers connect
 *   publish ADDRESS PORT PATH TOKEN   where messages are posted; TOKEN `-`: none
 *   ready TEXT                        a subscriber follows once a frame contains TEXT; without: once it has the 101
 *   padding N                         characters that bring a message to its size
 *   patience SECONDS                  so long may nothing move until a command gives up
 *   subscriber DIAGNOSIS PATH TOKEN   one subscriber, any number of lines
 *
 * Commands come on stdin, one a line; each is answered with one line of JSON on stdout, when it is done or when nothing
 * has moved for so long. An answer counts what happened since the last one:
 *   connect IN_FLIGHT UP_TO           connect the first UP_TO subscribers (0: all) that are not, at most so many at a time
 *   publish SECONDS CONNECTIONS OUTSTANDING RATE
 *       post over so many connections, to the diagnoses in turn, with at most OUTSTANDING messages not delivered to
 *       everybody (0: any number), RATE a second (0: as fast as that allows); then wait for what is still owed
 *   rest SECONDS                      only answer
 *
 * Connect before the first publish: a subscriber that comes later would be sent what it is not owed. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include "client.h"

#define PUBLISHERS_MAX 256
#define PADDING_MAX 2000
#define LINE_BYTES (12 * 1024)

struct plan {
    struct diagnosis **diagnoses; /* each of its own, because connections point to them */
    size_t diagnosis_count;
    struct connection *subscribers;
    size_t subscriber_count;
    uint64_t patience_ns;
};

static void give_up(const char *why) {
    fprintf(stderr, "load: %s\n", why);
    exit(2);
}

/* Only this machine: a generator of load is not to be pointed at anybody else. */
static struct sockaddr_in loopback(const char *address, const char *port) {
    struct sockaddr_in found = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    if (inet_pton(AF_INET, address, &found.sin_addr) != 1 || ntohl(found.sin_addr.s_addr) >> 24 != 127)
        give_up("the address must be a loopback one, 127.x.x.x");
    return found;
}

static struct diagnosis *diagnosis_named(struct plan *plan, const char *name) {
    /* Lines of one diagnosis often stand together: look at the newest first. */
    for (size_t i = plan->diagnosis_count; i-- > 0;)
        if (!strcmp(plan->diagnoses[i]->name, name))
            return plan->diagnoses[i];
    struct diagnosis *added = allocate(NULL, sizeof *added);
    *added = (struct diagnosis){.name = strdup(name)};
    plan->diagnoses = allocate(plan->diagnoses, (plan->diagnosis_count + 1) * sizeof(struct diagnosis *));
    return plan->diagnoses[plan->diagnosis_count++] = added;
}

static char *token_of(const char *word) { return strcmp(word, "-") ? strdup(word) : NULL; }

static void add_subscriber(struct plan *plan, char *const words[]) {
    if (!(plan->subscriber_count & (plan->subscriber_count - 1))) {
        size_t capacity = plan->subscriber_count ? plan->subscriber_count * 2 : 1;
        plan->subscribers = allocate(plan->subscribers, capacity * sizeof *plan->subscribers);
    }
    plan->subscribers[plan->subscriber_count++] = (struct connection){
        .fd = -1,
        .kind = SUBSCRIBER,
        .diagnosis = diagnosis_named(plan, words[0]),
        .path = strdup(words[1]),
        .token = token_of(words[2]),
    };
}

static void read_plan(const char *name, struct plan *plan, struct clients *all) {
    char line[LINE_BYTES];
    FILE *file = fopen(name, "r");
    if (!file)
        give_up("cannot read the plan");
    while (fgets(line, sizeof line, file)) {
        char *words[6] = {0}, *rest = line;
        line[strcspn(line, "\n")] = 0;
        char *what = strsep(&rest, " "), *whole = rest ? strdup(rest) : NULL;
        size_t count = 0;
        while (rest && count < 5)
            words[count++] = strsep(&rest, " ");
        if (!strcmp(what, "subscribe") && count == 2)
            all->subscribe_to = loopback(words[0], words[1]);
        else if (!strcmp(what, "publish") && count == 4)
            all->publish_to = loopback(words[0], words[1]), all->post_path = strdup(words[2]),
            all->post_token = token_of(words[3]);
        else if (!strcmp(what, "ready") && count)
            all->ready = strdup(whole);
        else if (!strcmp(what, "padding") && count == 1 && atoi(words[0]) <= PADDING_MAX)
            all->padding = (size_t)atoi(words[0]);
        else if (!strcmp(what, "patience") && count == 1 && atoi(words[0]) > 0)
            plan->patience_ns = (uint64_t)atoi(words[0]) * NS_PER_S;
        else if (!strcmp(what, "subscriber") && count == 3)
            add_subscriber(plan, words);
        else
            give_up("a line of the plan is not understood");
        free(whole);
    }
    fclose(file);
    if (!all->subscribe_to.sin_port || !all->publish_to.sin_port || !plan->diagnosis_count || !plan->patience_ns)
        give_up("the plan must say where to subscribe and to publish, its patience, and name a subscriber");
}

/* The last moment at which a total grew. */
struct progress {
    uint64_t total, at_ns;
};

static bool stalled(const struct plan *plan, struct progress *progress, uint64_t total) {
    uint64_t now = now_ns();
    if (total != progress->total)
        *progress = (struct progress){total, now};
    return now - progress->at_ns > plan->patience_ns;
}

static void connect_some(struct plan *plan, struct clients *all, uint64_t in_flight, size_t up_to) {
    struct progress progress = {0, now_ns()};
    struct counters *counters = &all->counters;
    size_t next = 0, end = up_to && up_to < plan->subscriber_count ? up_to : plan->subscriber_count;
    while (next < end || all->entering) {
        while (next < end && all->entering < in_flight) {
            struct connection *one = &plan->subscribers[next++];
            if (one->state == UNUSED)
                client_open(all, one);
        }
        clients_poll(all, 100);
        if (stalled(plan, &progress, counters->opened + counters->failed))
            break;
    }
    for (size_t i = 0; i < end; i++)
        if (plan->subscribers[i].state != OPEN)
            client_close(all, &plan->subscribers[i]);
}

static void rest(struct clients *all, double seconds) {
    uint64_t until = now_ns() + (uint64_t)(seconds * 1e9);
    while (now_ns() < until)
        clients_poll(all, 20);
}

static uint64_t settled(const struct counters *counters) { return counters->accepted + counters->refused; }

/* Whether another message may be sent with so many outstanding. */
static bool has_room(const struct plan *plan, const struct counters *counters, uint64_t outstanding) {
    uint64_t told = counters->delivered + counters->missed;
    uint64_t owed = counters->expected > told ? counters->expected - told : 0;
    uint64_t each = plan->subscriber_count / plan->diagnosis_count;
    if (!outstanding)
        return true;
    return counters->posted - settled(counters) < outstanding && owed <= (outstanding - 1) * each;
}

struct publishing {
    double seconds;
    size_t connections;
    uint64_t outstanding;
    double rate;
};

/* Returns the moment of the last delivery or answer, so that a wait for what never comes is not counted. */
static uint64_t publish(struct plan *plan, struct clients *all, struct publishing how) {
    static struct connection publishers[PUBLISHERS_MAX];
    struct counters *counters = &all->counters;
    uint64_t began = now_ns(), end = began + (uint64_t)(how.seconds * 1e9);
    uint64_t interval = how.rate > 0 ? (uint64_t)(1e9 / how.rate) : 0, due = began;
    struct progress progress = {0, began};
    size_t turn = 0;
    for (size_t i = 0; i < how.connections; i++)
        publishers[i] = (struct connection){.fd = -1, .kind = PUBLISHER};
    for (;;) {
        bool sending = now_ns() < end;
        for (size_t i = 0; i < how.connections && sending; i++) {
            if (publishers[i].state == UNUSED)
                client_open(all, &publishers[i]);
            if (publishers[i].state != OPEN || !has_room(plan, counters, how.outstanding) || (interval && due > now_ns()))
                continue;
            /* At a fixed rate the message says when it was due: what a slow server holds up counts as its delay. */
            client_post(all, &publishers[i], plan->diagnoses[turn++ % plan->diagnosis_count], interval ? due : now_ns());
            due += interval;
        }
        if (!sending && settled(counters) == counters->posted && counters->delivered + counters->missed >= counters->expected)
            break;
        uint64_t now = now_ns();
        bool wait_for_due = sending && interval && due < now + 20 * 1000000ull;
        clients_poll(all, !wait_for_due ? 20 : due > now ? (int)((due - now) / 1000000) : 0);
        uint64_t total = counters->delivered + counters->accepted;
        if (stalled(plan, &progress, total))
            break;
    }
    for (size_t i = 0; i < how.connections; i++) {
        counters->reopened -= publishers[i].state == OPEN; /* this time it is we who close */
        client_close(all, &publishers[i]);
    }
    return progress.total ? progress.at_ns : now_ns();
}

static void report(struct clients *all, uint64_t elapsed_ns, uint64_t cpu_ns) {
    const struct counters *c = &all->counters;
    double seconds = (double)elapsed_ns / 1e9;
    printf("{\"seconds\":%.6f,\"busy\":%.3f", seconds, seconds > 0 ? (double)cpu_ns / 1e9 / seconds : 0);
#define REPORT(name) printf(",\"" #name "\":%llu", (unsigned long long)c->name)
    REPORT(opened), REPORT(failed), REPORT(closed), REPORT(goodbyes);
    REPORT(posted), REPORT(accepted), REPORT(refused);
    REPORT(expected), REPORT(delivered), REPORT(duplicates), REPORT(reordered), REPORT(seq_breaks);
    REPORT(gaps), REPORT(missed), REPORT(pings), REPORT(reopened);
    samples_print(stdout, "setup_ms", &all->setup);
    samples_print(stdout, "delivery_ms", &all->delivery);
    samples_print(stdout, "post_ms", &all->post);
    puts("}");
    fflush(stdout);
    all->counters = (struct counters){0};
    all->setup.count = all->delivery.count = all->post.count = 0;
}

static bool run(const char *line, struct plan *plan, struct clients *all) {
    struct publishing how;
    unsigned long long in_flight, up_to, outstanding;
    double seconds;
    uint64_t began = now_ns(), cpu = own_cpu_ns(), ended = 0;
    if (sscanf(line, "connect %llu %llu", &in_flight, &up_to) == 2 && in_flight > 0) {
        connect_some(plan, all, in_flight, up_to);
    } else if (sscanf(line, "publish %lf %zu %llu %lf", &how.seconds, &how.connections, &outstanding, &how.rate) == 4 &&
               how.connections >= 1 && how.connections <= PUBLISHERS_MAX) {
        how.outstanding = outstanding;
        ended = publish(plan, all, how);
    } else if (sscanf(line, "rest %lf", &seconds) == 1) {
        rest(all, seconds);
    } else {
        return false;
    }
    report(all, (ended ? ended : now_ns()) - began, own_cpu_ns() - cpu);
    return true;
}

/* Wait for a command. Meanwhile sockets are served: a server's Pings want an answer at any time. */
static bool next_command(struct clients *all, char *line, int size) {
    for (;;) {
        struct pollfd ready[2] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = all->epoll, .events = POLLIN}};
        poll(ready, 2, -1);
        if (ready[1].revents)
            clients_poll(all, 0);
        if (ready[0].revents)
            return fgets(line, size, stdin) != NULL;
    }
}

int main(int argc, char **argv) {
    struct plan plan = {0};
    struct clients all = {.epoll = epoll_create1(EPOLL_CLOEXEC)};
    struct rlimit files;
    char line[256];
    if (argc != 2)
        give_up("usage: load PLAN");
    read_plan(argv[1], &plan, &all);
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (plan.subscriber_count + PUBLISHERS_MAX + 16 > files.rlim_max)
        give_up("the limit of open files is too low for so many subscribers");
    while (next_command(&all, line, sizeof line))
        if (!run(line, &plan, &all))
            give_up("a command is not understood");
    return 0;
}
