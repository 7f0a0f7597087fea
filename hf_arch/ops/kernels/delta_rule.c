/* The delta rule, and its relatives with a diagonal plus rank-one transition, and their gradient; equations as in
   hf_arch/ops/native_delta.py. q, k, a, b [batch, length, heads, keys], v, o [batch, length, heads, values], decay [batch,
   length, heads, decays] with 1 or as many as keys, or none, beta [batch, length, heads] or none, keep [batch, length] or
   none, states [batch, heads, keys, values].

   A task is one head of one row. A step goes once over the state: what it writes is added when the next one reads. Where
   sums over keys are wanted values lie in the lanes of vectors, and keys where sums over values are. The state is taken
   in blocks that stay in the first cache. */

#include "heads.h"

#define STEPS 32   /* between steps of which sum_v S dL/dS is made of its factors */
#define BLOCK 4096 /* numbers of a block of the state */

typedef struct {
    int64_t batch, length, heads, keys, values, decays, threads;
    const float *q, *k, *a, *b, *beta, *decay, *v, *keep;
} Delta;

typedef struct {
    const Delta *d;
    int64_t b, head;
} Head;

static inline int64_t step_of(const Head *h, int64_t t) { return (h->b * h->d->length + t) * h->d->heads + h->head; }
static inline int64_t whole(int64_t size) { return (size + LANES - 1) / LANES * LANES; }
static inline float *of_head(const Head *h, const float *states) { return (float *)states + (h->b * h->d->heads + h->head) * h->d->keys * h->d->values; }

/* What a step multiplies: decays lie `apart`, 0 where they are one; `recalls` is what a recalls times, `writes` what k is. */
typedef struct {
    const float *q, *k, *a, *b, *decay;
    int64_t apart;
    float recalls, writes, keep;
} Step;

static const float ONE = 1.0f;

static Step undecayed(Step step) {
    step.decay = &ONE, step.apart = 0;
    return step;
}

static Step step_at(const Head *h, int64_t t) {
    const Delta *d = h->d;
    const int64_t step = step_of(h, t), at = step * d->keys;
    Step s = {d->q + at, d->k + at, d->a + at, d->b ? d->b + at : 0, &ONE, d->decays > 1, 1.0f, 1.0f, d->keep ? d->keep[h->b * d->length + t] : 1.0f};
    if (d->decays) s.decay = d->decay + step * d->decays;
    s.recalls = d->b ? s.keep : *s.decay;
    if (d->beta) s.writes = d->beta[step];
    return s;
}

static float product(const float *x, const float *y, int64_t count) {
    lanes sum = all(0);
    for (int64_t c = 0; c < count; c += LANES) sum += load(x + c, count - c) * load(y + c, count - c);
    return total(sum);
}

#define INLINE static inline __attribute__((always_inline))
#define EACH for (int i = 0; i < WIDE; i++)

/* Over a block [count values] of `state`, which holds for groups of `most` vectors of values, then 2, then 1, all keys of a
   group after another: `call` with its WIDE, its first value j and its state S. */
#define GROUPS(most, call) \
    for (int64_t j = 0, left = whole(count) / LANES, wide; left; left -= wide, j += wide * LANES) { \
        wide = left >= most ? most : left >= 2 ? 2 : 1; \
        float *S = state + j * keys; \
        if (wide == 4) { enum { WIDE = 4 }; call; } \
        else if (wide == 2) { enum { WIDE = 2 }; call; } \
        else { enum { WIDE = 1 }; call; } \
    }

INLINE void take_group(const int WIDE, const float *from, int64_t values, int64_t left, int64_t keys, float *S) {
    for (int64_t c = 0; c < keys; c++)
        EACH store_all(S + (c * WIDE + i) * LANES, left > i * LANES ? load(from + c * values + i * LANES, left - i * LANES) : all(0));
}

INLINE void give_group(const int WIDE, const float *S, int64_t values, int64_t left, int64_t keys, float *to) {
    for (int64_t c = 0; c < keys; c++)
        EACH if (left > i * LANES) store(to + c * values + i * LANES, load_all(S + (c * WIDE + i) * LANES), left - i * LANES);
}

