/* A CUDA driver without a GPU: the functions that cuda_python.py calls, on host memory.
 *
 * It lets the real cuda-python run every line of ours: names, arguments and their types. Work is done
 * at once, except while a stream records: then it is kept for the graph. Compiled and loaded by
 * test_runtime_cuda_stub.py.
 */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int CUresult;
typedef unsigned long long CUdeviceptr;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201 };
enum { MOST = 64 };

typedef struct { void *target; const void *source; size_t size; } Copy;
typedef struct { Copy copies[MOST]; int count; } Graph;
typedef struct { int recording; Graph *graph; } Stream;
typedef struct { double ms; } Event;

static _Thread_local int depth = 0; /* contexts pushed in this thread */
static int retained = 0;
#define NEED_CONTEXT if (depth < 1) return INVALID_CONTEXT

CUresult cuInit(unsigned int flags) { return flags ? INVALID_VALUE : SUCCESS; }
CUresult cuDriverGetVersion(int *version) { *version = 13010; return SUCCESS; }
CUresult cuDeviceGetCount(int *count) { *count = 1; return SUCCESS; }
CUresult cuDeviceGet(int *device, int index) { *device = index; return index ? 101 : SUCCESS; }
CUresult cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, length, "Stub GPU %d", device);
    return SUCCESS;
}
CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
    NEED_CONTEXT;
    *free = 1 << 29;
    *total = 1 << 30;
    return SUCCESS;
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = 1 << 30; return SUCCESS; }
CUresult cuDeviceGetPCIBusId(char *bus, int length, int device) {
    snprintf(bus, length, "0000:%02x:00.0", device + 1);
    return SUCCESS;
}
CUresult cuDeviceGetAttribute(int *value, int kind, int device) {
    (void)device;
    *value = kind == 75 ? 8 : kind == 76 ? 9 : -1;
    return SUCCESS;
}
CUresult cuGetErrorName(CUresult error, const char **text) {
    *text = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
          : error == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT" : "CUDA_ERROR_INVALID_VALUE";
    return SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == OUT_OF_MEMORY ? "out of memory"
          : error == INVALID_CONTEXT ? "invalid device context" : "invalid argument";
    return SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    retained++;
    *context = &retained;
    return SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    return retained-- > 0 ? SUCCESS : INVALID_CONTEXT;
}
CUresult cuCtxPushCurrent_v2(void *context) {
    if (context != &retained || !retained) return INVALID_CONTEXT;
    depth++;
    return SUCCESS;
}
CUresult cuCtxPopCurrent_v2(void **context) {
    NEED_CONTEXT;
    depth--;
    *context = &retained;
    return SUCCESS;
}
CUresult cuStreamCreate(Stream **stream, unsigned int flags) {
    NEED_CONTEXT;
    *stream = calloc(1, sizeof **stream);
    return flags == 1 ? SUCCESS : INVALID_VALUE; /* non-blocking */
}
CUresult cuStreamDestroy_v2(Stream *stream) { NEED_CONTEXT; free(stream); return SUCCESS; }
CUresult cuStreamSynchronize(Stream *stream) {
    NEED_CONTEXT;
    return stream->recording ? INVALID_VALUE : SUCCESS;
}
CUresult cuStreamWaitEvent(Stream *stream, Event *event, unsigned int flags) {
    NEED_CONTEXT;
    return stream && event && !flags ? SUCCESS : INVALID_VALUE;
}
static CUdeviceptr latest = 0; /* memory of the GPU that was allocated last */
CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t size) {
    NEED_CONTEXT;
    if (size > 1ull << 30) return OUT_OF_MEMORY;
    *address = latest = (CUdeviceptr)malloc(size);
    return SUCCESS;
}
CUresult cuMemFree_v2(CUdeviceptr address) {
    NEED_CONTEXT;
    if (address == latest) latest = 0;
    free((void *)address);
    return SUCCESS;
}
/* Of memory that is not the GPU's, everything is 0, and the GPU's number -2. */
CUresult cuPointerGetAttributes(unsigned int count, int *kinds, void **answers, CUdeviceptr address) {
    int ours = address == latest;
    NEED_CONTEXT;
    for (unsigned int i = 0; i < count; i++) {
        if (kinds[i] == 2) *(unsigned int *)answers[i] = ours ? 2 : 0; /* type of memory */
        else if (kinds[i] == 8) *(unsigned int *)answers[i] = 0;       /* managed */
        else if (kinds[i] == 9) *(int *)answers[i] = ours ? 0 : -2;    /* number of the GPU */
        else return INVALID_VALUE;
    }
    return SUCCESS;
}
CUresult cuMemHostAlloc(void **address, size_t size, unsigned int flags) {
    NEED_CONTEXT;
    *address = malloc(size);
    return flags == 1 ? SUCCESS : INVALID_VALUE; /* portable */
}
CUresult cuMemFreeHost(void *address) { NEED_CONTEXT; free(address); return SUCCESS; }
static CUresult copy(void *target, const void *source, size_t size, Stream *stream) {
    NEED_CONTEXT;
    if (stream->recording) {
        if (stream->graph->count == MOST) return INVALID_VALUE;
        stream->graph->copies[stream->graph->count++] = (Copy){target, source, size};
    } else {
        memcpy(target, source, size);
    }
    return SUCCESS;
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void *source, size_t size, Stream *stream) {
    return copy((void *)target, source, size, stream);
}
CUresult cuMemcpyDtoHAsync_v2(void *target, CUdeviceptr source, size_t size, Stream *stream) {
    return copy(target, (const void *)source, size, stream);
}
CUresult cuEventCreate(Event **event, unsigned int flags) {
    NEED_CONTEXT;
    *event = calloc(1, sizeof **event);
    return flags == 0 || flags == 2 ? SUCCESS : INVALID_VALUE; /* with or without timing */
}
CUresult cuEventRecord(Event *event, Stream *stream) {
    struct timespec now;
    (void)stream;
    NEED_CONTEXT;
    clock_gettime(CLOCK_MONOTONIC, &now);
    event->ms = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
    return SUCCESS;
}
CUresult cuEventElapsedTime_v2(float *ms, Event *start, Event *end) {
    NEED_CONTEXT;
    *ms = (float)(end->ms - start->ms);
    return SUCCESS;
}
CUresult cuEventElapsedTime(float *ms, Event *start, Event *end) {
    return cuEventElapsedTime_v2(ms, start, end);
}
CUresult cuEventDestroy_v2(Event *event) { NEED_CONTEXT; free(event); return SUCCESS; }
CUresult cuStreamBeginCapture_v2(Stream *stream, int mode) {
    NEED_CONTEXT;
    stream->recording = 1;
    stream->graph = calloc(1, sizeof *stream->graph);
    return mode == 1 ? SUCCESS : INVALID_VALUE; /* of this thread */
}
CUresult cuStreamEndCapture(Stream *stream, Graph **graph) {
    NEED_CONTEXT;
    stream->recording = 0;
    *graph = stream->graph;
    return SUCCESS;
}
CUresult cuGraphInstantiateWithFlags(Graph **instance, Graph *graph, unsigned long long flags) {
    NEED_CONTEXT;
    *instance = malloc(sizeof **instance);
    **instance = *graph;
    return flags ? INVALID_VALUE : SUCCESS;
}
CUresult cuGraphDestroy(Graph *graph) { NEED_CONTEXT; free(graph); return SUCCESS; }
CUresult cuGraphExecDestroy(Graph *instance) { NEED_CONTEXT; free(instance); return SUCCESS; }
CUresult cuGraphLaunch(Graph *instance, Stream *stream) {
    NEED_CONTEXT;
    for (int i = 0; i < instance->count; i++) {
        Copy *c = &instance->copies[i];
        copy(c->target, c->source, c->size, stream);
    }
    return SUCCESS;
}

