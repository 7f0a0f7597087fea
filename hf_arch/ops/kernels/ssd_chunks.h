/* What both passes of ssd.c share: a task, the chunk that it is at, and the decays of a head's steps. */

#include "heads.h"
#include "products.h"

#define CHUNK 32
#define TINY 1e-30f /* less is 0: products with numbers too small to be normal take a hundred times as long */

typedef struct {
    int64_t batch, length, heads, groups, width, numbers, skips, block, threads, x_row, x_token, B_row, B_token, C_row, C_token;
    const float *x, *B, *C, *dt, *A, *D, *keep;
} Ssd;

/* `final` of dL/dS at the end and `initial` of that at the start, or none; x and, with a sum for each task, B and C have strides
   of rows and of tokens; A [batch, heads], D [batch, heads, width], which holds zeros on entry, or none. */
typedef struct {
    int64_t x_row, x_token, B_row, B_token, C_row, C_token;
    const float *y, *final;
    float *initial, *x, *dt, *A, *B, *C, *D;
} Gradients;

static inline int64_t padded(int64_t count) { return (count + LANES - 1) / LANES * LANES; }
static inline int64_t most(int64_t x, int64_t other) { return x > other ? x : other; }
static inline int64_t blocks_of(const Ssd *s) { return (s->heads / s->groups + s->block - 1) / s->block; }
static inline int64_t chunks_of(const Ssd *s) { return (s->length + CHUNK - 1) / CHUNK; }

/* Rows of B or C of a chunk, whole vectors. */
typedef struct {
    const float *at;
    int64_t stride;
    float *copy;
} Rows;

/* A task, and the chunk it is at: `numbers` and `width` are padded, y_token is the stride of y. */
typedef struct {
    const Ssd *s;
    int64_t b, task, group, first, heads, numbers, width, size, y_token, start, rows;
    float *ones, *totals, *turned, *scores;
    Rows B, C;
} Chunk;

static int64_t task_room(const Ssd *s) {
    const int64_t numbers = padded(s->numbers);
    return 2 * most(numbers, CHUNK) + 3 * CHUNK * numbers + CHUNK * CHUNK;
}

/* Returns what is left of the room. */
static float *task_of(const Ssd *s, int64_t b, int64_t task, float *room, Chunk *to) {
    const int64_t blocks = blocks_of(s), ratio = s->heads / s->groups, from = task % blocks * s->block;
    const int64_t numbers = padded(s->numbers), longest = most(numbers, CHUNK);
    float *turned = room + 2 * longest, *B = turned + CHUNK * numbers, *C = B + CHUNK * numbers, *scores = C + CHUNK * numbers;
    *to = (Chunk){.s = s, .b = b, .task = task, .group = task / blocks, .first = task / blocks * ratio + from,
                  .heads = least(s->block, ratio - from), .numbers = numbers, .width = padded(s->width), .size = s->width * numbers,
                  .y_token = s->heads * s->width, .ones = room, .totals = room + longest, .turned = turned, .scores = scores,
                  .B = {0, 0, B}, .C = {0, 0, C}};
    for (int64_t c = 0; c < longest; c++) room[c] = 1;
    return scores + CHUNK * CHUNK;
}

static inline const float *x_at(const Chunk *k, int64_t head) { return k->s->x + k->b * k->s->x_row + k->start * k->s->x_token + head * k->s->width; }
static inline int64_t y_at(const Chunk *k, int64_t head) { return (k->b * k->s->length + k->start) * k->y_token + head * k->s->width; }

static void copied(const float *from, int64_t stride, int64_t rows, int64_t count, float *to, int64_t width) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < width; c += LANES) store_all(to + i * width + c, load(from + i * stride + c, count - c));
}

static void given(const float *from, int64_t rows, int64_t count, int64_t width, float *to, int64_t to_stride) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < count; c += LANES) store(to + i * to_stride + c, load_all(from + i * width + c), count - c);
}

static void rows_of(const Chunk *k, const float *from, int64_t stride, Rows *to) {
    const int whole = k->numbers == k->s->numbers;
    if (!whole) copied(from, stride, k->rows, k->s->numbers, to->copy, k->numbers);
    to->at = whole ? from : to->copy, to->stride = whole ? stride : k->numbers;
}

static void enter(Chunk *k, int64_t start) {
    const Ssd *s = k->s;
    k->start = start, k->rows = least(CHUNK, s->length - start);
    rows_of(k, s->B + k->b * s->B_row + start * s->B_token + k->group * s->numbers, s->B_token, &k->B);
    rows_of(k, s->C + k->b * s->C_row + start * s->C_token + k->group * s->numbers, s->C_token, &k->C);
}

/* Scores [rows of `left`, rows of `right`], and the latter turned. */
static void score(Chunk *k, const Rows *left, const Rows *right) {
    transposed(right->at, right->stride, k->rows, k->s->numbers, k->turned, CHUNK);
    product(&(Product){left->at, left->stride, 1, k->turned, CHUNK, k->rows, CHUNK, k->s->numbers, .to = k->scores, .width = CHUNK});
}

