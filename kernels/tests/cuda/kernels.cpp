// All kernels of this crate, for the tests that launch them by their symbols.
// Each is a unit of its own for nvcc: what they call alike must not meet here.
#include "../../src/cuda/blocks.cuh"
#include "../../src/cuda/experts.cuh"
namespace of_grouped {
#include "../../src/cuda/grouped.cu"
}
#undef ALL
namespace of_quant {
#include "../../src/cuda/quant.cu"
}
#undef ALL
#undef LINEAR
namespace of_float {
#include "../../src/cuda/float.cu"
}
#include "../../src/cuda/plan.cu"
#include "../../src/cuda/rows.cu"
