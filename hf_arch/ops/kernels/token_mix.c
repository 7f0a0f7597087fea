/* y_n = x + (before - x) m_n for each of the streams n and its gradient. x, before, y_n [rows, width], m [streams, width]. */

#include "lanes.h"

#define ROWS 32    /* of one task: a constant, so that sums over rows have one order for any number of threads */
#define STREAMS 8  /* the most that are mixed at once */

typedef struct {
    int64_t rows, width, streams, threads;
    const float *x, *before, *amounts;
} Mix;

/* y [streams, rows, width]. */
void token_mix(const Mix *m, float *y) {
    const int64_t width = m->width, streams = m->streams, size = m->rows * width;
#pragma omp parallel for num_threads(m->threads) schedule(static)
    for (int64_t row = 0; row < m->rows; row++) {
        const float *x = m->x + row * width, *before = m->before + row * width;
        float *to = y + row * width;
        EACH_VECTOR(width, {
            FETCH(x + c), FETCH(before + c);
            const lanes now = load(x + c, count), move = load(before + c, count) - now;
            for (int64_t n = 0; n < streams; n++) {
                FETCH_TO_WRITE(to + n * size + c);
                store(to + n * size + c, now + move * load(m->amounts + n * width + c, count), count);
            }
        })
    }
}

typedef struct {
    const float *grad[STREAMS];
    float *x, *before, *amounts;
} Gradients;

/* grad_amounts [tasks of ROWS rows, streams, width] holds zeros on entry. */
void token_mix_backward(const Mix *m, const Gradients *to) {
    const int64_t width = m->width, streams = m->streams, tasks = (m->rows + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(m->threads) schedule(static)
    for (int64_t task = 0; task < tasks; task++)
        for (int64_t row = task * ROWS; row < least(m->rows, (task + 1) * ROWS); row++) {
            const int64_t at = row * width;
            float *to_amounts = to->amounts + task * streams * width;
            EACH_VECTOR(width, {
                FETCH(m->before + at + c), FETCH(m->x + at + c), FETCH_TO_WRITE(to->x + at + c), FETCH_TO_WRITE(to->before + at + c);
                const lanes move = load(m->before + at + c, count) - load(m->x + at + c, count);
                lanes sum = all(0), moved = all(0);
                for (int64_t n = 0; n < streams; n++) {
                    FETCH(to->grad[n] + at + c);
                    const lanes grad = load(to->grad[n] + at + c, count);
                    float *amount = to_amounts + n * width + c;
                    sum += grad, moved += grad * load(m->amounts + n * width + c, count);
                    store(amount, load(amount, count) + grad * move, count);
                }
                store(to->x + at + c, sum - moved, count), store(to->before + at + c, moved, count);
            })
        }
}
