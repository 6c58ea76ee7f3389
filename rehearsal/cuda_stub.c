/* The CUDA runtime, driver and cuBLAS without a GPU: one device whose memory is host memory and whose kernels do nothing.
   LD_PRELOADed, it runs torch's own CUDA code: devices, guards, streams, events, caching allocator, pinned memory.
   device.py computes on the same bytes what the kernels would compute. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "driver_types.h"
#define API __attribute__((visibility("default")))
#define OUT_OF_MEMORY 2
static __thread int last_error = 0;
static size_t total = (size_t)141 << 30, used = 0;
static uintptr_t counter = 0x100000;
static long waits = 0;
static void host_waits(void) { __atomic_add_fetch(&waits, 1, __ATOMIC_RELAXED); }
API long cuda_stub_waits(void) { return waits; }  /* how often the host waited for the device */

/* All allocations, so that cudaPointerGetAttributes tells device memory from host memory. The loader's thread for pinned
   memory and autograd's thread allocate too. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
#define MAX 65536
static struct { char *start; size_t size; int host; } table[MAX];
static int count = 0;
static int find(const void *p) {
  for (int i = 0; i < count; i++)
    if (table[i].start && (char *)p >= table[i].start && (char *)p < table[i].start + table[i].size) return i;
  return -1;
}
static void *allocate(size_t size, int host) {
  if (!size) size = 1;
  /* Pages that are never written take no memory, so a large model fits. */
  void *p = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return 0;
  pthread_mutex_lock(&lock);
  int i = 0;
  while (i < count && table[i].start) i++;
  if (i == MAX) abort();
  if (i == count) count++;
  table[i].start = p; table[i].size = size; table[i].host = host;
  if (!host) used += size;
  pthread_mutex_unlock(&lock);
  return p;
}
static int release(void *p) {
  pthread_mutex_lock(&lock);
  int i = p ? find(p) : -1;
  if (i >= 0) {
    munmap(p, table[i].size);
    if (!table[i].host) used -= table[i].size;
    table[i].start = 0;
  }
  pthread_mutex_unlock(&lock);
  return 0;
}
static int handle(void **h) { *h = (void *)__atomic_add_fetch(&counter, 64, __ATOMIC_RELAXED); return 0; }

/* Memory */
API int cudaMalloc(void **p, size_t n) {
  if (used + n > total || !(*p = allocate(n, 0))) return last_error = OUT_OF_MEMORY;
  return 0;
}
API int cudaFree(void *p) { return release(p); }
API int cudaHostAlloc(void **p, size_t n, unsigned flags) { *p = allocate(n, 1); return 0; }
API int cudaFreeHost(void *p) { return release(p); }
API int cudaMemGetInfo(size_t *f, size_t *t) { *f = total - used; *t = total; return 0; }
/* Within the device a copy is a kernel: without effect. */
static int copy(void *d, const void *s, size_t n, int kind) {
  if (kind != cudaMemcpyDeviceToDevice) memmove(d, s, n);
  return 0;
}
API int cudaMemcpy(void *d, const void *s, size_t n, int kind) { host_waits(); return copy(d, s, n, kind); }
API int cudaMemcpyAsync(void *d, const void *s, size_t n, int kind, void *st) { return copy(d, s, n, kind); }
API int cudaMemcpyPeerAsync(void *d, int dd, const void *s, int sd, size_t n, void *st) { memmove(d, s, n); return 0; }
static int set(char *p, int value, size_t n) {
  char *start = (char *)(((uintptr_t)p + 4095) & ~(uintptr_t)4095), *end = (char *)((uintptr_t)(p + n) & ~(uintptr_t)4095);
  if (value || n < 1 << 20) { memset(p, value, n); return 0; }
  memset(p, 0, start - p);
  madvise(start, end - start, MADV_DONTNEED);  /* zeros that take no memory */
  memset(end, 0, p + n - end);
  return 0;
}
API int cudaMemset(void *d, int v, size_t n) { return set(d, v, n); }
API int cudaMemsetAsync(void *d, int v, size_t n, void *st) { return set(d, v, n); }
API int cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  pthread_mutex_lock(&lock);
  int i = find(p);
  a->type = i < 0 ? cudaMemoryTypeUnregistered : table[i].host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  pthread_mutex_unlock(&lock);
  if (i >= 0) { a->devicePointer = (void *)p; a->hostPointer = table[i].host ? (void *)p : 0; }
  return 0;
}

