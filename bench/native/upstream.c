// A provider's chat completions API, as fast as one thread can be: what stands behind every gateway in the bench.
//
//   upstream PORT CHUNK_MS
//
// A call without "stream": true gets one JSON answer at once, with its usage. A streamed call gets max_tokens chunks,
// one socket write each, one every CHUNK_MS milliseconds, each carrying the time it was written; then the usage chunk
// where include_usage asks for one. All streams have the same interval, so a plain queue is the timer.

#include "wire.h"

#define BODY_MAX (1 << 20)
#define EVENTS 256

typedef struct connection {
    int fd;
    size_t have;        // bytes in `in`
    size_t size;        // room in `in`
    char *in;
    int streaming;      // chunks still to come, the last one included
    int with_usage;
    int sent;
    uint64_t due_ns;
    struct connection *next;  // in the queue of streams, or among the dead
} connection;

static int epoll_fd, timer_fd;
static uint64_t interval_ns;
static connection *queue_head, *queue_tail;
static connection *dead;  // freed after a batch of events, since one of them may still name it

static const char ANSWER[] =
    "{\"id\":\"chatcmpl-bench0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1790000000,"
    "\"model\":\"bench-model\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":"
    "\"The gateway measures what the model used and charges exactly that, once, whatever happens on the way. "
    "A short answer is enough for a measurement of everything but the model itself.\",\"refusal\":null},"
    "\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":210,\"completion_tokens\":34,"
    "\"total_tokens\":244,\"prompt_tokens_details\":{\"cached_tokens\":0,\"audio_tokens\":0},"
    "\"completion_tokens_details\":{\"reasoning_tokens\":0,\"audio_tokens\":0}},\"system_fingerprint\":\"fp_bench\"}";

static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    "x-request-id: req_bench\r\ntransfer-encoding: chunked\r\n\r\n";

static void forget(connection *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    if (c->streaming) return;  // still in the queue: it comes here again from there
    c->next = dead;
    dead = c;
}

static void bury(void) {
    while (dead) {
        connection *c = dead;
        dead = c->next;
        free(c->in);
        free(c);
    }
}

static int put(connection *c, const char *bytes, size_t length) {
    ssize_t n = send(c->fd, bytes, length, MSG_NOSIGNAL);
    return n == (ssize_t)length ? 0 : -1;  // loopback buffers hold far more than a chunk; a full one is a lost client
}

// One event in its own HTTP chunk, one write.
static int put_event(connection *c, const char *event) {
    char out[1024];
    int length = (int)strlen(event);
    int n = snprintf(out, sizeof out, "%x\r\n%s\r\n", length, event);
    return put(c, out, (size_t)n);
}

static int put_chunk(connection *c) {
    char event[768];
    snprintf(event, sizeof event,
             "data: {\"id\":\"chatcmpl-bench0123456789abcdef\",\"object\":\"chat.completion.chunk\","
             "\"created\":1790000000,\"model\":\"bench-model\",\"system_fingerprint\":\"fp_bench\","
             "\"choices\":[{\"index\":0,\"delta\":{" STAMP_MARK "%016llu\"},\"logprobs\":null,"
             "\"finish_reason\":null}]}\n\n",
             (unsigned long long)now_ns());
    c->sent++;
    return put_event(c, event);
}

static int put_end(connection *c) {
    char event[768];
    const char *stop = "data: {\"id\":\"chatcmpl-bench0123456789abcdef\",\"object\":\"chat.completion.chunk\","
                       "\"created\":1790000000,\"model\":\"bench-model\",\"choices\":[{\"index\":0,\"delta\":{},"
                       "\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n";
    if (put_event(c, stop)) return -1;
    if (c->with_usage) {
        snprintf(event, sizeof event,
                 "data: {\"id\":\"chatcmpl-bench0123456789abcdef\",\"object\":\"chat.completion.chunk\","
                 "\"created\":1790000000,\"model\":\"bench-model\",\"choices\":[],\"usage\":{\"prompt_tokens\":210,"
                 "\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n",
                 c->sent, c->sent + 210);
        if (put_event(c, event)) return -1;
    }
    if (put_event(c, "data: [DONE]\n\n")) return -1;
    return put(c, "0\r\n\r\n", 5);
}

static void enqueue(connection *c, uint64_t due_ns) {
    c->due_ns = due_ns;
    c->next = NULL;
    if (queue_tail) queue_tail->next = c;
    else queue_head = c, timer_at(timer_fd, due_ns);
    queue_tail = c;
}