/* What the step before wrote: S += k fresh + b old. Then recalled = a . S, S *= decay, read = q . S. */
INLINE void forward_group(const int WIDE, const int two, float *restrict S, int64_t keys, const Step *before, const Step *now, const float *fresh,
                          const float *old, float *recalled, float *read) {
    lanes sum[4], out[4], x[4];
    EACH sum[i] = out[i] = all(0);
    for (int64_t c = 0; c < keys; c++) {
        const float k = before->k[c], a = now->a[c], q = now->q[c], decay = now->decay[c * now->apart];
        EACH x[i] = load_all(S + (c * WIDE + i) * LANES) + k * load_all(fresh + i * LANES);
        if (two) {
            const float b = before->b[c];
            EACH x[i] += b * load_all(old + i * LANES);
        }
        EACH sum[i] += a * x[i];
        EACH x[i] *= decay;
        EACH out[i] += q * x[i];
        EACH store_all(S + (c * WIDE + i) * LANES, x[i]);
    }
    EACH store_all(recalled + i * LANES, sum[i]);
    EACH store_all(read + i * LANES, out[i]);
}

/* With S the gradient of the state after the next step, from later ones: S = decay (S + q grad) + a to_recalled is that
   after this step. to_fresh = k . S, to_old = b . S; to_k += S fresh, to_b += S old, whose lanes are still to be summed. */
INLINE void backward_group(const int WIDE, const int two, float *restrict S, int64_t keys, const Step *next, const Step *now, const float *grad,
                           const float *to_recalled, const float *fresh, const float *old, float *to_fresh, float *to_old, float *restrict to_k,
                           float *restrict to_b) {
    lanes sum[4], other[4], x[4];
    EACH sum[i] = other[i] = all(0);
    for (int64_t c = 0; c < keys; c++) {
        const float q = next->q[c], a = next->a[c], k = now->k[c], decay = next->decay[c * next->apart];
        EACH x[i] = load_all(S + (c * WIDE + i) * LANES) + q * load_all(grad + i * LANES);
        EACH x[i] = decay * x[i] + a * load_all(to_recalled + i * LANES);
        EACH store_all(S + (c * WIDE + i) * LANES, x[i]);
        EACH sum[i] += k * x[i];
        lanes written = load_all(to_k + c * LANES);
        EACH written += x[i] * load_all(fresh + i * LANES);
        store_all(to_k + c * LANES, written);
        if (two) {
            const float b = now->b[c];
            EACH other[i] += b * x[i];
            written = load_all(to_b + c * LANES);
            EACH written += x[i] * load_all(old + i * LANES);
            store_all(to_b + c * LANES, written);
        }
    }
    EACH store_all(to_fresh + i * LANES, sum[i]);
    if (two) EACH store_all(to_old + i * LANES, other[i]);
}

static inline int64_t block_of(const Delta *d) {
    const int64_t fit = BLOCK / d->keys / (4 * LANES) * 4 * LANES;
    return least(whole(d->values), fit > 4 * LANES ? fit : 4 * LANES);
}

typedef struct {
    const Delta *d;
    float *state, *o, *kept;
} Forward;

/* Steps [start, stop) of values [first, first + count). A room holds the state, block after block, and three rows of values. */
INLINE void forward_block(const int two, const Head *h, const Forward *f, int64_t first, int64_t count, int64_t start, int64_t stop, float *room) {
    const Delta *d = h->d;
    const int64_t keys = d->keys, values = whole(d->values), size = whole(count);
    float *state = room + first * keys, *fresh = room + values * keys + first, *old = fresh + values, *read = old + values, *given = of_head(h, f->state) + first;
    if (start == 0) {
        memset(fresh, 0, size * sizeof(float)), memset(old, 0, size * sizeof(float));
        GROUPS(4, take_group(WIDE, given + j, d->values, count - j, keys, S))
    }
    Step before = step_at(h, start ? start - 1 : 0);
    for (int64_t t = start; t < stop; t++) {
        const Step now = step_at(h, t);
        const int64_t at = step_of(h, t) * d->values + first;
        const float own = product(now.q, now.k, keys), back = two ? product(now.q, now.b, keys) : 0;
        GROUPS(4, forward_group(WIDE, two, S, keys, &before, &now, fresh + j, old + j, old + j, read + j))
        for (int64_t c = 0; c < size; c += LANES) {
            const lanes v = load(d->v + at + c, count - c), recalled = now.recalls * load_all(old + c), keeps = two ? recalled : v - recalled,
                        written = two ? v : now.writes * keeps;
            store_all(fresh + c, written), store_all(old + c, recalled);
            store(f->kept + at + c, keeps, count - c);
            store(f->o + at + c, load_all(read + c) + own * written + back * recalled, count - c);
        }
        before = now;
    }
    if (stop == d->length) {
        const Step end = undecayed(before);
        GROUPS(4, forward_group(WIDE, two, S, keys, &before, &end, fresh + j, old + j, read + j, read + j))
        GROUPS(4, give_group(WIDE, S, d->values, count - j, keys, given + j))
    }
}

