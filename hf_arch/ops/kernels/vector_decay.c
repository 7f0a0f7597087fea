/* Linear attention with one decay a key channel and its gradient; equations as in hf_arch/ops/vector_decay.py. q, k, g
   [batch, length, heads, keys], v, o [batch, length, heads, values], bonus [heads, keys] or none, keep [batch, length] or
   none, states [batch, heads, values, keys].

   A task is one head of one row. It walks through time with a block of the state, some values by all keys, that stays
   in the first cache: a step is  x_j = a S_j,  o_j += q . x_j,  S_j = x_j + v_j k  for each value j. */

#include "heads.h"

#define STEPS 32     /* between kept states; hf_arch/ops/vector_decay.py has the same */
#define BLOCK 4096   /* numbers of the block of a state */

typedef struct {
    int64_t batch, length, heads, keys, values, threads;
    const float *q, *k, *g, *v, *bonus, *keep;
} Attention;

/* One head of one row; rows of keys lie in `padded` numbers, zeros after the last. */
typedef struct {
    const Attention *a;
    int64_t b, head, padded;
} Head;

static inline int64_t padded_keys(const Attention *a) { return (a->keys + LANES - 1) / LANES * LANES; }

static inline int64_t key_row(const Head *h, int64_t t) { return ((h->b * h->a->length + t) * h->a->heads + h->head) * h->a->keys; }
static inline int64_t value_row(const Head *h, int64_t t) { return ((h->b * h->a->length + t) * h->a->heads + h->head) * h->a->values; }

static inline void pad(const Head *h, const float *from, float *to) {
    for (int64_t c = 0; c < h->padded; c += LANES) store_all(to + c, load(from + c, h->a->keys - c));
}

static inline float keep(const Head *h, int64_t t) { return h->a->keep ? h->a->keep[h->b * h->a->length + t] : 1.0f; }

/* The decays of a step. */
static inline void decays(const Head *h, int64_t t, float *to) {
    const lanes kept = all(keep(h, t));
    for (int64_t c = 0; c < h->padded; c += LANES)
        store_all(to + c, kept * exponential(load(h->a->g + key_row(h, t) + c, h->a->keys - c)));
}

/* The next three walk over four rows of the state, which share what they read. EACH(x) is x(0) to x(3). */
#define EACH(x) x(0) x(1) x(2) x(3)

