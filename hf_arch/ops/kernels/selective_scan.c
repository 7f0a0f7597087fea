/* The selective scan and its gradient; equations and names as in hf_arch/ops/selective_scan.py.
   x, dt, y [batch, length, width], A [states, width], B, C [batch, length, states] with rows B_row and C_row numbers
   apart, D [width] or none, z like x or none (the output is y silu(z)), keep [batch, length] or none, a state [batch,
   states, width], kept [chunks, batch, states, width].

   The step sizes may be products, dt = low W + bias, that are made where they are needed (LowRank).

   A task is some channels of one row. Its part of A and of states lies in vectors [channels / LANES, states], and B
   and C of a chunk in rows [states, CHUNK], so that a chunk reads and adds up what lies in order. States go in pairs, one
   of zeros after an odd number; steps after the end of a row are of size 0. */

#include "heads.h"

#define CHUNK 8 /* steps between kept states; hf_arch/ops/selective_scan.py has the same */
#define PAIR 2  /* states at a time, whose sums over states are added up in registers */
#define UNROLLED _Pragma("GCC unroll 8")
#define EACH UNROLLED for (int i = 0; i < PAIR; i++)
#define INLINE static inline __attribute__((always_inline))

/* low [batch, length, rank] with rows `row` numbers apart, weight [rank, width], bias [width]. Gradients: of low as those of B
   and C, all with rows `to_row` numbers apart, weight [batch, rank, width], bias [batch, width]. */
typedef struct {
    int64_t rank, row, to_row;
    const float *low, *weight, *bias;
    float *to_low, *to_weight, *to_bias;
} LowRank;

typedef struct {
    int64_t batch, length, width, states, B_row, C_row, soft, threads; /* soft: dt is softplus of what is given */
    const float *x, *dt, *A, *B, *C, *D, *z, *keep;
    const LowRank *of_dt; /* or none */
} Scan;

/* `states` and `rank` are even; A is times log2(e). */
typedef struct {
    const Scan *s;
    int64_t b, first, last, states, rank;
    lanes *A;
    float *B, *C, *low, keep[CHUNK];
} Task;

static inline int64_t even_states(const Scan *s) { return (s->states + PAIR - 1) / PAIR * PAIR; }

static inline int64_t even_rank(const Scan *s) { return s->of_dt ? (s->of_dt->rank + PAIR - 1) / PAIR * PAIR : 0; }

/* Channels of a task, whole groups: as many as there are, so that rows are read on and on and few pages at a time are; fewer where
   that leaves threads without a task. No number depends on it. */
#define MOST 1024

static inline int64_t span_of(const Scan *s) {
    const int64_t groups = (s->width + GROUP - 1) / GROUP, tasks = s->batch ? (s->threads + s->batch - 1) / s->batch : 1;
    return groups ? least(MOST, (groups + tasks - 1) / tasks * GROUP) : GROUP;
}

static inline int64_t tasks_of(const Scan *s) { return (s->width + span_of(s) - 1) / span_of(s); }

/* Rows [states, width] of numbers from, or to, the vectors of a task. */
static void take(const Task *k, const float *rows, float factor, lanes *vectors) {
    for (int64_t e = k->first; e < k->last; e += LANES)
        for (int64_t n = 0; n < k->states; n++)
            *vectors++ = n < k->s->states ? load(rows + n * k->s->width + e, k->last - e) * factor : all(0);
}

static void give(const Task *k, const lanes *vectors, float *rows) {
    for (int64_t e = k->first; e < k->last; e += LANES, vectors += k->states)
        for (int64_t n = 0; n < k->s->states; n++) store(rows + n * k->s->width + e, vectors[n], k->last - e);
}

static inline int64_t task_room(const Scan *s) { return even_states(s) * (span_of(s) + 2 * CHUNK) + even_rank(s) * CHUNK; }

static Task task_of(const Scan *s, int64_t b, int64_t task, float *room) {
    const int64_t states = even_states(s), span = span_of(s);
    float *B = room + states * span, *C = B + states * CHUNK;
    Task k = {s, b, task * span, least(s->width, (task + 1) * span), states, even_rank(s), (lanes *)room, B, C, C + states * CHUNK, {0}};
    take(&k, s->A, LOG2_E, k.A);
    return k;
}