typedef struct {
    float dt[CHUNK], decay[CHUNK], prefix[CHUNK], suffix[CHUNK], total;
} Decays;

static inline float flushed(float x) { return x < TINY ? 0 : x; }

static void decays_of(const Chunk *k, int64_t head, Decays *d) {
    const Ssd *s = k->s;
    const int64_t at = k->b * s->length + k->start;
    for (int64_t i = 0; i < CHUNK; i++) d->dt[i] = i < k->rows ? s->dt[(at + i) * s->heads + head] : 0;
    for (int64_t i = 0; i < CHUNK; i += LANES) store_all(d->decay + i, exponential(load_all(d->dt + i) * s->A[head]));
    for (int64_t i = 0; i < (s->keep ? k->rows : 0); i++) d->decay[i] *= s->keep[at + i];
    float before = 1, after = 1;
    for (int64_t i = 0; i < CHUNK; i++) d->prefix[i] = before = flushed(before * d->decay[i]);
    for (int64_t i = CHUNK - 1; i >= 0; i--) d->suffix[i] = after, after = flushed(after * d->decay[i]);
    d->total = before;
}

INLINE integers places(int64_t from) {
    integers at;
    for (int i = 0; i < LANES; i++) at[i] = from + i;
    return at;
}

/* The products of decays from that at row `place` on to every column's, or back to it, 1 at itself, 0 on its other side. */
INLINE lanes extended(lanes row, float decay, integers at, int64_t place) {
    row = row * decay;
    row = where(row < all(TINY), all(0), row);
    return where(at == (int32_t)place, all(1), row);
}

/* to[i, j] = decay_{j+1} ... decay_i for j <= i, else 0. */
static void decays_between(const Decays *d, int64_t rows, float *to) {
    for (int64_t c = 0; c < rows; c += LANES) {
        lanes row = all(0);
        const integers at = places(c);
        for (int64_t i = 0; i < rows; i++) store_all(to + i * CHUNK + c, row = extended(row, d->decay[i], at, i));
    }
}

/* to[j, i] = dt_j scores[j, i] decay_{j+1} ... decay_i for j <= i, else 0. */
static void weights_turned(const Decays *d, int64_t rows, const float *scores, float *to) {
    for (int64_t c = 0; c < rows; c += LANES) {
        lanes row = all(0);
        const integers at = places(c);
        for (int64_t j = rows - 1; j >= 0; j--) {
            row = extended(row, j + 1 < CHUNK ? d->decay[j + 1] : 1, at, j);
            store_all(to + j * CHUNK + c, load_all(scores + j * CHUNK + c) * row * d->dt[j]);
        }
    }
}

/* to[i] = by_i with_i from[i]: rows of `width` numbers. */
static void scaled(const Chunk *k, const float *from, int64_t stride, const float *by, const float *with, float *to) {
    for (int64_t i = 0; i < k->rows; i++) {
        const float factor = by[i] * with[i];
        for (int64_t c = 0; c < k->width; c += LANES) store_all(to + i * k->width + c, factor * load(from + i * stride + c, k->s->width - c));
    }
}

/* to = total from + rows^T right: a state after a chunk, or its gradient before one. */
static void advance(Chunk *k, const float *rows, float total, const Rows *right, const float *from, float *to) {
    for (int64_t c = 0; c < k->numbers; c++) k->totals[c] = total;
    product(&(Product){rows, 1, k->width, right->at, right->stride, k->s->width, k->numbers, k->rows, k->totals, from, to, k->numbers});
}

static inline lanes skip_of(const Ssd *s, int64_t head, int64_t c) {
    if (!s->D) return all(0);
    return s->skips == 1 ? all(s->D[head]) : load(s->D + head * s->width + c, s->width - c);
}

static void take(const Chunk *k, const float *state, int64_t head, float *S) {
    const int64_t numbers = k->s->numbers;
    if (state)
        copied(state + (k->b * k->s->heads + head) * k->s->width * numbers, numbers, k->s->width, numbers, S, k->numbers);
    else
        memset(S, 0, k->size * sizeof(float));
}

static void give(const Chunk *k, const float *S, int64_t head, float *state) {
    const int64_t numbers = k->s->numbers;
    given(S, k->s->width, numbers, k->numbers, state + (k->b * k->s->heads + head) * k->s->width * numbers, numbers);
}

INLINE void turned_block(const float *from, lanes *to) {
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++) to[r] = load_all(from + r * CHUNK);
    transpose(to);
}

/* CALL(rows, count) for each block of the chunk's rows and of the head's width, with constants where it is whole. */
#define EACH_BLOCK(k, CALL) \
    for (int64_t c = 0; c < (k)->s->width; c += LANES) \
        for (int64_t i = 0; i < (k)->rows; i += LANES) { \
            const int64_t count = (k)->s->width - c, rows = (k)->rows - i; \
            if (count >= LANES && rows >= LANES) CALL(LANES, LANES) else CALL(rows, count) \
        }
