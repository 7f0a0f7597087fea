/* Walks through time over a matrix S [rows, lanes] that decays, is written to and is read, RUN steps in one pass over it,
   whose sums stay in registers:

       S = decay S + sum_w row_w lane_w^T        sums_r = S^T row_r

   writes what one run of steps left and reads for the next. What belongs to the rows or to the lanes of S lies in a side:
   for every LANES of its numbers SLOTS vectors. A state has its keys on one side and its values on the other, and is turned
   where sums over the other one are wanted. */

#include "rows.h"

/* `VECTORS` of each step read and as many write, 2 or 1. */
#define READERS 0 /* what reads the state, or on the other side what is read of it */
#define WRITERS (VECTORS * RUN)
#define DECAY (2 * VECTORS * RUN)
#define SLOTS (2 * VECTORS * RUN + 1)
#if LANES == 16
#define WIDEST 2
#else
#define WIDEST 1
#endif

#define EACH _Pragma("GCC unroll 2") for (int i = 0; i < WIDE; i++)
#define ALL(x, count) _Pragma("GCC unroll 8") for (int x = 0; x < (count); x++)

static inline int64_t side_size(int64_t size) { return whole(size) * SLOTS; }
static inline float *block_of(const float *side, int64_t c) { return (float *)side + c * SLOTS; }

/* A side before the first step: nothing is written, and nothing decays. */
static void empty_side(float *side, int64_t size) {
    memset(side, 0, side_size(size) * sizeof(float));
    for (int64_t c = 0; c < size; c += LANES) store_all(block_of(side, c) + DECAY * LANES, all(1));
}

/* Of the run before: what it wrote. Of this one: what reads, and where its sums go. */
typedef struct {
    const float *rows_written, *lanes_written, *rows_read;
    float *sums;
} Pass;

/* Of WIDE vectors of lanes. `across`: the decay lies along the lanes, else along the rows. */
INLINE void pass_group(const int WIDE, const int across, const int write_at, const int writes, const int read_at, const int reads,
                       float *restrict S, int64_t rows, const float *rows_written, const float *lanes_written, const float *rows_read, float *sums) {
    lanes sum[VECTORS * RUN][2], written[VECTORS * RUN][2], x[2], decay[2];
    ALL(w, writes) EACH written[w][i] = load_all(lanes_written + (i * SLOTS + write_at + w) * LANES);
    ALL(r, reads) EACH sum[r][i] = all(0);
    if (across) EACH decay[i] = load_all(lanes_written + (i * SLOTS + DECAY) * LANES);
    for (int64_t first = 0; first < rows; first += LANES) {
        const float *writer = block_of(rows_written, first), *reader = block_of(rows_read, first);
        for (int64_t c = 0; c < least(LANES, rows - first); c++, writer++, reader++, S += WIDE * LANES) {
            EACH x[i] = load_all(S + i * LANES) * (across ? decay[i] : all(writer[DECAY * LANES]));
            ALL(w, writes) EACH x[i] += writer[(write_at + w) * LANES] * written[w][i];
            EACH store_all(S + i * LANES, x[i]);
            ALL(r, reads) EACH sum[r][i] += reader[(read_at + r) * LANES] * x[i];
        }
    }
    ALL(r, reads) EACH store_all(sums + (i * SLOTS + read_at + r) * LANES, sum[r][i]);
}

/* The call for every group of a state: WIDE vectors of lanes from j on, all rows of a group after another. */
#define GROUPS(size, rows, ...) \
    for (int64_t j = 0, left = whole(size) / LANES, wide; left; left -= wide, j += wide * LANES) { \
        wide = least(left, WIDEST); \
        float *S = (float *)state + j * (rows); \
        if (wide == 2) { enum { WIDE = 2 }; __VA_ARGS__; } \
        else { enum { WIDE = 1 }; __VA_ARGS__; } \
    }

