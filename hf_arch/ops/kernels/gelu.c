/* GELU by tanh of `total` numbers, and its gradient. */

#include "lanes.h"
#include "gelu.h"

#define BLOCK 4096 /* numbers of one task */
#define FLAT 20.0f /* from which on the gradient is 0 or 1 */

#define EACH_BLOCK(...) \
    _Pragma("omp parallel for num_threads(threads) schedule(static)") \
    for (int64_t from = 0; from < total; from += BLOCK) EACH_VECTOR(least(BLOCK, total - from), __VA_ARGS__)

#define GELU(name, number, load, store) \
    void name(int64_t total, int64_t threads, const number *x, number *y) { \
        EACH_BLOCK({ \
            FETCH(x + from + c), FETCH_TO_WRITE(y + from + c); \
            const lanes z = load(x + from + c, count); \
            store(y + from + c, z * share(odds_against(z)), count); \
        }) \
    } \
    void name##_backward(int64_t total, int64_t threads, const number *x, const number *grad_y, number *grad_x) { \
        EACH_BLOCK({ \
            FETCH(x + from + c), FETCH(grad_y + from + c), FETCH_TO_WRITE(grad_x + from + c); \
            const lanes z = bounded(load(x + from + c, count), -FLAT, FLAT), odds = odds_against(z), s = share(odds); \
            const lanes slope = TWICE_ROOT * (1.0f + 3.0f * CUBE * z * z); \
            store(grad_x + from + c, load(grad_y + from + c, count) * (s + z * (odds * s * s) * slope), count); \
        }) \
    }

GELU(gelu_tanh, float, load, store)
GELU(gelu_tanh_bf16, uint16_t, load_bf16, store_bf16)
