/* Norm, gate and attention of a single token in a decoding step; equations as in hf_arch/ops/one_row.py. */

#include "lanes.h"
#include "gelu.h"

#define BLOCK 64   /* keys whose scores wait for each other */
#define WIDEST 512 /* features of a head; hf_arch/ops/one_row.py has the same */

/* Of x, or where there is something to add of `sum`, which is made here. */
static const float *added(const float *x, const float *add, float *sum, int64_t width) {
    if (!add) return x;
    EACH_VECTOR(width, store(sum + c, load(x + c, count) + load(add + c, count), count))
    return sum;
}

void norm_row(const float *x, const float *add, float *sum, const float *weight, float *y, int64_t width, float factor, float eps) {
    lanes squares = all(0);
    x = added(x, add, sum, width);
    EACH_VECTOR(width, const lanes u = load(x + c, count); squares += u * u)
    const float inverse = 1.0f / __builtin_sqrtf(factor * total(squares) + eps);
    EACH_VECTOR(width, lanes u = inverse * load(x + c, count); if (weight) u *= load(weight + c, count); store(y + c, u, count))
}

void layer_norm_row(const float *x, const float *add, float *sum, const float *weight, const float *bias, float *y, int64_t width, float eps) {
    lanes all_of_it = all(0), squares = all(0);
    x = added(x, add, sum, width);
    EACH_VECTOR(width, all_of_it += load(x + c, count))
    const float mean = total(all_of_it) / width;
    for (int64_t c = 0; c < width; c += LANES) {
        lanes u = load(x + c, width - c) - mean;
        if (width - c < LANES) store(y + c, u, width - c), u = load(y + c, width - c); /* zeros behind the end */
        squares += u * u;
    }
    const float inverse = 1.0f / __builtin_sqrtf(total(squares) / width + eps);
    EACH_VECTOR(width, {
        lanes u = inverse * (load(x + c, count) - mean);
        if (weight) u *= load(weight + c, count);
        if (bias) u += load(bias + c, count);
        store(y + c, u, count);
    })
}

void gelu_row(const float *x, float *y, int64_t width) {
    EACH_VECTOR(width, const lanes z = load(x + c, count); store(y + c, z * share(odds_against(z)), count))
}

void silu_gate_row(const float *x, const float *gate, float *y, int64_t width) {
    EACH_VECTOR(width, const lanes z = load(gate + c, count); store(y + c, load(x + c, count) * z * sigmoid(z), count))
}

static inline float product(const float *x, const float *y, int64_t width) {
    lanes sum = all(0);
    EACH_VECTOR(width, sum += load(x + c, count) * load(y + c, count))
    return total(sum);
}

#define ROWS 4 /* of a weight that are read side by side */

/* y = W x + b with W [rows, width]; threads share the rows. */
void row_product(const float *weight, const float *x, const float *bias, float *y, int64_t rows, int64_t width, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows / ROWS * ROWS; r += ROWS) {
        const float *w = weight + r * width;
        lanes sums[ROWS] = {{0}};
        EACH_VECTOR(width, const lanes u = load(x + c, count); for (int i = 0; i < ROWS; i++) sums[i] += u * load(w + i * width + c, count))
        for (int i = 0; i < ROWS; i++) y[r + i] = total(sums[i]) + (bias ? bias[r + i] : 0);
    }
    for (int64_t r = rows / ROWS * ROWS; r < rows; r++) y[r] = product(weight + r * width, x, width) + (bias ? bias[r] : 0);
}

typedef struct {
    int64_t width, value_width, turned, past;
    const float *cos, *sin;
} Attention;

/* RoPE of the first `turned` features, as in hf_arch/ops/rotary.py. */
static inline void rotate(const Attention *a, const float *x, float *y) {
    const int64_t half = a->turned / 2;
    EACH_VECTOR(half, {
        const lanes first = load(x + c, count), second = load(x + half + c, count);
        store(y + c, first * load(a->cos + c, count) - second * load(a->sin + c, count), count);
        store(y + half + c, second * load(a->cos + half + c, count) + first * load(a->sin + half + c, count), count);
    })
    if (a->width > a->turned) memcpy(y + a->turned, x + a->turned, (a->width - a->turned) * sizeof(float));
}

/* Softmax over keys 0 to past, block by block: weights are relative to the largest score so far. */
static void attend_head(const Attention *a, float scale, const float *query, const float *keys, const float *values, float *out) {
    const int64_t width = a->width, number = a->past + 1;
    float largest = -__builtin_inff(), sum = 0, scores[BLOCK + LANES];
    memset(out, 0, a->value_width * sizeof(float));
    for (int64_t begin = 0; begin < number; begin += BLOCK) {
        const int64_t block = least(BLOCK, number - begin);
        float before = largest;
        for (int64_t i = 0; i < block; i++) {
            scores[i] = scale * product(query, keys + (begin + i) * width, width);
            if (scores[i] > largest) largest = scores[i];
        }
        lanes weights = all(0);
        EACH_VECTOR(block, {
            const lanes p = exponential(load(scores + c, count) - largest);
            store(scores + c, p, count);
            weights += load(scores + c, count);
        })
        const float kept = begin ? exponential(all(before - largest))[0] : 0;
        sum = sum * kept + total(weights);
        const float *from = values + begin * a->value_width;
        EACH_VECTOR(a->value_width, {
            lanes mixed = kept * load(out + c, count);
            for (int64_t i = 0; i < block; i++) mixed += scores[i] * load(from + i * a->value_width + c, count);
            store(out + c, mixed, count);
        })
    }
    const float inverse = 1.0f / sum;
    EACH_VECTOR(a->value_width, store(out + c, inverse * load(out + c, count), count))
}

/* query [heads, width], key [key_heads, width] and value [key_heads, value_width] of one token; keys [key_heads, slots,
   width] and values likewise hold `past` tokens and get this one; out [heads, value_width]. */
void attend_row(const float *query, const float *key, const float *value, const float *cos, const float *sin, float *keys, float *values, float *out,
                int64_t heads, int64_t key_heads, int64_t width, int64_t value_width, int64_t turned, int64_t past, int64_t slots, float scale,
                int64_t threads) {
    const Attention a = {width, value_width, turned, past, cos, sin};
    const int64_t group = heads / key_heads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t head = 0; head < key_heads; head++) {
        float *own_keys = keys + head * slots * width, *own_values = values + head * slots * value_width, turned_query[WIDEST];
        rotate(&a, key + head * width, own_keys + past * width);
        memcpy(own_values + past * value_width, value + head * value_width, value_width * sizeof(float));
        for (int64_t q = head * group; q < (head + 1) * group; q++) {
            rotate(&a, query + q * width, turned_query);
            attend_head(&a, scale, turned_query, own_keys, own_values, out + q * value_width);
        }
    }
}