static void forward_head(const void *call, int64_t b, int64_t head, float *room) {
    const Forward *f = call;
    const Head h = {f->d, b, head};
    const int64_t size = block_of(f->d), values = f->d->values, length = f->d->length;
    for (int64_t start = 0; start < length; start += STEPS)
        for (int64_t first = 0; first < values; first += size) {
            const int64_t count = least(size, values - first), stop = least(length, start + STEPS);
            if (f->d->b)
                forward_block(1, &h, f, first, count, start, stop, room);
            else
                forward_block(0, &h, f, first, count, start, stop, room);
        }
}

/* o, and the state in place; `kept` like v is for the gradient: what was recalled, or v less that where no b writes it back.
   Returns 0, or 1 where there was no memory. */
int delta_rule(const Delta *d, float *state, float *o, float *kept) {
    const Forward f = {d, state, o, kept};
    return each_head(d->batch, d->heads, d->threads, whole(d->values) * (d->keys + 3), forward_head, &f);
}

/* `state`: of dL/dS at the end on entry, of dL/dS at the start on return. k, b and beta hold zeros on entry. `recalled` like
   v: of what was recalled. */
typedef struct {
    float *state, *q, *k, *a, *b, *beta, *g, *v, *recalled;
} Gradients;

typedef struct {
    const Delta *d;
    const float *state, *grad_o, *kept;
    const Gradients *to;
} Backward;

/* A group to [values, padded], keys in the lanes. */
INLINE void turn_group(const int WIDE, const float *S, int64_t keys, int64_t padded, float *to) {
    for (int64_t c = 0; c < keys; c++)
        for (int64_t i = 0; i < WIDE * LANES; i++) to[i * padded + c] = S[c * WIDE * LANES + i];
}

/* Steps stop - 1 to start of values [first, first + count): what was written, into to->v, to->recalled, to->k, to->b and
   to->beta; k and b without a step's own reading. The gradient of the state after the last of these steps, before that
   step's reading, into ends [values, padded]. A room holds the gradient of the state, block after block, six rows of values
   and two of keys in lanes. */
INLINE void backward_block(const int two, const Head *h, const Backward *w, int64_t first, int64_t count, int64_t start, int64_t stop, float *room,
                           float *ends) {
    const Delta *d = h->d;
    const Gradients *to = w->to;
    const int64_t keys = d->keys, values = whole(d->values), size = whole(count), padded = whole(keys);
    float *state = room + first * keys, *grad = room + values * keys + first, *to_recalled = grad + values, *fresh = to_recalled + values,
          *old = fresh + values, *to_fresh = old + values, *to_old = to_fresh + values, *to_k = room + values * (keys + 6), *to_b = to_k + padded * LANES,
          *given = of_head(h, to->state) + first;
    const int is_last = stop == d->length;
    if (is_last) {
        memset(grad, 0, size * sizeof(float)), memset(to_recalled, 0, size * sizeof(float));
        GROUPS(2, take_group(WIDE, given + j, d->values, count - j, keys, S))
    }
    Step next = is_last ? undecayed(step_at(h, stop - 1)) : step_at(h, stop);
    for (int64_t t = stop - 1; t >= start; t--) {
        const Step now = step_at(h, t);
        const int64_t step = step_of(h, t), at = step * d->values + first;
        const float own = product(now.q, now.k, keys), back = two ? product(now.q, now.b, keys) : 0;
        for (int64_t c = 0; c < size; c += LANES) {
            const lanes keeps = load(w->kept + at + c, count - c);
            store_all(old + c, keeps), store_all(fresh + c, two ? load(d->v + at + c, count - c) : now.writes * keeps);
        }
        memset(to_k, 0, (1 + two) * padded * LANES * sizeof(float));
        GROUPS(2, backward_group(WIDE, two, S, keys, &next, &now, grad + j, to_recalled + j, fresh + j, old + j, to_fresh + j, to_old + j, to_k, to_b))
        if (t + 1 == stop) GROUPS(2, turn_group(WIDE, S, keys, padded, ends + (first + j) * padded))
        lanes of_beta = all(0);
        for (int64_t c = 0; c < size; c += LANES) {
            const lanes of_o = load(w->grad_o + at + c, count - c), of_fresh = load_all(to_fresh + c) + own * of_o;
            const lanes of_v = now.writes * of_fresh, recalled = two ? load_all(to_old + c) + back * of_o : -of_v;
            of_beta += of_fresh * load_all(old + c);
            store_all(grad + c, of_o), store_all(to_recalled + c, now.recalls * recalled);
            store(to->v + at + c, of_v, count - c), store(to->recalled + at + c, now.recalls * recalled, count - c);
        }
        if (d->beta) to->beta[step] += total(of_beta);
        for (int64_t c = 0; c < keys; c += LANES) {
            float *of_k = to->k + step * keys + c, *of_b = to->b + step * keys + c;
            store(of_k, load(of_k, keys - c) + totals(to_k + c * LANES), keys - c);
            if (two) store(of_b, load(of_b, keys - c) + totals(to_b + c * LANES), keys - c);
        }
        next = now;
    }
    if (start == 0) {
        GROUPS(2, backward_group(WIDE, 0, S, keys, &next, &next, grad + j, to_recalled + j, fresh + j, 0, to_fresh + j, 0, to_k, 0))
        GROUPS(2, give_group(WIDE, S, d->values, count - j, keys, given + j))
    }
}

