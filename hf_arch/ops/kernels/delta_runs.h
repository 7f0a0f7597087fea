/* What RUN steps of the delta rule multiply, and the side of the keys that they make; for delta_rule.c. */

#define VECTORS 2
#define KEY_ROWS 10
#define VALUE_ROWS 4
#include "walk.h"

#define SCORES 32 /* of a run: those of k, then of b; for each q for j <= i, then a for j < i */
#define A(i, j) (RUN * (RUN + 1) / 2 + (i) * ((i) - 1) / 2 + (j))
#define OF_B (SCORES / 2)

typedef struct {
    int64_t batch, length, heads, keys, values, decays, unit, threads;
    double scale, eps;
    const float *q, *k, *a, *b, *beta, *g, *v, *keep;
} Delta;

/* What RUN steps multiply: decays lie `apart`, or one for all keys; `recalls` is what a recalls times, `writes` what is
   written, `of_q` and `of_k` what q and k are multiplied by, `length_*` one over their lengths where those become one. */
typedef struct {
    Span at;
    Rows q, k, a, b, decays;
    int64_t apart;
    float decay[RUN], recalls[RUN], writes[RUN], keep[RUN], of_q[RUN], of_k[RUN], inverse_q[RUN], inverse_k[RUN];
} Run;

INLINE void lengths_of(const Delta *d, Run *run) {
    lanes squares[whole(2 * RUN)];
    float sums[whole(2 * RUN)];
    ALL(s, whole(2 * RUN)) squares[s] = all(0);
    for (int64_t c = 0; c < whole(d->keys); c += LANES)
        STEPS_OF_RUN(t) {
            const lanes q = load_all(row(run->q, t) + c), k = load_all(row(run->k, t) + c);
            squares[t] += q * q, squares[RUN + t] += k * k;
        }
    all_totals(squares, whole(2 * RUN), sums);
    STEPS_OF_RUN(t) {
        const int there = t < run->at.there;
        run->inverse_q[t] = there ? 1.0f / __builtin_sqrtf(sums[t] + (float)d->eps) : 0.0f;
        run->inverse_k[t] = there ? 1.0f / __builtin_sqrtf(sums[RUN + t] + (float)d->eps) : 0.0f;
        run->of_q[t] = run->inverse_q[t] * (float)d->scale, run->of_k[t] = run->inverse_k[t];
    }
}

/* Its rows are the first five of the room. `decays` [length, padded], where they lie apart, are those that a walk before `left`, or
   where to leave them, or none. */
INLINE void run_at(const int two, const Head *h, const Delta *d, int64_t start, float *room, float *decays, const int left, Run *run) {
    const int64_t size = RUN * whole(d->keys), keys = d->keys;
    const Span at = span_at(h, start);
    run->at = at, run->apart = d->decays > 1;
    lanes g = all(0);
    STEPS_OF_RUN(t) {
        const int there = t < at.there;
        if (there && d->decays == 1) g[t] = d->g[step_in(&at, t)];
        run->of_q[t] = (float)d->scale, run->of_k[t] = 1.0f;
        run->keep[t] = there && d->keep ? d->keep[h->b * d->length + start + t] : 1.0f;
        run->writes[t] = there && d->beta ? d->beta[step_in(&at, t)] : 1.0f;
        run->recalls[t] = two ? run->keep[t] : -1.0f;
    }
    run->q = rows_from(&at, d->q, keys, room), run->k = rows_from(&at, d->k, keys, room + size);
    if (two) run->a = rows_from(&at, d->a, keys, room + 2 * size), run->b = rows_from(&at, d->b, keys, room + 3 * size);
    if (d->unit) lengths_of(d, run);
    if (d->decays == 1) g = exponential(g);
    STEPS_OF_RUN(t) run->decay[t] = run->keep[t] * (d->decays == 1 ? g[t] : 1.0f);
    if (!run->apart) return;
    run->decays = (Rows){decays ? decays + start * whole(keys) : room + 4 * size, whole(keys)};
    if (left) return;
    const Rows given = rows_from(&at, d->g, keys, room + 4 * size);
    for (int64_t c = 0; c < whole(keys); c += LANES)
        STEPS_OF_RUN(t) store_all(row(run->decays, t) + c, t < at.there ? run->keep[t] * exponential(load_all(row(given, t) + c)) : all(1));
}

#define SOON (2 * RUN) /* for which the first cache has no room */

DEFINE_FETCH(2)

static void fetch_keys(const Head *h, const Delta *d, int64_t start, int decays) {
    fetch(h, d->q, start, d->keys), fetch(h, d->k, start, d->keys);
    if (d->b) fetch(h, d->a, start, d->keys), fetch(h, d->b, start, d->keys);
    if (decays && d->decays > 1) fetch(h, d->g, start, d->keys);
}

/* LANES keys of a run. */
typedef struct {
    lanes q[RUN], k[RUN], a[RUN], b[RUN], decay[RUN];
} Keys;

INLINE Keys keys_at(const int two, const Run *run, int64_t c) {
    Keys x;
    STEPS_OF_RUN(t) {
        x.q[t] = run->of_q[t] * load_all(row(run->q, t) + c), x.k[t] = run->of_k[t] * load_all(row(run->k, t) + c);
        x.a[t] = two ? run->recalls[t] * load_all(row(run->a, t) + c) : -x.k[t];
        if (two) x.b[t] = load_all(row(run->b, t) + c);
        x.decay[t] = run->apart ? load_all(row(run->decays, t) + c) : all(run->decay[t]);
    }
    return x;
}

/* k and b of step j as step i sees them: decayed up to q's, or up to a's. */
#define SEEN(two, x, i, j, call_a, call_q) \
    STEPS_OF_RUN(j) { \
        lanes k = x.k[j], b = two ? x.b[j] : all(0); \
        _Pragma("GCC unroll 4") for (int i = j; i < RUN; i++) { \
            if (i > j) { \
                if (!two) k *= x.decay[i]; \
                call_a; \
                if (two) k *= x.decay[i], b *= x.decay[i]; \
            } \
            call_q; \
        } \
    }

/* The side of the keys: what reads the state before the run, and what is written after it. And the scores, or none. */
INLINE void keys_side(const int two, const Run *run, int64_t padded, float *side, float *scores) {
    lanes sum[SCORES];
    ALL(s, SCORES) sum[s] = all(0);
    for (int64_t c = 0; c < padded; c += LANES) {
        const Keys x = keys_at(two, run, c);
        float *to = block_of(side, c);
        lanes p = all(1);
        STEPS_OF_RUN(t) {
            if (two) store_all(to + (READERS + t) * LANES, x.a[t] * p);
            p *= x.decay[t];
            if (!two) store_all(to + (READERS + t) * LANES, x.a[t] * p);
            store_all(to + (READERS + RUN + t) * LANES, x.q[t] * p);
        }
        store_all(to + DECAY * LANES, p);
        p = all(1);
        STEPS_BACK(t) {
            store_all(to + (WRITERS + t) * LANES, x.k[t] * p);
            if (two) store_all(to + (WRITERS + RUN + t) * LANES, x.b[t] * p);
            p *= x.decay[t];
        }
        if (scores)
            SEEN(two, x, i, j,
                 { sum[A(i, j)] += x.a[i] * k; if (two) sum[OF_B + A(i, j)] += x.a[i] * b; },
                 { sum[Q(i, j)] += x.q[i] * k; if (two) sum[OF_B + Q(i, j)] += x.q[i] * b; })
    }
    if (scores) all_totals(sum, two ? SCORES : OF_B, scores);
}
