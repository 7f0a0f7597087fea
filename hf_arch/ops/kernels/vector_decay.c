/* Linear attention with one decay a key channel and its gradient; equations as in hf_arch/ops/vector_decay.py. q, k, g
   [batch, length, heads, keys], v, o [batch, length, heads, values], bonus [heads, keys] or none, keep [batch, length] or
   none, states [batch, heads, keys, values], or `turned` [batch, heads, values, keys].

   A task is one head of one row. It takes RUN steps in a pass over the state (walk.h): what a run's queries read of the state
   before it, with the decays since, and of its keys, by scores. */

#define VECTORS 1
#define KEY_ROWS 8
#define VALUE_ROWS 3
#include "walk.h"

DEFINE_FETCH(3)

#define STEPS 32 /* between steps of which sum_v S dL/dS is made of its factors */
#define SCORES 16

typedef struct {
    int64_t batch, length, heads, keys, values, threads, turned;
    const float *q, *k, *g, *v, *bonus, *keep;
} Attention;

/* What RUN steps multiply. */
typedef struct {
    Span at;
    Rows q, k, decay;
    const float *bonus;
    float keep[RUN];
} Run;

static Head head_of(const Attention *a, int64_t b, int64_t head) { return (Head){a->length, a->heads, a->keys, a->values, b, head}; }

static void fetch_keys(const Head *h, const Attention *a, int64_t start, int decays) {
    fetch(h, a->q, start, a->keys), fetch(h, a->k, start, a->keys);
    if (decays) fetch(h, a->g, start, a->keys);
}

/* Its rows are the first four of the room, the bonus in the first. `decays` [length, padded] are those that a walk before left,
   or where to leave them, or none. */
INLINE void run_at(const Head *h, const Attention *a, int64_t start, float *room, float *decays, int left, Run *run) {
    const int64_t padded = whole(a->keys), size = RUN * padded;
    run->at = span_at(h, start), run->bonus = a->bonus ? room : 0;
    STEPS_OF_RUN(t) run->keep[t] = t < run->at.there && a->keep ? a->keep[h->b * a->length + start + t] : 1.0f;
    for (int64_t c = 0; a->bonus && c < padded; c += LANES) store_all(room + c, load(a->bonus + h->head * a->keys + c, a->keys - c));
    run->q = rows_from(&run->at, a->q, a->keys, room + size), run->k = rows_from(&run->at, a->k, a->keys, room + 2 * size);
    run->decay = (Rows){decays ? decays + start * padded : room + 3 * size, padded};
    if (left) return;
    const Rows g = rows_from(&run->at, a->g, a->keys, room + 4 * size);
    for (int64_t c = 0; c < padded; c += LANES)
        STEPS_OF_RUN(t) store_all(row(run->decay, t) + c, t < run->at.there ? run->keep[t] * exponential(load_all(row(g, t) + c)) : all(1));
}

/* LANES keys of a run. With a bonus queries read before the decay, but not across documents. */
typedef struct {
    lanes q[RUN], k[RUN], decay[RUN];
} Keys;

INLINE Keys keys_at(const int early, const Run *run, int64_t c) {
    Keys x;
    STEPS_OF_RUN(t) {
        x.q[t] = load_all(row(run->q, t) + c), x.k[t] = load_all(row(run->k, t) + c), x.decay[t] = load_all(row(run->decay, t) + c);
        if (early) x.q[t] *= run->keep[t];
    }
    return x;
}

/* k of step j as the query of a later step i sees it. */
#define SEEN(early, x, i, j, call) \
    STEPS_OF_RUN(j) { \
        lanes k = x.k[j]; \
        _Pragma("GCC unroll 4") for (int i = j + 1; i < RUN; i++) { \
            if (!early) k *= x.decay[i]; \
            call; \
            if (early) k *= x.decay[i]; \
        } \
    }

/* The side of the keys: what reads the state before the run, and what is written after it. And the scores, or none. */
INLINE void keys_side(const int early, const Run *run, int64_t padded, float *side, float *scores) {
    lanes sum[SCORES];
    ALL(s, SCORES) sum[s] = all(0);
    for (int64_t c = 0; c < padded; c += LANES) {
        const Keys x = keys_at(early, run, c);
        float *to = block_of(side, c);
        lanes p = all(1);
        STEPS_OF_RUN(t) {
            const lanes before = p;
            p *= x.decay[t];
            store_all(to + (READERS + t) * LANES, x.q[t] * (early ? before : p));
        }
        store_all(to + DECAY * LANES, p);
        p = all(1);
        STEPS_BACK(t) store_all(to + (WRITERS + t) * LANES, x.k[t] * p), p *= x.decay[t];
        if (!scores) continue;
        SEEN(early, x, i, j, sum[Q(i, j)] += x.q[i] * k)
        STEPS_OF_RUN(t) sum[Q(t, t)] += early ? load_all(run->bonus + c) * load_all(row(run->q, t) + c) * x.k[t] : x.q[t] * x.k[t];
    }
    if (scores) all_totals(sum, SCORES, scores);
}

