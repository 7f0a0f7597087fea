/* Depthwise causal convolution over time and its gradient; equations as in hf_arch/ops/conv.py. x, y [batch, length,
   channels], taps [width, channels] with lag j at j, bias [channels] or none, masks [width, batch, length] or none. */

#include "lanes.h"

typedef struct {
    int64_t batch, length, channels, width, silu, threads;
    const float *x, *taps, *bias;
    const uint8_t *masks;
} Conv;

#define INLINE static inline __attribute__((always_inline))

/* How many lags, from 0 on, are in the row and of the document of token t. */
static inline int64_t lags_of(const Conv *c, int64_t b, int64_t t) {
    int64_t lags = 1;
    while (lags < c->width && lags <= t && (!c->masks || c->masks[(lags * c->batch + b) * c->length + t])) lags++;
    return lags;
}

/* From how many tokens, itself and later ones, token t is reached: a later one reaches it over all those between. */
static inline int64_t reached_by(const Conv *c, int64_t b, int64_t t) {
    int64_t lags = 1;
    while (lags < c->width && t + lags < c->length && lags_of(c, b, t + lags) > lags) lags++;
    return lags;
}

static inline int64_t row_of(const Conv *c, int64_t b, int64_t t) { return (b * c->length + t) * c->channels; }

/* `call` with the channels e to last in vectors: `count` is LANES, but for the end of a row. */
#define VECTORS(e, last, call) \
    { \
        for (; e + LANES <= last; e += LANES) { enum { count = LANES }; call; } \
        if (e < last) { const int64_t count = last - e; call; } \
    }

/* Channels of a task: as many as there are, so that rows are read on and on and few pages at a time are; fewer where that leaves
   threads without a task. No number depends on it. */
#define MOST 1024

static int64_t channels_of_task(const Conv *c) {
    const int64_t groups = (c->channels + GROUP - 1) / GROUP, tasks = c->batch ? (c->threads + c->batch - 1) / c->batch : 1;
    return groups ? least(MOST, (groups + tasks - 1) / tasks * GROUP) : GROUP;
}

typedef struct {
    const float *grad_y;
    float *x, *taps, *bias; /* of one row of the batch but for x */
} Gradients;

/* The usual case, four taps: a vector of channels walks through the tokens of a block with its inputs, taps and sums in
   registers. It asks for the rows of TOKENS_AHEAD tokens later: parts of rows lie too far from each other for the
   processor to foresee them, and a block's are few enough to stay in the first cache together. */
#define USUAL 4
#define BLOCK 4
#define TOKENS_AHEAD 8

typedef struct {
    lanes taps[USUAL], bias;
} Taps;

INLINE Taps taps_at(const Conv *c, int64_t e, int64_t count) {
    Taps w = {.bias = c->bias ? load(c->bias + e, count) : all(0)};
    for (int lag = 0; lag < USUAL; lag++) w.taps[lag] = load(c->taps + lag * c->channels + e, count);
    return w;
}

INLINE lanes input_at(const Conv *c, int64_t b, int64_t t, int64_t e, int64_t count) {
    return t < 0 ? all(0) : load(c->x + row_of(c, b, t) + e, count);
}

INLINE lanes weighted(const Taps *w, lanes sum, const lanes *x, int64_t lags) {
    for (int64_t lag = 0; lag < lags; lag++) sum += x[lag] * w->taps[lag];
    return sum;
}

/* The same over as many lags as `among` gives, which is all of them but at borders of documents. */
#define WEIGHTED(sum, x, among) (!masked || (among) == USUAL ? weighted(&w, sum, x, USUAL) : weighted(&w, sum, x, among))

INLINE void forward_block(const int masked, const Conv *c, int64_t b, int64_t t, int64_t end, int64_t e, int64_t count, float *y) {
    const Taps w = taps_at(c, e, count);
    lanes x[USUAL] = {all(0), input_at(c, b, t - 1, e, count), input_at(c, b, t - 2, e, count), input_at(c, b, t - 3, e, count)};
    for (; t < end; t++) {
        const int64_t at = row_of(c, b, t) + e, next = row_of(c, b, least(t + TOKENS_AHEAD, c->length - 1)) + e;
        __builtin_prefetch(c->x + next);
        __builtin_prefetch(y + next, 1);
        x[0] = load(c->x + at, count);
        lanes z = WEIGHTED(w.bias, x, lags_of(c, b, t));
        if (c->silu) z /= 1.0f + exponential(-z);
        store(y + at, z, count);
        x[3] = x[2], x[2] = x[1], x[1] = x[0];
    }
}