static const struct { const char *name; void *function; } TABLE[] = {
#define ENTRY(name, function) {#name, (void *)function}
    ENTRY(cuInit, cuInit), ENTRY(cuDriverGetVersion, cuDriverGetVersion),
    ENTRY(cuDeviceGetCount, cuDeviceGetCount), ENTRY(cuDeviceGet, cuDeviceGet),
    ENTRY(cuDeviceGetName, cuDeviceGetName), ENTRY(cuDeviceGetAttribute, cuDeviceGetAttribute),
    ENTRY(cuGetErrorName, cuGetErrorName), ENTRY(cuGetErrorString, cuGetErrorString),
    ENTRY(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain),
    ENTRY(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2),
    ENTRY(cuCtxPushCurrent, cuCtxPushCurrent_v2), ENTRY(cuCtxPopCurrent, cuCtxPopCurrent_v2),
    ENTRY(cuStreamCreate, cuStreamCreate), ENTRY(cuStreamDestroy, cuStreamDestroy_v2),
    ENTRY(cuStreamSynchronize, cuStreamSynchronize), ENTRY(cuStreamWaitEvent, cuStreamWaitEvent),
    ENTRY(cuMemGetInfo, cuMemGetInfo_v2), ENTRY(cuMemAlloc, cuMemAlloc_v2), ENTRY(cuMemFree, cuMemFree_v2),
    ENTRY(cuPointerGetAttributes, cuPointerGetAttributes),
    ENTRY(cuMemHostAlloc, cuMemHostAlloc), ENTRY(cuMemFreeHost, cuMemFreeHost),
    ENTRY(cuMemcpyHtoDAsync, cuMemcpyHtoDAsync_v2), ENTRY(cuMemcpyDtoHAsync, cuMemcpyDtoHAsync_v2),
    ENTRY(cuEventCreate, cuEventCreate), ENTRY(cuEventRecord, cuEventRecord),
    ENTRY(cuEventElapsedTime, cuEventElapsedTime_v2), ENTRY(cuEventDestroy, cuEventDestroy_v2),
    ENTRY(cuStreamBeginCapture, cuStreamBeginCapture_v2),
    ENTRY(cuStreamEndCapture, cuStreamEndCapture),
    ENTRY(cuGraphInstantiateWithFlags, cuGraphInstantiateWithFlags),
    ENTRY(cuGraphInstantiate, cuGraphInstantiateWithFlags), ENTRY(cuGraphDestroy, cuGraphDestroy),
    ENTRY(cuGraphExecDestroy, cuGraphExecDestroy), ENTRY(cuGraphLaunch, cuGraphLaunch),
};
/* How cuda-python finds functions: by name without a version. */
CUresult cuGetProcAddress_v2(const char *name, void **function, int version,
                             unsigned long long flags, int *status) {
    (void)version;
    (void)flags;
    *function = NULL;
    for (size_t i = 0; i < sizeof TABLE / sizeof *TABLE; i++)
        if (!strcmp(name, TABLE[i].name)) *function = TABLE[i].function;
    if (status) *status = *function ? 0 : 1;
    return *function ? SUCCESS : 500; /* not found */
}
