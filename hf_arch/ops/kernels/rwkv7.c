/* What RWKV7 makes of its projections before the recurrence (gates, and a mix of values) and of what that reads (output), and their
   gradients; equations as in hf_arch/ops/rwkv7.py. All but weights are [rows, heads, size], weights [heads, size]. Biases may be
   none. */

#include "lanes.h"

#define ROWS 32 /* of one task: a constant, so that sums over rows have one order for any number of threads */
#define INLINE static inline __attribute__((always_inline))

/* `call` for each head of each row: `at` is where it begins, `place` where it does in a weight, `part` in the sums of its task. */
#define EACH_HEAD(m, ...) \
    const int64_t size = (m)->size, tasks = ((m)->rows + ROWS - 1) / ROWS; \
    _Pragma("omp parallel for num_threads((m)->threads) schedule(static)") \
    for (int64_t task = 0; task < tasks; task++) \
        for (int64_t row = task * ROWS; row < least((m)->rows, (task + 1) * ROWS); row++) \
            for (int64_t head = 0; head < (m)->heads; head++) { \
                const int64_t at = (row * (m)->heads + head) * size, place = head * size, part = task * (m)->heads * size + place; \
                (void)part; \
                __VA_ARGS__; \
            }

INLINE void add_to(float *sum, lanes x, int64_t count) { store(sum, load(sum, count) + x, count); }

/* The sigmoid of x + a bias. */
INLINE lanes open(const float *x, const float *bias, int64_t place, int64_t count) {
    lanes z = load(x, count);
    if (bias) z += load(bias + place, count);
    return sigmoid(z);
}

typedef struct {
    int64_t rows, heads, size, threads;
    const float *x, *other, *z, *bias;
} Lerp;

void rwkv7_lerp(const Lerp *m, float *y) {
    EACH_HEAD(m, EACH_VECTOR(size, {
        FETCH(m->x + at + c), FETCH(m->other + at + c), FETCH(m->z + at + c), FETCH_TO_WRITE(y + at + c);
        const lanes from = load(m->x + at + c, count);
        store(y + at + c, from + (load(m->other + at + c, count) - from) * open(m->z + at + c, m->bias, place + c, count), count);
    }))
}

typedef struct {
    const float *of_y;
    float *x, *other, *z, *bias; /* the last [tasks of ROWS rows, heads, size] of zeros */
} LerpGradients;

void rwkv7_lerp_backward(const Lerp *m, const LerpGradients *to) {
    EACH_HEAD(m, EACH_VECTOR(size, {
        FETCH(m->x + at + c), FETCH(m->other + at + c), FETCH(m->z + at + c), FETCH(to->of_y + at + c);
        FETCH_TO_WRITE(to->x + at + c), FETCH_TO_WRITE(to->other + at + c), FETCH_TO_WRITE(to->z + at + c);
        const lanes s = open(m->z + at + c, m->bias, place + c, count), grad = load(to->of_y + at + c, count), moved = grad * s;
        const lanes of_z = moved * (1.0f - s) * (load(m->other + at + c, count) - load(m->x + at + c, count));
        store(to->x + at + c, grad - moved, count), store(to->other + at + c, moved, count), store(to->z + at + c, of_z, count);
        if (m->bias) add_to(to->bias + part + c, of_z, count);
    }))
}

typedef struct {
    int64_t rows, heads, size, threads;
    const float *key, *decay, *rate, *removal_scale, *rate_scale, *decay_bias, *rate_bias;
} Gates;

INLINE float inverse_length(const Gates *m, int64_t at, int64_t place, float eps) {
    const int64_t size = m->size;
    lanes squares = all(0);
    EACH_VECTOR(size, {
        FETCH(m->key + at + c), FETCH(m->decay + at + c), FETCH(m->rate + at + c);
        const lanes u = load(m->key + at + c, count) * load(m->removal_scale + place + c, count);
        squares += u * u;
    })
    return 1.0f / __builtin_sqrtf(total(squares) + eps);
}

