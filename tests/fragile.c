/* Preloaded into a real llama-server, ends it when a request holds a marker: as a bug of its own does
   (abort), as one that gives up does (exit), and as the kernel does when memory runs out (SIGKILL). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

static int holds(const void *bytes, ssize_t size, const char *marker) {
    return size > 0 && memmem(bytes, (size_t)size, marker, strlen(marker)) != NULL;
}

ssize_t recv(int socket, void *buffer, size_t length, int flags) {
    ssize_t (*real)(int, void *, size_t, int) = dlsym(RTLD_NEXT, "recv");
    ssize_t size = real(socket, buffer, length, flags);
    if (flags & MSG_PEEK)
        return size;
    if (holds(buffer, size, "CRASH-BY-ABORT"))
        abort();
    if (holds(buffer, size, "CRASH-BY-EXIT"))
        _exit(1);
    if (holds(buffer, size, "KILLED-FROM-OUTSIDE"))
        raise(SIGKILL);
    return size;
}