/* A pass that writes with `writes` from the slot `write_at` on, and reads likewise. */
INLINE void pass(const int across, const int write_at, const int writes, const int read_at, const int reads, float *state, int64_t rows, int64_t size,
                 const Pass *p) {
    GROUPS(size, rows,
           pass_group(WIDE, across, write_at, writes, read_at, reads, S, rows, p->rows_written, block_of(p->lanes_written, j), p->rows_read,
                      block_of(p->sums, j)))
}

/* A state [rows, lanes] into groups, and out of them. */
static void take(const float *from, int64_t rows, int64_t size, float *state) {
    GROUPS(size, rows, {
        for (int64_t c = 0; c < rows; c++)
            for (int i = 0; i < WIDE; i++) store_all(S + (c * WIDE + i) * LANES, load(from + c * size + j + i * LANES, size - j - i * LANES));
    })
}

static void give(const float *state, int64_t rows, int64_t size, float *to) {
    GROUPS(size, rows, {
        for (int64_t c = 0; c < rows; c++)
            for (int i = 0; i < WIDE; i++) store(to + c * size + j + i * LANES, load_all(S + (c * WIDE + i) * LANES), size - j - i * LANES);
    })
}

/* A state [lanes, rows] into groups. */
static void take_turned(const float *from, int64_t rows, int64_t size, float *state) {
    GROUPS(size, rows, {
        for (int64_t first = 0; first < rows; first += LANES)
            for (int64_t l = 0; l < WIDE * LANES; l++)
                for (int64_t c = first; c < least(first + LANES, rows); c++) S[c * WIDE * LANES + l] = j + l < size ? from[(j + l) * rows + c] : 0;
    })
}

static __attribute__((unused)) void give_turned(const float *state, int64_t rows, int64_t size, float *to) {
    GROUPS(size, rows, {
        for (int64_t l = 0; l < least(WIDE * LANES, size - j); l++)
            for (int64_t c = 0; c < rows; c++) to[(j + l) * rows + c] = S[c * WIDE * LANES + l];
    })
}

/* Sums over the rows of products of the numbers of two states, for each lane. */
static void products(const float *state, const float *other, int64_t rows, int64_t size, float *to) {
    GROUPS(size, rows, {
        lanes sum[2] = {all(0), all(0)};
        for (int64_t c = 0; c < rows; c++) EACH sum[i] += load_all(S + (c * WIDE + i) * LANES) * load_all(other + j * rows + (c * WIDE + i) * LANES);
        EACH store_all(to + j + i * LANES, sum[i]);
    })
}

static inline void swap(float **x, float **other) {
    float *kept = *x;
    *x = *other, *other = kept;
}

/* The sides of two runs, and room for rows of keys and of values. */
typedef struct {
    float *keys, *values, *keys_before, *values_before, *key_rows, *value_rows;
} Sides;

static int64_t sides_size(int64_t keys, int64_t values) {
    return RUN * (KEY_ROWS * whole(keys) + VALUE_ROWS * whole(values)) + 2 * (side_size(keys) + side_size(values));
}

static Sides sides_in(const Head *h, float *room) {
    const int64_t keys = side_size(h->keys), values = side_size(h->values);
    float *first = room + RUN * (KEY_ROWS * whole(h->keys) + VALUE_ROWS * whole(h->values)), *other = first + keys + values;
    const Sides s = {first, first + keys, other, other + keys, room, room + RUN * KEY_ROWS * whole(h->keys)};
    empty_side(s.keys, h->keys), empty_side(s.keys_before, h->keys), empty_side(s.values, h->values), empty_side(s.values_before, h->values);
    return s;
}

static void next_run(Sides *s) { swap(&s->keys, &s->keys_before), swap(&s->values, &s->values_before); }

#define Q(i, j) ((i) * ((i) + 1) / 2 + (j)) /* of the scores of a run, j <= i */

/* The totals of vectors that follow each other, a multiple of LANES. */
static inline void all_totals(const lanes *sum, int count, float *to) {
    for (int s = 0; s < count; s += LANES) store_all(to + s, totals((const float *)(sum + s)));
}
