/* Stands in for the CUDA runtime: the GPU's memory is the machine's own. FAKE_CUDA=memory lets every allocation fail. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}
static const char *mishap(void) { const char *told = getenv("FAKE_CUDA"); return told ? told : ""; }

int cudaMalloc(void **p, size_t n) { *p = malloc(n); return strcmp(mishap(), "memory") ? 0 : 2; }
int cudaFree(void *p) { free(p); return 0; }
int cudaMemcpy(void *to, const void *from, size_t n, int kind) { memcpy(to, from, n); return 0; }
int cudaStreamCreate(void **s) { *s = malloc(1); return strcmp(mishap(), "driver") ? 0 : 35; }
int cudaStreamSynchronize(void *s) { return 0; }
int cudaEventCreate(void **e) { *e = malloc(sizeof(double)); return 0; }
int cudaEventRecord(void *e, void *s) { *(double *)e = now(); return 0; }
int cudaEventSynchronize(void *e) { return 0; }
int cudaEventElapsedTime(float *ms, void *a, void *b) { *ms = *(double *)b - *(double *)a; return 0; }
const char *cudaGetErrorString(int code) { return "CUDA driver version is insufficient for CUDA runtime version"; }
