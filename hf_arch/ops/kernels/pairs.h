/* Products of bf16 matrices with sums in fp32: on tiles (AMX) where the compiler and the system have them, else by dot products
   of pairs (AVX512-BF16). A matrix on the left is stored by rows; one on the right in pairs: the number of pair d and column c
   holds (2 d, c) in its lower half and (2 d + 1, c) in its upper one. */

#include "lanes.h"
#include "products.h"

#define SIDE 32 /* rows, columns and depth of all matrices are multiples of it */
#define DEPTH 2
#define ONE_FORM 0

typedef uint16_t Left;
typedef uint32_t Right;

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define HAS_PAIRS 1
typedef __m256i Narrow; /* LANES numbers of bf16 */

static inline Narrow narrowed(lanes x) { return (Narrow)_mm512_cvtneps_pbh(x); }

static inline void store_left(Left *to, Narrow x) { _mm256_storeu_si256((__m256i *)to, x); }

static inline lanes load_left(const Left *from) { return load_bf16(from, LANES); }

/* Of two rows that follow each other. */
static inline void store_right(Right *to, Narrow even, Narrow odd) {
    _mm512_storeu_si512(to, _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16)));
}
#endif

#if defined(HAS_PAIRS) && defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

#define REQUEST_PERMISSION 0x1023
#define TILE_DATA 18

/* 2 where the system lets this process use tiles, which it must be asked once; a processor that has them but may not use them
   does without this. */
static int known_products(void) { return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) ? 0 : 2; }

/* Around the products of a thread. */
static inline void begin_products(void) {
    struct {
        uint8_t palette, first_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    __asm__ volatile("" ::"m"(config) : "memory");
    _tile_loadconfig(&config);
}

static inline void end_products(void) { _tile_release(); }

/* to = left right, with `add` to += left right; strides in numbers of the arrays. */
static void multiply(const uint16_t *left, int64_t left_stride, const uint32_t *right, int64_t right_stride, float *to, int64_t stride,
                     int64_t rows, int64_t columns, int64_t depth, int add) {
    __asm__ volatile("" ::: "memory");
    for (int64_t i = 0; i < rows; i += SIDE)
        for (int64_t c = 0; c < columns; c += SIDE) {
            const uint16_t *a = left + i * left_stride;
            const uint32_t *b = right + c;
            float *y = to + i * stride + c;
            if (add) {
                _tile_loadd(0, y, 4 * stride); _tile_loadd(1, y + 16, 4 * stride);
                _tile_loadd(2, y + 16 * stride, 4 * stride); _tile_loadd(3, y + 16 * stride + 16, 4 * stride);
            } else {
                _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
            }
            for (int64_t d = 0; d < depth; d += SIDE) {
                _tile_loadd(4, a + d, 2 * left_stride); _tile_loadd(6, b + d / 2 * right_stride, 4 * right_stride);
                _tile_loadd(5, a + 16 * left_stride + d, 2 * left_stride); _tile_loadd(7, b + d / 2 * right_stride + 16, 4 * right_stride);
                _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, y, 4 * stride); _tile_stored(1, y + 16, 4 * stride);
            _tile_stored(2, y + 16 * stride, 4 * stride); _tile_stored(3, y + 16 * stride + 16, 4 * stride);
        }
    __asm__ volatile("" ::: "memory");
}
#elif defined(HAS_PAIRS)
static int known_products(void) { return 1; }

static inline void begin_products(void) {}

static inline void end_products(void) {}

#define ROWS 8 /* of sums in registers */

static void multiply(const uint16_t *left, int64_t left_stride, const uint32_t *right, int64_t right_stride, float *to, int64_t stride,
                     int64_t rows, int64_t columns, int64_t depth, int add) {
    for (int64_t c = 0; c < columns; c += 2 * LANES)
        for (int64_t i = 0; i < rows; i += ROWS) {
            lanes sum[ROWS][2];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
                for (int v = 0; v < 2; v++) sum[r][v] = add ? load_all(to + (i + r) * stride + c + v * LANES) : all(0);
            for (int64_t d = 0; d < depth; d += 2) {
                __m512i term[2];
#pragma GCC unroll 2
                for (int v = 0; v < 2; v++) term[v] = _mm512_loadu_si512(right + d / 2 * right_stride + c + v * LANES);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; r++) {
                    int32_t pair;
                    memcpy(&pair, left + (i + r) * left_stride + d, sizeof pair);
#pragma GCC unroll 2
                    for (int v = 0; v < 2; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], (__m512bh)_mm512_set1_epi32(pair), (__m512bh)term[v]);
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
                for (int v = 0; v < 2; v++) store_all(to + (i + r) * stride + c + v * LANES, sum[r][v]);
        }
}
#endif
