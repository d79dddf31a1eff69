// Plain C++, compiled for the least processor of the architecture.
#include "vec_scalar.hpp"
//
#include "kernels.hpp"

static bool works() { return true; }

const Isa kScalar = {"scalar", works, run, read_cache};
