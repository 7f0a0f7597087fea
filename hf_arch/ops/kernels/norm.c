/* Norms y = r u w of rows, plain or gated, and their gradients; equations as in hf_arch/ops/norm.py. x, gate, y [rows, groups,
   width], weight [groups, width] or none, gate or none. */

#include "lanes.h"

#define ROWS 32 /* of one task: a constant, so that sums over rows have one order for any number of threads */

typedef struct {
    int64_t rows, groups, width, gate_first, of_sigmoid, threads;
    const float *x, *weight, *gate;
} Norm;

#define INLINE static inline __attribute__((always_inline))

/* `call` for the vectors from c on: `count` is LANES, but for the end of a row. */
#define VECTORS(...) \
    { \
        int64_t c = 0; \
        for (; c + LANES <= width; c += LANES) { enum { count = LANES }; __VA_ARGS__; } \
        if (c < width) { const int64_t count = width - c; __VA_ARGS__; } \
    }

static inline float inverse(lanes squares, float factor, float eps) { return 1.0f / __builtin_sqrtf(factor * total(squares) + eps); }

/* The gate and its derivative, by its sigmoid s: of GATED 3 that itself, else SiLU. */
INLINE lanes opened(const int gated, lanes z, lanes s) { return gated == 3 ? s : z * s; }
INLINE lanes slope(const int gated, lanes open, lanes s) { return gated == 3 ? s * (1.0f - s) : s + open * (1.0f - s); }

/* One row: GATED 0 is none, 1 after the norm, 2 before it, 3 a sigmoid after it. */
INLINE void forward_row(const int gated, const int64_t width, const float *x, const float *weight, const float *gate, float factor, float eps, float *y) {
    lanes squares = all(0);
    VECTORS({
        FETCH(x + c), FETCH_TO_WRITE(y + c);
        if (gated) FETCH(gate + c);
        lanes u = load(x + c, count);
        if (gated == 2) {
            const lanes z = load(gate + c, count);
            u *= z * sigmoid(z);
            store(y + c, u, count);
        }
        squares += u * u;
    })
    const float *from = gated == 2 ? y : x, r = inverse(squares, factor, eps);
    VECTORS({
        lanes n = r * load(from + c, count);
        if (weight) n *= load(weight + c, count);
        if (gated & 1) {
            const lanes z = load(gate + c, count);
            n *= opened(gated, z, sigmoid(z));
        }
        store(y + c, n, count);
    })
}

typedef struct {
    const float *grad_y;
    float *x, *gate, *weight; /* of one row but for weight, of a task */
} Gradients;

/* Before the norm, u and the gate's sigmoid wait in to->x and to->gate for the last pass. */
INLINE void backward_row(const int gated, const int64_t width, const float *x, const float *weight, const float *gate, float factor, float eps,
                         const Gradients *to) {
    lanes squares = all(0), along = all(0);
    VECTORS({
        FETCH(x + c), FETCH(to->grad_y + c), FETCH_TO_WRITE(to->x + c);
        if (gated) FETCH(gate + c), FETCH_TO_WRITE(to->gate);
        lanes u = load(x + c, count);
        if (gated == 2) {
            const lanes z = load(gate + c, count), s = sigmoid(z);
            u *= z * s;
            store(to->x + c, u, count), store(to->gate + c, s, count);
        }
        squares += u * u;
    })
    const float *from = gated == 2 ? to->x : x, r = inverse(squares, factor, eps);
    VECTORS({
        const lanes n = r * load(from + c, count);
        lanes grad = load(to->grad_y + c, count), w = all(1);
        if (weight) w = load(weight + c, count);
        if (gated & 1) {
            const lanes z = load(gate + c, count), s = sigmoid(z), open = opened(gated, z, s);
            store(to->gate + c, grad * n * w * slope(gated, open, s), count);
            grad *= open;
        }
        if (weight) {
            store(to->weight + c, load(to->weight + c, count) + grad * n, count);
            grad *= w;
        }
        along += grad * n;
        if (gated & 1) store(to->x + c, grad, count);
    })
    const float back = factor * total(along);
    VECTORS({
        const lanes n = r * load(from + c, count);
        lanes grad = gated & 1 ? load(to->x + c, count) : load(to->grad_y + c, count);
        if (!(gated & 1) && weight) grad *= load(weight + c, count);
        grad = r * (grad - back * n);
        if (gated == 2) {
            const lanes z = load(gate + c, count), s = load(to->gate + c, count), silu = z * s;
            store(to->gate + c, grad * load(x + c, count) * (s + silu * (1.0f - s)), count);
            grad *= silu;
        }
        store(to->x + c, grad, count);
    })
}

INLINE int kind_of(const Norm *n) { return !n->gate ? 0 : n->gate_first ? 2 : n->of_sigmoid ? 3 : 1; }

#define EACH_KIND(call) \
    switch (kind_of(n)) { \
        case 0: { enum { gated = 0 }; call; break; } \
        case 1: { enum { gated = 1 }; call; break; } \
        case 2: { enum { gated = 2 }; call; break; } \
        default: { enum { gated = 3 }; call; } \
    }

void norm(const Norm *n, float factor, float eps, float *y) {
    const int64_t tasks = (n->rows + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(n->threads) schedule(static)
    for (int64_t task = 0; task < tasks; task++)
        for (int64_t row = task * ROWS; row < least(n->rows, (task + 1) * ROWS); row++)
            for (int64_t group = 0; group < n->groups; group++) {
                const int64_t at = (row * n->groups + group) * n->width;
                const float *weight = n->weight ? n->weight + group * n->width : 0;
                EACH_KIND(forward_row(gated, n->width, n->x + at, weight, n->gate + at, factor, eps, y + at))
            }
}

/* grad_weight [tasks of ROWS rows, groups, width] holds zeros on entry. */
void norm_backward(const Norm *n, float factor, float eps, const float *grad_y, float *grad_x, float *grad_gate, float *grad_weight) {
    const int64_t tasks = (n->rows + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(n->threads) schedule(static)
    for (int64_t task = 0; task < tasks; task++)
        for (int64_t row = task * ROWS; row < least(n->rows, (task + 1) * ROWS); row++)
            for (int64_t group = 0; group < n->groups; group++) {
                const int64_t at = (row * n->groups + group) * n->width, place = group * n->width;
                const float *weight = n->weight ? n->weight + place : 0;
                const Gradients to = {grad_y + at, grad_x + at, grad_gate + at, grad_weight + task * n->groups * n->width + place};
                EACH_KIND(backward_row(gated, n->width, n->x + at, weight, n->gate + at, factor, eps, &to))
            }
}
