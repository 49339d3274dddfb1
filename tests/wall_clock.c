/* Preloaded into one process: its wall clock is off by as many seconds as the file $WALL_CLOCK holds (a C
   double, mapped: it may change at any time). The monotonic clock goes on. Children see the true time. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int (*true_clock)(clockid_t, struct timespec *);
static int (*true_sem_wait)(sem_t *, const struct timespec *);
static volatile double *offset_s;

static struct timespec moved(struct timespec at, double by) {
  double whole = floor(by);
  at.tv_sec += (time_t)whole;
  at.tv_nsec += (long)((by - whole) * 1e9);
  if (at.tv_nsec >= 1000000000L) {
    at.tv_nsec -= 1000000000L;
    at.tv_sec++;
  }
  return at;
}

__attribute__((constructor)) static void begin(void) {
  const char *name = getenv("WALL_CLOCK");
  int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
  true_clock = dlsym(RTLD_NEXT, "clock_gettime");
  true_sem_wait = dlsym(RTLD_NEXT, "sem_timedwait");
  if (file < 0) abort();
  offset_s = mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, file, 0);
  if (offset_s == MAP_FAILED) abort();
  close(file);
  unsetenv("LD_PRELOAD"); /* llama-server keeps the true time */
}

int clock_gettime(clockid_t id, struct timespec *to) {
  int wall = id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE;
  int code;
  if (!true_clock) true_clock = dlsym(RTLD_NEXT, "clock_gettime");
  code = true_clock(id, to);
  if (code == 0 && wall && offset_s) *to = moved(*to, *offset_s);
  return code;
}
int gettimeofday(struct timeval *restrict to, void *restrict zone) {
  struct timespec now;
  (void)zone;
  if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
  *to = (struct timeval){now.tv_sec, now.tv_nsec / 1000};
  return 0;
}
time_t time(time_t *to) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (to) *to = now.tv_sec;
  return now.tv_sec;
}
/* The kernel waits by the true clock, and a wait that has begun does not last longer when the clock is set. */
int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
  struct timespec at = moved(*until, -*offset_s);
  return true_sem_wait(semaphore, &at);
}
