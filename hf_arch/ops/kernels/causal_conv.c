/* Depthwise causal convolution over time and its gradient; equations as in hf_arch/ops/conv.py. x, y [batch, length,
   channels], taps [width, channels] with lag j at j, bias [channels] or none, masks [width, batch, length] or none. */

#include "lanes.h"

typedef struct {
    int64_t batch, length, channels, width, silu, threads;
    const float *x, *taps, *bias;
    const uint8_t *masks;
} Conv;

static inline int reaches(const Conv *c, int64_t b, int64_t t, int64_t lag) {
    return lag <= t && (!c->masks || c->masks[(lag * c->batch + b) * c->length + t]);
}

/* The sum of token t of row b before the activation, for the `count` channels from e on. */
static inline lanes sum_before(const Conv *c, int64_t b, int64_t t, int64_t e, int64_t count) {
    const float *x = c->x + (b * c->length + t) * c->channels + e;
    lanes z = load(x, count) * load(c->taps + e, count);
    if (c->bias) z += load(c->bias + e, count);
    for (int64_t lag = 1; lag < c->width; lag++)
        if (reaches(c, b, t, lag)) z += load(x - lag * c->channels, count) * load(c->taps + lag * c->channels + e, count);
    return z;
}

void causal_conv(const Conv *c, float *y) {
    const int64_t groups = (c->channels + GROUP - 1) / GROUP;
#pragma omp parallel for collapse(2) num_threads(c->threads) schedule(static)
    for (int64_t b = 0; b < c->batch; b++)
        for (int64_t group = 0; group < groups; group++) {
            const int64_t last = least(c->channels, (group + 1) * GROUP);
            for (int64_t t = 0; t < c->length; t++)
                for (int64_t e = group * GROUP; e < last; e += LANES) {
                    const int64_t count = least(LANES, last - e);
                    lanes z = sum_before(c, b, t, e, count);
                    if (c->silu) z /= 1.0f + exponential(-z);
                    store(y + (b * c->length + t) * c->channels + e, z, count);
                }
        }
}

/* Of token t: dL/dz_t into `row`, and what it adds to dL/dw [width, channels] and dL/dbias [channels]. */
static void backward_sums(const Conv *c, int64_t b, int64_t t, int64_t e, int64_t last, const float *grad_y, float *row, float *to_taps,
                          float *to_bias) {
    const int64_t at = (b * c->length + t) * c->channels;
    for (const int64_t begin = e; e < last; e += LANES) {
        const int64_t count = least(LANES, last - e);
        lanes grad = load(grad_y + at + e, count);
        if (c->silu) {
            const lanes z = sum_before(c, b, t, e, count), s = 1.0f / (1.0f + exponential(-z));
            grad *= s * (1.0f + z * (1.0f - s));
        }
        store(row + e - begin, grad, count);
        if (c->bias) store(to_bias + e, load(to_bias + e, count) + grad, count);
        for (int64_t lag = 0; lag < c->width; lag++)
            if (reaches(c, b, t, lag)) {
                float *tap = to_taps + lag * c->channels + e;
                store(tap, load(tap, count) + grad * load(c->x + at - lag * c->channels + e, count), count);
            }
    }
}

/* dL/dx; dL/dw [batch, width, channels] and dL/dbias [batch, channels] hold zeros on entry. Returns 0, or 1 where there
   was no memory. */
int causal_conv_backward(const Conv *c, const float *grad_y, float *to_x, float *to_taps, float *to_bias) {
    const int64_t groups = (c->channels + GROUP - 1) / GROUP;
    int failed = 0;
#pragma omp parallel for collapse(2) num_threads(c->threads) schedule(static)
    for (int64_t b = 0; b < c->batch; b++)
        for (int64_t group = 0; group < groups; group++) {
            const int64_t first = group * GROUP, last = least(c->channels, first + GROUP);
            float *rows = malloc(c->width * GROUP * sizeof(float)); /* dL/dz of the last `width` tokens, in turn */
            if (!rows) {
#pragma omp atomic write
                failed = 1;
                continue;
            }
            for (int64_t t = c->length - 1; t >= 0; t--) {
                backward_sums(c, b, t, first, last, grad_y, rows + t % c->width * GROUP, to_taps + b * c->width * c->channels,
                              to_bias + b * c->channels);
                for (int64_t e = first; e < last; e += LANES) {
                    const int64_t count = least(LANES, last - e);
                    lanes grad = all(0);
                    for (int64_t lag = 0; lag < c->width && t + lag < c->length; lag++)
                        if (reaches(c, b, t + lag, lag))
                            grad += load(rows + (t + lag) % c->width * GROUP + e - first, count) *
                                    load(c->taps + lag * c->channels + e, count);
                    store(to_x + (b * c->length + t) * c->channels + e, grad, count);
                }
            }
            free(rows);
        }
    return failed;
}
