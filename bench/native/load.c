// The load generator: one thread, three ways to ask, and the delays it saw.
//
//   load --port P --body FILE --keys FILE --connections N --warm S --seconds S [--rate R | --streams]
//
//   (default)   closed loop: every connection asks again as soon as it is answered
//   --rate R    open loop: R requests a second on a fixed schedule; a delay counts from the scheduled time, so that a
//               slow server cannot hide behind the requests it kept from being sent
//   --streams   every connection reads streams; a delay is from the upstream's write of a chunk to its arrival here
//
// The body's run of sixteen @ is replaced by a number that never repeats, so that nobody can answer or count from a
// cache what a real caller would say anew. Keys are one per line; connections take them in turn.
// Prints `start` and `stop` when the measured seconds begin and end, then one line of JSON. Only what ends between the
// two is counted.

#include <getopt.h>

#include "wire.h"

#define EVENTS 256
#define IN_SIZE 65536
#define SAMPLES_MAX (8u << 20)
#define MARKER "@@@@@@@@@@@@@@@@"
#define MARKER_LENGTH 16
#define RAMP_S 2
#define DRAIN_S 60

typedef struct connection {
    int fd, busy, in_body, chunked, status;
    size_t need;             // bytes of the body still to come, when the length is known
    char *out, *marker;      // the whole request, and where its number stands
    size_t out_length, out_sent;
    uint64_t started_ns;
    size_t have;
    char in[IN_SIZE];
} connection;

static struct {
    int port, connections, streams;
    double warm_s, seconds, rate;
    const char *body, *keys;
} options = {.connections = 32, .warm_s = 1, .seconds = 3};

static struct {
    uint64_t requests, errors, chunks, cut;
    uint32_t *samples_us;
    uint32_t count;
} seen;

static enum { WARMING, MEASURING, DRAINING } phase;
static int epoll_fd, timer_fd, opened;
static connection *all, **idle;
static int idle_count;
static uint64_t serial, begin_ns, start_ns, stop_ns, next_ns, open_next_ns;
static uint64_t *backlog;  // scheduled times that found no free connection: a ring
static size_t backlog_head, backlog_tail;
#define BACKLOG 65536u

static void sample(uint64_t delay_ns) {
    if (phase == MEASURING && seen.count < SAMPLES_MAX) seen.samples_us[seen.count++] = (uint32_t)(delay_ns / 1000);
}

static void watch(connection *c, uint32_t events, int how) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll_fd, how, c->fd, &e) < 0) die("epoll_ctl");
}

static void dial(connection *c) {
    struct sockaddr_in a = loopback(options.port);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&a, sizeof a) < 0) die("connect");
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    no_delay(c->fd);
    watch(c, EPOLLIN, EPOLL_CTL_ADD);
}

static void flush(connection *c) {
    while (c->out_sent < c->out_length) {
        ssize_t n = send(c->fd, c->out + c->out_sent, c->out_length - c->out_sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
            return;
        }
        if (n < 0) return;  // the read side will see the end of the connection
        c->out_sent += (size_t)n;
    }
}

static void ask(connection *c, uint64_t started_ns) {
    char number[MARKER_LENGTH + 1];
    snprintf(number, sizeof number, "%016llx", (unsigned long long)++serial * 2654435761ull);
    memcpy(c->marker, number, MARKER_LENGTH);
    c->busy = 1;
    c->in_body = 0;
    c->have = c->out_sent = 0;
    c->started_ns = started_ns;
    flush(c);
}

// The connection has nothing to do: what comes next depends on the way of asking.
static void rest(connection *c) {
    c->busy = 0;
    if (phase == DRAINING) return;
    if (options.rate == 0) {
        ask(c, now_ns());
    } else if (backlog_head != backlog_tail) {
        ask(c, backlog[backlog_head++ % BACKLOG]);
    } else {
        idle[idle_count++] = c;
    }
}

static void complain(connection *c) {
    if (phase != DRAINING && !seen.errors++) {
        fprintf(stderr, "first error: status %d: %.*s\n", c->status, (int)(c->have > 600 ? 600 : c->have), c->in);
    }
}

static void finished(connection *c) {
    if (c->status != 200) complain(c);
    else if (phase == MEASURING) seen.requests++;
    if (c->status == 200 && !options.streams) sample(now_ns() - c->started_ns);
    rest(c);
}