/* What all channels of a chunk share. */
static void share(Task *k, int64_t start) {
    const Scan *s = k->s;
    const int64_t first = k->b * s->length + start, taken = least(CHUNK, s->length - start);
    if (taken < CHUNK || k->states > s->states) memset(k->B, 0, 2 * k->states * CHUNK * sizeof(float));
    for (int64_t t = 0; s->keep && t < CHUNK; t++) k->keep[t] = t < taken ? s->keep[first + t] : 1.0f;
    if (taken < CHUNK) memset(k->low, 0, k->rank * CHUNK * sizeof(float));
    for (int64_t t = 0; t < taken; t++) {
        for (int64_t n = 0; n < s->states; n++) {
            k->B[n * CHUNK + t] = s->B[(first + t) * s->B_row + n];
            k->C[n * CHUNK + t] = s->C[(first + t) * s->C_row + n];
        }
        for (int64_t r = 0; r < (s->of_dt ? s->of_dt->rank : 0); r++) k->low[r * CHUNK + t] = s->of_dt->low[(first + t) * s->of_dt->row + r];
    }
}

/* `call` with whether there are documents, and with how many steps from `start` on and channels from e on there are to
   do, all constants where these fill a chunk and a vector. */
#define SIZED(k, start, e, call) \
    { \
        const int whole = (start) + CHUNK <= (k)->s->length && (e) + LANES <= (k)->last; \
        if (whole && !(k)->s->keep) { enum { masked = 0, taken = CHUNK, count = LANES }; call; } \
        else if (whole) { enum { masked = 1, taken = CHUNK, count = LANES }; call; } \
        else { const int64_t masked = !!(k)->s->keep, taken = least(CHUNK, (k)->s->length - (start)), count = least(LANES, (k)->last - (e)); call; } \
    }

/* While the states n are at work, what the next chunk reads and writes at some of its steps is asked for: all at once would
   wait for each other. It may lie outside of the row. */
#define EACH_EXPECTED(t, n, states) for (int64_t t = (n) / PAIR; t < CHUNK; t += (states) / PAIR)

INLINE void expect(const Scan *s, int64_t at) {
    __builtin_prefetch(s->x + at);
    if (!s->of_dt) __builtin_prefetch(s->dt + at);
    if (s->z) __builtin_prefetch(s->z + at);
}

/* What the step sizes of the chunk from `at` on are made of; nothing behind the end of a row. */
INLINE void given_steps(const Task *k, int64_t taken, int64_t count, int64_t at, int64_t e, lanes *dt) {
    const Scan *s = k->s;
    const LowRank *l = s->of_dt;
    if (!l) {
        for (int64_t t = 0; t < CHUNK; t++) dt[t] = t < taken ? load(s->dt + at + t * s->width, count) : all(0);
        return;
    }
    lanes sum[CHUNK];
    UNROLLED for (int64_t t = 0; t < CHUNK; t++) sum[t] = load(l->bias + e, count);
    for (int64_t r = 0; r < l->rank; r++) {
        const lanes weight = load(l->weight + r * s->width + e, count);
        UNROLLED for (int64_t t = 0; t < CHUNK; t++) sum[t] += weight * k->low[r * CHUNK + t];
    }
    UNROLLED for (int64_t t = 0; t < CHUNK; t++) dt[t] = sum[t];
}

INLINE lanes gated(const Scan *s, lanes y, int64_t at, int64_t count) {
    if (!s->z) return y;
    const lanes z = load(s->z + at, count);
    return y * z * sigmoid(z);
}

/* Steps [start, start + taken) of the channels from e on; h and kept are of these channels. */
INLINE void forward_chunk(int64_t masked, int64_t taken, int64_t count, const Task *k, int64_t start, int64_t e, lanes *h, float *y, float *kept) {
    const Scan *s = k->s;
    const int64_t first = (k->b * s->length + start) * s->width + e, width = s->width;
    const lanes *A = k->A + (e - k->first) / LANES * k->states;
    const lanes skip = s->D ? load(s->D + e, count) : all(0);
    lanes step[CHUNK], inflow[CHUNK], out[CHUNK];
    given_steps(k, taken, count, first, e, step);
    for (int64_t t = 0; t < CHUNK; t++) {
        const lanes x = t < taken ? load(s->x + first + t * width, count) : all(0);
        step[t] = t >= taken ? all(0) : s->soft ? soft_plus(step[t]) : step[t];
        inflow[t] = step[t] * x;
        out[t] = s->D ? skip * x : all(0);
    }
    for (int64_t n = 0; n < k->states; n += PAIR) {
        const float *B = k->B + n * CHUNK, *C = k->C + n * CHUNK;
        lanes now[PAIR];
        EACH now[i] = h[n + i];
        EACH_EXPECTED(t, n, k->states) {
            expect(s, first + (t + CHUNK) * width);
            __builtin_prefetch(y + first + (t + CHUNK) * width, 1);
        }
        if (kept) EACH if (n + i < s->states) store(kept + (n + i) * width, now[i], count);
        UNROLLED for (int64_t t = 0; t < CHUNK; t++) {
            lanes sum = out[t];
            EACH {
                lanes decay = power_of_two(step[t] * A[n + i]);
                if (masked) decay *= k->keep[t];
                now[i] = decay * now[i] + inflow[t] * B[i * CHUNK + t];
                sum += now[i] * C[i * CHUNK + t];
            }
            out[t] = sum;
        }
        EACH h[n + i] = now[i];
    }
    for (int64_t t = 0; t < taken; t++) store(y + first + t * width, gated(s, out[t], first + t * width, count), count);
}

