/* A libnvidia-ml.so.1 that shows what the file $NVML_STUB says, read anew on every call. Lines of words:
     init CODE | count N CODE | hang CALL
     gpu INDEX UUID NAME TOTAL_MIB USED_MIB MIG       (MIG: -1 not supported, 0 off, 1 on)
     mig PARENT UUID TOTAL_MIB USED_MIB               (in order; a GPU's instances)
     proc UUID PID MIB                                (MIB -1: not available)
     live UUID PID MIB                                (uses that much of the device until it is dead)
     fail CALL UUID CODE                              (UUID *: any device) */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { char uuid[80], name[80]; long total, used; int mig, parent; } Device;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int gpu, memory; } Rates;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gi, ci; } Process;
enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7 };

static Device devices[16];
static int n_devices, n_gpus, declared, init_code, count_code, started, starts;
static char lines[4096][200];
static int n_lines;

static int alive(unsigned int pid) {
  char path[40], stat[400] = "", *name_end;
  FILE *file;
  snprintf(path, sizeof path, "/proc/%u/stat", pid);
  if (!(file = fopen(path, "r"))) return 0;
  name_end = fgets(stat, sizeof stat, file) ? strrchr(stat, ')') : NULL;
  fclose(file);
  return name_end && name_end[2] != 'Z' && name_end[2] != 'X';
}

/* A process on a device, if this line tells of one. */
static int process_of(const char *line, char *uuid, unsigned int *pid, long *mib) {
  if (sscanf(line, "proc %79s %u %ld", uuid, pid, mib) == 3) return 1;
  return sscanf(line, "live %79s %u %ld", uuid, pid, mib) == 3 && alive(*pid);
}

static void use_what_lives(const char *line) {
  char uuid[80];
  unsigned int pid;
  long mib;
  if (strncmp(line, "live", 4) || !process_of(line, uuid, &pid, &mib)) return;
  for (int i = 0; i < n_devices; i++)
    if (!strcmp(devices[i].uuid, uuid)) devices[i].used += mib;
}

static void load(void) {
  FILE *file = fopen(getenv("NVML_STUB"), "r");
  n_lines = n_devices = n_gpus = init_code = count_code = 0;
  declared = -1;
  if (!file) return;
  while (n_lines < 4096 && fgets(lines[n_lines], 200, file)) {
    char *line = lines[n_lines++], name[80];
    int index;
    Device d = {.parent = -1};
    sscanf(line, "init %d", &init_code);
    sscanf(line, "count %d %d", &declared, &count_code);
    if (sscanf(line, "gpu %d %79s %79s %ld %ld %d", &index, d.uuid, name, &d.total, &d.used, &d.mig) == 6) {
      strcpy(d.name, name);
      devices[n_devices++] = d;
      n_gpus++;
    }
    if (sscanf(line, "mig %d %79s %ld %ld", &d.parent, d.uuid, &d.total, &d.used) == 4) {
      d.mig = -1;
      devices[n_devices++] = d;
    }
  }
  fclose(file);
  for (int i = 0; i < n_lines; i++) use_what_lives(lines[i]);
  if (declared < 0) declared = n_gpus;
}

/* Every call begins here: hang, fail, or go on. */
static int enter(const char *call, Device *device) {
  char name[80], uuid[80];
  int code;
  load();
  for (int i = 0; i < n_lines; i++) {
    if (sscanf(lines[i], "hang %79s", name) == 1 && !strcmp(name, call)) {
      usleep(20000);
      return enter(call, device);
    }
  }
  for (int i = 0; i < n_lines; i++)
    if (sscanf(lines[i], "fail %79s %79s %d", name, uuid, &code) == 3 && !strcmp(name, call))
      if (!strcmp(uuid, "*") || (device && !strcmp(uuid, device->uuid))) return code;
  return started ? OK : UNINITIALIZED;
}

static Device *at(void *handle) {
  long slot = (long)handle - 1;
  return slot >= 0 && slot < n_devices ? &devices[slot] : NULL;
}