/* A step for WIDE vectors of keys, `count` keys: to_a = S to_recalled, S *= decay, to_q = S grad, S += writes k fresh + b old. */
INLINE void again_group(const int WIDE, const int two, float *restrict S, int64_t values, const Step *now, int64_t first, int64_t count, const float *fresh,
                        const float *old, const float *grad, const float *to_recalled, float *to_a, float *to_q) {
    lanes recall[2], read[2], x[2], decay[2], k[2], b[2];
    EACH recall[i] = read[i] = all(0);
    EACH decay[i] = now->apart ? load(now->decay + first + i * LANES, count - i * LANES) : all(*now->decay);
    EACH k[i] = now->writes * load(now->k + first + i * LANES, count - i * LANES);
    if (two) EACH b[i] = load(now->b + first + i * LANES, count - i * LANES);
    for (int64_t v = 0; v < values; v++) {
        const float of_recalled = to_recalled[v], of_o = grad[v], new = fresh[v], last = two ? old[v] : 0;
        EACH x[i] = load_all(S + (v * WIDE + i) * LANES);
        EACH recall[i] += of_recalled * x[i];
        EACH x[i] *= decay[i];
        EACH read[i] += of_o * x[i];
        EACH x[i] += new * k[i];
        if (two) EACH x[i] += last * b[i];
        EACH store_all(S + (v * WIDE + i) * LANES, x[i]);
    }
    EACH store(to_a + i * LANES, recall[i], count - i * LANES);
    EACH store(to_q + i * LANES, read[i], count - i * LANES);
}

/* Steps [start, stop) for WIDE vectors of keys from `first` on: what recalled and read, into to->a and to->q, without a
   step's own reading; and sum_v S dL/dS after the last of them into passed [padded]. A room holds the state, block after
   block. */
INLINE void again_block(const int WIDE, const int two, const Head *h, const Backward *w, int64_t first, int64_t start, int64_t stop, float *room,
                        const float *ends, float *passed) {
    const Delta *d = h->d;
    const int64_t keys = d->keys, padded = whole(keys), values = d->values, count = least(keys - first, WIDE * LANES);
    const float *given = of_head(h, w->state) + first * values;
    float *S = room + first * values;
    for (int64_t v = 0; start == 0 && v < values; v++)
        for (int64_t c = 0; c < WIDE * LANES; c++) S[v * WIDE * LANES + c] = c < count ? given[c * values + v] : 0;
    for (int64_t t = start; t < stop; t++) {
        const Step now = step_at(h, t);
        const int64_t at = step_of(h, t) * values, row = step_of(h, t) * keys + first;
        again_group(WIDE, two, S, values, &now, first, count, two ? d->v + at : w->kept + at, w->kept + at, w->grad_o + at, w->to->recalled + at,
                    w->to->a + row, w->to->q + row);
    }
    lanes sum[2] = {all(0), all(0)};
    for (int64_t v = 0; v < values; v++)
        EACH sum[i] += load_all(S + (v * WIDE + i) * LANES) * load_all(ends + v * padded + first + i * LANES);
    EACH store_all(passed + first + i * LANES, sum[i]);
}

/* With P_t = sum_v S dL/dS after a step, before its own reading: dL/dg_t = P_t + q dL/dq - k dL/dk - b dL/db and P_{t-1} =
   dL/dg_t + a dL/da. Then what a step's own reading adds. Without b, a is k and recalls after the decay. */
