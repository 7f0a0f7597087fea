/* Rotation of the halves of each row by its angles, and its gradient; equations as in hf_arch/ops/rotary.py. x and y
   [batch, heads, length, width] by strides of their first three axes, cos and sin [batch or 1, length, turned]. */

#include "lanes.h"

typedef struct {
    int64_t batch, heads, length, width, turned, x_batch, x_head, x_token, y_batch, y_head, y_token, angle_batch, threads;
    const float *cos, *sin;
} Rotation;

static inline void row(const int backward, int64_t half, const float *x, const float *cos, const float *sin, float *y) {
    for (int64_t c = 0; c < half; c += LANES) {
        const int64_t count = half - c;
        const lanes first = load(x + c, count), second = load(x + half + c, count), sin_1 = load(sin + c, count), sin_2 = load(sin + half + c, count);
        store(y + c, first * load(cos + c, count) + second * (backward ? sin_2 : -sin_1), count);
        store(y + half + c, second * load(cos + half + c, count) + first * (backward ? -sin_1 : sin_2), count);
    }
}

void rotary(const Rotation *r, int64_t backward, const float *x, float *y) {
    const int64_t rest = r->width - r->turned;
#pragma omp parallel for collapse(2) num_threads(r->threads) schedule(static)
    for (int64_t b = 0; b < r->batch; b++)
        for (int64_t t = 0; t < r->length; t++) {
            const int64_t angle = b * r->angle_batch + t * r->turned;
            for (int64_t head = 0; head < r->heads; head++) {
                const float *from = x + b * r->x_batch + head * r->x_head + t * r->x_token;
                float *to = y + b * r->y_batch + head * r->y_head + t * r->y_token;
                if (backward)
                    row(1, r->turned / 2, from, r->cos + angle, r->sin + angle, to);
                else
                    row(0, r->turned / 2, from, r->cos + angle, r->sin + angle, to);
                if (rest) memcpy(to + r->turned, from + r->turned, rest * sizeof(float));
            }
        }
}