typedef struct {
    const Scan *s;
    float *state, *y, *kept;
} Forward;

static void forward_task(const void *call, int64_t b, int64_t task, float *room) {
    const Forward *f = call;
    const Scan *s = f->s;
    lanes *h = (lanes *)room;
    Task k = task_of(s, b, task, room + even_states(s) * span_of(s));
    float *state = f->state + b * s->states * s->width;
    take(&k, state, 1.0f, h);
    for (int64_t start = 0; start < s->length; start += CHUNK) {
        share(&k, start);
        for (int64_t e = k.first; e < k.last; e += LANES) {
            lanes *of = h + (e - k.first) / LANES * k.states;
            float *kept = f->kept ? f->kept + (start / CHUNK * s->batch + b) * s->states * s->width + e : 0;
            SIZED(&k, start, e, forward_chunk(masked, taken, count, &k, start, e, of, f->y, kept))
        }
    }
    give(&k, h, state);
}

/* y, and the state [batch, states, width] in place: the initial one before, the final one after. `kept`, or none: the
   state before each chunk. Returns 0, or 1 where there was no memory. */
int selective_scan(const Scan *s, float *state, float *y, float *kept) {
    const Forward call = {s, state, y, kept};
    return each_head(s->batch, tasks_of(s), s->threads, even_states(s) * span_of(s) + task_room(s), forward_task, &call);
}

/* `state`: of dL/dh after the last step on entry, of dL/dh before the first on return. A [batch, states, width] and
   D [batch, width]; B and C [groups, batch, length, states] have a part for each group of channels. */
typedef struct {
    float *state, *x, *dt, *A, *B, *C, *D, *z;
} Gradients;

typedef struct {
    const Scan *s;
    const float *kept, *grad_y;
    const Gradients *to;
} Backward;

/* Sums of a task: R and dL/dA as its A, of D [channels / LANES], of W [channels / LANES, rank] and its bias; of a chunk and a group B and C [states,
   CHUNK] and low [rank, CHUNK], a vector each. */
typedef struct {
    lanes *R, *A, *D, *B, *C, *low, *weight, *bias;
} Sums;

/* The step size made of dt, and its derivative: with e = exp(-|dt|), which both share with a division, softplus is
   max(dt, 0) + 2 artanh(e / (2 + e)), and the sigmoid 1 / (1 + e) or e / (1 + e). */
INLINE lanes step_and_slope(lanes dt, lanes *slope) {
    const lanes above = at_least(0.0f, dt), e = exponential(dt - 2.0f * above), r = 1.0f / ((1.0f + e) * (2.0f + e));
    *slope = where(dt < 0.0f, e, all(1)) * ((2.0f + e) * r);
    return above + twice_artanh(e * ((1.0f + e) * r));
}

/* Of dL/ddt of a chunk those of low, W and the bias. */
INLINE void low_rank_gradients(const Task *k, int64_t count, int64_t e, const lanes *to_dt, const Sums *to) {
    const LowRank *l = k->s->of_dt;
    for (int64_t t = 0; t < CHUNK; t++) *to->bias += to_dt[t];
    for (int64_t r = 0; r < l->rank; r++) {
        const lanes weight = load(l->weight + r * k->s->width + e, count);
        lanes sum = to->weight[r];
        UNROLLED for (int64_t t = 0; t < CHUNK; t++) {
            sum += to_dt[t] * k->low[r * CHUNK + t];
            to->low[r * CHUNK + t] += to_dt[t] * weight;
        }
        to->weight[r] = sum;
    }
}

