/* The selective scan and its gradient; equations and names as in hf_arch/ops/selective_scan.py.
   x, dt, y [batch, length, width], A [states, width], B, C [batch, length, states], D [width] or none,
   keep [batch, length] or none, a state [batch, states, width], kept [chunks, batch, states, width]. */

#include "lanes.h"

#define CHUNK 8 /* steps between kept states; hf_arch/ops/selective_scan.py has the same */

typedef struct {
    int64_t batch, length, width, states, threads;
    const float *x, *dt, *A, *B, *C, *D, *keep;
} Scan;

/* Steps [start, start + taken) of row b for the `count` channels from e on. */
static void forward_chunk(const Scan *s, int64_t b, int64_t start, int64_t taken, int64_t e, int64_t count, float *state, float *y) {
    const int64_t first = b * s->length + start;
    const lanes skip = s->D ? load(s->D + e, count) : all(0);
    lanes step[CHUNK], inflow[CHUNK], out[CHUNK];
    for (int64_t t = 0; t < taken; t++) {
        const lanes x = load(s->x + (first + t) * s->width + e, count);
        step[t] = load(s->dt + (first + t) * s->width + e, count);
        inflow[t] = step[t] * x;
        out[t] = s->D ? skip * x : all(0);
    }
    for (int64_t n = 0; n < s->states; n++) {
        const float *B = s->B + first * s->states + n, *C = s->C + first * s->states + n;
        const lanes A = load(s->A + n * s->width + e, count) * LOG2_E;
        float *place = state + (b * s->states + n) * s->width + e;
        lanes h = load(place, count);
        for (int64_t t = 0; t < taken; t++) {
            lanes decay = power_of_two(step[t] * A);
            if (s->keep) decay *= s->keep[first + t];
            h = decay * h + inflow[t] * B[t * s->states];
            out[t] += h * C[t * s->states];
        }
        store(place, h, count);
    }
    for (int64_t t = 0; t < taken; t++) store(y + (first + t) * s->width + e, out[t], count);
}

/* y, and the state [batch, states, width] in place: the initial one before, the final one after. `kept`, or none: the
   state before each chunk. */
void selective_scan(const Scan *s, float *state, float *y, float *kept) {
    const int64_t groups = (s->width + GROUP - 1) / GROUP, row = s->states * s->width;
#pragma omp parallel for collapse(2) num_threads(s->threads) schedule(static)
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t group = 0; group < groups; group++) {
            const int64_t last = least(s->width, (group + 1) * GROUP);
            for (int64_t start = 0; start < s->length; start += CHUNK)
                for (int64_t e = group * GROUP; e < last; e += LANES) {
                    const int64_t count = least(LANES, last - e);
                    if (kept)
                        for (int64_t n = 0; n < s->states; n++) {
                            const int64_t at = b * row + n * s->width + e;
                            store(kept + start / CHUNK * s->batch * row + at, load(state + at, count), count);
                        }
                    forward_chunk(s, b, start, least(CHUNK, s->length - start), e, count, state, y);
                }
        }
}

/* `state`: of dL/dh after the last step on entry, of dL/dh before the first on return. A [batch, states, width] and
   D [batch, width] hold zeros on entry; B and C [groups, batch, length, states] have a part for each group of channels. */
typedef struct {
    float *state, *x, *dt, *A, *B, *C, *D;
} Gradients;

