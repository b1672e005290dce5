// What the fake upstream and the load generator share: sockets, clocks, and looking into bytes.
// Loopback only; every failure of a system call ends the program with a word.

#ifndef BENCH_WIRE_H
#define BENCH_WIRE_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000ull
#define STAMP_MARK "\"content\":\"t"  // what stands before a chunk's time stamp
#define STAMP_DIGITS 16               // CLOCK_MONOTONIC in nanoseconds, zero-padded

static inline void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static inline struct sockaddr_in loopback(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

static inline void no_delay(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

// A timer that epoll can wait for, with nanosecond resolution (epoll_wait itself only knows milliseconds).
static inline int timer_open(int epoll) {
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    if (fd < 0) die("timerfd");
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) < 0) die("epoll_ctl timer");
    return fd;
}

// Fires once at this time (at once when it is past); 0 disarms.
static inline void timer_at(int fd, uint64_t at_ns) {
    struct itimerspec t = {.it_value = {.tv_sec = (time_t)(at_ns / NS_PER_S), .tv_nsec = (long)(at_ns % NS_PER_S)}};
    timerfd_settime(fd, TFD_TIMER_ABSTIME, &t, NULL);
}

static inline void timer_clear(int fd) {
    uint64_t count;
    if (read(fd, &count, sizeof count) < 0 && errno != EAGAIN) die("timer");
}

// Where the headers end (just behind the empty line), or 0 while they are incomplete.
static inline size_t headers_end(const char *bytes, size_t length) {
    const char *end = memmem(bytes, length, "\r\n\r\n", 4);
    return end ? (size_t)(end - bytes) + 4 : 0;
}

// The value of a header in [bytes, bytes + length), or NULL. The name is given with its colon, in lower case.
static inline const char *header_value(const char *bytes, size_t length, const char *name) {
    size_t n = strlen(name);
    for (const char *line = bytes; (size_t)(line - bytes) + n < length;) {
        if (strncasecmp(line, name, n) == 0) {
            for (line += n; *line == ' '; line++) {}
            return line;
        }
        line = memchr(line, '\n', length - (size_t)(line - bytes));
        if (!line) return NULL;
        line++;
    }
    return NULL;
}

#endif
