// All kernels as a shared library for the host, with the launch interface of the driver.
#include "cuda_on_cpu.h"

#include "../input.cu"
#include "../batch_norm.cu"
#include "../batch_norm_backward.cu"
#include "../batch_norm_slab.cu"
#include "../pool.cu"
#include "../loss.cu"
#include "../drop_path.cu"
#include "../gradient.cu"
#include "../clip.cu"
#include "../sgd.cu"
#include "../lamb.cu"
#include "../lars.cu"
#include "../ema.cu"

#include "launch.h"