/* sums_j = read . (a S_j), or read . S_j where a bonus reads before the decay; then S_j = a S_j + v_j k. */
static inline void read_rows(float *restrict S, const float *restrict a, const float *restrict k, const float *restrict v,
                             const float *restrict read, int bonus, int64_t keys, float *restrict sums) {
#define START(j) lanes sum##j = all(0); float *S##j = S + j * keys; const float v##j = v[j];
#define STEP(j) { \
        const lanes before = load_all(S##j + c), decayed = before * decay; \
        sum##j += query * (bonus ? before : decayed); \
        store_all(S##j + c, decayed + v##j * key); \
    }
#define END(j) sums[j] = total(sum##j);
    EACH(START)
    for (int64_t c = 0; c < keys; c += LANES) {
        const lanes decay = load_all(a + c), key = load_all(k + c), query = load_all(read + c);
        EACH(STEP)
    }
    EACH(END)
#undef START
#undef STEP
#undef END
}

/* to_q += sum_j grad_j a S_j, or of S_j; then S_j = a S_j + v_j k. */
static inline void query_rows(float *restrict S, const float *restrict a, const float *restrict k, const float *restrict v,
                              const float *restrict grad, int bonus, int64_t keys, float *restrict to_q) {
#define START(j) float *S##j = S + j * keys; const float v##j = v[j], grad##j = grad[j];
#define STEP(j) { \
        const lanes before = load_all(S##j + c), decayed = before * decay; \
        sum += grad##j * (bonus ? before : decayed); \
        store_all(S##j + c, decayed + v##j * key); \
    }
    EACH(START)
    for (int64_t c = 0; c < keys; c += LANES) {
        const lanes decay = load_all(a + c), key = load_all(k + c);
        lanes sum = load_all(to_q + c);
        EACH(STEP)
        store_all(to_q + c, sum);
    }
#undef START
#undef STEP
}

/* With R the gradient of S after the step: to_k += sum_j v_j R_j, sums_j = k . R_j; then that before the step,
   R_j = a (R_j + grad_j q), or a R_j + grad_j q where a bonus reads before the decay. */
static inline void write_rows(float *restrict R, const float *restrict a, const float *restrict k, const float *restrict q,
                              const float *restrict v, const float *restrict grad, int bonus, int64_t keys, float *restrict to_k,
                              float *restrict sums) {
#define START(j) lanes sum##j = all(0); float *R##j = R + j * keys; const float v##j = v[j], grad##j = grad[j];
#define STEP(j) { \
        const lanes after = load_all(R##j + c), read = grad##j * query; \
        written += v##j * after; \
        sum##j += key * after; \
        store_all(R##j + c, bonus ? decay * after + read : decay * (after + read)); \
    }
#define END(j) sums[j] = total(sum##j);
    EACH(START)
    for (int64_t c = 0; c < keys; c += LANES) {
        const lanes decay = load_all(a + c), key = load_all(k + c), query = load_all(q + c);
        lanes written = load_all(to_k + c);
        EACH(STEP)
        store_all(to_k + c, written);
    }
    EACH(END)
#undef START
#undef STEP
#undef END
}

/* Rows of a block of the state, a multiple of four. */
static inline int64_t block_of(const Attention *a, int64_t padded) {
    const int64_t fit = BLOCK / padded / 4 * 4;
    return least((a->values + 3) / 4 * 4, fit > 4 ? fit : 4);
}

/* sum_c u_c q_c k_c */
static inline float own_score(const Head *h, const float *q, const float *k) {
    lanes sum = all(0);
    for (int64_t c = 0; c < h->padded; c += LANES) {
        lanes x = load_all(q + c) * load_all(k + c);
        if (h->a->bonus) x *= load(h->a->bonus + h->head * h->a->keys + c, h->a->keys - c);
        sum += x;
    }
    return total(sum);
}

/* Rows [first, first + count) of a state into the room of a task, zeros up to a multiple of four, and out of it. */
static void take(const Head *h, const float *state, int64_t first, int64_t count, float *S) {
    state += ((h->b * h->a->heads + h->head) * h->a->values + first) * h->a->keys;
    for (int64_t j = 0; j < count; j++) pad(h, state + j * h->a->keys, S + j * h->padded);
    memset(S + count * h->padded, 0, ((count + 3) / 4 * 4 - count) * h->padded * sizeof(float));
}

static void give(const Head *h, const float *S, int64_t first, int64_t count, float *state) {
    state += ((h->b * h->a->heads + h->head) * h->a->values + first) * h->a->keys;
    for (int64_t j = 0; j < count; j++)
        for (int64_t c = 0; c < h->a->keys; c += LANES) store(state + j * h->a->keys + c, load_all(S + j * h->padded + c), h->a->keys - c);
}

/* What a step reads, padded: rows of keys, and the block's part of rows of values, zeros up to a multiple of four. */
typedef struct {
    float *q, *k, *decay, *sum, *v, *grad, *out;
} Step;

static inline Step step_in(float *room, int64_t padded, int64_t size) {
    float *values = room + 4 * padded;
    return (Step){room, room + padded, room + 2 * padded, room + 3 * padded, values, values + size, values + 2 * size};
}

static inline void block_row(const float *from, int64_t count, float *to) {
    for (int64_t j = 0; j < (count + 3) / 4 * 4; j++) to[j] = j < count ? from[j] : 0;
}

/* How much a step's queries read: with a bonus they read before the decay, but not across documents. */
static inline float carried(const Head *h, int64_t t) { return h->a->bonus ? keep(h, t) : 1.0f; }

static inline void load_step(const Head *h, int64_t t, Step *step) {
    pad(h, h->a->q + key_row(h, t), step->q), pad(h, h->a->k + key_row(h, t), step->k), decays(h, t, step->decay);
}

/* Numbers of a block of the state and of a step. */
static int64_t room_of(const Attention *a, int64_t padded) {
    const int64_t size = block_of(a, padded);
    return (size + 4) * padded + 3 * size;
}

static void forward_head(const Head *h, float *room, float *state, float *o) {
    const Attention *a = h->a;
    const int64_t size = block_of(a, h->padded), padded = h->padded;
    const int bonus = a->bonus != 0;
    float *S = room;
    Step step = step_in(S + size * padded, padded, size);
    for (int64_t first = 0; first < a->values; first += size) {
        const int64_t count = least(size, a->values - first);
        take(h, state, first, count, S);
        for (int64_t t = 0; t < a->length; t++) {
            load_step(h, t, &step);
            const float own = own_score(h, step.q, step.k), reads = carried(h, t);
            float *out = o + value_row(h, t) + first;
            block_row(a->v + value_row(h, t) + first, count, step.v);
            for (int64_t j = 0; j < count; j += 4)
                read_rows(S + j * padded, step.decay, step.k, step.v + j, step.q, bonus, padded, step.out + j);
            for (int64_t j = 0; j < count; j++) out[j] = own * step.v[j] + reads * step.out[j];
        }
        give(h, S, first, count, state);
    }
}

typedef struct {
    const Attention *a;
    float *state, *o;
} Forward;

static void forward_task(const void *call, int64_t b, int64_t head, float *room) {
    const Forward *f = call;
    const Head h = {f->a, b, head, padded_keys(f->a)};
    forward_head(&h, room, f->state, f->o);
}

/* o, and the state in place. Returns 0, or 1 where there was no memory. */
int vector_decay(const Attention *a, float *state, float *o) {
    const Forward f = {a, state, o};
    return each_head(a->batch, a->heads, a->threads, room_of(a, padded_keys(a)), forward_task, &f);
}

/* `state`: of dL/dS at the end on entry, of dL/dS at the start on return; q and k hold zeros on entry; bonus [batch, heads,
   keys] too. */
typedef struct {
    float *state, *q, *k, *g, *v, *bonus;
} Gradients;

/* Forwards through time: what the queries read of the state into to->q, and the state at the end of every STEPS steps into `ends`, or none. */
static void backward_queries(const Head *h, int64_t first, int64_t count, const float *state, const float *grad_o, const Gradients *to, float *S,
                             Step *step, float *ends) {
    const Attention *a = h->a;
    const int bonus = a->bonus != 0;
    take(h, state, first, count, S);
    for (int64_t t = 0; t < a->length; t++) {
        const float reads = carried(h, t);
        load_step(h, t, step);
        block_row(a->v + value_row(h, t) + first, count, step->v), block_row(grad_o + value_row(h, t) + first, count, step->grad);
        memset(step->sum, 0, h->padded * sizeof(float));
        for (int64_t j = 0; j < count; j += 4)
            query_rows(S + j * h->padded, step->decay, step->k, step->v + j, step->grad + j, bonus, h->padded, step->sum);
        float *q = to->q + key_row(h, t);
        for (int64_t c = 0; c < a->keys; c += LANES) store(q + c, load(q + c, a->keys - c) + reads * load_all(step->sum + c), a->keys - c);
        if (ends && ((t + 1) % STEPS == 0 || t + 1 == a->length)) memcpy(ends + t / STEPS * count * h->padded, S, count * h->padded * sizeof(float));
    }
}

/* Backwards through time: what was written into the state into to->k and to->v, and of the end of every STEPS steps
   sum_v S dL/dS, added to `passed` [chunks, padded]. */
static void backward_keys(const Head *h, int64_t first, int64_t count, const float *grad_o, const Gradients *to, float *R, Step *step,
                          const float *ends, float *passed) {
    const Attention *a = h->a;
    const int bonus = a->bonus != 0;
    take(h, to->state, first, count, R);
    for (int64_t t = a->length - 1; t >= 0; t--) {
        if ((t + 1) % STEPS == 0 || t + 1 == a->length)
            for (int64_t j = 0; j < count; j++)
                for (int64_t c = 0; c < h->padded; c += LANES) {
                    float *sum = passed + t / STEPS * h->padded + c;
                    const float *S = ends + (t / STEPS * count + j) * h->padded + c;
                    store_all(sum, load_all(sum) + load_all(S) * load_all(R + j * h->padded + c));
                }
        const float reads = carried(h, t);
        load_step(h, t, step);
        block_row(a->v + value_row(h, t) + first, count, step->v), block_row(grad_o + value_row(h, t) + first, count, step->grad);
        const float own = own_score(h, step->q, step->k);
        for (int64_t c = 0; c < h->padded; c += LANES) store_all(step->q + c, reads * load_all(step->q + c));
        memset(step->sum, 0, h->padded * sizeof(float));
        float *out = to->v + value_row(h, t) + first, *k = to->k + key_row(h, t);
        for (int64_t j = 0; j < count; j += 4)
            write_rows(R + j * h->padded, step->decay, step->k, step->q, step->v + j, step->grad + j, bonus, h->padded, step->sum, step->out + j);
        for (int64_t j = 0; j < count; j++) out[j] = step->out[j] + own * step->grad[j];
        for (int64_t c = 0; c < a->keys; c += LANES) store(k + c, load(k + c, a->keys - c) + load_all(step->sum + c), a->keys - c);
    }
    give(h, R, first, count, to->state);
}

/* dL/dg_t = sum_{s >= t} (q dL/dq - k dL/dk)_s + sum_v S' dL/dS' over a chunk; with a bonus q_t has b_{t-1}: s > t. Then
   what a step's own score P adds: dL/dq += dL/dP u k, dL/dk likewise, dL/du = dL/dP q k. */
static void backward_decays(const Head *h, const float *grad_o, const Gradients *to, const Step *step, float *passed) {
    const Attention *a = h->a;
    const int64_t of_head = h->head * a->keys;
    float *to_bonus = a->bonus ? to->bonus + h->b * a->heads * a->keys + of_head : 0;
    for (int64_t t = a->length - 1; t >= 0; t--) {
        float own = 0, *sums = passed + t / STEPS * h->padded, *to_q = to->q + key_row(h, t), *to_k = to->k + key_row(h, t);
        const float *grad = grad_o + value_row(h, t), *v = a->v + value_row(h, t);
        for (int64_t j = 0; j < a->values; j++) own += grad[j] * v[j];
        pad(h, a->q + key_row(h, t), step->q), pad(h, a->k + key_row(h, t), step->k);
        for (int64_t c = 0; c < h->padded; c += LANES) {
            const int64_t count = a->keys - c;
            const lanes q = load_all(step->q + c), k = load_all(step->k + c), grad_q = load(to_q + c, count), grad_k = load(to_k + c, count);
            const lanes sum = load_all(sums + c) - k * grad_k, both = sum + q * grad_q;
            store_all(sums + c, both);
            store(to->g + key_row(h, t) + c, keep(h, t) * (a->bonus ? sum : both), count);
            const lanes weight = a->bonus ? own * load(a->bonus + of_head + c, count) : all(own);
            store(to_q + c, grad_q + weight * k, count);
            store(to_k + c, grad_k + weight * q, count);
            if (to_bonus) store(to_bonus + c, load(to_bonus + c, count) + own * q * k, count);
        }
    }
}

static void backward_head(const Head *h, float *room, const float *state, const float *grad_o, const Gradients *to) {
    const int64_t size = block_of(h->a, h->padded), chunks = (h->a->length + STEPS - 1) / STEPS;
    float *S = room, *ends = S + size * h->padded, *passed = ends + chunks * size * h->padded;
    Step step = step_in(passed + chunks * h->padded, h->padded, size);
    memset(passed, 0, chunks * h->padded * sizeof(float));
    for (int64_t first = 0; first < h->a->values; first += size) {
        const int64_t count = least(size, h->a->values - first);
        backward_queries(h, first, count, state, grad_o, to, S, &step, ends);
        backward_keys(h, first, count, grad_o, to, S, &step, ends, passed);
    }
    backward_decays(h, grad_o, to, &step, passed);
}

static int64_t backward_room(const Attention *a, int64_t padded) {
    const int64_t size = block_of(a, padded), chunks = (a->length + STEPS - 1) / STEPS;
    return room_of(a, padded) + chunks * (size + 1) * padded;
}

typedef struct {
    const Attention *a;
    const float *state, *grad_o;
    const Gradients *to;
} Backward;

static void backward_task(const void *call, int64_t b, int64_t head, float *room) {
    const Backward *w = call;
    const Head h = {w->a, b, head, padded_keys(w->a)};
    backward_head(&h, room, w->state, w->grad_o, w->to);
}

/* `state` is the initial one. Returns 0, or 1 where there was no memory. */
int vector_decay_backward(const Attention *a, const float *state, const float *grad_o, const Gradients *to) {
    const Backward w = {a, state, grad_o, to};
    return each_head(a->batch, a->heads, a->threads, backward_room(a, padded_keys(a)), backward_task, &w);
}

static void values_task(const void *call, int64_t b, int64_t head, float *room) {
    const Backward *w = call;
    const Attention *a = w->a;
    const Head h = {a, b, head, padded_keys(a)};
    const int64_t size = block_of(a, h.padded);
    Step step = step_in(room + size * h.padded, h.padded, size);
    for (int64_t first = 0; first < a->values; first += size) {
        const int64_t count = least(size, a->values - first);
        backward_queries(&h, first, count, w->state, w->grad_o, w->to, room, &step, 0);
        give(&h, room, first, count, w->to->state);
    }
    for (int64_t t = 0; t < a->length; t++) {
        float own = 0, *o = w->to->q + key_row(&h, t);
        const float *q = w->grad_o + value_row(&h, t), *k = a->v + value_row(&h, t), *v = a->k + key_row(&h, t);
        for (int64_t j = 0; j < a->values; j++) own += q[j] * k[j];
        for (int64_t c = 0; c < a->keys; c += LANES) store(o + c, load(o + c, a->keys - c) + own * load(v + c, a->keys - c), a->keys - c);
    }
}

/* The same sums read the other way round, which is attention whose values decay: `a` has its values as keys, its keys as
   values, and `queries` read what a gradient of o would. to->q, zeros on entry, becomes its o, to->state its final state. */
int value_decay(const Attention *a, const float *state, const float *queries, const Gradients *to) {
    const Backward w = {a, state, queries, to};
    return each_head(a->batch, a->heads, a->threads, room_of(a, padded_keys(a)), values_task, &w);
}
