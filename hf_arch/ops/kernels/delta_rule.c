/* The delta rule, and its relatives with a diagonal plus rank-one transition, and their gradient; equations as in
   hf_arch/ops/native_delta.py. q, k, a, b [batch, length, heads, keys], v, o [batch, length, heads, values], log decays g [batch,
   length, heads, decays] with 1 or as many as keys, or none, beta [batch, length, heads] or none, keep [batch, length] or
   none, states [batch, heads, keys, values].

   A task is one head of one row. It takes RUN steps in a pass over the state (walk.h): what the steps of a run read of the
   state before it, each with the decays since, and what they read of each other, by scores. Without b, a is -k and recalls
   after the decay. */

#include "delta_runs.h"

#define STEPS 32 /* between steps of which sum_v S dL/dS is made of its factors */

typedef struct {
    const Delta *d;
    const float *state;
    float *final, *o, *kept;
} Forward;

/* What the steps of a run read of each other, after what they read of the state. */
INLINE void forward_run(const int two, const Run *run, const Forward *f, const float *scores, float *side, float *room) {
    const int64_t values = f->d->values, size = RUN * whole(values);
    const Rows v = rows_from(&run->at, f->d->v, values, room), to_kept = rows_to(&run->at, f->kept, values, room + size), to_o = rows_to(&run->at, f->o, values, room + 2 * size);
    for (int64_t c = 0; c < values; c += LANES) {
        float *block = block_of(side, c);
        lanes fresh[RUN], old[RUN];
        STEPS_OF_RUN(i) {
            const lanes value = load_all(row(v, i) + c);
            lanes recalled = load_all(block + (READERS + i) * LANES), o = load_all(block + (READERS + RUN + i) * LANES);
            _Pragma("GCC unroll 4") for (int j = 0; j < i; j++) {
                recalled += scores[A(i, j)] * fresh[j], o += scores[Q(i, j)] * fresh[j];
                if (two) recalled += scores[OF_B + A(i, j)] * old[j], o += scores[OF_B + Q(i, j)] * old[j];
            }
            old[i] = two ? recalled : value + recalled, fresh[i] = two ? value : run->writes[i] * old[i];
            o += scores[Q(i, i)] * fresh[i];
            if (two) o += scores[OF_B + Q(i, i)] * old[i];
            store_all(block + (WRITERS + i) * LANES, fresh[i]);
            if (two) store_all(block + (WRITERS + RUN + i) * LANES, old[i]);
            store_all(row(to_kept, i) + c, old[i]), store_all(row(to_o, i) + c, o);
        }
    }
    rows_done(&run->at, f->kept, values, to_kept), rows_done(&run->at, f->o, values, to_o);
}

INLINE void forward_walk(const int two, const Head *h, const Forward *f, float *room) {
    const Delta *d = f->d;
    const int64_t keys = d->keys, values = d->values;
    float scores[SCORES], *state = room + sides_size(d->keys, d->values);
    Sides s = sides_in(h, room);
    Run run;
    take(of_head(h, f->state), keys, values, state);
    for (int64_t start = 0; start < d->length; start += RUN) {
        run_at(two, h, d, start, s.key_rows, 0, 0, &run);
        fetch_keys(h, d, start + SOON, 1);
        fetch(h, d->v, start + SOON, values), fetch(h, f->o, start + SOON, values), fetch(h, f->kept, start + SOON, values);
        keys_side(two, &run, whole(keys), s.keys, scores);
        const Pass p = {s.keys_before, s.values_before, s.keys, s.values};
        pass(0, WRITERS, (1 + two) * RUN, READERS, 2 * RUN, state, keys, values, &p);
        forward_run(two, &run, f, scores, s.values, s.value_rows);
        next_run(&s);
    }
    const Pass end = {s.keys_before, s.values_before, s.keys, s.values};
    pass(0, WRITERS, (1 + two) * RUN, READERS, 0, state, keys, values, &end);
    give(state, keys, values, of_head(h, f->final));
}

static void forward_head(const void *call, int64_t b, int64_t head, float *room) {
    const Forward *f = call;
    const Head h = {f->d->length, f->d->heads, f->d->keys, f->d->values, b, head};
    if (f->d->b)
        forward_walk(1, &h, f, room);
    else
        forward_walk(0, &h, f, room);
}

