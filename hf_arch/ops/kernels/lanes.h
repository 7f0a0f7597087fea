/* Vectors as wide as the processor's registers, and exp on them. All memory holds fp32, rows of channels contiguous. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

/* Channels of one task: a constant, so that sums over channels have one order for any number of threads. */
#define GROUP 128

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef float loose_lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias)); /* anywhere in memory */
typedef int32_t integers __attribute__((vector_size(4 * LANES)));

static inline int64_t least(int64_t x, int64_t other) { return x < other ? x : other; }

static inline lanes all(float x) { return x - (lanes){0}; }

static inline lanes load_all(const float *from) { return *(const loose_lanes *)from; }

static inline void store_all(float *to, lanes x) { *(loose_lanes *)to = x; }

/* The first `count` of a row, zeros after them. */
static inline lanes load(const float *from, int64_t count) {
    if (count >= LANES) return load_all(from);
    lanes x = {0};
    for (int64_t i = 0; i < count; i++) x[i] = from[i];
    return x;
}

static inline void store(float *to, lanes x, int64_t count) {
    if (count >= LANES)
        store_all(to, x);
    else
        for (int64_t i = 0; i < count; i++) to[i] = x[i];
}

/* bf16: the upper half of a fp32, stored by rounding to the nearest, ties to even. What is not a number stays none. */
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t naturals __attribute__((vector_size(4 * LANES)));

static inline lanes load_bf16(const uint16_t *from, int64_t count) {
    if (count >= LANES) return (lanes)(__builtin_convertvector(*(const halves *)from, naturals) << 16);
    naturals x = {0};
    for (int64_t i = 0; i < count; i++) x[i] = (uint32_t)from[i] << 16;
    return (lanes)x;
}

static inline void store_bf16(uint16_t *to, lanes x, int64_t count) {
    const naturals bits = (naturals)x, number = (naturals)(x == x);
    const naturals rounded = ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16 & number) | (0x7fc0 & ~number);
    if (count >= LANES)
        *(halves *)to = __builtin_convertvector(rounded, halves);
    else
        for (int64_t i = 0; i < count; i++) to[i] = (uint16_t)rounded[i];
}

/* In a pass from `at` on: memory is asked for so many numbers early, over the ends of pages too, where the processor
   would wait. Behind the end of a tensor this does nothing. */
#define AHEAD 512
#define FETCH(at) __builtin_prefetch((at) + AHEAD)
#define FETCH_TO_WRITE(at) __builtin_prefetch((at) + AHEAD, 1)

/* `call` for the vectors of a row from c on: `count` is LANES, but for the end of a row. */
#define EACH_VECTOR(width, ...) \
    { \
        int64_t c = 0; \
        for (; c + LANES <= (width); c += LANES) { enum { count = LANES }; __VA_ARGS__; } \
        if (c < (width)) { const int64_t count = (width) - c; __VA_ARGS__; } \
    }

#if LANES == 16
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif LANES == 8
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#else
#define EVEN 0, 2, 4, 6
#define ODD 1, 3, 5, 7
#endif

/* Sums of neighbours: of x, then of y. */
static inline lanes pairs(lanes x, lanes y) {
#ifdef __clang__
    return __builtin_shufflevector(x, y, EVEN) + __builtin_shufflevector(x, y, ODD);
#else
    return __builtin_shuffle(x, y, (integers){EVEN}) + __builtin_shuffle(x, y, (integers){ODD});
#endif
}

static inline float total(lanes x) {
    for (int left = LANES; left > 1; left /= 2) x = pairs(x, x);
    return x[0];
}

/* The totals of LANES vectors that follow each other. */
static inline lanes totals(const float *from) {
    lanes x[LANES];
    for (int i = 0; i < LANES; i++) x[i] = load_all(from + i * LANES);
    for (int left = LANES / 2; left; left /= 2)
        for (int i = 0; i < left; i++) x[i] = pairs(x[2 * i], x[2 * i + 1]);
    return x[0];
}

static inline lanes where(integers condition, lanes x, lanes other) {
    return (lanes)((condition & (integers)x) | (~condition & (integers)other));
}

#define LOG2_E 1.44269504f
#define LN_2 0.69314718f

