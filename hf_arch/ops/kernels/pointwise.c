/* x silu(gate), softplus(x), relu(x)^2 and their gradients, elementwise over `count` numbers; factor
   softplus(x + bias) over rows. */

#include "lanes.h"

#define BLOCK 4096 /* numbers of one task */

#define VECTORS(...) \
    { \
        int64_t c = task * BLOCK; \
        const int64_t end = least(count, c + BLOCK); \
        for (; c + LANES <= end; c += LANES) { enum { most = LANES }; __VA_ARGS__; } \
        if (c < end) { const int64_t most = end - c; __VA_ARGS__; } \
    }

#define SILU_GATE(name, number, load, store) \
    void name(int64_t count, int64_t threads, const number *x, const number *gate, number *y) { \
        const int64_t tasks = (count + BLOCK - 1) / BLOCK; \
        _Pragma("omp parallel for num_threads(threads) schedule(static)") \
        for (int64_t task = 0; task < tasks; task++) \
            VECTORS({ \
                FETCH(x + c), FETCH(gate + c), FETCH_TO_WRITE(y + c); \
                const lanes z = load(gate + c, most); \
                store(y + c, load(x + c, most) * z * sigmoid(z), most); \
            }) \
    } \
    void name##_backward(int64_t count, int64_t threads, const number *x, const number *gate, const number *grad_y, number *grad_x, \
                         number *grad_gate) { \
        const int64_t tasks = (count + BLOCK - 1) / BLOCK; \
        _Pragma("omp parallel for num_threads(threads) schedule(static)") \
        for (int64_t task = 0; task < tasks; task++) \
            VECTORS({ \
                FETCH(x + c), FETCH(gate + c), FETCH(grad_y + c), FETCH_TO_WRITE(grad_x + c), FETCH_TO_WRITE(grad_gate + c); \
                const lanes z = load(gate + c, most), s = sigmoid(z), silu = z * s, grad = load(grad_y + c, most); \
                store(grad_gate + c, grad * load(x + c, most) * (s + silu * (1.0f - s)), most); \
                store(grad_x + c, grad * silu, most); \
            }) \
    }

SILU_GATE(silu_gate, float, load, store)
SILU_GATE(silu_gate_bf16, uint16_t, load_bf16, store_bf16)

void softplus(int64_t count, int64_t threads, const float *x, float *y) {
    const int64_t tasks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < tasks; task++)
        VECTORS({
            FETCH(x + c), FETCH_TO_WRITE(y + c);
            store(y + c, soft_plus(load(x + c, most)), most);
        })
}

void softplus_backward(int64_t count, int64_t threads, const float *x, const float *grad_y, float *grad_x) {
    const int64_t tasks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < tasks; task++)
        VECTORS({
            FETCH(x + c), FETCH(grad_y + c), FETCH_TO_WRITE(grad_x + c);
            store(grad_x + c, load(grad_y + c, most) * sigmoid(load(x + c, most)), most);
        })
}

void squared_relu(int64_t count, int64_t threads, const float *x, float *y) {
    const int64_t tasks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < tasks; task++)
        VECTORS({
            FETCH(x + c), FETCH_TO_WRITE(y + c);
            const lanes positive = at_least(0.0f, load(x + c, most));
            store(y + c, positive * positive, most);
        })
}

void squared_relu_backward(int64_t count, int64_t threads, const float *x, const float *grad_y, float *grad_x) {
    const int64_t tasks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < tasks; task++)
        VECTORS({
            FETCH(x + c), FETCH(grad_y + c), FETCH_TO_WRITE(grad_x + c);
            store(grad_x + c, 2.0f * load(grad_y + c, most) * at_least(0.0f, load(x + c, most)), most);
        })
}

/* In place: x becomes relu(x)^2, or the gradient of that the one of x, where y is relu(x)^2. */
void squared_relu_within(int64_t count, int64_t threads, float *x) {
    const int64_t tasks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < tasks; task++)
        VECTORS({
            FETCH_TO_WRITE(x + c);
            const lanes positive = at_least(0.0f, load(x + c, most));
            store(x + c, positive * positive, most);
        })
}

void squared_relu_within_backward(int64_t count, int64_t threads, const float *y, float *grad) {
    const int64_t tasks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < tasks; task++)
        VECTORS({
            FETCH(y + c), FETCH_TO_WRITE(grad + c);
            store(grad + c, 2.0f * load(grad + c, most) * square_root(load(y + c, most)), most);
        })
}

#define ROWS 32 /* of one task: a constant, so that sums over rows have one order for any number of threads */

typedef struct {
    int64_t rows, width, threads;
    const float *x, *bias, *factor;
} Decays;

/* x, y [rows, width], bias, factor [width]. */
void softplus_decays(const Decays *d, float *y) {
    const int64_t width = d->width;
#pragma omp parallel for num_threads(d->threads) schedule(static)
    for (int64_t row = 0; row < d->rows; row++) {
        const float *x = d->x + row * width;
        float *to = y + row * width;
        EACH_VECTOR(width, {
            FETCH(x + c), FETCH_TO_WRITE(to + c);
            store(to + c, load(d->factor + c, count) * soft_plus(load(x + c, count) + load(d->bias + c, count)), count);
        })
    }
}

/* `sums` [tasks of ROWS rows, 2, width]: of the gradients of x, and of y dL/dy; it holds zeros on entry. */
void softplus_decays_backward(const Decays *d, const float *grad_y, float *grad_x, float *sums) {
    const int64_t width = d->width, tasks = (d->rows + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(d->threads) schedule(static)
    for (int64_t task = 0; task < tasks; task++)
        for (int64_t row = task * ROWS; row < least(d->rows, (task + 1) * ROWS); row++) {
            const float *x = d->x + row * width, *grad = grad_y + row * width;
            float *to = grad_x + row * width, *of_bias = sums + 2 * task * width, *of_factor = of_bias + width;
            EACH_VECTOR(width, {
                FETCH(x + c), FETCH(grad + c), FETCH_TO_WRITE(to + c);
                const lanes z = load(x + c, count) + load(d->bias + c, count), s = sigmoid(z);
                const lanes g = load(d->factor + c, count) * load(grad + c, count), of_x = g * s;
                store(to + c, of_x, count);
                store(of_bias + c, load(of_bias + c, count) + of_x, count);
                store(of_factor + c, load(of_factor + c, count) + g * soft_plus(z), count);
            })
        }
}
