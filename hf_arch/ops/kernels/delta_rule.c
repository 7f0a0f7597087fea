/* The delta rule, and its relatives with a diagonal plus rank-one transition, and their gradient; equations as in
   hf_arch/ops/native_delta.py. q, k, a, b [batch, length, heads, keys], v, o [batch, length, heads, values], decay [batch,
   length, heads, decays] with 1 or as many as keys, or none, beta [batch, length, heads] or none, keep [batch, length] or
   none, states [batch, heads, keys, values].

   A task is one head of one row. It takes RUN steps in a pass over the state (walk.h): what the steps of a run read of the
   state before it, each with the decays since, and what they read of each other, by scores. Without b, a is -k and recalls
   after the decay. */

#include "walk.h"

#define STEPS 32  /* between steps of which sum_v S dL/dS is made of its factors */
#define SCORES 32 /* of a run: those of k, then of b; for each q for j <= i, then a for j < i */
#define Q(i, j) ((i) * ((i) + 1) / 2 + (j))
#define A(i, j) (RUN * (RUN + 1) / 2 + (i) * ((i) - 1) / 2 + (j))
#define OF_B (SCORES / 2)

typedef struct {
    int64_t batch, length, heads, keys, values, decays, threads;
    const float *q, *k, *a, *b, *beta, *decay, *v, *keep;
} Delta;

typedef struct {
    const Delta *d;
    int64_t b, head;
} Head;

static inline int64_t step_of(const Head *h, int64_t t) { return (h->b * h->d->length + t) * h->d->heads + h->head; }
static inline float *of_head(const Head *h, const float *states) { return (float *)states + (h->b * h->d->heads + h->head) * h->d->keys * h->d->values; }

/* What a step multiplies: decays lie `apart`, 0 where they are one; `recalls` is what a recalls times, `writes` what is
   written. After the last step there is nothing: no keys, no values. */
typedef struct {
    const float *q, *k, *a, *b, *decay;
    int64_t step, keys, values, apart;
    float recalls, writes, keep;
} Step;

static const float ONE = 1.0f;

static Step step_at(const Head *h, int64_t t) {
    const Delta *d = h->d;
    const int there = t < d->length;
    const int64_t step = step_of(h, there ? t : d->length - 1), at = step * d->keys;
    Step s = {d->q + at, d->k + at, d->a + at, d->b ? d->b + at : 0, &ONE, step, 0, 0, 0, 0, 0, 1};
    if (!there) return s;
    s.keys = d->keys, s.values = d->values, s.writes = d->beta ? d->beta[step] : 1.0f;
    if (d->keep) s.keep = d->keep[h->b * d->length + t];
    if (d->decays) s.decay = d->decay + step * d->decays, s.apart = d->decays > 1;
    s.recalls = d->b ? s.keep : -1.0f;
    return s;
}

typedef struct {
    Step at[RUN];
} Run;

static Run run_at(const Head *h, int64_t start) {
    Run run;
    for (int t = 0; t < RUN; t++) run.at[t] = step_at(h, start + t);
    return run;
}

/* LANES keys of a run. */
typedef struct {
    lanes q[RUN], k[RUN], a[RUN], b[RUN], decay[RUN];
} Keys;