/* The side of the values: rows that read the state, and rows that are written. And their products, or none. */
INLINE void values_side(Rows readers, Rows writers, int64_t padded, float *side, float *scores) {
    lanes sum[SCORES];
    ALL(s, SCORES) sum[s] = all(0);
    for (int64_t c = 0; c < padded; c += LANES) {
        float *to = block_of(side, c);
        lanes reader[RUN], writer[RUN];
        STEPS_OF_RUN(t) {
            reader[t] = load_all(row(readers, t) + c), writer[t] = load_all(row(writers, t) + c);
            store_all(to + (READERS + t) * LANES, reader[t]), store_all(to + (WRITERS + t) * LANES, writer[t]);
        }
        if (scores) STEPS_OF_RUN(i) _Pragma("GCC unroll 4") for (int j = 0; j <= i; j++) sum[Q(i, j)] += reader[i] * writer[j];
    }
    if (scores) all_totals(sum, SCORES, scores);
}

/* A state as `take` and `give` have it, by its sides. */
static void take_state(const Head *h, const Attention *a, const float *states, int keys_in_lanes, float *state) {
    const int64_t rows = keys_in_lanes ? a->values : a->keys, size = keys_in_lanes ? a->keys : a->values;
    if (keys_in_lanes == a->turned)
        take(of_head(h, states), rows, size, state);
    else
        take_turned(of_head(h, states), rows, size, state);
}

static void give_state(const Head *h, const Attention *a, const float *state, int keys_in_lanes, float *states) {
    const int64_t rows = keys_in_lanes ? a->values : a->keys, size = keys_in_lanes ? a->keys : a->values;
    if (keys_in_lanes == a->turned)
        give(state, rows, size, of_head(h, states));
    else
        give_turned(state, rows, size, of_head(h, states));
}

static int64_t state_size(const Attention *a) {
    const int64_t turned = a->values * whole(a->keys), plain = a->keys * whole(a->values);
    return turned > plain ? turned : plain;
}

typedef struct {
    const Attention *a;
    const float *queries, *state;
    float *final, *o;
} Forward;

INLINE void forward_walk(const int early, const Head *h, const Forward *f, float *room) {
    const Attention *a = f->a;
    const int64_t keys = a->keys, values = a->values;
    float scores[SCORES], *state = room + sides_size(keys, values);
    Sides s = sides_in(h, room);
    Run run;
    take_state(h, a, f->state, 0, state);
    for (int64_t start = 0; start < a->length; start += RUN) {
        run_at(h, a, start, s.key_rows, 0, 0, &run);
        fetch_keys(h, a, start + RUN, 1), fetch(h, a->v, start + RUN, values), fetch(h, f->o, start + RUN, values);
        keys_side(early, &run, whole(keys), s.keys, scores);
        const Pass p = {s.keys_before, s.values_before, s.keys, s.values};
        pass(0, WRITERS, RUN, READERS, RUN, state, keys, values, &p);
        const Rows v = rows_from(&run.at, a->v, values, s.value_rows), o = rows_to(&run.at, f->o, values, s.value_rows + RUN * whole(values));
        for (int64_t c = 0; c < values; c += LANES) {
            float *block = block_of(s.values, c);
            lanes x[RUN];
            STEPS_OF_RUN(i) {
                lanes sum = load_all(block + (READERS + i) * LANES);
                x[i] = load_all(row(v, i) + c);
                _Pragma("GCC unroll 4") for (int j = 0; j <= i; j++) sum += scores[Q(i, j)] * x[j];
                store_all(block + (WRITERS + i) * LANES, x[i]), store_all(row(o, i) + c, sum);
            }
        }
        rows_done(&run.at, f->o, values, o);
        next_run(&s);
    }
    const Pass end = {s.keys_before, s.values_before, s.keys, s.values};
    pass(0, WRITERS, RUN, READERS, 0, state, keys, values, &end);
    give_state(h, a, state, 0, f->final);
}

static void forward_task(const void *call, int64_t b, int64_t head, float *room) {
    const Forward *f = call;
    const Head h = head_of(f->a, b, head);
    if (f->a->bonus)
        forward_walk(1, &h, f, room);
    else
        forward_walk(0, &h, f, room);
}

