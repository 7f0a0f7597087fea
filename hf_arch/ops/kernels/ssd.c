/* State space duality and its gradient; equations as in hf_arch/ops/native_ssd.py. dt [batch, length, heads], A [heads],
   D [heads, skips] or none, keep [batch, length] or none, y [batch, length, heads, width], states [batch, heads, width, numbers].
   x [batch, length, heads, width], B and C [batch, length, groups, numbers] have strides of rows and of tokens.

   A task is `block` heads of one group. It walks through time by chunks, whose B, C and scores they share. */

#include "ssd_short.h"

typedef struct {
    const Ssd *s;
    const float *initial;
    float *y, *final;
} Forward;

INLINE void output_block(int64_t rows, int64_t count, const float *turned, lanes skip, const float *x, int64_t x_token, float *y, int64_t y_token) {
    lanes block[LANES];
    turned_block(turned, block);
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++)
        if (r < rows) store(y + r * y_token, block[r] + skip * load(x + r * x_token, count), count);
}

static void forward_task(const void *call, int64_t b, int64_t task, float *room) {
    const Forward *f = call;
    const Ssd *s = f->s;
    Chunk k;
    Decays d;
    float *states = task_of(s, b, task, room, &k), *weights = states + s->block * k.size;
    float *turned = weights + CHUNK * CHUNK, *inflow = turned + k.width * CHUNK;
    for (int64_t at = 0; at < k.heads; at++) take(&k, f->initial, k.first + at, states + at * k.size);
    for (int64_t start = 0; start < s->length; start += CHUNK) {
        const int carried = start || f->initial;
        enter(&k, start);
        score(&k, &k.B, &k.C);
        for (int64_t at = 0; at < k.heads; at++) {
            const int64_t head = k.first + at;
            const float *x = x_at(&k, head);
            float *S = states + at * k.size, *y = f->y + y_at(&k, head);
            decays_of(&k, head, &d);
            weights_turned(&d, k.rows, k.scores, weights);
            if (carried) product(&(Product){S, k.numbers, 1, k.turned, CHUNK, s->width, CHUNK, s->numbers, .to = turned, .width = CHUNK});
            for (int64_t j = 0; j < k.rows; j += LANES)
                product(&(Product){x + j * s->x_token, 1, s->x_token, weights + j * CHUNK + j, CHUNK, s->width, padded(k.rows) - j, least(LANES, k.rows - j),
                                   j ? k.ones : carried ? d.prefix : 0, turned + j, turned + j, CHUNK});
#define OUTPUT(rows, count) output_block(rows, count, turned + c * CHUNK + i, skip_of(s, head, c), x + i * s->x_token + c, s->x_token, y + i * k.y_token + c, k.y_token);
            EACH_BLOCK(&k, OUTPUT)
            if (start + CHUNK >= s->length && !f->final) continue;
            scaled(&k, x, s->x_token, d.dt, d.suffix, inflow);
            advance(&k, inflow, d.total, &k.B, S, S);
        }
    }
    for (int64_t at = 0; at < (f->final ? k.heads : 0); at++) give(&k, states + at * k.size, k.first + at, f->final);
}

/* y, and the final state where `final` is one; an initial one of none is zeros. Returns 0, or 1 where there was no memory. */
int ssd(const Ssd *s, const float *initial, float *y, float *final) {
    const Forward f = {s, initial, y, final};
    const int64_t size = task_room(s) + s->block * s->width * padded(s->numbers) + CHUNK * (CHUNK + 2 * padded(s->width));
    return each_head(s->batch, s->groups * blocks_of(s), s->threads, size, forward_task, &f);
}

typedef struct {
    const Ssd *s;
    const float *initial;
    const Gradients *to;
} Backward;

/* What the backward pass of a task keeps: states before every chunk, the gradient of the state after one, of a chunk those of B, C
   and the scores, and for every chunk and head what the outputs read of the state before it. */
typedef struct {
    Chunk k;
    const Backward *call;
    float *states, *R, *grad_B, *grad_C, *own, *grad_scores, *between, *weights, *products, *turned_x, *turned, *inflow, *read, *reads;
    int has_R;
} Room;