static void lost(connection *c) {
    if (c->busy && phase != DRAINING) {
        seen.cut++;
        complain(c);
    }
    close(c->fd);
    c->fd = -1;
    if (phase == DRAINING) {
        c->busy = 0;
        return;
    }
    int was_busy = c->busy;
    dial(c);
    if (was_busy) rest(c);
}

// Counts the time stamps in what has arrived and keeps the tail that may hold half of one.
static void scan_stream(connection *c) {
    const size_t mark = sizeof STAMP_MARK - 1, whole = mark + STAMP_DIGITS;
    uint64_t now = now_ns();
    char *at = c->in, *end = c->in + c->have;
    for (char *hit; (hit = memmem(at, (size_t)(end - at), STAMP_MARK, mark)) && hit + whole <= end; at = hit + whole) {
        char digits[STAMP_DIGITS + 1] = {0};
        memcpy(digits, hit + mark, STAMP_DIGITS);
        sample(now - strtoull(digits, NULL, 10));
        if (phase == MEASURING) seen.chunks++;
    }
    int over = c->have >= 5 && memcmp(end - 5, "0\r\n\r\n", 5) == 0;
    size_t tail = (size_t)(end - at);
    if (tail >= whole) tail = whole - 1;
    memmove(c->in, end - tail, tail);
    c->have = tail;
    if (over) finished(c);
}

static void take_headers(connection *c) {
    size_t head = headers_end(c->in, c->have);
    if (!head) return;
    const char *length = header_value(c->in, head, "content-length:");
    c->status = atoi(c->in + 9);
    c->chunked = length == NULL;
    c->need = length ? strtoul(length, NULL, 10) : 0;
    c->in_body = 1;
    if (c->status == 200) {
        memmove(c->in, c->in + head, c->have - head);
        c->have -= head;
    } else {
        c->need += head;  // kept for the complaint
    }
}

static void readable(connection *c) {
    for (;;) {
        ssize_t n = recv(c->fd, c->in + c->have, IN_SIZE - c->have, 0);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) {
            lost(c);
            return;
        }
        c->have += (size_t)n;
        if (!c->in_body) take_headers(c);
        if (!c->in_body) continue;
        if (options.streams && c->status == 200) scan_stream(c);
        else if (c->chunked ? c->have >= 5 && !memcmp(c->in + c->have - 5, "0\r\n\r\n", 5) : c->have >= c->need) finished(c);
        if (!c->busy || !c->in_body || n < 16384) return;
    }
}

static char *slurp(const char *path, size_t *length) {
    FILE *f = fopen(path, "rb");
    if (!f) die(path);
    fseek(f, 0, SEEK_END);
    *length = (size_t)ftell(f);
    rewind(f);
    char *bytes = calloc(1, *length + 1);
    if (fread(bytes, 1, *length, f) != *length) die(path);
    fclose(f);
    return bytes;
}

// Each connection has its request ready, with its own key; only the number changes from call to call.
static void prepare(void) {
    size_t body_length, keys_length;
    char *body = slurp(options.body, &body_length), *keys = slurp(options.keys, &keys_length);
    char *key = keys;
    all = calloc((size_t)options.connections, sizeof *all);
    idle = calloc((size_t)options.connections, sizeof *idle);
    for (int i = 0; i < options.connections; i++) {
        connection *c = &all[i];
        size_t key_length = strcspn(key, "\n");
        c->fd = -1;
        c->out = calloc(1, body_length + key_length + 512);
        int head = sprintf(c->out,
                           "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nauthorization: Bearer %.*s\r\n"
                           "content-type: application/json\r\naccept: application/json\r\nuser-agent: bench\r\n"
                           "content-length: %zu\r\n\r\n", options.port, (int)key_length, key, body_length);
        memcpy(c->out + head, body, body_length);
        c->out_length = (size_t)head + body_length;
        c->marker = memmem(c->out, c->out_length, MARKER, MARKER_LENGTH);
        if (!c->marker) die("the body has no marker");
        key += key_length + 1;
        if (key >= keys + keys_length || !*key) key = keys;
    }
    free(body);
    free(keys);
}

static int any_busy(void) {
    for (int i = 0; i < opened; i++) {
        if (all[i].busy) return 1;
    }
    return 0;
}

// Opens the connections that are due, over the ramp: a thousand at one instant is another test.
static void open_due(uint64_t now) {
    uint64_t step = RAMP_S * NS_PER_S / (uint64_t)options.connections;
    while (opened < options.connections && now >= open_next_ns) {
        connection *c = &all[opened++];
        open_next_ns += options.streams ? step : 0;
        dial(c);
        rest(c);
    }
}

