/* Rows of arrays [batch, length, heads, width] that one head of one row walks through, RUN steps at a time. */

#include "heads.h"

#define RUN 4

#define INLINE static inline __attribute__((always_inline))
#define STEPS_OF_RUN(t) _Pragma("GCC unroll 4") for (int t = 0; t < RUN; t++)
#define STEPS_BACK(t) _Pragma("GCC unroll 4") for (int t = RUN - 1; t >= 0; t--)

static inline int64_t whole(int64_t size) { return (size + LANES - 1) / LANES * LANES; }

typedef struct {
    int64_t length, heads, keys, values, b, head;
} Head;

static inline int64_t step_of(const Head *h, int64_t t) { return (h->b * h->length + t) * h->heads + h->head; }
static inline float *of_head(const Head *h, const float *states) { return (float *)states + (h->b * h->heads + h->head) * h->keys * h->values; }

/* `there` steps, from the row `step` on; the others have nothing in their rows. */
typedef struct {
    int64_t there, step, heads;
} Span;

INLINE Span span_at(const Head *h, int64_t start) { return (Span){least(RUN, h->length - start), step_of(h, start), h->heads}; }
INLINE int64_t step_in(const Span *s, int64_t t) { return s->step + t * s->heads; }
static inline int64_t last_run(const Head *h) { return (h->length + RUN - 1) / RUN * RUN - RUN; }

/* Rows of a run in whole vectors, `apart` numbers apart. */
typedef struct {
    float *first;
    int64_t apart;
} Rows;

static const Rows NONE;

INLINE float *row(Rows rows, int64_t t) { return rows.first + t * rows.apart; }
INLINE Rows as_they_lie(const Span *s, const float *from, int64_t size) { return (Rows){(float *)from + s->step * size, s->heads * size}; }
INLINE int lie_whole(const Span *s, int64_t size) { return s->there == RUN && size % LANES == 0; }

static __attribute__((noinline)) Rows copied(Rows rows, int64_t there, int64_t size, float fill, float *room) {
    const int64_t padded = whole(size);
    for (int64_t t = 0; t < RUN; t++)
        for (int64_t c = 0; c < padded; c += LANES) store_all(room + t * padded + c, t < there ? load(row(rows, t) + c, size - c) : all(fill));
    return (Rows){room, padded};
}

static __attribute__((noinline)) void copy_back(Rows rows, int64_t there, int64_t size, Rows to) {
    for (int64_t t = 0; t < there; t++)
        for (int64_t c = 0; c < size; c += LANES) store(row(to, t) + c, load_all(row(rows, t) + c), size - c);
}

/* Rows where they lie, or copies in a room; those that are not there hold `fill`. */
INLINE Rows filled_rows(const Span *s, const float *from, int64_t size, float fill, float *room) {
    const Rows rows = as_they_lie(s, from, size);
    return lie_whole(s, size) ? rows : copied(rows, s->there, size, fill, room);
}

INLINE Rows rows_from(const Span *s, const float *from, int64_t size, float *room) { return filled_rows(s, from, size, 0, room); }

/* Rows to be written: there, or in a room, out of which `rows_done` copies them. */
INLINE Rows rows_to(const Span *s, float *to, int64_t size, float *room) { return lie_whole(s, size) ? as_they_lie(s, to, size) : (Rows){room, whole(size)}; }

INLINE void rows_done(const Span *s, float *to, int64_t size, Rows rows) {
    if (!lie_whole(s, size)) copy_back(rows, s->there, size, as_they_lie(s, to, size));
}

/* Defines `fetch`: of rows of the run from `start` on, which the processor does not foresee, since they lie heads apart, those that
   are read, and those that are written, for which a store would wait. 3 is into the first cache, 2 the second. */
#define DEFINE_FETCH(locality) \
    static void fetch(const Head *h, const float *from, int64_t start, int64_t size) { \
        for (int64_t t = start < 0 ? 0 : start; from && t < least(start + RUN, h->length); t++) \
            for (int64_t c = 0; c < size; c += 16) __builtin_prefetch(from + step_of(h, t) * size + c, 0, locality); \
    }