/* One device, with the numbers of an H200 */
API int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
API int cudaGetDevice(int *d) { *d = 0; return 0; }
API int cudaSetDevice(int d) { return d == 0 ? 0 : 101; }
API int cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "stub of an H200");
  p->totalGlobalMem = total; p->sharedMemPerBlock = 49152; p->regsPerBlock = 65536; p->warpSize = 32;
  p->maxThreadsPerBlock = 1024; p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024; p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647; p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = 65536; p->major = 9; p->multiProcessorCount = 132; p->textureAlignment = 512;
  p->unifiedAddressing = 1; p->l2CacheSize = 62914560; p->maxThreadsPerMultiProcessor = 2048;
  p->sharedMemPerMultiprocessor = 233472; p->regsPerMultiprocessor = 65536; p->managedMemory = 1;
  p->sharedMemPerBlockOptin = 232448; p->concurrentKernels = 1; p->asyncEngineCount = 3;
  return 0;
}
API int cudaDeviceGetAttribute(int *v, int attribute, int d) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMultiProcessorCount: *v = 132; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = 2048; break;
    case cudaDevAttrComputeCapabilityMajor: *v = 9; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = 232448; break;
    default: *v = 0;
  }
  return 0;
}
API int cudaDeviceGetPCIBusId(char *b, int n, int d) { strncpy(b, "0000:00:00.0", n); return 0; }
API int cudaDeviceCanAccessPeer(int *c, int a, int b) { *c = 0; return 0; }
API int cudaRuntimeGetVersion(int *v) { *v = 13000; return 0; }
API int cudaDriverGetVersion(int *v) { *v = 13000; return 0; }
API int cudaGetLastError(void) { int e = last_error; last_error = 0; return e; }
API int cudaPeekAtLastError(void) { return last_error; }
API const char *cudaGetErrorString(int e) { return e == OUT_OF_MEMORY ? "out of memory" : "error of the CUDA stub"; }
API const char *cudaGetErrorName(int e) { return cudaGetErrorString(e); }

/* Streams, events, kernels */
API int cudaStreamSynchronize(void *s) { host_waits(); return 0; }
API int cudaDeviceSynchronize(void) { host_waits(); return 0; }
API int cudaStreamCreate(void **s) { return handle(s); }
API int cudaStreamCreateWithPriority(void **s, unsigned f, int p) { return handle(s); }
API int cudaDeviceGetStreamPriorityRange(int *l, int *g) { *l = 0; *g = -5; return 0; }
API int cudaStreamGetPriority(void *s, int *p) { *p = 0; return 0; }
API int cudaStreamIsCapturing(void *s, int *st) { *st = 0; return 0; }
API int cudaStreamGetCaptureInfo(void *s, int *st, void *a, void *b, void *c, void *d, void *e) { *st = 0; return 0; }
API int cudaEventCreate(void **e) { return handle(e); }
API int cudaEventCreateWithFlags(void **e, unsigned f) { return handle(e); }
API int cudaEventSynchronize(void *e) { host_waits(); return 0; }
API int cudaEventElapsedTime(float *ms, void *a, void *b) { *ms = 0; return 0; }
API int cudaGetDriverEntryPointByVersion(const char *n, void **f, unsigned v, unsigned long long fl, int *st) {
  *f = 0;
  if (st) *st = 1;
  return 0;
}
API int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int b, size_t s) { *n = 4; return 0; }
API int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned fl) {
  *n = 4;
  return 0;
}
API int cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024; a->binaryVersion = a->ptxVersion = 90;
  return 0;
}
API int cudaGetSymbolAddress(void **p, const void *s) { *p = (void *)s; return 0; }
API void **__cudaRegisterFatBinary(void *f) { static void *h[8]; return h; }
API int __cudaGetKernel(void **k, const void *f) { *k = (void *)f; return 0; }
API int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *a) { *f = 0; *a = 1; return 0; }
API int cuCtxGetCurrent(void **c) { *c = (void *)0x10; return 0; }

