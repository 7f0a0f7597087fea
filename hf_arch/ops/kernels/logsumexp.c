/* A running softmax over time and its gradient; equations as in hf_arch/ops/logsumexp.py. s, weights, gates [batch, length, width],
   L_0 and the last L [batch, width], keep [batch, length] or none. */

#include "lanes.h"

#define CHANNELS 256   /* of one task: their sums stay in the cache */
#define EMPTY (-1e30f) /* the logsumexp of nothing */

typedef struct {
    int64_t batch, length, width, threads;
    const float *s, *before, *keep;
} Softmax;

/* `call` for each batch row `b` and its channels from `first` on, `size` of them. */
#define EACH_TASK(...) \
    const int64_t groups = (m->width + CHANNELS - 1) / CHANNELS; \
    _Pragma("omp parallel for num_threads(m->threads) schedule(static)") \
    for (int64_t task = 0; task < m->batch * groups; task++) { \
        const int64_t b = task / groups, first = task % groups * CHANNELS, size = least(CHANNELS, m->width - first); \
        __VA_ARGS__; \
    }

static inline int starts(const Softmax *m, int64_t step) { return m->keep && m->keep[step] == 0; }

/* e^x of x <= 0, and nothing where that is less than the smallest normal number. */
static inline lanes share(lanes x) { return where(x < -87.0f, all(0), exponential(x)); }

static void walk(const Softmax *m, int64_t b, int64_t first, int64_t size, float *weights, float *gates, float *last) {
    float sums[CHANNELS];
    for (int64_t c = 0; c < size; c++) sums[c] = m->before ? m->before[b * m->width + first + c] : EMPTY;
    for (int64_t t = 0; t < m->length; t++) {
        const int64_t step = b * m->length + t, at = step * m->width + first;
        const int anew = starts(m, step);
        EACH_VECTOR(size, {
            const lanes x = at_least(EMPTY, load(m->s + at + c, count)), past = anew ? all(EMPTY) : load(sums + c, count);
            const integers above = x > past;
            const lanes sum = where(above, x, past) + log_one_plus(share(where(above, past - x, x - past)));
            store(sums + c, sum, count);
            store(weights + at + c, share(x - sum), count), store(gates + at + c, past - sum, count);
        })
    }
    memcpy(last + b * m->width + first, sums, size * sizeof(float));
}

void time_softmax(const Softmax *m, float *weights, float *gates, float *last) { EACH_TASK(walk(m, b, first, size, weights, gates, last)) }

typedef struct {
    const float *weights, *gates, *of_weights, *of_gates, *of_last;
    float *s, *before;
} Gradients;

/* `next`: what the step after this one gives L_t. */
static void walk_back(const Softmax *m, int64_t b, int64_t first, int64_t size, const Gradients *to) {
    float next[CHANNELS];
    memcpy(next, to->of_last + b * m->width + first, size * sizeof(float));
    for (int64_t t = m->length - 1; t >= 0; t--) {
        const int64_t step = b * m->length + t, at = step * m->width + first;
        const int anew = starts(m, step);
        EACH_VECTOR(size, {
            const lanes weight = load(to->weights + at + c, count), of_weight = load(to->of_weights + at + c, count);
            const lanes of_gate = load(to->of_gates + at + c, count), reach = load(next + c, count) - weight * of_weight - of_gate;
            store(to->s + at + c, where(load(m->s + at + c, count) < EMPTY, all(0), weight * (of_weight + reach)), count);
            store(next + c, anew ? all(0) : of_gate + share(load(to->gates + at + c, count)) * reach, count);
        })
    }
    memcpy(to->before + b * m->width + first, next, size * sizeof(float));
}

void time_softmax_backward(const Softmax *m, const Gradients *to) { EACH_TASK(walk_back(m, b, first, size, to)) }
