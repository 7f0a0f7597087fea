/* Tokens on their way to experts and back, and the gate between an expert's two products. Rows without gaps. `places` [tokens,
   choices] holds for each choice of a token its row among the rows sorted by expert. */

#include "lanes.h"

#define EACH_TOKEN \
    _Pragma("omp parallel for num_threads(threads) schedule(static)") \
    for (int64_t t = 0; t < tokens; t++)

/* rows[place] = x[token] */
#define DISPATCH(name, number, load, other, store) \
    void name(int64_t tokens, int64_t choices, int64_t width, int64_t threads, const number *x, const int64_t *places, other *rows) { \
        EACH_TOKEN { \
            const number *from = x + t * width; \
            for (int64_t j = 0; j < choices; j++) { \
                other *to = rows + places[t * choices + j] * width; \
                EACH_VECTOR(width, store(to + c, load(from + c, count), count)) \
            } \
        } \
    }

/* y[token] = sum_j weights[token, j] rows[place]; weights of 1 where there are none. */
#define COMBINE(name, number, load, other, store) \
    void name(int64_t tokens, int64_t choices, int64_t width, int64_t threads, const number *rows, const int64_t *places, const float *weights, \
              other *y) { \
        EACH_TOKEN EACH_VECTOR(width, { \
            lanes sum = all(0); \
            for (int64_t j = 0; j < choices; j++) { \
                const lanes row = load(rows + places[t * choices + j] * width + c, count); \
                sum += weights ? row * weights[t * choices + j] : row; \
            } \
            store(y + t * width + c, sum, count); \
        }) \
    }

/* Its gradient: grad_rows[place] = weight grad[token], grad_weights[token, j] = rows[place] . grad[token]. */
#define COMBINE_BACKWARD(name, number, load, store, other, load_other) \
    void name(int64_t tokens, int64_t choices, int64_t width, int64_t threads, const number *rows, const int64_t *places, const float *weights, \
              const other *grad, number *grad_rows, float *grad_weights) { \
        EACH_TOKEN for (int64_t j = 0; j < choices; j++) { \
            const int64_t place = places[t * choices + j] * width; \
            const float weight = weights[t * choices + j]; \
            lanes sum = all(0); \
            EACH_VECTOR(width, { \
                const lanes g = load_other(grad + t * width + c, count); \
                sum += g * load(rows + place + c, count); \
                store(grad_rows + place + c, g * weight, count); \
            }) \
            grad_weights[t * choices + j] = total(sum); \
        } \
    }

/* y = silu(gate) x of rows [gate, x], and the gradient in the same layout. */
#define PACKED_GATE(name, number, load, store) \
    void name(int64_t tokens, int64_t width, int64_t threads, const number *both, number *y) { \
        EACH_TOKEN { \
            const number *gate = both + 2 * t * width, *x = gate + width; \
            EACH_VECTOR(width, { \
                const lanes z = load(gate + c, count); \
                store(y + t * width + c, load(x + c, count) * z * sigmoid(z), count); \
            }) \
        } \
    } \
    void name##_backward(int64_t tokens, int64_t width, int64_t threads, const number *both, const number *grad, number *grad_both) { \
        EACH_TOKEN { \
            const number *gate = both + 2 * t * width, *x = gate + width; \
            number *grad_gate = grad_both + 2 * t * width, *grad_x = grad_gate + width; \
            EACH_VECTOR(width, { \
                const lanes z = load(gate + c, count), s = sigmoid(z), silu = z * s, g = load(grad + t * width + c, count); \
                store(grad_gate + c, g * load(x + c, count) * (s + silu * (1.0f - s)), count); \
                store(grad_x + c, g * silu, count); \
            }) \
        } \
    }

DISPATCH(dispatch_f_f, float, load, float, store)
DISPATCH(dispatch_f_h, float, load, uint16_t, store_bf16)
DISPATCH(dispatch_h_h, uint16_t, load_bf16, uint16_t, store_bf16)
COMBINE(combine_f_f, float, load, float, store)
COMBINE(combine_h_f, uint16_t, load_bf16, float, store)
COMBINE(combine_h_h, uint16_t, load_bf16, uint16_t, store_bf16)
COMBINE_BACKWARD(combine_backward_f_f, float, load, store, float, load)
COMBINE_BACKWARD(combine_backward_h_f, uint16_t, load_bf16, store_bf16, float, load)
COMBINE_BACKWARD(combine_backward_h_h, uint16_t, load_bf16, store_bf16, uint16_t, load_bf16)
PACKED_GATE(packed_gate_f, float, load, store)
PACKED_GATE(packed_gate_h, uint16_t, load_bf16, store_bf16)
