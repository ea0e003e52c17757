// A driver for a machine without one: what cuDNN's engines look up when they plan for a card that is described to them. Kernels
// load and are never run; whatever asks for a device is told that there is none.

#define NO_DEVICE 100
#define NONE(name) int name(void) { return NO_DEVICE; }
#define FINE(name) int name(void) { return 0; }
#define GIVES(name) int name(void** it) { *it = (void*)16; return 0; }
#define SAYS(name) int name(int code, const char** text) { *text = "a driver without a card"; return code & 0; }

int cuDriverGetVersion(int* version) { *version = 12080; return 0; }
SAYS(cuGetErrorName) SAYS(cuGetErrorString)
GIVES(cuLibraryLoadData) GIVES(cuLibraryGetKernel)
FINE(cuLibraryUnload) FINE(cuKernelSetAttribute) FINE(cuModuleUnload)
NONE(cuCtxGetCurrent) NONE(cuCtxGetLimit) NONE(cuCtxPopCurrent) NONE(cuCtxPushCurrent) NONE(cuDeviceGet) NONE(cuDeviceGetCount)
NONE(cuKernelGetAttribute) NONE(cuKernelGetFunction) NONE(cuLaunchCooperativeKernel) NONE(cuLaunchKernel) NONE(cuLaunchKernelEx)
NONE(cuLibraryLoadFromFile) NONE(cuLinkAddData) NONE(cuLinkComplete) NONE(cuLinkCreate) NONE(cuLinkDestroy)
NONE(cuModuleGetFunction) NONE(cuModuleLoadData) NONE(cuOccupancyMaxPotentialClusterSize) NONE(cuStreamGetCtx)
NONE(cuTensorMapEncodeIm2col) NONE(cuTensorMapEncodeTiled)
