// The first n lanes, for AVX-512 and AVX2 under sanitizers, which do not see what masked instructions touch.
#pragma once

namespace {

INLINE F fload_n(const float* p, int n) {
    float lanes[16] = {};
    for (int i = 0; i < n; i++) lanes[i] = p[i];
    return fload(lanes);
}
INLINE void fstore_n(float* p, F x, int n) {
    float lanes[16];
    fstore(lanes, x);
    for (int i = 0; i < n; i++) p[i] = lanes[i];
}

}  // namespace