/* As forward_chunk; `kept` and the sums but for those of B and C are of the channels from e on. */
INLINE void backward_chunk(int64_t masked, int64_t taken, int64_t count, const Task *k, const Backward *call, int64_t start, int64_t e, const float *kept, const Sums *to) {
    const Scan *s = k->s;
    const int64_t first = (k->b * s->length + start) * s->width + e, width = s->width;
    const lanes *A = k->A + (e - k->first) / LANES * k->states;
    lanes step[CHUNK], slope[CHUNK], open[CHUNK], x[CHUNK], inflow[CHUNK], grad[CHUNK], to_inflow[CHUNK], to_step[CHUNK], out[CHUNK];
    given_steps(k, taken, count, first, e, step);
    for (int64_t t = 0; t < CHUNK; t++) {
        slope[t] = all(1);
        if (s->soft) step[t] = step_and_slope(step[t], slope + t);
    }
    for (int64_t t = 0; t < CHUNK; t++) {
        const int64_t at = first + t * width;
        x[t] = grad[t] = open[t] = to_inflow[t] = to_step[t] = out[t] = all(0);
        if (t < taken) {
            x[t] = load(s->x + at, count), grad[t] = load(call->grad_y + at, count);
            if (s->z) {
                const lanes z = load(s->z + at, count);
                open[t] = sigmoid(z), grad[t] *= z * open[t];
            }
        } else
            step[t] = all(0);
        inflow[t] = step[t] * x[t];
    }
    for (int64_t n = 0; n < k->states; n += PAIR) {
        const float *B = k->B + n * CHUNK, *C = k->C + n * CHUNK;
        lanes decay[CHUNK][PAIR], h[CHUNK + 1][PAIR], now[PAIR];
        EACH __builtin_prefetch(kept + (n + i - s->batch * s->states) * width);
        EACH_EXPECTED(t, n, k->states) {
            const int64_t at = first + (t - CHUNK) * width;
            expect(s, at);
            __builtin_prefetch(call->grad_y + at);
            __builtin_prefetch(call->to->x + at, 1);
            if (!s->of_dt) __builtin_prefetch(call->to->dt + at, 1);
            if (s->z) __builtin_prefetch(call->to->z + at, 1);
        }
        EACH h[0][i] = now[i] = n + i < s->states ? load(kept + (n + i) * width, count) : all(0);
        UNROLLED for (int64_t t = 0; t < CHUNK; t++)
            EACH {
                decay[t][i] = power_of_two(step[t] * A[n + i]);
                if (masked) decay[t][i] *= k->keep[t];
                h[t + 1][i] = now[i] = decay[t][i] * now[i] + inflow[t] * B[i * CHUNK + t];
            }
        if (s->z)
            UNROLLED for (int64_t t = 0; t < CHUNK; t++) EACH out[t] += h[t + 1][i] * C[i * CHUNK + t];
        __asm__ volatile("" ::: "memory"); /* else B waits on the stack, a vector for each number */
        lanes R[PAIR], to_A[PAIR];
        EACH R[i] = to->R[n + i], to_A[i] = to->A[n + i];
        UNROLLED for (int64_t t = CHUNK - 1; t >= 0; t--) {
            lanes of_inflow = to_inflow[t], of_step = to_step[t];
            EACH {
                lanes *to_B = to->B + (n + i) * CHUNK + t, *to_C = to->C + (n + i) * CHUNK + t;
                /* R_t = a_{t+1} R_{t+1} + dL/dy_t C_t; dL/dC_t = sum_E dL/dy_t h_t */
                R[i] += grad[t] * C[i * CHUNK + t];
                *to_C += grad[t] * h[t + 1][i];
                /* dL/d(dt x)_t = sum_N R_t B_t; dL/dB_t = sum_E R_t dt_t x_t */
                of_inflow += R[i] * B[i * CHUNK + t];
                *to_B += R[i] * inflow[t];
                /* X_t = R_t a_t h_{t-1}; dL/dA += X_t dt_t; dL/ddt_t = sum_N X_t A */
                R[i] *= decay[t][i];
                const lanes X = R[i] * h[t][i];
                to_A[i] += X * step[t];
                of_step += X * A[n + i];
            }
            to_inflow[t] = of_inflow, to_step[t] = of_step;
        }
        EACH to->R[n + i] = R[i], to->A[n + i] = to_A[i];
    }
    /* dL/ddt += x dL/d(dt x); dL/dx = dt dL/d(dt x) + D dL/dy; dL/dD = sum dL/dy x */
    const lanes skip = s->D ? load(s->D + e, count) : all(0);
    lanes to_dt[CHUNK];
    for (int64_t t = 0; t < CHUNK; t++) {
        const int64_t at = first + t * width;
        to_dt[t] = (to_step[t] * LN_2 + to_inflow[t] * x[t]) * slope[t];
        if (t >= taken) continue;
        if (!s->of_dt) store(call->to->dt + at, to_dt[t], count);
        store(call->to->x + at, to_inflow[t] * step[t] + skip * grad[t], count);
        *to->D += grad[t] * x[t];
        if (s->z) {
            const lanes z = load(s->z + at, count);
            store(call->to->z + at, load(call->grad_y + at, count) * (out[t] + skip * x[t]) * silu_slope(z, open[t]), count);
        }
    }
    if (s->of_dt) low_rank_gradients(k, count, e, to_dt, to);
}

