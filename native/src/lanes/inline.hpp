// What keeps lanes in registers: functions of a few instructions always inlined, and kernels that inline all they call.
#pragma once

#if defined(__GNUC__)
#define STRETTO_INLINE static inline __attribute__((always_inline))
#define STRETTO_FLATTEN __attribute__((flatten))
#else
#define STRETTO_INLINE static __forceinline
#define STRETTO_FLATTEN
#endif
