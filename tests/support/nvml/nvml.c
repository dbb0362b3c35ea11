/* A stand-in for libnvidia-ml.so.1, for machines without a driver.

   It answers the calls that nvidia-ml-py makes for fsqueue, from a text file that it reads anew for
   every call: so a test changes a GPU by writing a line, and the real bindings are tested.

   $NVML_STANDIN        the file; without it there is no driver (NVML_ERROR_DRIVER_NOT_LOADED)
   $NVML_STANDIN_CALLS  a file to which each call is appended, one line "FUNCTION DEVICE"

   The file has lines "DEVICE FIELD VALUE". A DEVICE is a card's index (0), an instance (0/1), or *
   for the library. FIELDs: name, uuid, total and used (bytes), util (percent), temperature (C),
   power (mW), mig (1: cut into instances), driver (of the library: its version), or a function's name, whose VALUE is the error that it
   returns. What has no line is NVML_ERROR_NOT_SUPPORTED, as it is for a MIG instance.

   Compiled with -DBEFORE_CUDA_13 it lacks nvmlDeviceGetTemperatureV, as older drivers do. */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9 };
enum { CARDS = 16, SLICES = 7, VALUE = 96 };

typedef struct { char key[8]; } device;
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned int gpu, memory; } utilization;
typedef struct { unsigned int version, sensor; int celsius; } temperature_v1;

static device cards[CARDS], slices[CARDS][SLICES];

/* Find "key field VALUE"; the last such line counts, so that a test may append. */
static int look_up(const char *key, const char *field, char value[VALUE])
{
    char line[256], k[8], f[64], v[VALUE];
    int found = 0;
    const char *path = getenv("NVML_STANDIN");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file)
        return 0;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "%7s %63s %95[^\n]", k, f, v) == 3 && !strcmp(k, key) && !strcmp(f, field)) {
            strcpy(value, v);
            found = 1;
        }
    fclose(file);
    return found;
}

/* Record the call and return the error that the file wants from it. */
static int enter(const char *function, const char *key)
{
    char line[96], value[VALUE];
    const char *path = getenv("NVML_STANDIN_CALLS");
    int fd = path ? open(path, O_WRONLY | O_APPEND | O_CREAT, 0644) : -1;
    if (fd >= 0) {
        int length = snprintf(line, sizeof line, "%s %s\n", function, key);
        if (write(fd, line, length) != length)
            abort();
        close(fd);
    }
    if (look_up(key, function, value))
        return atoi(value);
    return SUCCESS;
}

static int number(const char *key, const char *field, unsigned long long *into)
{
    char value[VALUE];
    if (!look_up(key, field, value))
        return NOT_SUPPORTED;
    *into = strtoull(value, NULL, 10);
    return SUCCESS;
}

static int text(device *d, const char *function, const char *field, char *into, unsigned int size)
{
    char value[VALUE];
    int error = enter(function, d->key);
    if (error)
        return error;
    if (!look_up(d->key, field, value))
        return NOT_SUPPORTED;
    snprintf(into, size, "%s", value);
    return SUCCESS;
}

static int small(device *d, const char *function, const char *field, unsigned int *into)
{
    unsigned long long value;
    int error = enter(function, d->key);
    if (!error && !(error = number(d->key, field, &value)))
        *into = (unsigned int)value;
    return error;
}

int nvmlInitWithFlags(unsigned int flags)
{
    int error = enter(__func__, "*");
    (void)flags;
    if (!error && (!getenv("NVML_STANDIN") || access(getenv("NVML_STANDIN"), R_OK)))
        error = DRIVER_NOT_LOADED;
    for (int i = 0; i < CARDS; i++) {
        snprintf(cards[i].key, sizeof cards[i].key, "%d", i);
        for (int j = 0; j < SLICES; j++)
            snprintf(slices[i][j].key, sizeof slices[i][j].key, "%d/%d", i % 10, j);
    }
    return error;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) { return enter(__func__, "*"); }

const char *nvmlErrorString(int error)
{
    static char line[32];
    snprintf(line, sizeof line, "NVML error %d", error);
    return line;
}

int nvmlSystemGetDriverVersion(char *into, unsigned int size)
{
    device library = {"*"};
    return text(&library, __func__, "driver", into, size);
}

int nvmlDeviceGetCount_v2(unsigned int *count)
{
    char value[VALUE];
    int error = enter(__func__, "*");
    for (*count = 0; *count < CARDS && look_up(cards[*count].key, "uuid", value);)
        ++*count;
    return error;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device **into)
{
    char value[VALUE];
    if (index >= CARDS || !look_up(cards[index].key, "uuid", value))
        return INVALID_ARGUMENT;
    *into = &cards[index];
    return enter(__func__, cards[index].key);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device **into)
{
    char value[VALUE];
    for (int i = 0; i < CARDS; i++) {
        if (look_up(cards[i].key, "uuid", value) && !strcmp(value, uuid)) {
            *into = &cards[i];
            return enter(__func__, cards[i].key);
        }
        for (int j = 0; j < SLICES; j++)
            if (look_up(slices[i][j].key, "uuid", value) && !strcmp(value, uuid)) {
                *into = &slices[i][j];
                return enter(__func__, slices[i][j].key);
            }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetMigMode(device *d, unsigned int *current, unsigned int *pending)
{
    int error = small(d, __func__, "mig", current);
    *pending = *current;
    return error;
}

int nvmlDeviceGetMaxMigDeviceCount(device *d, unsigned int *count)
{
    *count = SLICES;
    return enter(__func__, d->key);
}

int nvmlDeviceGetMigDeviceHandleByIndex(device *d, unsigned int index, device **into)
{
    char value[VALUE];
    device *slice = index < SLICES ? &slices[d - cards][index] : NULL;
    if (!slice || !look_up(slice->key, "uuid", value))
        return NOT_FOUND;
    *into = slice;
    return enter(__func__, slice->key);
}

int nvmlDeviceGetName(device *d, char *into, unsigned int size) { return text(d, __func__, "name", into, size); }

int nvmlDeviceGetUUID(device *d, char *into, unsigned int size) { return text(d, __func__, "uuid", into, size); }

int nvmlDeviceGetMemoryInfo(device *d, memory *into)
{
    int error = enter(__func__, d->key);
    if (error || (error = number(d->key, "total", &into->total)) || (error = number(d->key, "used", &into->used)))
        return error;
    into->free = into->total - into->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(device *d, utilization *into)
{
    into->memory = 1; /* the share of time the memory bus was busy: not what anybody here asks for */
    return small(d, __func__, "util", &into->gpu);
}

int nvmlDeviceGetTemperature(device *d, int sensor, unsigned int *into)
{
    (void)sensor;
    return small(d, __func__, "temperature", into);
}

#ifndef BEFORE_CUDA_13
int nvmlDeviceGetTemperatureV(device *d, temperature_v1 *into)
{
    return small(d, __func__, "temperature", (unsigned int *)&into->celsius);
}
#endif

int nvmlDeviceGetPowerUsage(device *d, unsigned int *into) { return small(d, __func__, "power", into); }
