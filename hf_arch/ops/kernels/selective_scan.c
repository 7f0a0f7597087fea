/* The selective scan and its gradient; equations and names as in hf_arch/ops/selective_scan.py.
   x, dt, y [batch, length, width], A [states, width], B, C [batch, length, states] with rows B_row and C_row numbers
   apart, D [width] or none, z like x or none: the output is y silu(z), keep [batch, length] or none, a state [batch, states, width], kept [chunks, batch, states, width].

   A task is a group of channels of one row. Its part of A and of states lies in vectors [group / LANES, states], and B
   and C of a chunk in rows [states, CHUNK], so that a chunk reads and adds up what lies in order. States go in pairs, one
   of zeros after an odd number; steps after the end of a row are of size 0. */

#include "heads.h"

#define CHUNK 8 /* steps between kept states; hf_arch/ops/selective_scan.py has the same */
#define PAIR 2  /* states at a time, whose sums over states are added up in registers */
#define UNROLLED _Pragma("GCC unroll 8")
#define EACH UNROLLED for (int i = 0; i < PAIR; i++)
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    int64_t batch, length, width, states, B_row, C_row, soft, threads; /* soft: dt is softplus of what is given */
    const float *x, *dt, *A, *B, *C, *D, *z, *keep;
} Scan;

/* `states` is even; A is times log2(e). */
typedef struct {
    const Scan *s;
    int64_t b, first, last, states;
    lanes *A;
    float *B, *C, keep[CHUNK];
} Task;

static inline int64_t even_states(const Scan *s) { return (s->states + PAIR - 1) / PAIR * PAIR; }

static inline int64_t groups_of(const Scan *s) { return (s->width + GROUP - 1) / GROUP; }

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

/* `room` is of states (GROUP + 2 CHUNK) numbers. */
static Task task_of(const Scan *s, int64_t b, int64_t group, float *room) {
    const int64_t states = even_states(s);
    Task k = {s, b, group * GROUP, least(s->width, (group + 1) * GROUP), states, (lanes *)room, room + states * GROUP, room + states * (GROUP + CHUNK), {0}};
    take(&k, s->A, LOG2_E, k.A);
    return k;
}