static void backward_decays(const Head *h, const Backward *w, const float *passed, float *P) {
    const Delta *d = h->d;
    const Gradients *to = w->to;
    const int64_t keys = d->keys, padded = whole(keys);
    for (int64_t t = d->length - 1; t >= 0; t--) {
        const Step now = step_at(h, t);
        const int64_t step = step_of(h, t), at = step * keys;
        const float *grad = w->grad_o + step * d->values, *kept = w->kept + step * d->values;
        const float own = now.writes * product(grad, d->b ? d->v + step * d->values : kept, d->values), back = d->b ? product(grad, kept, d->values) : 0;
        lanes of_g = all(0);
        if ((t + 1) % STEPS == 0 || t + 1 == d->length) memcpy(P, passed + t / STEPS * padded, padded * sizeof(float));
        for (int64_t c = 0; c < keys; c += LANES) {
            const int64_t count = keys - c;
            const lanes q = load(now.q + c, count), k = load(now.k + c, count), to_q = load(to->q + at + c, count), to_k = load(to->k + at + c, count),
                        to_a = load(to->a + at + c, count), recall = load(now.a + c, count) * to_a;
            lanes decay = load_all(P + c) + q * to_q - k * to_k, read = to_q + own * k;
            if (d->b) {
                const lanes b = load(now.b + c, count), to_b = load(to->b + at + c, count);
                decay = now.keep * (decay - b * to_b), read += back * b;
                store_all(P + c, decay + recall);
                store(to->k + at + c, to_k + now.writes * own * q, count), store(to->b + at + c, to_b + back * q, count);
            } else {
                decay = now.keep * (decay + recall);
                store_all(P + c, decay);
                store(to->k + at + c, to_k + own * q + to_a, count);
            }
            store(to->q + at + c, read, count);
            if (d->decays > 1) store(to->g + at + c, decay, count);
            of_g += decay;
        }
        if (d->decays == 1) to->g[step] = total(of_g);
    }
}

static int64_t backward_room(const Delta *d) {
    const int64_t padded = whole(d->keys), values = whole(d->values);
    return values * (padded + 6) + 2 * padded * LANES;
}

INLINE void backward_walks(const int two, const Head *h, const Backward *w, float *room, float *ends, float *passed) {
    const Delta *d = h->d;
    const int64_t size = block_of(d), padded = whole(d->keys), chunks = (d->length + STEPS - 1) / STEPS;
    for (int64_t n = chunks - 1; n >= 0; n--)
        for (int64_t first = 0; first < d->values; first += size)
            backward_block(two, h, w, first, least(size, d->values - first), n * STEPS, least(d->length, (n + 1) * STEPS), room,
                           ends + n * whole(d->values) * padded);
    for (int64_t n = 0; n < chunks; n++)
        for (int64_t first = 0; first < d->keys; first += 2 * LANES) {
            const int64_t stop = least(d->length, (n + 1) * STEPS);
            const float *end = ends + n * whole(d->values) * padded;
            if (d->keys - first > LANES)
                again_block(2, two, h, w, first, n * STEPS, stop, room, end, passed + n * padded);
            else
                again_block(1, two, h, w, first, n * STEPS, stop, room, end, passed + n * padded);
        }
}

static void backward_head(const void *call, int64_t b, int64_t head, float *room) {
    const Backward *w = call;
    const Delta *d = w->d;
    const Head h = {d, b, head};
    const int64_t padded = whole(d->keys), numbers = (d->length + STEPS - 1) / STEPS * whole(d->values) * padded;
    float *ends = room + backward_room(d), *passed = ends + numbers;
    memset(ends, 0, numbers * sizeof(float));
    if (d->b)
        backward_walks(1, &h, w, room, ends, passed);
    else
        backward_walks(0, &h, w, room, ends, passed);
    backward_decays(&h, w, passed, room);
}

/* `state` is the initial one, `kept` what delta_rule left. Returns 0, or 1 where there was no memory. */
int delta_rule_backward(const Delta *d, const float *state, const float *grad_o, const float *kept, const Gradients *to) {
    const Backward w = {d, state, grad_o, kept, to};
    const int64_t chunks = (d->length + STEPS - 1) / STEPS;
    return each_head(d->batch, d->heads, d->threads, backward_room(d) + chunks * (whole(d->values) + 1) * whole(d->keys), backward_head, &w);
}