static void ask_due(uint64_t now) {
    uint64_t step = (uint64_t)(NS_PER_S / options.rate);
    for (; phase != DRAINING && now >= next_ns; next_ns += step) {
        if (idle_count) ask(idle[--idle_count], next_ns);
        else if (backlog_tail - backlog_head < BACKLOG) backlog[backlog_tail++ % BACKLOG] = next_ns;
    }
}

// Does what is due and arms the timer for what is next.
static void tick(void) {
    uint64_t now = now_ns();
    if (opened < options.connections) open_due(now);
    if (options.rate > 0) ask_due(now);
    if (phase == WARMING && now >= start_ns) {
        phase = MEASURING;
        puts("start");
    } else if (phase == MEASURING && now >= stop_ns) {
        phase = DRAINING;
        puts("stop");
    }
    uint64_t next = phase == WARMING ? start_ns : phase == MEASURING ? stop_ns : now + NS_PER_S / 10;
    if (opened < options.connections && open_next_ns < next) next = open_next_ns;
    if (options.rate > 0 && phase != DRAINING && next_ns < next) next = next_ns;
    timer_at(timer_fd, next);
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static uint32_t quantile(double q) {
    return seen.count ? seen.samples_us[(uint32_t)(q * (seen.count - 1))] : 0;
}

static void report(void) {
    qsort(seen.samples_us, seen.count, sizeof *seen.samples_us, by_value);
    printf("{\"requests\": %llu, \"errors\": %llu, \"cut\": %llu, \"chunks\": %llu, \"samples\": %u, "
           "\"p50_us\": %u, \"p90_us\": %u, \"p99_us\": %u, \"max_us\": %u}\n",
           (unsigned long long)seen.requests, (unsigned long long)seen.errors, (unsigned long long)seen.cut,
           (unsigned long long)seen.chunks, seen.count, quantile(0.5), quantile(0.9), quantile(0.99), quantile(1.0));
}

static void parse_options(int argc, char **argv) {
    static const struct option known[] = {
        {"port", 1, 0, 'p'}, {"body", 1, 0, 'b'}, {"keys", 1, 0, 'k'}, {"connections", 1, 0, 'c'},
        {"warm", 1, 0, 'w'}, {"seconds", 1, 0, 's'}, {"rate", 1, 0, 'r'}, {"streams", 0, 0, 'S'}, {0, 0, 0, 0}};
    for (int o; (o = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        if (o == 'p') options.port = atoi(optarg);
        else if (o == 'b') options.body = optarg;
        else if (o == 'k') options.keys = optarg;
        else if (o == 'c') options.connections = atoi(optarg);
        else if (o == 'w') options.warm_s = atof(optarg);
        else if (o == 's') options.seconds = atof(optarg);
        else if (o == 'r') options.rate = atof(optarg);
        else if (o == 'S') options.streams = 1;
        else exit(2);
    }
    if (!options.port || !options.body || !options.keys) die("load needs --port, --body and --keys");
}

int main(int argc, char **argv) {
    parse_options(argc, argv);
    setvbuf(stdout, NULL, _IOLBF, 0);
    prepare();
    seen.samples_us = malloc(SAMPLES_MAX * sizeof *seen.samples_us);
    backlog = malloc(BACKLOG * sizeof *backlog);
    epoll_fd = epoll_create1(0);
    timer_fd = timer_open(epoll_fd);
    begin_ns = open_next_ns = next_ns = now_ns();
    start_ns = begin_ns + (uint64_t)((options.warm_s + (options.streams ? RAMP_S : 0)) * NS_PER_S);
    stop_ns = start_ns + (uint64_t)(options.seconds * NS_PER_S);
    struct epoll_event ready[EVENTS];
    timer_at(timer_fd, begin_ns);
    while (phase != DRAINING || (any_busy() && now_ns() < stop_ns + DRAIN_S * NS_PER_S)) {
        int n = epoll_wait(epoll_fd, ready, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            connection *c = ready[i].data.ptr;
            if (!c) {
                timer_clear(timer_fd);
                tick();
                continue;
            }
            if (ready[i].events & EPOLLOUT) watch(c, EPOLLIN, EPOLL_CTL_MOD), flush(c);
            if (ready[i].events & ~(uint32_t)EPOLLOUT) readable(c);
        }
    }
    report();
    return seen.requests || seen.chunks ? 0 : 1;
}
