// 1 / (1 + exp(-g)) without overflow: exp sees no positive number, so the divisor is in 1..2,
// where the fast division is within 2 ULP.
#pragma once

#include "tritter.cuh"

__device__ __forceinline__ float sigmoid(float g) {
    float e = expf(-fabsf(g));
    return __fdividef(g < 0.0f ? e : 1.0f, 1.0f + e);
}
