/* Preloaded into a server, it makes each start with a model take SLOW_START_S seconds longer, as a large file
   would, and leaves a byte in the file SLOW_START_COUNT, so that loads are counted whoever starts them. Routers
   that are started with it themselves name no model. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

__attribute__((constructor)) static void slow_start(int argc, char **argv) {
    const char *seconds = getenv("SLOW_START_S"), *count = getenv("SLOW_START_COUNT");
    int has_model = 0, file;
    for (int i = 1; i < argc; i++) has_model |= !strcmp(argv[i], "-m") || !strcmp(argv[i], "--model");
    if (seconds == NULL || count == NULL || !has_model) return;
    file = open(count, O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (file >= 0) {
        if (write(file, ".", 1) < 0) _exit(1);
        close(file);
    }
    usleep((useconds_t)(atof(seconds) * 1e6));
}