/* cuBLAS */
API int cublasCreate_v2(void **h) { return handle(h); }
API int cublasGetMathMode(void *h, int *m) { *m = 0; return 0; }
API int cublasGetPointerMode_v2(void *h, int *m) { *m = 0; return 0; }
API unsigned long cublasLtGetVersion(void) { return 130000; }
API int cublasLtMatmulDescCreate(void **d, int c, int s) { return handle(d); }
API int cublasLtMatmulPreferenceCreate(void **d) { return handle(d); }
API int cublasLtMatrixLayoutCreate(void **d, int t, uint64_t r, uint64_t c, int64_t ld) { return handle(d); }
API int cublasLtMatmulAlgoGetHeuristic(void *h, void *d, void *a, void *b, void *c, void *o, void *p, int n, void *r,
                                       int *found) { *found = 1; return 0; }

/* Succeed without effect. */
#define NONE(name) API int name() { return 0; }
NONE(cudaLaunchKernel) NONE(__cudaLaunchKernel) NONE(cudaLaunchKernelExC) NONE(cudaLaunchCooperativeKernel)
NONE(__cudaRegisterFatBinaryEnd) NONE(__cudaRegisterFunction) NONE(__cudaRegisterVar)
NONE(__cudaUnregisterFatBinary) NONE(__cudaPopCallConfiguration) NONE(__cudaPushCallConfiguration)
NONE(cudaDeviceEnablePeerAccess) NONE(cudaStreamDestroy) NONE(cudaStreamQuery)
NONE(cudaStreamWaitEvent) NONE(cudaEventDestroy) NONE(cudaEventQuery)
NONE(cudaEventRecord) NONE(cudaEventRecordWithFlags)  NONE(cudaFuncSetAttribute)
NONE(cudaThreadExchangeStreamCaptureMode) NONE(cudaHostRegister) NONE(cudaHostUnregister)
NONE(cudaProfilerStart) NONE(cudaProfilerStop)
NONE(cuInit) NONE(cuCtxSetCurrent) NONE(cuDeviceGet) NONE(cuDeviceGetAttribute) NONE(cuDevicePrimaryCtxRetain)
NONE(cuFuncGetAttribute) NONE(cuFuncSetAttribute) NONE(cuFuncSetCacheConfig) NONE(cuGetErrorString)
NONE(cuLaunchCooperativeKernel) NONE(cuLaunchKernel) NONE(cuLinkAddData_v2) NONE(cuLinkComplete)
NONE(cuLinkCreate_v2) NONE(cuModuleGetFunction) NONE(cuModuleLoad) NONE(cuModuleLoadData)
NONE(cuModuleLoadDataEx) NONE(cuModuleUnload) NONE(cuOccupancyMaxActiveBlocksPerMultiprocessor)
NONE(cuPointerGetAttribute) NONE(cuTensorMapEncodeTiled)
NONE(cublasDestroy_v2) NONE(cublasSetMathMode) NONE(cublasSetPointerMode_v2) NONE(cublasSetStream_v2)
NONE(cublasSetWorkspace_v2) NONE(cublasDotEx) NONE(cublasGemmEx) NONE(cublasGemmStridedBatchedEx)
NONE(cublasSgemmEx) NONE(cublasSgemm_v2) NONE(cublasSgemv_v2) NONE(cublasSdot_v2) NONE(cublasSgemmStridedBatched)
NONE(cublasDgemm_v2) NONE(cublasDgemv_v2) NONE(cublasDdot_v2) NONE(cublasDgemmStridedBatched)
NONE(cublasLtMatmul) NONE(cublasLtMatmulDescDestroy) NONE(cublasLtMatmulDescSetAttribute)
NONE(cublasLtMatmulPreferenceDestroy) NONE(cublasLtMatmulPreferenceSetAttribute)
NONE(cublasLtMatrixLayoutDestroy) NONE(cublasLtMatrixLayoutSetAttribute)