// Writes every chunk that is due and arms the timer for the next one.
static void tick(void) {
    uint64_t now = now_ns();
    while (queue_head && queue_head->due_ns <= now) {
        connection *c = queue_head;
        queue_head = c->next;
        if (!queue_head) queue_tail = NULL;
        int lost = c->fd < 0 || put_chunk(c);
        if (lost || c->streaming == 1) {
            c->streaming = 0;
            if (!lost) lost = put_end(c);
            if (lost) forget(c);
            continue;
        }
        c->streaming--;
        enqueue(c, c->due_ns + interval_ns);
    }
    if (queue_head) timer_at(timer_fd, queue_head->due_ns);
}

// The value behind "name": in a JSON body, white space skipped, or NULL. Good for bodies the bench itself wrote.
static const char *field(const char *body, size_t length, const char *name) {
    const char *at = memmem(body, length, name, strlen(name));
    if (!at) return NULL;
    for (at += strlen(name); at < body + length && (*at == ' ' || *at == ':'); at++) {}
    return at;
}

static void answer(connection *c, const char *body, size_t length) {
    const char *stream = field(body, length, "\"stream\"");
    if (!stream || *stream != 't') {
        char out[2048];
        int n = snprintf(out, sizeof out,
                         "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_bench\r\n"
                         "content-length: %zu\r\n\r\n%s", sizeof ANSWER - 1, ANSWER);
        if (put(c, out, (size_t)n)) forget(c);
        return;
    }
    const char *chunks = field(body, length, "\"max_tokens\"");
    const char *usage = field(body, length, "\"include_usage\"");
    c->streaming = chunks ? atoi(chunks) : 1;
    c->with_usage = usage && *usage == 't';
    c->sent = 0;
    if (put(c, STREAM_HEAD, sizeof STREAM_HEAD - 1)) {
        c->streaming = 0;
        forget(c);
        return;
    }
    enqueue(c, now_ns() + interval_ns);
}

// Answers every whole request in the buffer. Bodies come with a length or, from some gateways, chunked in one piece.
static void serve(connection *c) {
    for (;;) {
        size_t head = headers_end(c->in, c->have);
        if (!head) return;
        const char *length_text = header_value(c->in, head, "content-length:");
        size_t total;
        if (length_text) {
            total = head + strtoul(length_text, NULL, 10);
            if (c->have < total) return;
        } else if (header_value(c->in, head, "transfer-encoding:")) {
            if (c->have < head + 5 || memcmp(c->in + c->have - 5, "0\r\n\r\n", 5)) return;
            total = c->have;
        } else {
            total = head;
        }
        answer(c, c->in + head, total - head);
        if (c->fd < 0) return;
        memmove(c->in, c->in + total, c->have - total);
        c->have -= total;
        if (!c->have) return;
    }
}

static void readable(connection *c) {
    if (c->size - c->have < 65536) {
        c->size = c->size ? c->size * 2 : 131072;
        if (c->size > 2 * BODY_MAX || !(c->in = realloc(c->in, c->size))) die("body too large");
    }
    ssize_t n = recv(c->fd, c->in + c->have, c->size - c->have - 1, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        forget(c);
        return;
    }
    c->have += (size_t)n;
    c->in[c->have] = 0;
    serve(c);
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
        if (fd < 0) return;
        no_delay(fd);
        connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e) < 0) die("epoll_ctl");
    }
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: upstream PORT CHUNK_MS\n"), 2;
    interval_ns = strtoull(argv[2], NULL, 10) * 1000000ull;
    epoll_fd = epoll_create1(0);
    timer_fd = timer_open(epoll_fd);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = loopback(atoi(argv[1]));
    if (bind(listener, (struct sockaddr *)&a, sizeof a) < 0 || listen(listener, 4096) < 0) die("listen");
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &listener}, ready[EVENTS];
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e) < 0) die("epoll_ctl");
    for (;;) {
        int n = epoll_wait(epoll_fd, ready, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            if (!ready[i].data.ptr) timer_clear(timer_fd), tick();
            else if (ready[i].data.ptr == &listener) accept_all(listener);
            else if (((connection *)ready[i].data.ptr)->fd >= 0) readable(ready[i].data.ptr);
        }
        bury();
    }
}