static int64_t backward_room(const Ssd *s) {
    const int64_t numbers = padded(s->numbers), width = padded(s->width), chunks = chunks_of(s);
    return task_room(s) + (chunks + 1) * s->block * s->width * numbers + CHUNK * (3 * numbers + 4 * CHUNK + 4 * width + chunks * s->block);
}

static void backward_of(const Backward *w, int64_t b, int64_t task, float *room, Room *r) {
    const Ssd *s = w->s;
    float *at = task_of(s, b, task, room, &r->k);
    const Chunk *k = &r->k;
    const int64_t states = chunks_of(s) * s->block * k->size, row = CHUNK * k->numbers, square = CHUNK * CHUNK, column = CHUNK * k->width;
    r->call = w, r->has_R = w->to->final != 0;
    r->states = at, r->R = at += states, r->grad_B = at += s->block * k->size, r->grad_C = at += row, r->own = at += row;
    r->grad_scores = at += row, r->between = at += square, r->weights = at += square, r->products = at += square;
    r->turned_x = at += square, r->turned = at += column, r->inflow = at += column, r->read = at += column, r->reads = at + column;
}

/* The sums of CHUNK vectors. */
static void sums_of(const lanes *from, float *to) {
    for (int64_t i = 0; i < CHUNK; i += LANES) store_all(to + i, totals((const float *)(from + i)));
}