/* o, and the final state. Returns 0, or 1 where there was no memory. */
int vector_decay(const Attention *a, const float *state, float *final, float *o) {
    const Forward f = {a, 0, state, final, o};
    return each_head(a->batch, a->heads, a->threads, sides_size(a->keys, a->values) + state_size(a), forward_task, &f);
}

/* `state` is of that at the start; bonus [batch, heads, keys]. */
typedef struct {
    float *state, *q, *k, *g, *v, *bonus;
} Gradients;

typedef struct {
    const Attention *a;
    const float *state, *grad_state, *grad_o;
    const Gradients *to;
} Backward;

/* Backwards through time: to->v and the initial state's gradient. It leaves the decays. */
INLINE void backward_values(const int early, const Head *h, const Backward *w, float *room, float *decays) {
    const Attention *a = w->a;
    const int64_t keys = a->keys, values = a->values;
    float scores[SCORES], *state = room + sides_size(keys, values);
    Sides s = sides_in(h, room);
    Run run;
    take_state(h, a, w->grad_state, 0, state);
    for (int64_t start = last_run(h); start >= 0; start -= RUN) {
        run_at(h, a, start, s.key_rows, decays, 0, &run);
        fetch_keys(h, a, start - RUN, 1), fetch(h, w->grad_o, start - RUN, values), fetch(h, w->to->v, start - RUN, values);
        keys_side(early, &run, whole(keys), s.keys, scores);
        const Pass p = {s.keys_before, s.values_before, s.keys, s.values};
        pass(0, READERS, RUN, WRITERS, RUN, state, keys, values, &p);
        const Rows grad_o = rows_from(&run.at, w->grad_o, values, s.value_rows), to_v = rows_to(&run.at, w->to->v, values, s.value_rows + RUN * whole(values));
        for (int64_t c = 0; c < values; c += LANES) {
            float *block = block_of(s.values, c);
            lanes grad[RUN];
            STEPS_BACK(j) {
                lanes sum = load_all(block + (WRITERS + j) * LANES);
                grad[j] = load_all(row(grad_o, j) + c);
                _Pragma("GCC unroll 4") for (int i = RUN - 1; i >= j; i--) sum += scores[Q(i, j)] * grad[i];
                store_all(block + (READERS + j) * LANES, grad[j]), store_all(row(to_v, j) + c, sum);
            }
        }
        rows_done(&run.at, w->to->v, values, to_v);
        next_run(&s);
    }
    const Pass end = {s.keys_before, s.values_before, s.keys, s.values};
    pass(0, READERS, RUN, WRITERS, 0, state, keys, values, &end);
    give_state(h, a, state, 0, w->to->state);
}

/* A run's part of to->q: of what it reads of the state before it, in `read`, and of the run; `own`: of a step's own key too. */
INLINE void of_readers(const int early, const int own, const Run *run, int64_t keys, const float *of_scores, const float *read, float *to, float *room) {
    const Rows to_q = rows_to(&run->at, to, keys, room);
    for (int64_t c = 0; c < keys; c += LANES) {
        const Keys x = keys_at(early, run, c);
        const float *block = block_of(read, c);
        lanes p = all(1), of_q[RUN];
        STEPS_OF_RUN(t) {
            const lanes before = p;
            p *= x.decay[t];
            of_q[t] = (early ? before : p) * load_all(block + (READERS + t) * LANES);
        }
        SEEN(early, x, i, j, of_q[i] += of_scores[Q(i, j)] * k)
        STEPS_OF_RUN(t) {
            if (early) of_q[t] *= run->keep[t];
            if (own) of_q[t] += of_scores[Q(t, t)] * x.k[t];
            store_all(row(to_q, t) + c, of_q[t]);
        }
    }
    rows_done(&run->at, to, keys, to_q);
}

/* The same of to->k, of what it reads of the gradient of the state after the run. Then the decays: with P_t = sum_v S dL/dS
   after a step, dL/dg_t = P_{t-1} = P_t + q dL/dq - k dL/dk; with a bonus, which reads before the decay, P_t - k dL/dk. And
   what a step's own score adds: dL/dq += dL/dP u k, dL/dk likewise, dL/du = dL/dP q k. */
