/* y_n = x + (before - x) m_n for each of the streams n and its gradient. x, before, y_n [rows, width], m [streams, width]. Without
   `before` it is the row before in the same `length` rows, where keep [rows] is not 0 or there is none; zeros elsewhere. */

#include "lanes.h"

#define ROWS 32    /* of one task: a constant, so that sums over rows have one order for any number of threads */
#define STREAMS 8  /* the most that are mixed at once */

typedef struct {
    int64_t rows, width, streams, length, threads;
    const float *x, *before, *amounts, *keep;
} Mix;

static inline int has_row_before(const Mix *m, int64_t row) { return row % m->length && (!m->keep || m->keep[row] != 0.0f); }

/* Or none, for zeros. */
static inline const float *row_before(const Mix *m, int64_t row) {
    if (m->before) return m->before + row * m->width;
    return has_row_before(m, row) ? m->x + (row - 1) * m->width : 0;
}

/* y [streams, rows, width]. */
void token_mix(const Mix *m, float *y) {
    const int64_t width = m->width, streams = m->streams, size = m->rows * width;
#pragma omp parallel for num_threads(m->threads) schedule(static)
    for (int64_t row = 0; row < m->rows; row++) {
        const float *x = m->x + row * width, *before = row_before(m, row);
        float *to = y + row * width;
        EACH_VECTOR(width, {
            FETCH(x + c), FETCH(before + c);
            const lanes now = load(x + c, count), move = (before ? load(before + c, count) : all(0)) - now;
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

static inline void add_to(float *sum, lanes x, int64_t count) { store(sum, load(sum, count) + x, count); }

/* What a row gives to the gradient of the one before. */
static void give_to_row_before(const Mix *m, const Gradients *to, int64_t row) {
    const int64_t width = m->width, at = row * width;
    EACH_VECTOR(width, {
        lanes moved = all(0);
        for (int64_t n = 0; n < m->streams; n++) moved += load(to->grad[n] + at + c, count) * load(m->amounts + n * width + c, count);
        add_to(to->x + at - width + c, moved, count);
    })
}

/* grad_amounts [tasks of ROWS rows, streams, width] holds zeros on entry. Without `before` it has no gradient of its own. */
void token_mix_backward(const Mix *m, const Gradients *to) {
    const int64_t width = m->width, streams = m->streams, tasks = (m->rows + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(m->threads) schedule(static)
    for (int64_t task = 0; task < tasks; task++) {
        const int64_t first = task * ROWS, end = least(m->rows, first + ROWS);
        float *to_amounts = to->amounts + task * streams * width;
        for (int64_t row = first; row < end; row++) {
            const int64_t at = row * width;
            const float *x = m->x + at, *before = row_before(m, row);
            float *to_before = m->before ? to->before + at : row > first && before ? to->x + at - width : 0;
            EACH_VECTOR(width, {
                FETCH(x + c), FETCH(before + c), FETCH_TO_WRITE(to->x + at + c), FETCH_TO_WRITE(to_before + c);
                const lanes move = (before ? load(before + c, count) : all(0)) - load(x + c, count);
                lanes sum = all(0), moved = all(0);
                for (int64_t n = 0; n < streams; n++) {
                    FETCH(to->grad[n] + at + c);
                    const lanes grad = load(to->grad[n] + at + c, count);
                    sum += grad, moved += grad * load(m->amounts + n * width + c, count);
                    add_to(to_amounts + n * width + c, grad * move, count);
                }
                store(to->x + at + c, sum - moved, count);
                if (m->before)
                    store(to_before + c, moved, count);
                else if (to_before)
                    add_to(to_before + c, moved, count);
            })
        }
        if (!m->before && end < m->rows && has_row_before(m, end)) give_to_row_before(m, to, end);
    }
}