/* The totals of sums [numbers, CHUNK] of lanes as rows [length, numbers], `row` numbers apart. */
static void give_totals(const lanes *sums, int64_t numbers, int64_t taken, float *rows, int64_t row) {
    for (int64_t i = 0; i < numbers * CHUNK; i += LANES) {
        const lanes found = totals((const float *)(sums + i));
        for (int64_t j = 0; j < LANES; j++) {
            const int64_t t = (i + j) % CHUNK, n = (i + j) / CHUNK;
            if (t < taken && n < numbers) rows[t * row + n] = found[j];
        }
    }
}

static void backward_task(const void *call, int64_t b, int64_t task, float *room) {
    const Backward *backward = call;
    const Gradients *to = backward->to;
    const Scan *s = backward->s;
    const int64_t states = even_states(s), rank = even_rank(s), row = b * s->states * s->width, span = span_of(s), vectors = span / LANES;
    lanes *R = (lanes *)room, *A = R + states * vectors, *B = A + states * vectors, *C = B + states * CHUNK, *D = C + states * CHUNK;
    lanes *low = D + vectors, *weight = low + rank * CHUNK, *bias = weight + rank * vectors;
    Task k = task_of(s, b, task, (float *)(bias + vectors));
    take(&k, to->state + row, 1.0f, R);
    memset(A, 0, states * span * sizeof(float));
    memset(D, 0, span * sizeof(float));
    memset(weight, 0, (rank + 1) * span * sizeof(float));
    for (int64_t start = (s->length - 1) / CHUNK * CHUNK; start >= 0; start -= CHUNK) {
        share(&k, start);
        for (int64_t first = k.first; first < k.last; first += GROUP) {
            memset(B, 0, 2 * states * CHUNK * sizeof(lanes));
            memset(low, 0, rank * CHUNK * sizeof(lanes));
            for (int64_t e = first; e < least(k.last, first + GROUP); e += LANES) {
                const int64_t vector = (e - k.first) / LANES;
                const Sums sums = {R + vector * states, A + vector * states, D + vector, B, C, low, weight + vector * rank, bias + vector};
                const float *kept = backward->kept + start / CHUNK * s->batch * s->states * s->width + row + e;
                SIZED(&k, start, e, backward_chunk(masked, taken, count, &k, backward, start, e, kept, &sums))
            }
            const int64_t to_row = s->of_dt ? s->of_dt->to_row : s->states, at = ((first / GROUP * s->batch + b) * s->length + start) * to_row;
            const int64_t taken = least(CHUNK, s->length - start);
            give_totals(B, s->states, taken, to->B + at, to_row);
            give_totals(C, s->states, taken, to->C + at, to_row);
            if (rank) give_totals(low, s->of_dt->rank, taken, s->of_dt->to_low + at, to_row);
        }
    }
    give(&k, R, to->state + row);
    give(&k, A, to->A + row);
    for (int64_t e = k.first; e < k.last; e += LANES) {
        const int64_t vector = (e - k.first) / LANES, count = k.last - e;
        store(to->D + b * s->width + e, D[vector], count);
        for (int64_t r = 0; r < (rank ? s->of_dt->rank : 0); r++) store(s->of_dt->to_weight + (b * s->of_dt->rank + r) * s->width + e, weight[vector * rank + r], count);
        if (rank) store(s->of_dt->to_bias + b * s->width + e, bias[vector], count);
    }
}

/* Returns 0, or 1 where there was no memory. */
int selective_scan_backward(const Scan *s, const float *kept, const float *grad_y, const Gradients *to) {
    const Backward call = {s, kept, grad_y, to};
    const int64_t size = task_room(s) + even_states(s) * 2 * (span_of(s) + CHUNK * LANES) + even_rank(s) * (span_of(s) + CHUNK * LANES) + 2 * span_of(s);
    return each_head(s->batch, tasks_of(s), s->threads, size, backward_task, &call);
}
