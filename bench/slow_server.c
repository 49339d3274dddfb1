/* Preloaded into a llama-server, it makes a tiny model as slow as a large one, and costs no CPU for it: each
   start with a model takes SLOW_START_S seconds longer and leaves a byte in the file SLOW_START_COUNT, so that
   loads are counted whoever starts them; each step of an answer takes SLOW_STEP_S longer, and each token of a
   prompt SLOW_TOKEN_S. Routers that are started with it themselves name no model. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static double seconds_of(const char *name) {
    const char *value = getenv(name);
    return value == NULL ? 0.0 : atof(value);
}

__attribute__((constructor)) static void slow_start(int argc, char **argv) {
    const char *count = getenv("SLOW_START_COUNT");
    int has_model = 0, file;
    for (int i = 1; i < argc; i++) has_model |= !strcmp(argv[i], "-m") || !strcmp(argv[i], "--model");
    if (count == NULL || !has_model) return;
    file = open(count, O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (file >= 0) {
        if (write(file, ".", 1) < 0) _exit(1);
        close(file);
    }
    usleep((useconds_t)(seconds_of("SLOW_START_S") * 1e6));
}

/* What every model is computed by. The first node of a graph are its tokens' embeddings: one row each. */
int ggml_backend_sched_graph_compute_async(void *scheduler, void *graph) {
    int (*compute)(void *, void *) = dlsym(RTLD_NEXT, "ggml_backend_sched_graph_compute_async");
    char *(*node)(void *, int) = dlsym(RTLD_NEXT, "ggml_graph_node");
    int64_t tokens;
    memcpy(&tokens, node(graph, 0) + 24, sizeof tokens); /* ggml_tensor.ne[1] */
    usleep((useconds_t)((seconds_of("SLOW_STEP_S") + tokens * seconds_of("SLOW_TOKEN_S")) * 1e6));
    return compute(scheduler, graph);
}
