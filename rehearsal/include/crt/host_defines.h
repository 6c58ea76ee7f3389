/* In place of the header of nvidia-cuda-crt, which torch's environment lacks: what driver_types.h needs in plain C. */
#define __device_builtin__
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __align__(n) __attribute__((aligned(n)))
#define CUDARTAPI