void rwkv7_gates(const Gates *m, float eps, float min_log_decay, float *log_decay, float *key, float *a, float *b) {
    EACH_HEAD(m, {
        const float r = inverse_length(m, at, place, eps);
        EACH_VECTOR(size, {
            FETCH_TO_WRITE(log_decay + at + c), FETCH_TO_WRITE(key + at + c), FETCH_TO_WRITE(a + at + c), FETCH_TO_WRITE(b + at + c);
            const lanes k = load(m->key + at + c, count), rate = open(m->rate + at + c, m->rate_bias, place + c, count);
            const lanes n = r * k * load(m->removal_scale + place + c, count);
            store(log_decay + at + c, min_log_decay * open(m->decay + at + c, m->decay_bias, place + c, count), count);
            store(key + at + c, k * (1.0f + (rate - 1.0f) * load(m->rate_scale + place + c, count)), count);
            store(a + at + c, -n, count), store(b + at + c, n * rate, count);
        })
    })
}

typedef struct {
    const float *of_log_decay, *of_key, *of_a, *of_b;
    float *key, *decay, *rate, *removal_scale, *rate_scale, *decay_bias, *rate_bias; /* the last four [tasks of ROWS rows, heads, size] of zeros */
} GatesGradients;

void rwkv7_gates_backward(const Gates *m, const GatesGradients *to, float eps, float min_log_decay) {
    EACH_HEAD(m, {
        const float r = inverse_length(m, at, place, eps);
        lanes along = all(0);
        EACH_VECTOR(size, {
            FETCH(to->of_log_decay + at + c), FETCH(to->of_key + at + c), FETCH(to->of_a + at + c), FETCH(to->of_b + at + c);
            FETCH_TO_WRITE(to->key + at + c), FETCH_TO_WRITE(to->decay + at + c), FETCH_TO_WRITE(to->rate + at + c);
            const lanes k = load(m->key + at + c, count), rate = open(m->rate + at + c, m->rate_bias, place + c, count);
            const lanes decay = open(m->decay + at + c, m->decay_bias, place + c, count);
            const lanes xi = load(m->removal_scale + place + c, count), alpha = load(m->rate_scale + place + c, count);
            const lanes of_key = load(to->of_key + at + c, count), of_b = load(to->of_b + at + c, count), n = r * k * xi;
            const lanes of_n = of_b * rate - load(to->of_a + at + c, count), of_rate = of_b * n + of_key * k * alpha;
            along += of_n * n;
            const lanes of_rate_logit = of_rate * rate * (1.0f - rate);
            const lanes of_decay_logit = load(to->of_log_decay + at + c, count) * min_log_decay * decay * (1.0f - decay);
            store(to->rate + at + c, of_rate_logit, count), store(to->decay + at + c, of_decay_logit, count);
            if (m->rate_bias) add_to(to->rate_bias + part + c, of_rate_logit, count);
            if (m->decay_bias) add_to(to->decay_bias + part + c, of_decay_logit, count);
            store(to->key + at + c, of_key * (1.0f + (rate - 1.0f) * alpha) + r * xi * of_n, count);
            add_to(to->removal_scale + part + c, r * k * of_n, count);
            add_to(to->rate_scale + part + c, of_key * k * (rate - 1.0f), count);
        })
        const float back = r * r * total(along); /* r sum_n dL/dn n, times the r of n */
        EACH_VECTOR(size, {
            const lanes k = load(m->key + at + c, count), xi = load(m->removal_scale + place + c, count), towards = back * k * xi;
            add_to(to->key + at + c, -xi * towards, count);
            add_to(to->removal_scale + part + c, -k * towards, count);
        })
    })
}

typedef struct {
    int64_t rows, heads, size, threads;
    const float *out, *receptance, *key, *value, *gate, *weight, *bias, *bonus;
} Output;