/* One instruction each, which gives its second operand where either is not a number. */
#if defined(__AVX512F__)
#define MAX(x, y) _mm512_max_ps(x, y)
#define MIN(x, y) _mm512_min_ps(x, y)
#elif defined(__AVX__)
#define MAX(x, y) _mm256_max_ps(x, y)
#define MIN(x, y) _mm256_min_ps(x, y)
#elif defined(__SSE__)
#define MAX(x, y) _mm_max_ps(x, y)
#define MIN(x, y) _mm_min_ps(x, y)
#else
#define MAX(x, y) where(y < x, x, y)
#define MIN(x, y) where(y > x, x, y)
#endif

static inline lanes square_root(lanes x) {
#if defined(__AVX512F__)
    return _mm512_sqrt_ps(x);
#elif defined(__AVX__)
    return _mm256_sqrt_ps(x);
#else
    for (int i = 0; i < LANES; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
#endif
}

/* What is not a number stays none. */
static inline lanes at_least(float low, lanes x) { return MAX(all(low), x); }
static inline lanes bounded(lanes x, float low, float high) { return MIN(all(high), at_least(low, x)); }

#define ROUNDING 12582912.0f /* 1.5 * 2^23: what is added to it is rounded to an integer, which stands in its last bits */

/* p 2^n where `rounded` is n + ROUNDING. */
static inline lanes times_power_of_two(lanes p, lanes rounded) {
#if defined(__AVX512F__)
    return _mm512_scalef_ps(p, rounded - ROUNDING);
#else
    return (lanes)((integers)p + ((integers)rounded << 23));
#endif
}

/* 2^n p(r) with n = round(x), r = x - n and p of degree 6, relative error 2e-9 before rounding. Exactly 1 at 0,
   1e-38 below -126, 2e38 or infinity above 127. */
static inline lanes power_of_two(lanes x) {
#if defined(__AVX512DQ__)
    x = at_least(-126.0f, x);
    const lanes r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    x = bounded(x, -126.0f, 127.4f);
    const lanes rounded = x + ROUNDING, r = x - (rounded - ROUNDING);
#endif
    lanes p = r * 1.535336117e-04f + 1.339887442e-03f;
    p = p * r + 9.618437361e-03f;
    p = p * r + 5.550332471e-02f;
    p = p * r + 2.402264791e-01f;
    p = p * r + 6.931472029e-01f;
    p = p * r + 1.0f;
#if defined(__AVX512DQ__)
    return _mm512_scalef_ps(p, x - r);
#else
    return times_power_of_two(p, rounded);
#endif
}

/* The same of x / ln 2, whose rounding would cost |x| times the last bit: n ln 2 is subtracted in two parts. */
static inline lanes exponential(lanes x) {
    x = bounded(x, -87.3f, 88.3f);
    const lanes rounded = x * LOG2_E + ROUNDING, n = rounded - ROUNDING;
    const lanes r = x - n * 0.693359375f + n * 2.12194440e-4f;
    lanes p = r * 1.384365285e-03f + 8.374155316e-03f;
    p = p * r + 4.166800205e-02f;
    p = p * r + 1.666643126e-01f;
    p = p * r + 4.999999420e-01f;
    p = p * r + 1.000000032e+00f;
    p = p * r + 1.0f;
    return times_power_of_two(p, rounded);
}

static inline lanes sigmoid(lanes x) { return 1.0f / (1.0f + exponential(-x)); }

/* 2 artanh(s) of s in [0, 1/3]: s p(s^2), relative error 4e-9 before rounding. */
static inline lanes twice_artanh(lanes s) {
    const lanes t = s * s;
    lanes p = t * 2.817831066e-01f + 2.796060914e-01f;
    p = p * t + 4.002490974e-01f;
    p = p * t + 6.666631470e-01f;
    p = p * t + 2.0f;
    return s * p;
}

/* log(1 + z) of z in [0, 1] */
static inline lanes log_one_plus(lanes z) { return twice_artanh(z / (2.0f + z)); }

/* log(1 + exp x) = max(x, 0) + log(1 + exp(-|x|)) */
static inline lanes soft_plus(lanes x) {
    const lanes above = at_least(0.0f, x);
    return above + log_one_plus(exponential(x - 2.0f * above));
}

/* silu'(z), with s = sigmoid(z) */
static inline lanes silu_slope(lanes z, lanes s) { return s * (1.0f + z * (1.0f - s)); }