/* o, and the final state; `kept` like v is for the gradient: what was recalled, or v less that where no b writes it back.
   Returns 0, or 1 where there was no memory. */
int delta_rule(const Delta *d, const float *state, float *final, float *o, float *kept) {
    const Forward f = {d, state, final, o, kept};
    return each_head(d->batch, d->heads, d->threads, sides_size(d->keys, d->values) + d->keys * whole(d->values), forward_head, &f);
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
INLINE void backward_run(const int two, const Run *run, const Backward *w, const float *scores, float *side, float *room) {
    const int64_t values = w->d->values, size = RUN * whole(values);
    lanes of_beta[RUN];
    const Rows grad_o = rows_from(&run->at, w->grad_o, values, room), kept = rows_from(&run->at, w->kept, values, room + size), to_v = rows_to(&run->at, w->to->v, values, room + 2 * size);
    const Rows to_recalled = two ? rows_to(&run->at, w->to->recalled, values, room + 3 * size) : NONE;
    STEPS_OF_RUN(t) of_beta[t] = all(0);
    for (int64_t c = 0; c < values; c += LANES) {
        float *block = block_of(side, c);
        lanes grad[RUN], recalled[RUN];
        STEPS_BACK(j) {
            grad[j] = load_all(row(grad_o, j) + c);
            lanes fresh = load_all(block + (WRITERS + j) * LANES) + scores[Q(j, j)] * grad[j], old = all(0);
            if (two) old = load_all(block + (WRITERS + RUN + j) * LANES) + scores[OF_B + Q(j, j)] * grad[j];
            _Pragma("GCC unroll 4") for (int i = RUN - 1; i > j; i--) {
                fresh += scores[Q(i, j)] * grad[i] + scores[A(i, j)] * recalled[i];
                if (two) old += scores[OF_B + Q(i, j)] * grad[i] + scores[OF_B + A(i, j)] * recalled[i];
            }
            const lanes of_v = run->writes[j] * fresh;
            recalled[j] = two ? old : of_v;
            if (!two) of_beta[j] += fresh * load_all(row(kept, j) + c);
            store_all(block + (READERS + j) * LANES, recalled[j]), store_all(block + (READERS + RUN + j) * LANES, grad[j]);
            store_all(row(to_v, j) + c, of_v);
            if (two) store_all(row(to_recalled, j) + c, old);
        }
    }
    rows_done(&run->at, w->to->v, values, to_v);
    if (two) rows_done(&run->at, w->to->recalled, values, to_recalled);
    if (w->d->beta) STEPS_OF_RUN(t) if (t < run->at.there) w->to->beta[step_in(&run->at, t)] = total(of_beta[t]);
}

/* Backwards through time: to->v, to->recalled, to->beta and the initial state's. It leaves the decays. */
INLINE void backward_values(const int two, const Head *h, const Backward *w, float *room, float *decays) {
    const Delta *d = w->d;
    const int64_t keys = d->keys, values = d->values;
    float scores[SCORES], *state = room + sides_size(d->keys, d->values);
    Sides s = sides_in(h, room);
    Run run;
    take(of_head(h, w->grad_state), keys, values, state);
    for (int64_t start = last_run(h); start >= 0; start -= RUN) {
        run_at(two, h, d, start, s.key_rows, decays, 0, &run);
        fetch_keys(h, d, start - SOON, 1);
        fetch(h, w->grad_o, start - SOON, values), fetch(h, two ? w->to->recalled : w->kept, start - SOON, values), fetch(h, w->to->v, start - SOON, values);
        keys_side(two, &run, whole(keys), s.keys, scores);
        const Pass p = {s.keys_before, s.values_before, s.keys, s.values};
        pass(0, READERS, 2 * RUN, WRITERS, (1 + two) * RUN, state, keys, values, &p);
        backward_run(two, &run, w, scores, s.values, s.value_rows);
        next_run(&s);
    }
    const Pass end = {s.keys_before, s.values_before, s.keys, s.values};
    pass(0, READERS, 2 * RUN, WRITERS, 0, state, keys, values, &end);
    give(state, keys, values, of_head(h, w->to->state));
}

/* The side of the values: gradients of what was recalled and read, and what was written. And of the scores. */
INLINE void values_side(const int two, const Run *run, const Backward *w, float *side, float *of_scores, float *room) {
    const int64_t values = w->d->values, size = RUN * whole(values);
    const Rows kept = rows_from(&run->at, w->kept, values, room), grad_o = rows_from(&run->at, w->grad_o, values, room + size);
    const Rows to_recalled = rows_from(&run->at, two ? w->to->recalled : w->to->v, values, room + 2 * size);
    const Rows v = two ? rows_from(&run->at, w->d->v, values, room + 3 * size) : NONE;
    lanes sum[SCORES];
    ALL(s, SCORES) sum[s] = all(0);
    for (int64_t c = 0; c < values; c += LANES) {
        float *block = block_of(side, c);
        lanes grad[RUN], recalled[RUN], fresh[RUN], old[RUN];
        STEPS_OF_RUN(t) {
            old[t] = load_all(row(kept, t) + c), fresh[t] = two ? load_all(row(v, t) + c) : run->writes[t] * old[t];
            recalled[t] = load_all(row(to_recalled, t) + c), grad[t] = load_all(row(grad_o, t) + c);
            store_all(block + (READERS + t) * LANES, recalled[t]), store_all(block + (READERS + RUN + t) * LANES, grad[t]);
            store_all(block + (WRITERS + t) * LANES, fresh[t]);
            if (two) store_all(block + (WRITERS + RUN + t) * LANES, old[t]);
        }
        if (of_scores) STEPS_OF_RUN(j) {
            _Pragma("GCC unroll 4") for (int i = j; i < RUN; i++) {
                sum[Q(i, j)] += grad[i] * fresh[j];
                if (two) sum[OF_B + Q(i, j)] += grad[i] * old[j];
                if (i > j) {
                    sum[A(i, j)] += recalled[i] * fresh[j];
                    if (two) sum[OF_B + A(i, j)] += recalled[i] * old[j];
                }
            }
        }
    }
    if (of_scores) all_totals(sum, two ? SCORES : OF_B, of_scores);
}

/* A run's part of to->q and to->a: of what they read of the state before it, in `read`, and of each other, without a step's
   own reading. */
INLINE void of_readers(const int two, const Run *run, const Backward *w, const float *of_scores, const float *read, float *room) {
    const int64_t keys = w->d->keys, size = RUN * whole(keys);
    const Rows to_q = rows_to(&run->at, w->to->q, keys, room + 5 * size), to_a = rows_to(&run->at, w->to->a, keys, room + 6 * size);
    for (int64_t c = 0; c < keys; c += LANES) {
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
        STEPS_OF_RUN(t) store_all(row(to_q, t) + c, of_q[t]), store_all(row(to_a, t) + c, run->recalls[t] * of_a[t]);
    }
    rows_done(&run->at, w->to->q, keys, to_q), rows_done(&run->at, w->to->a, keys, to_a);
}

/* u / |u| has the gradient (1 - n n^T) / |u|: what lies along q and k is taken out. */
INLINE void along_lengths(const Run *run, int64_t keys, const lanes *along, Rows to_q, Rows to_k) {
    float sums[whole(2 * RUN)];
    all_totals(along, whole(2 * RUN), sums);
    STEPS_OF_RUN(t) sums[t] *= run->inverse_q[t] * run->inverse_q[t], sums[RUN + t] *= run->inverse_k[t] * run->inverse_k[t];
    for (int64_t c = 0; c < keys; c += LANES)
        STEPS_OF_RUN(t) {
            store_all(row(to_q, t) + c, load_all(row(to_q, t) + c) - sums[t] * load_all(row(run->q, t) + c));
            store_all(row(to_k, t) + c, load_all(row(to_k, t) + c) - sums[RUN + t] * load_all(row(run->k, t) + c));
        }
}

/* The same of to->k and to->b, of what they read of the gradient of the state after it. Then the decays: with P_t = sum_v S
   dL/dS after a step, before its own reading, dL/dg_t = P_t + q dL/dq - k dL/dk - b dL/db and P_{t-1} = dL/dg_t + a dL/da.
   And what a step's own reading adds. Gradients of what q and k are divided by their lengths for become those of q and k. */
INLINE void of_writers(const int two, const Run *run, const Backward *w, const float *of_scores, const float *read, float *P, float *room) {
    const Delta *d = w->d;
    const Gradients *to = w->to;
    const int64_t keys = d->keys, size = RUN * whole(keys);
    lanes of_g[RUN], along[whole(2 * RUN)];
    const Rows given_q = rows_from(&run->at, to->q, keys, room + 5 * size), to_a = rows_from(&run->at, to->a, keys, room + 6 * size);
    const Rows to_q = rows_to(&run->at, to->q, keys, room + 5 * size), to_k = rows_to(&run->at, to->k, keys, room + 7 * size);
    const Rows to_b = two ? rows_to(&run->at, to->b, keys, room + 8 * size) : NONE;
    const Rows to_g = run->apart ? rows_to(&run->at, to->g, keys, room + 9 * size) : NONE;
    STEPS_OF_RUN(t) of_g[t] = all(0);
    ALL(s, whole(2 * RUN)) along[s] = all(0);
    for (int64_t c = 0; c < keys; c += LANES) {
        const Keys x = keys_at(two, run, c);
        const float *block = block_of(read, c);
        lanes p = all(1), of_k[RUN], of_b[RUN], passed = load_all(P + c);
        STEPS_BACK(t) {
            of_k[t] = p * load_all(block + (WRITERS + t) * LANES);
            if (two) of_b[t] = p * load_all(block + (WRITERS + RUN + t) * LANES);
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
        STEPS_BACK(t) {
            const float own = of_scores[Q(t, t)];
            const lanes of_q = load_all(row(given_q, t) + c), of_a = load_all(row(to_a, t) + c);
            const lanes recall = (two ? load_all(row(run->a, t) + c) : x.k[t]) * of_a;
            lanes decay = passed + x.q[t] * of_q - x.k[t] * of_k[t], read_q = of_q + own * x.k[t], read_k = of_k[t] + own * x.q[t];
            if (two) {
                const float back = of_scores[OF_B + Q(t, t)];
                decay = run->keep[t] * (decay - x.b[t] * of_b[t]), passed = decay + recall;
                read_q += back * x.b[t];
                store_all(row(to_b, t) + c, of_b[t] + back * x.q[t]);
            } else {
                decay = run->keep[t] * (decay + recall), passed = decay;
                read_k += of_a;
            }
            store_all(row(to_k, t) + c, run->of_k[t] * read_k), store_all(row(to_q, t) + c, run->of_q[t] * read_q);
            if (d->unit) along[t] += x.q[t] * read_q, along[RUN + t] += x.k[t] * read_k;
            if (run->apart) store_all(row(to_g, t) + c, decay);
            of_g[t] += decay;
        }
        store_all(P + c, passed);
    }
    if (d->unit) along_lengths(run, keys, along, to_q, to_k);
    rows_done(&run->at, to->q, keys, to_q), rows_done(&run->at, to->k, keys, to_k);
    if (two) rows_done(&run->at, to->b, keys, to_b);
    if (run->apart) rows_done(&run->at, to->g, keys, to_g);
    if (d->decays == 1) STEPS_OF_RUN(t) if (t < run->at.there) to->g[step_in(&run->at, t)] = total(of_g[t]);
}

static int64_t chunks_of(const Delta *d) { return (d->length + STEPS - 1) / STEPS; }
static int64_t turned_size(const Delta *d) { return d->values * whole(d->keys); }

static int64_t runs_of(const Delta *d) { return (d->length + RUN - 1) / RUN; }
static int64_t decays_size(const Delta *d) { return d->decays > 1 ? runs_of(d) * RUN * whole(d->keys) : 0; }

static int64_t backward_room(const Delta *d) {
    const int64_t turned = turned_size(d), state = d->keys * whole(d->values);
    return decays_size(d) + sides_size(d->keys, d->values) + side_size(d->keys) + (turned > state ? turned : state) + chunks_of(d) * turned +
           runs_of(d) * SCORES + whole(d->keys);
}

/* With keys in the lanes: forwards for q and a, then backwards for k, b and the decays. */
INLINE void backward_keys(const int two, const Head *h, const Backward *w, float *room, const float *decays) {
    const Delta *d = w->d;
    const int64_t keys = d->keys, values = d->values, turned = turned_size(d), last = last_run(h);
    float *read = room + sides_size(d->keys, d->values), *of_scores = read + side_size(keys), *P = of_scores + (last / RUN + 1) * SCORES, *state = P + whole(keys),
          *ends = state + turned;
    Sides s = sides_in(h, room);
    Run run;
    take_turned(of_head(h, w->state), values, keys, state);
    for (int64_t start = 0; start <= last; start += RUN) {
        run_at(two, h, d, start, s.key_rows, (float *)decays, 1, &run);
        fetch_keys(h, d, start + SOON, 0);
        fetch(h, w->grad_o, start + SOON, values), fetch(h, w->kept, start + SOON, values), fetch(h, two ? w->to->recalled : w->to->v, start + SOON, values);
        fetch(h, two ? d->v : 0, start + SOON, values), fetch(h, w->to->q, start + SOON, keys), fetch(h, w->to->a, start + SOON, keys);
        keys_side(two, &run, whole(keys), s.keys, 0);
        values_side(two, &run, w, s.values, of_scores + start / RUN * SCORES, s.value_rows);
        const Pass p = {s.values_before, s.keys_before, s.values, read};
        pass(1, WRITERS, (1 + two) * RUN, READERS, 2 * RUN, state, values, keys, &p);
        if (start && start % STEPS == 0) memcpy(ends + (start / STEPS - 1) * turned, state, turned * sizeof(float));
        of_readers(two, &run, w, of_scores + start / RUN * SCORES, read, s.key_rows);
        next_run(&s);
    }
    const Pass end = {s.values_before, s.keys_before, s.values, read};
    pass(1, WRITERS, (1 + two) * RUN, READERS, 0, state, values, keys, &end);
    if (d->length) memcpy(ends + (chunks_of(d) - 1) * turned, state, turned * sizeof(float));

    s = sides_in(h, room);
    take_turned(of_head(h, w->grad_state), values, keys, state);
    for (int64_t start = last; start >= 0; start -= RUN) {
        run_at(two, h, d, start, s.key_rows, (float *)decays, 1, &run);
        fetch_keys(h, d, start - SOON, 0);
        fetch(h, w->grad_o, start - SOON, values), fetch(h, w->kept, start - SOON, values), fetch(h, two ? w->to->recalled : w->to->v, start - SOON, values);
        fetch(h, two ? d->v : 0, start - SOON, values), fetch(h, w->to->q, start - SOON, keys), fetch(h, w->to->a, start - SOON, keys);
        fetch(h, w->to->k, start - SOON, keys), fetch(h, two ? w->to->b : 0, start - SOON, keys), fetch(h, run.apart ? w->to->g : 0, start - SOON, keys);
        const float *scores = of_scores + start / RUN * SCORES;
        keys_side(two, &run, whole(keys), s.keys, 0);
        values_side(two, &run, w, s.values, 0, s.value_rows);
        const Pass p = {s.values_before, s.keys_before, s.values, read};
        pass(1, READERS, 2 * RUN, WRITERS, (1 + two) * RUN, state, values, keys, &p);
        if (start == last || (start + RUN) % STEPS == 0) products(state, ends + start / STEPS * turned, values, keys, P);
        of_writers(two, &run, w, scores, read, P, s.key_rows);
        next_run(&s);
    }
}

static void backward_head(const void *call, int64_t b, int64_t head, float *room) {
    const Backward *w = call;
    const Head h = {w->d->length, w->d->heads, w->d->keys, w->d->values, b, head};
    float *decays = room;
    room += decays_size(w->d);
    if (w->d->b)
        backward_values(1, &h, w, room, decays), backward_keys(1, &h, w, room, decays);
    else
        backward_values(0, &h, w, room, decays), backward_keys(0, &h, w, room, decays);
}

/* `state` is the initial one, `grad_state` the final one's gradient, `kept` what delta_rule left. Returns 0, or 1 where there
   was no memory. */
int delta_rule_backward(const Delta *d, const float *state, const float *grad_state, const float *grad_o, const float *kept, const Gradients *to) {
    const Backward w = {d, state, grad_state, grad_o, kept, to};
    return each_head(d->batch, d->heads, d->threads, backward_room(d), backward_head, &w);
}