/* As forward_chunk; to_B, to_C [CHUNK, states] of lanes are added to. */
static void backward_chunk(const Scan *s, int64_t b, int64_t start, int64_t taken, int64_t e, int64_t count, const float *kept,
                           const float *grad_y, const Gradients *to, lanes *to_B, lanes *to_C) {
    const int64_t first = b * s->length + start;
    lanes step[CHUNK], x[CHUNK], inflow[CHUNK], grad[CHUNK], to_inflow[CHUNK], to_step[CHUNK], decay[CHUNK], h[CHUNK + 1];
    for (int64_t t = 0; t < taken; t++) {
        const int64_t at = (first + t) * s->width + e;
        step[t] = load(s->dt + at, count), x[t] = load(s->x + at, count), grad[t] = load(grad_y + at, count);
        inflow[t] = step[t] * x[t], to_inflow[t] = to_step[t] = all(0);
    }
    for (int64_t n = 0; n < s->states; n++) {
        const int64_t at = (b * s->states + n) * s->width + e;
        const float *B = s->B + first * s->states + n, *C = s->C + first * s->states + n;
        const lanes A = load(s->A + n * s->width + e, count) * LOG2_E;
        h[0] = load(kept + start / CHUNK * s->batch * s->states * s->width + at, count);
        for (int64_t t = 0; t < taken; t++) {
            decay[t] = power_of_two(step[t] * A);
            if (s->keep) decay[t] *= s->keep[first + t];
            h[t + 1] = decay[t] * h[t] + inflow[t] * B[t * s->states];
        }
        lanes R = load(to->state + at, count), to_A = load(to->A + at, count);
        for (int64_t t = taken - 1; t >= 0; t--) {
            /* R_t = a_{t+1} R_{t+1} + dL/dy_t C_t; dL/dC_t = sum_E dL/dy_t h_t */
            R += grad[t] * C[t * s->states];
            to_C[t * s->states + n] += grad[t] * h[t + 1];
            /* dL/d(dt x)_t = sum_N R_t B_t; dL/dB_t = sum_E R_t dt_t x_t */
            to_inflow[t] += R * B[t * s->states];
            to_B[t * s->states + n] += R * inflow[t];
            /* X_t = R_t a_t h_{t-1}; dL/dA += X_t dt_t; dL/ddt_t = sum_N X_t A */
            R *= decay[t];
            const lanes X = R * h[t];
            to_A += X * step[t];
            to_step[t] += X * A;
        }
        store(to->state + at, R, count);
        store(to->A + at, to_A, count);
    }
    /* dL/ddt += x dL/d(dt x); dL/dx = dt dL/d(dt x) + D dL/dy; dL/dD = sum dL/dy x */
    const lanes skip = s->D ? load(s->D + e, count) : all(0);
    lanes to_D = load(to->D + b * s->width + e, count);
    for (int64_t t = taken - 1; t >= 0; t--) {
        const int64_t at = (first + t) * s->width + e;
        store(to->dt + at, to_step[t] * LN_2 + to_inflow[t] * x[t], count);
        store(to->x + at, to_inflow[t] * step[t] + skip * grad[t], count);
        to_D += grad[t] * x[t];
    }
    store(to->D + b * s->width + e, to_D, count);
}

/* Returns 0, or 1 where there was no memory. */
int selective_scan_backward(const Scan *s, const float *kept, const float *grad_y, const Gradients *to) {
    const int64_t groups = (s->width + GROUP - 1) / GROUP, sums = CHUNK * s->states;
    int failed = 0;
#pragma omp parallel for collapse(2) num_threads(s->threads) schedule(static)
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t group = 0; group < groups; group++) {
            const int64_t last = least(s->width, (group + 1) * GROUP);
            lanes *to_B = aligned_alloc(sizeof(lanes), 2 * sums * sizeof(lanes)), *to_C = to_B + sums;
            if (!to_B) {
#pragma omp atomic write
                failed = 1;
                continue;
            }
            for (int64_t start = (s->length - 1) / CHUNK * CHUNK; start >= 0; start -= CHUNK) {
                const int64_t taken = least(CHUNK, s->length - start);
                memset(to_B, 0, 2 * sums * sizeof(lanes));
                for (int64_t e = group * GROUP; e < last; e += LANES)
                    backward_chunk(s, b, start, taken, e, least(LANES, last - e), kept, grad_y, to, to_B, to_C);
                float *B = to->B + ((group * s->batch + b) * s->length + start) * s->states;
                float *C = to->C + ((group * s->batch + b) * s->length + start) * s->states;
                for (int64_t i = 0; i < taken * s->states; i++) B[i] = total(to_B[i]), C[i] = total(to_C[i]);
            }
            free(to_B);
        }
    return failed;
}
