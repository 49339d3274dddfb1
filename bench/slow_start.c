/* Preloaded into a llama-server, it makes each start take SLOW_START_S seconds longer, as a large file would,
   and leaves a byte in the file SLOW_START_COUNT, so that loads are counted whoever starts them. */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

__attribute__((constructor)) static void slow_start(void) {
    const char *seconds = getenv("SLOW_START_S"), *count = getenv("SLOW_START_COUNT");
    if (seconds == NULL || count == NULL) return;
    int file = open(count, O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (file >= 0) {
        if (write(file, ".", 1) < 0) _exit(1);
        close(file);
    }
    usleep((useconds_t)(atof(seconds) * 1e6));
}