/* Tokens end - 1 to t; `later` [USUAL - 1, `apart`] holds dL/dz of the next ones and then of these. */
INLINE void backward_block(const int masked, const Conv *c, const Gradients *to, int64_t b, int64_t t, int64_t end, int64_t e, int64_t count, float *later, int64_t apart) {
    const Taps w = taps_at(c, e, count);
    lanes sums[USUAL], of_bias = load(to->bias + e, count), z[USUAL], x[USUAL];
    for (int lag = 0; lag < USUAL; lag++) {
        sums[lag] = load(to->taps + lag * c->channels + e, count);
        z[lag] = lag ? load(later + (lag - 1) * apart, count) : all(0);
        x[lag] = lag < USUAL - 1 ? input_at(c, b, end - 1 - lag, e, count) : all(0);
    }
    while (end-- > t) {
        const int64_t at = row_of(c, b, end) + e, before = row_of(c, b, end > TOKENS_AHEAD ? end - TOKENS_AHEAD : 0) + e;
        __builtin_prefetch(c->x + before);
        __builtin_prefetch(to->grad_y + before);
        __builtin_prefetch(to->x + before, 1);
        x[3] = input_at(c, b, end - 3, e, count);
        z[0] = load(to->grad_y + at, count);
        const int64_t lags = masked ? lags_of(c, b, end) : USUAL;
        if (c->silu) {
            const lanes sum = WEIGHTED(w.bias, x, lags), s = sigmoid(sum);
            z[0] *= s * (1.0f + sum * (1.0f - s));
        }
        of_bias += z[0];
        for (int lag = 0; lag < USUAL; lag++)
            if (lag < lags) sums[lag] += z[0] * x[lag];
        store(to->x + at, WEIGHTED(all(0), z, reached_by(c, b, end)), count);
        z[3] = z[2], z[2] = z[1], z[1] = z[0];
        x[0] = x[1], x[1] = x[2], x[2] = x[3];
    }
    store(to->bias + e, of_bias, count);
    for (int lag = 0; lag < USUAL; lag++) store(to->taps + lag * c->channels + e, sums[lag], count);
    for (int lag = 1; lag < USUAL; lag++) store(later + (lag - 1) * apart, z[lag], count);
}

/* A copy of the call that no store can change, so that it stays in registers too. */
#define KEPT(c, given) const Conv kept = *given, *c = &kept

static void forward_columns(const Conv *given, int64_t b, int64_t first, int64_t last, float *y) {
    KEPT(c, given);
    for (int64_t t = 0; t < c->length; t += BLOCK) {
        const int64_t end = least(c->length, t + BLOCK);
        int64_t e = first;
        if (c->masks)
            VECTORS(e, last, forward_block(1, c, b, t, end, e, count, y))
        else
            VECTORS(e, last, forward_block(0, c, b, t, end, e, count, y))
    }
}

static void backward_columns(const Conv *given, const Gradients *to, int64_t b, int64_t first, int64_t last, float *later) {
    KEPT(c, given);
    const int64_t apart = last - first;
    memset(later, 0, (USUAL - 1) * apart * sizeof(float));
    for (int64_t end = c->length; end > 0; end -= BLOCK) {
        const int64_t t = end > BLOCK ? end - BLOCK : 0;
        int64_t e = first;
        if (c->masks)
            VECTORS(e, last, backward_block(1, c, to, b, t, end, e, count, later + e - first, apart))
        else
            VECTORS(e, last, backward_block(0, c, to, b, t, end, e, count, later + e - first, apart))
    }
}

/* The sum of a token before the activation, for the `count` channels from e on, which x points to. */
INLINE lanes sum_before(const Conv *c, const float *x, int64_t e, int64_t count, int64_t lags) {
    lanes z = load(x, count) * load(c->taps + e, count);
    if (c->bias) z += load(c->bias + e, count);
    for (int64_t lag = 1; lag < lags; lag++) z += load(x - lag * c->channels, count) * load(c->taps + lag * c->channels + e, count);
    return z;
}

INLINE void forward_vector(const Conv *c, int64_t at, int64_t e, int64_t count, int64_t lags, float *y) {
    lanes z = sum_before(c, c->x + at + e, e, count, lags);
    if (c->silu) z /= 1.0f + exponential(-z);
    store(y + at + e, z, count);
}