static int find(int parent, int index, void **handle) {
  for (long i = 0; i < n_devices; i++)
    if (devices[i].parent == parent && index-- == 0) {
      *handle = (void *)(i + 1);
      return OK;
    }
  return parent < 0 ? INVALID : NOT_FOUND;
}

int nvmlInitWithFlags(unsigned int flags) {
  int code = enter("init", NULL);
  if (code != OK && code != UNINITIALIZED) return code;
  if (init_code) return init_code;
  started = 1;
  starts++;
  return OK;
}
int nvmlShutdown(void) {
  int was = started;
  started = 0;
  return was ? OK : UNINITIALIZED;
}
const char *nvmlErrorString(int code) {
  static char text[40];
  snprintf(text, sizeof text, "stub error %d", code);
  return text;
}
int nvmlSystemGetDriverVersion(char *text, unsigned int size) {
  snprintf(text, size, "570.1-%d", starts);
  return enter("driver", NULL);
}
int nvmlDeviceGetCount_v2(unsigned int *count) {
  int code = enter("count", NULL);
  *count = declared;
  return code ? code : count_code;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) {
  int code = enter("handle", NULL);
  if (code) return code;
  if ((int)index >= declared) return INVALID;
  code = find(-1, index, handle);
  return code ? code : enter("handle", at(*handle));
}
int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
  int code = enter("memory", at(handle));
  Device *d = at(handle);
  if (code || !d) return code ? code : INVALID;
  memory->total = (unsigned long long)d->total << 20;
  memory->used = (unsigned long long)d->used << 20;
  memory->free = memory->total - memory->used;
  return OK;
}
static int text(const char *call, void *handle, char *to, unsigned int size, int want_name) {
  int code = enter(call, at(handle));
  Device *d = at(handle);
  if (code || !d) return code ? code : INVALID;
  snprintf(to, size, "%s", want_name ? d->name : d->uuid);
  return OK;
}
int nvmlDeviceGetUUID(void *handle, char *to, unsigned int size) { return text("uuid", handle, to, size, 0); }
int nvmlDeviceGetName(void *handle, char *to, unsigned int size) { return text("name", handle, to, size, 1); }
int nvmlDeviceGetUtilizationRates(void *handle, Rates *rates) {
  int code = enter("utilization", at(handle));
  Device *d = at(handle);
  if (code || !d) return code ? code : INVALID;
  if (d->mig) return NOT_SUPPORTED;
  rates->gpu = 42;
  rates->memory = 7;
  return OK;
}
int nvmlDeviceGetMigMode(void *handle, unsigned int *current, unsigned int *pending) {
  int code = enter("migmode", at(handle));
  Device *d = at(handle);
  if (code || !d) return code ? code : INVALID;
  if (d->mig < 0) return NOT_SUPPORTED;
  *current = *pending = d->mig;
  return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned int *count) {
  *count = 7;
  return enter("migcount", at(handle));
}
int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned int index, void **mig) {
  int code = enter("mighandle", at(handle)), parent = 0;
  if (code) return code;
  for (long i = 0; i < (long)handle - 1; i++) parent += devices[i].parent < 0;
  return find(parent, index, mig);
}
static int processes(const char *call, void *handle, unsigned int *count, Process *list) {
  int code = enter(call, at(handle));
  Device *d = at(handle);
  unsigned int found = 0, pid;
  char uuid[80];
  long mib;
  if (code || !d) return code ? code : INVALID;
  for (int i = 0; i < n_lines; i++)
    if (process_of(lines[i], uuid, &pid, &mib) && !strcmp(uuid, d->uuid)) {
      if (list && found < *count)
        list[found] = (Process){pid, mib < 0 ? ~0ull : (unsigned long long)mib << 20, ~0u, ~0u};
      found++;
    }
  code = found > (list ? *count : 0) ? TOO_SMALL : OK;
  *count = found;
  return code;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned int *n, Process *p) {
  return processes("compute", h, n, p);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *h, unsigned int *n, Process *p) {
  return processes("graphics", h, n, p);
}