INLINE Keys keys_at(const int two, const Run *run, int64_t c) {
    Keys x;
    STEPS_OF_RUN(t) {
        const Step *s = run->at + t;
        const int64_t left = s->keys - c;
        x.q[t] = load(s->q + c, left), x.k[t] = load(s->k + c, left);
        x.a[t] = two ? s->recalls * load(s->a + c, left) : -x.k[t];
        if (two) x.b[t] = load(s->b + c, left);
        x.decay[t] = s->apart ? load(s->decay + c, left) : all(*s->decay);
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

static inline void all_totals(int two, const lanes *sum, float *to) {
    for (int s = 0; s < (two ? SCORES : OF_B); s += LANES) store_all(to + s, totals((const float *)(sum + s)));
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
        _Pragma("GCC unroll 4") for (int t = RUN - 1; t >= 0; t--) {
            store_all(to + (WRITERS + t) * LANES, x.k[t] * p);
            if (two) store_all(to + (WRITERS + RUN + t) * LANES, x.b[t] * p);
            p *= x.decay[t];
        }
        if (scores)
            SEEN(two, x, i, j,
                 { sum[A(i, j)] += x.a[i] * k; if (two) sum[OF_B + A(i, j)] += x.a[i] * b; },
                 { sum[Q(i, j)] += x.q[i] * k; if (two) sum[OF_B + Q(i, j)] += x.q[i] * b; })
    }
    if (scores) all_totals(two, sum, scores);
}

static inline void swap(float **x, float **other) {
    float *kept = *x;
    *x = *other, *other = kept;
}

/* The sides of two runs. */
typedef struct {
    float *keys, *values, *keys_before, *values_before;
} Sides;

static int64_t sides_size(const Delta *d) { return 2 * (side_size(d->keys) + side_size(d->values)); }

static Sides sides_in(const Delta *d, float *room) {
    const int64_t keys = side_size(d->keys), values = side_size(d->values);
    Sides s = {room, room + keys, room + keys + values, room + 2 * keys + values};
    empty_side(s.keys, d->keys), empty_side(s.keys_before, d->keys), empty_side(s.values, d->values), empty_side(s.values_before, d->values);
    return s;
}

static void next_run(Sides *s) { swap(&s->keys, &s->keys_before), swap(&s->values, &s->values_before); }

typedef struct {
    const Delta *d;
    const float *state;
    float *final, *o, *kept;
} Forward;

/* What the steps of a run read of each other, after what they read of the state. */
INLINE void forward_run(const int two, const Run *run, const Forward *f, const float *scores, float *side) {
    for (int64_t c = 0; c < f->d->values; c += LANES) {
        float *block = block_of(side, c);
        lanes fresh[RUN], old[RUN];
        STEPS_OF_RUN(i) {
            const Step *s = run->at + i;
            const int64_t at = s->step * f->d->values + c, left = s->values - c;
            const lanes v = load(f->d->v + at, left);
            lanes recalled = load_all(block + (READERS + i) * LANES), o = load_all(block + (READERS + RUN + i) * LANES);
            for (int j = 0; j < i; j++) {
                recalled += scores[A(i, j)] * fresh[j], o += scores[Q(i, j)] * fresh[j];
                if (two) recalled += scores[OF_B + A(i, j)] * old[j], o += scores[OF_B + Q(i, j)] * old[j];
            }
            old[i] = two ? recalled : v + recalled, fresh[i] = two ? v : s->writes * old[i];
            o += scores[Q(i, i)] * fresh[i];
            if (two) o += scores[OF_B + Q(i, i)] * old[i];
            store_all(block + (WRITERS + i) * LANES, fresh[i]);
            if (two) store_all(block + (WRITERS + RUN + i) * LANES, old[i]);
            store(f->kept + at, old[i], left), store(f->o + at, o, left);
        }
    }
}

INLINE void forward_walk(const int two, const Head *h, const Forward *f, float *room) {
    const Delta *d = h->d;
    const int64_t keys = d->keys, values = d->values;
    float scores[SCORES], *state = room + sides_size(d);
    Sides s = sides_in(d, room);
    take(of_head(h, f->state), keys, values, state);
    for (int64_t start = 0; start < d->length; start += RUN) {
        const Run run = run_at(h, start);
        keys_side(two, &run, whole(keys), s.keys, scores);
        const Pass p = {s.keys_before, s.values_before, s.keys, s.values};
        pass(0, WRITERS, (1 + two) * RUN, READERS, 2 * RUN, state, keys, values, &p);
        forward_run(two, &run, f, scores, s.values);
        next_run(&s);
    }
    const Pass end = {s.keys_before, s.values_before, s.keys, s.values};
    pass(0, WRITERS, (1 + two) * RUN, READERS, 0, state, keys, values, &end);
    give(state, keys, values, of_head(h, f->final));
}

static void forward_head(const void *call, int64_t b, int64_t head, float *room) {
    const Forward *f = call;
    const Head h = {f->d, b, head};
    if (f->d->b)
        forward_walk(1, &h, f, room);
    else
        forward_walk(0, &h, f, room);
}

/* o, and the final state; `kept` like v is for the gradient: what was recalled, or v less that where no b writes it back.
   Returns 0, or 1 where there was no memory. */
int delta_rule(const Delta *d, const float *state, float *final, float *o, float *kept) {
    const Forward f = {d, state, final, o, kept};
    return each_head(d->batch, d->heads, d->threads, sides_size(d) + d->keys * whole(d->values), forward_head, &f);
}

/* `state` is of that at the start. `recalled` like v: of what was recalled; none
   without b, where v has the same. */
typedef struct {
    float *state, *q, *k, *a, *b, *beta, *g, *v, *recalled;
} Gradients;

typedef struct {
    const Delta *d;
    const float *state, *grad_state, *grad_o, *kept;
    const Gradients *to;
} Backward;

/* What was written and recalled, after what a run's writers read of the gradient of the state after it. */
INLINE void backward_run(const int two, const Run *run, const Backward *w, const float *scores, float *side) {
    const Delta *d = w->d;
    lanes of_beta[RUN];
    STEPS_OF_RUN(t) of_beta[t] = all(0);
    for (int64_t c = 0; c < d->values; c += LANES) {
        float *block = block_of(side, c);
        lanes grad[RUN], recalled[RUN];
        _Pragma("GCC unroll 4") for (int j = RUN - 1; j >= 0; j--) {
            const Step *s = run->at + j;
            const int64_t at = s->step * d->values + c, left = s->values - c;
            grad[j] = load(w->grad_o + at, left);
            lanes fresh = load_all(block + (WRITERS + j) * LANES) + scores[Q(j, j)] * grad[j], old = all(0);
            if (two) old = load_all(block + (WRITERS + RUN + j) * LANES) + scores[OF_B + Q(j, j)] * grad[j];
            for (int i = RUN - 1; i > j; i--) {
                fresh += scores[Q(i, j)] * grad[i] + scores[A(i, j)] * recalled[i];
                if (two) old += scores[OF_B + Q(i, j)] * grad[i] + scores[OF_B + A(i, j)] * recalled[i];
            }
            const lanes of_v = s->writes * fresh;
            recalled[j] = two ? old : of_v;
            if (!two) of_beta[j] += fresh * load(w->kept + at, left);
            store_all(block + (READERS + j) * LANES, recalled[j]), store_all(block + (READERS + RUN + j) * LANES, grad[j]);
            store(w->to->v + at, of_v, left);
            if (two) store(w->to->recalled + at, old, left);
        }
    }
    if (d->beta) STEPS_OF_RUN(t) if (run->at[t].keys) w->to->beta[run->at[t].step] = total(of_beta[t]);
}

static int64_t last_run(const Delta *d) { return (d->length + RUN - 1) / RUN * RUN - RUN; }

/* Backwards through time: to->v, to->recalled, to->beta and the initial state's. */
INLINE void backward_values(const int two, const Head *h, const Backward *w, float *room) {
    const Delta *d = h->d;
    const int64_t keys = d->keys, values = d->values;
    float scores[SCORES], *state = room + sides_size(d);
    Sides s = sides_in(d, room);
    take(of_head(h, w->grad_state), keys, values, state);
    for (int64_t start = last_run(d); start >= 0; start -= RUN) {
        const Run run = run_at(h, start);
        keys_side(two, &run, whole(keys), s.keys, scores);
        const Pass p = {s.keys_before, s.values_before, s.keys, s.values};
        pass(0, READERS, 2 * RUN, WRITERS, (1 + two) * RUN, state, keys, values, &p);
        backward_run(two, &run, w, scores, s.values);
        next_run(&s);
    }
    const Pass end = {s.keys_before, s.values_before, s.keys, s.values};
    pass(0, READERS, 2 * RUN, WRITERS, 0, state, keys, values, &end);
    give(state, keys, values, of_head(h, w->to->state));
}

/* The side of the values: gradients of what was recalled and read, and what was written. And of the scores. */
INLINE void values_side(const int two, const Run *run, const Backward *w, float *side, float *of_scores) {
    const Delta *d = w->d;
    const float *to_recalled = two ? w->to->recalled : w->to->v;
    lanes sum[SCORES];
    ALL(s, SCORES) sum[s] = all(0);
    for (int64_t c = 0; c < d->values; c += LANES) {
        float *block = block_of(side, c);
        lanes grad[RUN], recalled[RUN];
        STEPS_OF_RUN(t) {
            const Step *s = run->at + t;
            const int64_t at = s->step * d->values + c, left = s->values - c;
            const lanes kept = load(w->kept + at, left), fresh = two ? load(d->v + at, left) : s->writes * kept;
            recalled[t] = load(to_recalled + at, left), grad[t] = load(w->grad_o + at, left);
            store_all(block + (READERS + t) * LANES, recalled[t]), store_all(block + (READERS + RUN + t) * LANES, grad[t]);
            store_all(block + (WRITERS + t) * LANES, fresh);
            if (two) store_all(block + (WRITERS + RUN + t) * LANES, kept);
        }
        if (of_scores) STEPS_OF_RUN(j) {
            const lanes fresh = load_all(block + (WRITERS + j) * LANES), old = two ? load_all(block + (WRITERS + RUN + j) * LANES) : all(0);
            _Pragma("GCC unroll 4") for (int i = j; i < RUN; i++) {
                sum[Q(i, j)] += grad[i] * fresh;
                if (two) sum[OF_B + Q(i, j)] += grad[i] * old;
                if (i > j) {
                    sum[A(i, j)] += recalled[i] * fresh;
                    if (two) sum[OF_B + A(i, j)] += recalled[i] * old;
                }
            }
        }
    }
    if (of_scores) all_totals(two, sum, of_scores);
}

/* A run's part of to->q and to->a: of what they read of the state before it, in `read`, and of each other, without a step's
   own reading. */
INLINE void of_readers(const int two, const Run *run, const Backward *w, const float *of_scores, const float *read) {
    const Delta *d = w->d;
    for (int64_t c = 0; c < d->keys; c += LANES) {
        const Keys x = keys_at(two, run, c);
        const float *block = block_of(read, c);
        lanes p = all(1), of_q[RUN], of_a[RUN];
        STEPS_OF_RUN(t) {
            const lanes before = p;
            p *= x.decay[t];
            of_a[t] = (two ? before : p) * load_all(block + (READERS + t) * LANES), of_q[t] = p * load_all(block + (READERS + RUN + t) * LANES);
        }
        SEEN(two, x, i, j,
             { of_a[i] += of_scores[A(i, j)] * k; if (two) of_a[i] += of_scores[OF_B + A(i, j)] * b; },
             if (i > j) { of_q[i] += of_scores[Q(i, j)] * k; if (two) of_q[i] += of_scores[OF_B + Q(i, j)] * b; })
        STEPS_OF_RUN(t) {
            const Step *s = run->at + t;
            const int64_t at = s->step * d->keys + c, left = s->keys - c;
            store(w->to->q + at, of_q[t], left), store(w->to->a + at, s->recalls * of_a[t], left);
        }
    }
}

/* The same of to->k and to->b, of what they read of the gradient of the state after it. */
INLINE void of_writers(const int two, const Run *run, const Backward *w, const float *of_scores, const float *read) {
    const Delta *d = w->d;
    for (int64_t c = 0; c < d->keys; c += LANES) {
        const Keys x = keys_at(two, run, c);
        const float *block = block_of(read, c);
        lanes p = all(1), of_k[RUN], of_b[RUN];
        _Pragma("GCC unroll 4") for (int t = RUN - 1; t >= 0; t--) {
            of_k[t] = p * load_all(block + (WRITERS + t) * LANES), of_b[t] = two ? p * load_all(block + (WRITERS + RUN + t) * LANES) : all(0);
            p *= x.decay[t];
        }
        _Pragma("GCC unroll 4") for (int i = 1; i < RUN; i++) {
            lanes q = x.q[i], a = x.a[i];
            _Pragma("GCC unroll 4") for (int j = i - 1; j >= 0; j--) {
                q *= x.decay[j + 1];
                if (!two || j + 1 < i) a *= x.decay[j + 1];
                of_k[j] += of_scores[Q(i, j)] * q + of_scores[A(i, j)] * a;
                if (two) of_b[j] += of_scores[OF_B + Q(i, j)] * q + of_scores[OF_B + A(i, j)] * a;
            }
        }
        STEPS_OF_RUN(t) {
            const int64_t at = run->at[t].step * d->keys + c, left = run->at[t].keys - c;
            store(w->to->k + at, of_k[t], left);
            if (two) store(w->to->b + at, of_b[t], left);
        }
    }
}

/* With P_t = sum_v S dL/dS after a step, before its own reading: dL/dg_t = P_t + q dL/dq - k dL/dk - b dL/db and P_{t-1} =
   dL/dg_t + a dL/da. Then what a step's own reading adds: `own` of k, `back` of b. */
INLINE void of_decays(const int two, const Backward *w, const Step *now, float own, float back, float *P) {
    const Delta *d = w->d;
    const Gradients *to = w->to;
    const int64_t keys = d->keys, at = now->step * keys;
    lanes of_g = all(0);
    for (int64_t c = 0; c < keys; c += LANES) {
        const int64_t count = keys - c;
        const lanes q = load(now->q + c, count), k = load(now->k + c, count), to_q = load(to->q + at + c, count), to_k = load(to->k + at + c, count),
                    to_a = load(to->a + at + c, count), recall = load(now->a + c, count) * to_a;
        lanes decay = load_all(P + c) + q * to_q - k * to_k, read = to_q + own * k;
        if (two) {
            const lanes b = load(now->b + c, count), to_b = load(to->b + at + c, count);
            decay = now->keep * (decay - b * to_b), read += back * b;
            store_all(P + c, decay + recall);
            store(to->k + at + c, to_k + own * q, count), store(to->b + at + c, to_b + back * q, count);
        } else {
            decay = now->keep * (decay + recall);
            store_all(P + c, decay);
            store(to->k + at + c, to_k + own * q + to_a, count);
        }
        store(to->q + at + c, read, count);
        if (d->decays > 1) store(to->g + at + c, decay, count);
        of_g += decay;
    }
    if (d->decays == 1) to->g[now->step] = total(of_g);
}

static int64_t chunks_of(const Delta *d) { return (d->length + STEPS - 1) / STEPS; }
static int64_t turned_size(const Delta *d) { return d->values * whole(d->keys); }

static int64_t backward_room(const Delta *d) {
    const int64_t turned = turned_size(d), state = d->keys * whole(d->values), runs = last_run(d) / RUN + 1;
    return sides_size(d) + side_size(d->keys) + (turned > state ? turned : state) + chunks_of(d) * turned + runs * SCORES + whole(d->keys);
}

/* With keys in the lanes: forwards for q and a, then backwards for k, b and the decays. */
INLINE void backward_keys(const int two, const Head *h, const Backward *w, float *room) {
    const Delta *d = h->d;
    const int64_t keys = d->keys, values = d->values, turned = turned_size(d), last = last_run(d);
    float *read = room + sides_size(d), *of_scores = read + side_size(keys), *P = of_scores + (last / RUN + 1) * SCORES, *state = P + whole(keys),
          *ends = state + turned;
    Sides s = sides_in(d, room);
    take_turned(of_head(h, w->state), values, keys, state);
    for (int64_t start = 0; start <= last; start += RUN) {
        const Run run = run_at(h, start);
        keys_side(two, &run, whole(keys), s.keys, 0);
        values_side(two, &run, w, s.values, of_scores + start / RUN * SCORES);
        const Pass p = {s.values_before, s.keys_before, s.values, read};
        pass(1, WRITERS, (1 + two) * RUN, READERS, 2 * RUN, state, values, keys, &p);
        if (start && start % STEPS == 0) memcpy(ends + (start / STEPS - 1) * turned, state, turned * sizeof(float));
        of_readers(two, &run, w, of_scores + start / RUN * SCORES, read);
        next_run(&s);
    }
    const Pass end = {s.values_before, s.keys_before, s.values, read};
    pass(1, WRITERS, (1 + two) * RUN, READERS, 0, state, values, keys, &end);
    if (d->length) memcpy(ends + (chunks_of(d) - 1) * turned, state, turned * sizeof(float));

    s = sides_in(d, room);
    take_turned(of_head(h, w->grad_state), values, keys, state);
    for (int64_t start = last; start >= 0; start -= RUN) {
        const Run run = run_at(h, start);
        const float *scores = of_scores + start / RUN * SCORES;
        keys_side(two, &run, whole(keys), s.keys, 0);
        values_side(two, &run, w, s.values, 0);
        const Pass p = {s.values_before, s.keys_before, s.values, read};
        pass(1, READERS, 2 * RUN, WRITERS, (1 + two) * RUN, state, values, keys, &p);
        if (start == last || (start + RUN) % STEPS == 0) products(state, ends + start / STEPS * turned, values, keys, P);
        of_writers(two, &run, w, scores, read);
        _Pragma("GCC unroll 4") for (int t = RUN - 1; t >= 0; t--)
            if (run.at[t].keys) of_decays(two, w, run.at + t, scores[Q(t, t)], two ? scores[OF_B + Q(t, t)] : 0, P);
        next_run(&s);
    }
}

static void backward_head(const void *call, int64_t b, int64_t head, float *room) {
    const Backward *w = call;
    const Head h = {w->d, b, head};
    if (w->d->b)
        backward_values(1, &h, w, room), backward_keys(1, &h, w, room);
    else
        backward_values(0, &h, w, room), backward_keys(0, &h, w, room);
}

/* `state` is the initial one, `grad_state` the final one's gradient, `kept` what delta_rule left. Returns 0, or 1 where there
   was no memory. */
int delta_rule_backward(const Delta *d, const float *state, const float *grad_state, const float *grad_o, const float *kept, const Gradients *to) {
    const Backward w = {d, state, grad_state, grad_o, kept, to};
    return each_head(d->batch, d->heads, d->threads, backward_room(d), backward_head, &w);
}