INLINE void forward_token(const Conv *c, int64_t at, int64_t e, int64_t last, int64_t lags, float *y) {
    VECTORS(e, last, forward_vector(c, at, e, count, lags, y))
}

void causal_conv(const Conv *c, float *y) {
    const int64_t width = channels_of_task(c);
#pragma omp parallel for collapse(2) num_threads(c->threads) schedule(static)
    for (int64_t b = 0; b < c->batch; b++)
        for (int64_t first = 0; first < c->channels; first += width) {
            const int64_t last = least(c->channels, first + width);
            if (c->width == USUAL) {
                forward_columns(c, b, first, last, y);
                continue;
            }
            for (int64_t t = 0; t < c->length; t++) forward_token(c, row_of(c, b, t), first, last, lags_of(c, b, t), y);
        }
}

/* Of a token: dL/dz into `row`, and what it adds to dL/dw [width, channels] and dL/dbias [channels]. */
INLINE void backward_vector(const Conv *c, const Gradients *to, int64_t at, int64_t e, int64_t count, int64_t lags, float *row) {
    const float *x = c->x + at + e;
    lanes grad = load(to->grad_y + at + e, count);
    if (c->silu) {
        const lanes z = sum_before(c, x, e, count, lags), s = sigmoid(z);
        grad *= s * (1.0f + z * (1.0f - s));
    }
    store(row, grad, count);
    if (c->bias) store(to->bias + e, load(to->bias + e, count) + grad, count);
    for (int64_t lag = 0; lag < lags; lag++) {
        float *tap = to->taps + lag * c->channels + e;
        store(tap, load(tap, count) + grad * load(x - lag * c->channels, count), count);
    }
}

INLINE void backward_token(const Conv *c, const Gradients *to, int64_t at, int64_t e, int64_t last, int64_t lags, float *row) {
    const int64_t first = e;
    VECTORS(e, last, backward_vector(c, to, at, e, count, lags, row + e - first))
}

/* dL/dx of a token, from dL/dz of it and of the `lags` - 1 tokens after it that reach back to it, in `rows`. */
INLINE void inputs_vector(const Conv *c, const Gradients *to, int64_t at, int64_t e, int64_t count, int64_t lags, const float *const *rows, int64_t in) {
    lanes grad = all(0);
    for (int64_t lag = 0; lag < lags; lag++) grad += load(rows[lag] + in, count) * load(c->taps + lag * c->channels + e, count);
    store(to->x + at + e, grad, count);
}

INLINE void inputs_token(const Conv *c, const Gradients *to, int64_t at, int64_t e, int64_t last, int64_t lags, const float *const *rows) {
    const int64_t first = e;
    VECTORS(e, last, inputs_vector(c, to, at, e, count, lags, rows, e - first))
}

/* One group of channels of one row of the batch; `room` holds dL/dz of the last `width` tokens, in turn. */
static void backward_group(const Conv *c, const Gradients *to, int64_t b, int64_t first, int64_t last, float *room, const float **rows) {
    if (c->width == USUAL) {
        backward_columns(c, to, b, first, last, room);
        return;
    }
    for (int64_t t = c->length - 1; t >= 0; t--) {
        const int64_t at = row_of(c, b, t), lags = reached_by(c, b, t);
        backward_token(c, to, at, first, last, lags_of(c, b, t), room + t % c->width * (last - first));
        for (int64_t lag = 0; lag < lags; lag++) rows[lag] = room + (t + lag) % c->width * (last - first);
        inputs_token(c, to, at, first, last, lags, rows);
    }
}

/* dL/dx; dL/dw [batch, width, channels] and dL/dbias [batch, channels] hold zeros on entry. Returns 0, or 1 where there
   was no memory. */
int causal_conv_backward(const Conv *c, const float *grad_y, float *to_x, float *to_taps, float *to_bias) {
    const int64_t width = channels_of_task(c);
    int failed = 0;
#pragma omp parallel for collapse(2) num_threads(c->threads) schedule(static)
    for (int64_t b = 0; b < c->batch; b++)
        for (int64_t first = 0; first < c->channels; first += width) {
            const Gradients to = {grad_y, to_x, to_taps + b * c->width * c->channels, to_bias + b * c->channels};
            float *room = malloc(c->width * width * sizeof(float));
            const float **rows = malloc(c->width * sizeof(float *));
            if (room && rows)
                backward_group(c, &to, b, first, least(c->channels, first + width), room, rows);
            else {
#pragma omp atomic write
                failed = 1;
            }
            free(room);
            free(rows);
        }
    return failed;
}
