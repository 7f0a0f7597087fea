/* Products of small matrices that stay in the cache, and transposed blocks. Rows of what is written are whole vectors. */

#define INLINE static inline __attribute__((always_inline))

/* Rows of a tile, two vectors wide, whose sums stay in registers. */
#if LANES == 16
#define TILE 8
#else
#define TILE 6
#endif

/* to = scale from + left right: `scale` has one number a column; without one, from is not read. The number of row i and term
   k of `left` is left[i row + k step], right has `stride` and from and to `width` numbers a row, of which `columns`, a multiple
   of LANES, are meant. */
typedef struct {
    const float *left;
    int64_t row, step;
    const float *right;
    int64_t stride, rows, columns, depth;
    const float *scale, *from;
    float *to;
    int64_t width;
} Product;

INLINE void tile(const int rows, const int vectors, const Product *p, int64_t i, int64_t c) {
    lanes sum[TILE][2];
    const float *left = p->left + i * p->row, *right = p->right + c, *from = p->from + i * p->width + c;
    float *to = p->to + i * p->width + c;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) sum[r][v] = all(0);
    for (int64_t k = 0; k < p->depth; k++) {
        lanes term[2];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) term[v] = load_all(right + k * p->stride + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const lanes factor = all(left[r * p->row + k * p->step]);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) sum[r][v] += factor * term[v];
        }
    }
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) {
        const lanes scale = p->scale ? load_all(p->scale + c + v * LANES) : all(0);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            if (p->scale) sum[r][v] += scale * load_all(from + r * p->width + v * LANES);
            store_all(to + r * p->width + v * LANES, sum[r][v]);
        }
    }
}

#define TILES_OF(count, vectors) case count: tile(count, vectors, p, i, c); break;
#define TILES(vectors) \
    for (int64_t i = 0; i < p->rows; i += TILE) switch (least(TILE, p->rows - i)) { \
            TILES_OF(1, vectors) TILES_OF(2, vectors) TILES_OF(3, vectors) TILES_OF(4, vectors) TILES_OF(5, vectors) \
            TILES_OF(6, vectors) MORE_TILES(vectors) \
        }
#if TILE == 8
#define MORE_TILES(vectors) TILES_OF(7, vectors) TILES_OF(8, vectors)
#else
#define MORE_TILES(vectors)
#endif

static void product(const Product *p) {
    int64_t c = 0;
    for (; c + 2 * LANES <= p->columns; c += 2 * LANES) TILES(2)
    if (c < p->columns) TILES(1)
}

#if LANES == 16
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif
#ifdef __clang__
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (integers){__VA_ARGS__})
#endif

/* LANES vectors become their columns: each round merges the halves number by number. */
INLINE void transpose(lanes *x) {
#pragma GCC unroll 4
    for (int left = LANES; left > 1; left /= 2) {
        lanes merged[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            merged[2 * i] = SHUFFLE(x[i], x[i + LANES / 2], LOW);
            merged[2 * i + 1] = SHUFFLE(x[i], x[i + LANES / 2], HIGH);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) x[i] = merged[i];
    }
}

/* [rows, count] with `stride` numbers a row to [count, room] with `room` >= rows, a multiple of LANES; zeros after the last. */
static void transposed(const float *from, int64_t stride, int64_t rows, int64_t count, float *to, int64_t room) {
    for (int64_t c = 0; c < count; c += LANES)
        for (int64_t i = 0; i < room; i += LANES) {
            lanes x[LANES];
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++) x[r] = i + r < rows ? load(from + (i + r) * stride + c, count - c) : all(0);
            transpose(x);
            for (int r = 0; r < least(LANES, count - c); r++) store_all(to + (c + r) * room + i, x[r]);
        }
}