INLINE void of_writers(const int early, const Run *run, const Backward *w, const float *of_scores, const float *read, float *P, float *of_bonus, float *room) {
    const int64_t keys = w->a->keys, size = RUN * whole(keys);
    const Rows given_q = rows_from(&run->at, w->to->q, keys, room), to_q = rows_to(&run->at, w->to->q, keys, room),
               to_k = rows_to(&run->at, w->to->k, keys, room + size), to_g = rows_to(&run->at, w->to->g, keys, room + 2 * size);
    for (int64_t c = 0; c < keys; c += LANES) {
        const Keys x = keys_at(early, run, c);
        const float *block = block_of(read, c);
        lanes p = all(1), of_k[RUN], passed = load_all(P + c);
        STEPS_BACK(t) of_k[t] = p * load_all(block + (WRITERS + t) * LANES), p *= x.decay[t];
        _Pragma("GCC unroll 4") for (int i = 1; i < RUN; i++) {
            lanes q = x.q[i];
            _Pragma("GCC unroll 4") for (int j = i - 1; j >= 0; j--) {
                if (!early || j + 1 < i) q *= x.decay[j + 1];
                of_k[j] += of_scores[Q(i, j)] * q;
            }
        }
        lanes with_bonus = early ? load_all(of_bonus + c) : all(0);
        STEPS_BACK(t) {
            const float own = of_scores[Q(t, t)];
            const lanes q = early ? load_all(row(run->q, t) + c) : x.q[t], of_q = load_all(row(given_q, t) + c), sum = passed - x.k[t] * of_k[t];
            const lanes weight = early ? own * load_all(run->bonus + c) : all(own);
            passed = run->keep[t] * (sum + q * of_q);
            store_all(row(to_g, t) + c, early ? run->keep[t] * sum : passed);
            store_all(row(to_q, t) + c, of_q + weight * x.k[t]), store_all(row(to_k, t) + c, of_k[t] + weight * q);
            with_bonus += own * q * x.k[t];
        }
        store_all(P + c, passed);
        if (early) store_all(of_bonus + c, with_bonus);
    }
    rows_done(&run->at, w->to->q, keys, to_q), rows_done(&run->at, w->to->k, keys, to_k), rows_done(&run->at, w->to->g, keys, to_g);
}

static int64_t turned_size(const Attention *a) { return a->values * whole(a->keys); }
static int64_t chunks_of(const Attention *a) { return (a->length + STEPS - 1) / STEPS; }
static int64_t runs_of(const Attention *a) { return (a->length + RUN - 1) / RUN; }

static int64_t backward_room(const Attention *a) {
    return sides_size(a->keys, a->values) + state_size(a) + side_size(a->keys) + runs_of(a) * (SCORES + RUN * whole(a->keys)) +
           chunks_of(a) * turned_size(a) + 2 * whole(a->keys);
}

/* With keys in the lanes: forwards for q, then backwards for k and the decays. */
INLINE void backward_keys(const int early, const Head *h, const Backward *w, float *room, const float *decays, float *read) {
    const Attention *a = w->a;
    const int64_t keys = a->keys, values = a->values, turned = turned_size(a);
    float *state = room + sides_size(keys, values), *of_scores = read + side_size(keys), *P = of_scores + runs_of(a) * SCORES, *of_bonus = P + whole(keys),
          *ends = of_bonus + whole(keys);
    Sides s = sides_in(h, room);
    Run run;
    take_state(h, a, w->state, 1, state);
    for (int64_t start = 0; start < a->length; start += RUN) {
        run_at(h, a, start, s.key_rows, (float *)decays, 1, &run);
        fetch_keys(h, a, start + RUN, 0), fetch(h, a->v, start + RUN, values), fetch(h, w->grad_o, start + RUN, values), fetch(h, w->to->q, start + RUN, keys);
        keys_side(early, &run, whole(keys), s.keys, 0);
        const Rows grad_o = rows_from(&run.at, w->grad_o, values, s.value_rows), v = rows_from(&run.at, a->v, values, s.value_rows + RUN * whole(values));
        values_side(grad_o, v, whole(values), s.values, of_scores + start / RUN * SCORES);
        const Pass p = {s.values_before, s.keys_before, s.values, read};
        pass(1, WRITERS, RUN, READERS, RUN, state, values, keys, &p);
        if (start && start % STEPS == 0) memcpy(ends + (start / STEPS - 1) * turned, state, turned * sizeof(float));
        of_readers(early, 0, &run, keys, of_scores + start / RUN * SCORES, read, w->to->q, s.key_rows + 5 * RUN * whole(keys));
        next_run(&s);
    }
    const Pass end = {s.values_before, s.keys_before, s.values, read};
    pass(1, WRITERS, RUN, READERS, 0, state, values, keys, &end);
    if (a->length) memcpy(ends + (chunks_of(a) - 1) * turned, state, turned * sizeof(float));

    s = sides_in(h, room);
    take_state(h, a, w->grad_state, 1, state);
    memset(of_bonus, 0, whole(keys) * sizeof(float));
    for (int64_t start = last_run(h); start >= 0; start -= RUN) {
        run_at(h, a, start, s.key_rows, (float *)decays, 1, &run);
        fetch_keys(h, a, start - RUN, 0), fetch(h, a->v, start - RUN, values), fetch(h, w->grad_o, start - RUN, values);
        fetch(h, w->to->q, start - RUN, keys), fetch(h, w->to->k, start - RUN, keys), fetch(h, w->to->g, start - RUN, keys);
        keys_side(early, &run, whole(keys), s.keys, 0);
        const Rows grad_o = rows_from(&run.at, w->grad_o, values, s.value_rows), v = rows_from(&run.at, a->v, values, s.value_rows + RUN * whole(values));
        values_side(grad_o, v, whole(values), s.values, 0);
        const Pass p = {s.values_before, s.keys_before, s.values, read};
        pass(1, READERS, RUN, WRITERS, RUN, state, values, keys, &p);
        if (start == last_run(h) || (start + RUN) % STEPS == 0) products(state, ends + start / STEPS * turned, values, keys, P);
        of_writers(early, &run, w, of_scores + start / RUN * SCORES, read, P, of_bonus, s.key_rows + 5 * RUN * whole(keys));
        next_run(&s);
    }
    for (int64_t c = 0; early && c < keys; c++) w->to->bonus[(h->b * a->heads + h->head) * keys + c] = of_bonus[c];
}