static float dot(const float *x, const float *y, int64_t count) {
    lanes sums[4] = {all(0), all(0), all(0), all(0)};
    int64_t c = 0;
    for (; c + 4 * LANES <= count; c += 4 * LANES)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) sums[i] += load_all(x + c + i * LANES) * load_all(y + c + i * LANES);
    for (; c < count; c += LANES) sums[0] += load_all(x + c) * load_all(y + c);
    return total((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

/* Forwards: the states, and of the carried ones dL/dC and what the outputs read of them. */
static void backward_states(Room *r) {
    Chunk *k = &r->k;
    const Ssd *s = k->s;
    const Gradients *to = r->call->to;
    Decays d;
    for (int64_t at = 0; at < k->heads; at++) take(k, r->call->initial, k->first + at, r->states + at * k->size);
    for (int64_t start = 0, n = 0; start < s->length; start += CHUNK, n++) {
        const int carried = start || r->call->initial;
        enter(k, start);
        if (!carried) memset(r->grad_C, 0, CHUNK * k->numbers * sizeof(float));
        for (int64_t at = 0; at < k->heads; at++) {
            const int64_t head = k->first + at, place = n * s->block + at;
            const float *S = r->states + place * k->size;
            decays_of(k, head, &d);
            memset(r->reads + place * CHUNK, 0, CHUNK * sizeof(float));
            if (carried) {
                lanes read[CHUNK];
                memset(read, 0, sizeof(read));
                scaled(k, to->y + y_at(k, head), k->y_token, d.prefix, k->ones, r->read);
                product(&(Product){r->read, k->width, 1, S, k->numbers, k->rows, k->numbers, s->width, .to = r->own, .width = k->numbers});
                for (int64_t i = 0; i < k->rows; i++)
                    for (int64_t c = 0; c < k->numbers; c += LANES) {
                        float *sum = r->grad_C + i * k->numbers + c;
                        const lanes own = load_all(r->own + i * k->numbers + c);
                        read[i] += own * load_all(k->C.at + i * k->C.stride + c);
                        store_all(sum, at ? load_all(sum) + own : own);
                    }
                sums_of(read, r->reads + place * CHUNK);
            }
            if (start + CHUNK >= s->length) continue;
            scaled(k, x_at(k, head), s->x_token, d.dt, d.suffix, r->inflow);
            advance(k, r->inflow, d.total, &k->B, S, r->states + (place + s->block) * k->size);
        }
        given(r->grad_C, k->rows, s->numbers, k->numbers, to->C + k->b * to->C_row + start * to->C_token + k->task * s->numbers, to->C_token);
    }
}

/* Within the chunk: weights that carry dL/dy to the inflow, dL/dscores, and across[t], what steps i >= t read of steps j < t. */
static void backward_scores(Room *r, int64_t head, const Decays *d, const float *grad_y, lanes *across) {
    Chunk *k = &r->k;
    decays_between(d, k->rows, r->between);
    transposed(x_at(k, head), k->s->x_token, k->rows, k->s->width, r->turned_x, CHUNK);
    for (int64_t i = 0; i < k->rows; i += LANES)
        product(&(Product){grad_y + i * k->y_token, k->y_token, 1, r->turned_x, CHUNK, least(LANES, k->rows - i), i + LANES, k->s->width,
                           .to = r->products + i * CHUNK, .width = CHUNK});
    for (int64_t c = 0; c < k->rows; c += LANES) {
        const integers at = places(c);
        const lanes dt = load_all(d->dt + c);
        lanes later = all(0);
        for (int64_t i = k->rows - 1; i >= c; i--) {
            const int64_t place = i * CHUNK + c;
            const lanes between = load_all(r->between + place), score = load_all(k->scores + place);
            const lanes grad = load_all(r->products + place) * between * dt;
            store_all(r->weights + place, between * score);
            store_all(r->grad_scores + place, load_all(r->grad_scores + place) + grad);
            later += grad * score;
            across[i] += where(at < (int32_t)i, later, all(0));
        }
    }
}

INLINE void inflow_block(int64_t rows, int64_t count, const float *turned, lanes skip, const float *dt, const float *x, int64_t x_token,
                         const float *grad_y, int64_t y_token, float *to, int64_t to_token, lanes *written, lanes *to_D) {
    lanes block[LANES];
    turned_block(turned, block);
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++)
        if (r < rows) {
            const lanes value = load(x + r * x_token, count), grad = load(grad_y + r * y_token, count);
            if (count < LANES) block[r] = load((const float *)(block + r), count);
            written[r] += value * block[r];
            *to_D += grad * value;
            store(to + r * to_token, dt[r] * block[r] + skip * grad, count);
        }
}

/* dL/dx, dL/dD, for every step x . dL/d(dt x), and u . of the part of that which the state after the chunk carries. */
static void backward_inflow(Room *r, int64_t head, const float *R, const Decays *d, const float *grad_y, lanes *written, float *carried) {
    Chunk *k = &r->k;
    const Ssd *s = k->s;
    const Gradients *g = r->call->to;
    const float *x = x_at(k, head);
    float *to = g->x + k->b * g->x_row + k->start * g->x_token + head * s->width;
    if (r->has_R) product(&(Product){R, k->numbers, 1, k->turned, CHUNK, s->width, CHUNK, s->numbers, .to = r->turned, .width = CHUNK});
    for (int64_t c = 0; c < CHUNK; c += LANES) {
        lanes sum = all(0);
        for (int64_t i = 0; i < (r->has_R ? s->width : 0); i++) sum += load_all(r->turned_x + i * CHUNK + c) * load_all(r->turned + i * CHUNK + c);
        store_all(carried + c, sum * load_all(d->suffix + c) * load_all(d->dt + c));
    }
    const int64_t end = (k->rows - 1) / LANES * LANES;
    for (int64_t i = end; i >= 0; i -= LANES)
        product(&(Product){grad_y + i * k->y_token, 1, k->y_token, r->weights + i * CHUNK, CHUNK, s->width, i + LANES, least(LANES, k->rows - i),
                           i < end ? k->ones : r->has_R ? d->suffix : 0, r->turned, r->turned, CHUNK});
    float *to_D = g->D ? g->D + (k->b * s->heads + head) * s->width : 0;
#define INFLOW(rows, count) { \
        lanes sum = to_D ? load(to_D + c, count) : all(0); \
        inflow_block(rows, count, r->turned + c * CHUNK + i, skip_of(s, head, c), d->dt + i, x + i * s->x_token + c, s->x_token, \
                     grad_y + i * k->y_token + c, k->y_token, to + i * g->x_token + c, g->x_token, written + i, &sum); \
        if (to_D) store(to_D + c, sum, count); \
    }
    EACH_BLOCK(k, INFLOW)
}

/* dL/d(dt A)_t is what steps from t on read of those before, within the chunk, of the state before it, and by the state after it.
   Each of these sums has the decay of t in all of its terms: where that is next to nothing, so is the gradient. */