/* What all channels of a chunk share. */
static void share(Task *k, int64_t start) {
    const Scan *s = k->s;
    const int64_t first = k->b * s->length + start, taken = least(CHUNK, s->length - start);
    if (taken < CHUNK || k->states > s->states) memset(k->B, 0, 2 * k->states * CHUNK * sizeof(float));
    for (int64_t t = 0; s->keep && t < CHUNK; t++) k->keep[t] = t < taken ? s->keep[first + t] : 1.0f;
    for (int64_t t = 0; t < taken; t++)
        for (int64_t n = 0; n < s->states; n++) {
            k->B[n * CHUNK + t] = s->B[(first + t) * s->B_row + n];
            k->C[n * CHUNK + t] = s->C[(first + t) * s->C_row + n];
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

/* Inputs that the next chunk reads, which may lie outside of the row. */
static inline void expect(const Scan *s, int64_t at) {
    __builtin_prefetch(s->x + at);
    __builtin_prefetch(s->dt + at);
}

INLINE lanes step_size(const Scan *s, int64_t at, int64_t count) {
    const lanes dt = load(s->dt + at, count);
    return s->soft ? soft_plus(dt) : dt;
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
    for (int64_t t = 0; t < CHUNK; t++) {
        const lanes x = t < taken ? load(s->x + first + t * width, count) : all(0);
        step[t] = t < taken ? step_size(s, first + t * width, count) : all(0);
        inflow[t] = step[t] * x;
        expect(s, first + (t + CHUNK) * width);
        out[t] = s->D ? skip * x : all(0);
    }
    for (int64_t n = 0; n < k->states; n += PAIR) {
        const float *B = k->B + n * CHUNK, *C = k->C + n * CHUNK;
        lanes now[PAIR];
        EACH now[i] = h[n + i];
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

static void forward_task(const void *call, int64_t b, int64_t group, float *room) {
    const Forward *f = call;
    const Scan *s = f->s;
    Task k = task_of(s, b, group, room);
    lanes *h = (lanes *)(room + k.states * (GROUP + 2 * CHUNK));
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
    return each_head(s->batch, groups_of(s), s->threads, even_states(s) * (2 * GROUP + 2 * CHUNK), forward_task, &call);
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

/* Sums of a task: R and dL/dA as its A, of D [group / LANES]; of a chunk B and C [states, CHUNK], a vector each. */
typedef struct {
    lanes *R, *A, *D, *B, *C;
} Sums;

/* As forward_chunk; `kept` and the sums but for those of B and C are of the channels from e on. */
INLINE void backward_chunk(int64_t masked, int64_t taken, int64_t count, const Task *k, const Backward *call, int64_t start, int64_t e, const float *kept, const Sums *to) {
    const Scan *s = k->s;
    const int64_t first = (k->b * s->length + start) * s->width + e, width = s->width;
    const lanes *A = k->A + (e - k->first) / LANES * k->states;
    lanes step[CHUNK], x[CHUNK], inflow[CHUNK], grad[CHUNK], to_inflow[CHUNK], to_step[CHUNK], out[CHUNK];
    for (int64_t t = 0; t < CHUNK; t++) {
        const int64_t at = first + t * width;
        step[t] = x[t] = grad[t] = all(0);
        if (t < taken) step[t] = step_size(s, at, count), x[t] = load(s->x + at, count), grad[t] = gated(s, load(call->grad_y + at, count), at, count);
        inflow[t] = step[t] * x[t], to_inflow[t] = to_step[t] = out[t] = all(0);
        expect(s, at - CHUNK * width);
        __builtin_prefetch(call->grad_y + at - CHUNK * width);
    }
    for (int64_t n = 0; n < k->states; n += PAIR) {
        const float *B = k->B + n * CHUNK, *C = k->C + n * CHUNK;
        lanes decay[CHUNK][PAIR], h[CHUNK + 1][PAIR], now[PAIR];
        EACH __builtin_prefetch(kept + (n + i - s->batch * s->states) * width);
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
    for (int64_t t = taken - 1; t >= 0; t--) {
        const int64_t at = first + t * width;
        lanes to_dt = to_step[t] * LN_2 + to_inflow[t] * x[t];
        if (s->soft) to_dt *= sigmoid(load(s->dt + at, count));
        store(call->to->dt + at, to_dt, count);
        store(call->to->x + at, to_inflow[t] * step[t] + skip * grad[t], count);
        *to->D += grad[t] * x[t];
        if (s->z) {
            const lanes z = load(s->z + at, count);
            store(call->to->z + at, load(call->grad_y + at, count) * (out[t] + skip * x[t]) * silu_slope(z, sigmoid(z)), count);
        }
    }
}

/* The totals of sums [states, CHUNK] of lanes as rows [length, states]. */
static void give_totals(const Task *k, const lanes *sums, int64_t taken, float *rows) {
    for (int64_t i = 0; i < k->states * CHUNK; i += LANES) {
        const lanes found = totals((const float *)(sums + i));
        for (int64_t j = 0; j < LANES; j++) {
            const int64_t t = (i + j) % CHUNK, n = (i + j) / CHUNK;
            if (t < taken && n < k->s->states) rows[t * k->s->states + n] = found[j];
        }
    }
}

static void backward_task(const void *call, int64_t b, int64_t group, float *room) {
    const Backward *backward = call;
    const Gradients *to = backward->to;
    const Scan *s = backward->s;
    Task k = task_of(s, b, group, room);
    const int64_t row = b * s->states * s->width;
    lanes *free_room = (lanes *)(room + k.states * (GROUP + 2 * CHUNK));
    lanes *R = free_room, *A = R + k.states * GROUP / LANES, *B = A + k.states * GROUP / LANES, *C = B + k.states * CHUNK, *D = C + k.states * CHUNK;
    take(&k, to->state + row, 1.0f, R);
    memset(A, 0, k.states * GROUP * sizeof(float));
    memset(D, 0, GROUP * sizeof(float));
    for (int64_t start = (s->length - 1) / CHUNK * CHUNK; start >= 0; start -= CHUNK) {
        share(&k, start);
        memset(B, 0, 2 * k.states * CHUNK * sizeof(lanes));
        for (int64_t e = k.first; e < k.last; e += LANES) {
            const int64_t vector = (e - k.first) / LANES;
            const Sums sums = {R + vector * k.states, A + vector * k.states, D + vector, B, C};
            const float *kept = backward->kept + start / CHUNK * s->batch * s->states * s->width + row + e;
            SIZED(&k, start, e, backward_chunk(masked, taken, count, &k, backward, start, e, kept, &sums))
        }
        const int64_t at = ((group * s->batch + b) * s->length + start) * s->states, taken = least(CHUNK, s->length - start);
        give_totals(&k, B, taken, to->B + at);
        give_totals(&k, C, taken, to->C + at);
    }
    give(&k, R, to->state + row);
    give(&k, A, to->A + row);
    for (int64_t e = k.first; e < k.last; e += LANES) store(to->D + b * s->width + e, D[(e - k.first) / LANES], k.last - e);
}

/* Returns 0, or 1 where there was no memory. */
int selective_scan_backward(const Scan *s, const float *kept, const float *grad_y, const Gradients *to) {
    const Backward call = {s, kept, grad_y, to};
    const int64_t size = even_states(s) * (3 * GROUP + 2 * CHUNK + 2 * CHUNK * LANES) + GROUP;
    return each_head(s->batch, groups_of(s), s->threads, size, backward_task, &call);
}