INLINE void backward_walks(const int early, const Head *h, const Backward *w, float *room) {
    const Attention *a = w->a;
    float *decays = room + sides_size(a->keys, a->values) + state_size(a);
    backward_values(early, h, w, room, decays);
    backward_keys(early, h, w, room, decays, decays + runs_of(a) * RUN * whole(a->keys));
}

static void backward_task(const void *call, int64_t b, int64_t head, float *room) {
    const Backward *w = call;
    const Head h = head_of(w->a, b, head);
    if (w->a->bonus)
        backward_walks(1, &h, w, room);
    else
        backward_walks(0, &h, w, room);
}

/* `state` is the initial one, `grad_state` the final one's gradient. Returns 0, or 1 where there was no memory. */
int vector_decay_backward(const Attention *a, const float *state, const float *grad_state, const float *grad_o, const Gradients *to) {
    const Backward w = {a, state, grad_state, grad_o, to};
    return each_head(a->batch, a->heads, a->threads, backward_room(a), backward_task, &w);
}

static void values_task(const void *call, int64_t b, int64_t head, float *room) {
    const Forward *f = call;
    const Attention *a = f->a;
    const Head h = head_of(a, b, head);
    const int64_t keys = a->keys, values = a->values;
    float scores[SCORES], *state = room + sides_size(keys, values), *read = state + state_size(a);
    Sides s = sides_in(&h, room);
    Run run;
    take_state(&h, a, f->state, 1, state);
    for (int64_t start = 0; start < a->length; start += RUN) {
        run_at(&h, a, start, s.key_rows, 0, 0, &run);
        fetch_keys(&h, a, start + RUN, 1), fetch(&h, a->v, start + RUN, values), fetch(&h, f->queries, start + RUN, values), fetch(&h, f->o, start + RUN, keys);
        keys_side(0, &run, whole(keys), s.keys, 0);
        const Rows q = rows_from(&run.at, f->queries, values, s.value_rows), k = rows_from(&run.at, a->v, values, s.value_rows + RUN * whole(values));
        values_side(q, k, whole(values), s.values, scores);
        const Pass p = {s.values_before, s.keys_before, s.values, read};
        pass(1, WRITERS, RUN, READERS, RUN, state, values, keys, &p);
        of_readers(0, 1, &run, keys, scores, read, f->o, s.key_rows + 5 * RUN * whole(keys));
        next_run(&s);
    }
    const Pass end = {s.values_before, s.keys_before, s.values, read};
    pass(1, WRITERS, RUN, READERS, 0, state, values, keys, &end);
    give_state(&h, a, state, 1, f->final);
}

/* The same sums read the other way round, which is attention whose values decay: `a` has its values as keys, its keys as
   values, and `queries` read what a gradient of o would. o like its q, and the final state. */
int value_decay(const Attention *a, const float *queries, const float *state, float *final, float *o) {
    const Forward f = {a, queries, state, final, o};
    return each_head(a->batch, a->heads, a->threads, sides_size(a->keys, a->values) + state_size(a) + side_size(a->keys), values_task, &f);
}