static void backward_decays(Room *r, int64_t head, const Decays *d, const float *reads, const lanes *across, const lanes *written,
                            const float *carried, float passed) {
    const Chunk *k = &r->k;
    const Ssd *s = k->s;
    float within[CHUNK], inflow[CHUNK], after[CHUNK], to_A = 0, later = 0;
    sums_of(across, within), sums_of(written, inflow);
    for (int64_t i = 0; i < k->rows; i++) after[i] = passed, passed += carried[i];
    for (int64_t i = k->rows - 1; i >= 0; i--) {
        later += reads[i];
        const float grad = within[i] + later + after[i];
        r->call->to->dt[(k->b * s->length + k->start + i) * s->heads + head] = s->A[head] * grad + inflow[i];
        to_A += grad * d->dt[i];
    }
    r->call->to->A[k->b * s->heads + head] += to_A;
}

/* Backwards: R, the gradient of the state after a chunk, and all that needs it. */
static void backward_task(const void *call, int64_t b, int64_t task, float *room) {
    Room r;
    Decays d;
    backward_of(call, b, task, room, &r);
    Chunk *k = &r.k;
    const Ssd *s = k->s;
    const Gradients *to = r.call->to;
    const int64_t numbers = k->numbers;
    backward_states(&r);
    for (int64_t at = 0; at < k->heads; at++) {
        take(k, to->final, k->first + at, r.R + at * k->size);
        to->A[b * s->heads + k->first + at] = 0;
    }
    for (int64_t n = chunks_of(s) - 1; n >= 0; n--) {
        enter(k, n * CHUNK);
        score(k, &k->C, &k->B);
        memset(r.grad_scores, 0, CHUNK * CHUNK * sizeof(float));
        for (int64_t at = 0; at < k->heads; at++) {
            const int64_t head = k->first + at, place = n * s->block + at;
            const float *grad_y = to->y + y_at(k, head);
            float *R = r.R + at * k->size, carried[CHUNK], passed = 0;
            lanes across[CHUNK], written[CHUNK];
            memset(across, 0, sizeof(across)), memset(written, 0, sizeof(written));
            decays_of(k, head, &d);
            backward_scores(&r, head, &d, grad_y, across);
            backward_inflow(&r, head, R, &d, grad_y, written, carried);
            if (r.has_R) {
                scaled(k, x_at(k, head), s->x_token, d.dt, d.suffix, r.inflow);
                product(&(Product){r.inflow, k->width, 1, R, numbers, k->rows, numbers, s->width, at ? k->ones : 0, r.grad_B, r.grad_B, numbers});
                passed = d.total * dot(r.states + place * k->size, R, k->size);
            }
            backward_decays(&r, head, &d, r.reads + place * CHUNK, across, written, carried, passed);
            if (!n && !to->initial) continue;
            scaled(k, grad_y, k->y_token, d.prefix, k->ones, r.read);
            advance(k, r.read, d.total, &k->C, R, R);
        }
        float *to_B = to->B + b * to->B_row + k->start * to->B_token + task * s->numbers, *to_C = to->C + b * to->C_row + k->start * to->C_token + task * s->numbers;
        product(&(Product){r.grad_scores, 1, CHUNK, k->C.at, k->C.stride, k->rows, numbers, k->rows, r.has_R ? k->ones : 0, r.grad_B, r.grad_B, numbers});
        given(r.grad_B, k->rows, s->numbers, numbers, to_B, to->B_token);
        copied(to_C, to->C_token, k->rows, s->numbers, r.grad_C, numbers);
        product(&(Product){r.grad_scores, CHUNK, 1, k->B.at, k->B.stride, k->rows, numbers, k->rows, k->ones, r.grad_C, r.grad_C, numbers});
        given(r.grad_C, k->rows, s->numbers, numbers, to_C, to->C_token);
        r.has_R = 1;
    }
    for (int64_t at = 0; at < (to->initial ? k->heads : 0); at++) give(k, r.R + at * k->size, k->first + at, to->initial);
}

/* Returns 0, or 1 where there was no memory. */
int ssd_backward(const Ssd *s, const float *initial, const Gradients *to) {
    const Backward w = {s, initial, to};
    return each_head(s->batch, s->groups * blocks_of(s), s->threads, backward_room(s), backward_task, &w);
}