typedef struct {
    float mean, inverse, present;
} Sums;

/* The first `count` numbers, zeros after them. */
INLINE lanes kept(lanes x, int64_t count) {
    for (int64_t i = count; i < LANES; i++) x[i] = 0;
    return x;
}

INLINE Sums sums_of(const Output *m, int64_t at, int64_t place, float eps) {
    const int64_t size = m->size;
    lanes sum = all(0), present = all(0), squares = all(0);
    EACH_VECTOR(size, {
        FETCH(m->out + at + c), FETCH(m->receptance + at + c), FETCH(m->key + at + c), FETCH(m->value + at + c), FETCH(m->gate + at + c);
        sum += load(m->out + at + c, count);
        present += load(m->receptance + at + c, count) * load(m->key + at + c, count) * load(m->bonus + place + c, count);
    })
    const float mean = total(sum) / size;
    EACH_VECTOR(size, {
        const lanes centred = kept(load(m->out + at + c, count) - mean, count);
        squares += centred * centred;
    })
    return (Sums){mean, 1.0f / __builtin_sqrtf(total(squares) / size + eps), total(present)};
}

void rwkv7_output(const Output *m, float eps, float *y) {
    EACH_HEAD(m, {
        const Sums sums = sums_of(m, at, place, eps);
        EACH_VECTOR(size, {
            FETCH_TO_WRITE(y + at + c);
            const lanes n = (load(m->out + at + c, count) - sums.mean) * sums.inverse;
            const lanes normed = n * load(m->weight + place + c, count) + load(m->bias + place + c, count);
            store(y + at + c, (normed + sums.present * load(m->value + at + c, count)) * load(m->gate + at + c, count), count);
        })
    })
}

typedef struct {
    const float *of_y;
    float *out, *receptance, *key, *value, *gate, *weight, *bias, *bonus; /* the last three [tasks of ROWS rows, heads, size] of zeros */
} OutputGradients;

void rwkv7_output_backward(const Output *m, const OutputGradients *to, float eps) {
    EACH_HEAD(m, {
        const Sums sums = sums_of(m, at, place, eps);
        lanes sum = all(0), along = all(0), of_present = all(0);
        EACH_VECTOR(size, {
            FETCH(to->of_y + at + c), FETCH_TO_WRITE(to->out + at + c), FETCH_TO_WRITE(to->gate + at + c), FETCH_TO_WRITE(to->value + at + c);
            FETCH_TO_WRITE(to->receptance + at + c), FETCH_TO_WRITE(to->key + at + c);
            const lanes n = (load(m->out + at + c, count) - sums.mean) * sums.inverse, w = load(m->weight + place + c, count);
            const lanes value = load(m->value + at + c, count), of_y = load(to->of_y + at + c, count);
            const lanes of_read = of_y * load(m->gate + at + c, count), of_n = of_read * w;
            store(to->gate + at + c, of_y * (n * w + load(m->bias + place + c, count) + sums.present * value), count);
            add_to(to->weight + part + c, of_read * n, count), add_to(to->bias + part + c, of_read, count);
            store(to->value + at + c, sums.present * of_read, count), store(to->out + at + c, of_n, count);
            sum += of_n, along += of_n * n, of_present += of_read * value;
        })
        const float mean = total(sum) / size, back = total(along) / size, bonus = total(of_present);
        EACH_VECTOR(size, {
            const lanes n = (load(m->out + at + c, count) - sums.mean) * sums.inverse, rho = bonus * load(m->bonus + place + c, count);
            const lanes receptance = load(m->receptance + at + c, count), key = load(m->key + at + c, count);
            store(to->out + at + c, sums.inverse * (load(to->out + at + c, count) - mean - n * back), count);
            store(to->receptance + at + c, key * rho, count), store(to->key + at + c, receptance * rho, count);
            add_to(to->bonus + part + c, bonus * receptance * key, count);
        })
    })
}
