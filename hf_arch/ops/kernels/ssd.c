/* State space duality and its gradient; equations as in hf_arch/ops/native_ssd.py. dt [batch, length, heads], A [heads],
   D [heads, skips] or none, keep [batch, length] or none, y [batch, length, heads, width], states [batch, heads, width, numbers].
   x [batch, length, heads, width], B and C [batch, length, groups, numbers] have strides of rows and of tokens.

   A task is a block of heads of one group. It walks through time by chunks, whose B and C they share. */

#include "heads.h"
#include "products.h"

#define CHUNK 32
#define HEADS 4        /* of a task; hf_arch/ops/native_ssd.py has the same */
#define TINY 1e-30f    /* less is 0: products with numbers too small to be normal take a hundred times as long */

typedef struct {
    int64_t batch, length, heads, groups, width, numbers, skips, threads, x_row, x_token, B_row, B_token, C_row, C_token;
    const float *x, *B, *C, *dt, *A, *D, *keep;
} Ssd;

static inline int64_t padded(int64_t count) { return (count + LANES - 1) / LANES * LANES; }
static inline int64_t blocks_of(const Ssd *s) { return (s->heads / s->groups + HEADS - 1) / HEADS; }

/* A chunk of a task. */
typedef struct {
    const Ssd *s;
    int64_t b, block, group, first, heads, numbers, width; /* numbers and width are padded */
    int64_t start, rows;
    float *ones, *totals, *B, *C, *turned, *scores;
} Chunk;

static int64_t most(int64_t x, int64_t other) { return x > other ? x : other; }

/* Sets up a task; returns what is left of the room. */
static float *task_of(const Ssd *s, int64_t b, int64_t block, float *room, Chunk *to) {
    const int64_t blocks = blocks_of(s), group = block / blocks, ratio = s->heads / s->groups, at = block % blocks * HEADS;
    const int64_t numbers = padded(s->numbers), longest = most(numbers, CHUNK);
    float *B = room + 2 * longest, *C = B + CHUNK * numbers, *turned = C + CHUNK * numbers, *scores = turned + CHUNK * numbers;
    *to = (Chunk){s, b, block, group, group * ratio + at, least(HEADS, ratio - at), numbers, padded(s->width), 0, 0, room, room + longest, B, C, turned, scores};
    for (int64_t c = 0; c < longest; c++) room[c] = 1;
    return scores + CHUNK * CHUNK;
}

static int64_t task_room(const Ssd *s) {
    const int64_t numbers = padded(s->numbers);
    return 2 * most(numbers, CHUNK) + 3 * CHUNK * numbers + CHUNK * CHUNK;
}

static const float *x_at(const Chunk *k, int64_t head) { return k->s->x + k->b * k->s->x_row + k->start * k->s->x_token + head * k->s->width; }
static int64_t row_at(const Chunk *k, int64_t head) { return ((k->b * k->s->length + k->start) * k->s->heads + head) * k->s->width; }

static void copied(const float *from, int64_t stride, int64_t rows, int64_t count, float *to, int64_t width) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < width; c += LANES) store_all(to + i * width + c, load(from + i * stride + c, count - c));
}

/* B, C of the chunk from `start`; one of them turned, and its scores with the other's rows: rows of B and columns of C,
   or the other way round. */
static void enter(Chunk *k, int64_t start, int turn_C, int scored) {
    const Ssd *s = k->s;
    const float *B = s->B + k->b * s->B_row + start * s->B_token + k->group * s->numbers;
    const float *C = s->C + k->b * s->C_row + start * s->C_token + k->group * s->numbers;
    k->start = start, k->rows = least(CHUNK, s->length - start);
    copied(B, s->B_token, k->rows, s->numbers, k->B, k->numbers);
    copied(C, s->C_token, k->rows, s->numbers, k->C, k->numbers);
    if (!scored) return;
    transposed(turn_C ? C : B, turn_C ? s->C_token : s->B_token, k->rows, s->numbers, k->turned, CHUNK);
    product(&(Product){turn_C ? k->B : k->C, k->numbers, 1, k->turned, k->rows, CHUNK, s->numbers, CHUNK, .to = k->scores});
}

typedef struct {
    float dt[CHUNK], decay[CHUNK], prefix[CHUNK], suffix[CHUNK], total;
} Decays;

static inline float flushed(float x) { return x < TINY ? 0 : x; }

static void decays_of(const Chunk *k, int64_t head, Decays *d) {
    const Ssd *s = k->s;
    const int64_t at = k->b * s->length + k->start;
    for (int64_t i = 0; i < CHUNK; i++) d->dt[i] = i < k->rows ? s->dt[(at + i) * s->heads + head] : 0;
    for (int64_t i = 0; i < CHUNK; i += LANES) store_all(d->decay + i, exponential(load_all(d->dt + i) * s->A[head]));
    if (s->keep)
        for (int64_t i = 0; i < k->rows; i++) d->decay[i] *= s->keep[at + i];
    float before = 1, after = 1;
    for (int64_t i = 0; i < CHUNK; i++) d->prefix[i] = before = flushed(before * d->decay[i]);
    for (int64_t i = CHUNK - 1; i >= 0; i--) {
        d->suffix[i] = after;
        after = flushed(after * d->decay[i]);
    }
    d->total = d->prefix[CHUNK - 1];
}

INLINE integers places(int64_t from) {
    integers at;
    for (int i = 0; i < LANES; i++) at[i] = from + i;
    return at;
}

/* to[i, j] = decay_{j+1} ... decay_i for j <= i, else 0. */
static void decays_between(const float *decay, int64_t rows, float *to) {
    for (int64_t c = 0; c < CHUNK; c += LANES) {
        lanes row = all(0);
        const integers at = places(c);
        for (int64_t i = 0; i < rows; i++) {
            row = row * decay[i];
            row = where(row < all(TINY), all(0), row);
            row = where(at == (int32_t)i, all(1), row);
            store_all(to + i * CHUNK + c, row);
        }
    }
}

/* to[j, i] = dt_j scores[j, i] decay_{j+1} ... decay_i. */
static void weights_turned(const Decays *d, int64_t rows, const float *scores, float *to) {
    for (int64_t c = 0; c < CHUNK; c += LANES) {
        lanes row = all(0);
        const integers at = places(c);
        for (int64_t j = rows - 1; j >= 0; j--) {
            row = j + 1 < rows ? row * d->decay[j + 1] : row;
            row = where(row < all(TINY), all(0), row);
            row = where(at == (int32_t)j, all(1), row);
            store_all(to + j * CHUNK + c, load_all(scores + j * CHUNK + c) * row * d->dt[j]);
        }
    }
}

/* to[i] = by_i with_i from[i]: rows of `width` numbers. */
static void scaled(const Chunk *k, const float *from, int64_t stride, const float *by, const float *with, float *to) {
    for (int64_t i = 0; i < k->rows; i++) {
        const float factor = with ? by[i] * with[i] : by[i];
        for (int64_t c = 0; c < k->width; c += LANES) store_all(to + i * k->width + c, factor * load(from + i * stride + c, k->s->width - c));
    }
}

static inline lanes skip_of(const Ssd *s, int64_t head, int64_t c) {
    if (!s->D) return all(0);
    return s->skips == 1 ? all(s->D[head]) : load(s->D + head * s->width + c, s->width - c);
}

static void take(const Chunk *k, const float *state, int64_t head, float *S) {
    const int64_t size = k->s->width * k->numbers;
    if (state)
        copied(state + (k->b * k->s->heads + head) * k->s->width * k->s->numbers, k->s->numbers, k->s->width, k->s->numbers, S, k->numbers);
    else
        memset(S, 0, size * sizeof(float));
}

static void give(const Chunk *k, const float *S, int64_t head, float *state) {
    state += (k->b * k->s->heads + head) * k->s->width * k->s->numbers;
    for (int64_t i = 0; i < k->s->width; i++)
        for (int64_t c = 0; c < k->s->numbers; c += LANES) store(state + i * k->s->numbers + c, load_all(S + i * k->numbers + c), k->s->numbers - c);
}

/* to = total from + (by with rows)^T right: a state after a chunk, or its gradient before one. */
static void advance(Chunk *k, const float *rows, float total, const float *right, const float *from, float *to) {
    for (int64_t c = 0; c < k->numbers; c++) k->totals[c] = total;
    product(&(Product){rows, 1, k->width, right, k->s->width, k->numbers, k->rows, k->numbers, k->totals, from, to});
}

typedef struct {
    const Ssd *s;
    const float *initial;
    float *y, *final;
} Forward;

static void forward_task(const void *call, int64_t b, int64_t block, float *room) {
    const Forward *f = call;
    const Ssd *s = f->s;
    Chunk k;
    Decays d;
    float *states = task_of(s, b, block, room, &k), *weights = states + HEADS * s->width * k.numbers;
    float *turned = weights + CHUNK * CHUNK, *rows = turned + k.width * CHUNK;
    for (int64_t at = 0; at < k.heads; at++) take(&k, f->initial, k.first + at, states + at * s->width * k.numbers);
    for (int64_t start = 0; start < s->length; start += CHUNK) {
        enter(&k, start, 1, 1);
        for (int64_t at = 0; at < k.heads; at++) {
            const int64_t head = k.first + at;
            const float *x = x_at(&k, head);
            float *S = states + at * s->width * k.numbers, *y = f->y + row_at(&k, head);
            decays_of(&k, head, &d);
            weights_turned(&d, k.rows, k.scores, weights);
            const int carried = start || f->initial;
            if (carried) product(&(Product){S, k.numbers, 1, k.turned, s->width, CHUNK, s->numbers, CHUNK, .to = turned});
            for (int64_t j = 0; j < k.rows; j += LANES)
                product(&(Product){x + j * s->x_token, 1, s->x_token, weights + j * CHUNK + j, s->width, CHUNK - j, least(LANES, k.rows - j), CHUNK,
                                   j ? k.ones : carried ? d.prefix : 0, turned + j, turned + j});
            for (int64_t c = 0; c < s->width; c += LANES) {
                const lanes skip = skip_of(s, head, c);
                for (int64_t i = 0; i < k.rows; i += LANES) {
                    lanes block[LANES];
#pragma GCC unroll 16
                    for (int r = 0; r < LANES; r++) block[r] = load_all(turned + (c + r) * CHUNK + i);
                    transpose(block);
                    for (int r = 0; r < least(LANES, k.rows - i); r++)
                        store(y + (i + r) * s->heads * s->width + c, block[r] + skip * load(x + (i + r) * s->x_token + c, s->width - c), s->width - c);
                }
            }
            if (start + CHUNK >= s->length && !f->final) continue;
            scaled(&k, x, s->x_token, d.dt, d.suffix, rows);
            advance(&k, rows, d.total, k.B, S, S);
        }
    }
    if (f->final)
        for (int64_t at = 0; at < k.heads; at++) give(&k, states + at * s->width * k.numbers, k.first + at, f->final);
}

/* y, and the final state where `final` is one; an initial one of none is zeros. Returns 0, or 1 where there was no memory. */
int ssd(const Ssd *s, const float *initial, float *y, float *final) {
    const Forward f = {s, initial, y, final};
    const int64_t size = task_room(s) + HEADS * s->width * padded(s->numbers) + CHUNK * CHUNK + 2 * padded(s->width) * CHUNK;
    return each_head(s->batch, s->groups * blocks_of(s), s->threads, size, forward_task, &f);
}

/* `final` of dL/dS at the end and `initial` of that at the start, or none; B and C [batch, length, groups blocks, numbers] with a sum for
   each task, A [batch, heads] and D [batch, heads, width], which holds zeros on entry, or none. */
typedef struct {
    const float *y, *final;
    float *initial, *x, *dt, *A, *B, *C, *D;
} Gradients;

typedef struct {
    const Ssd *s;
    const float *initial;
    const Gradients *to;
} Backward;

/* What the backward pass of a task keeps: states before every chunk, the gradient of the state after one, and of a
   chunk those of B, C and the scores. */
typedef struct {
    Chunk k;
    const Backward *call;
    float *states, *R, *grad_B, *grad_C, *own, *grad_scores, *between, *weights, *products, *turned_x, *turned, *rows, *read, *reads;
    int64_t size;
    int has_R;
} Room;

static int64_t chunks_of(const Ssd *s) { return (s->length + CHUNK - 1) / CHUNK; }

static int64_t backward_room(const Ssd *s) {
    const int64_t numbers = padded(s->numbers), width = padded(s->width);
    return task_room(s) + (chunks_of(s) + 1) * HEADS * s->width * numbers + CHUNK * (3 * numbers + 4 * CHUNK + 4 * width + chunks_of(s) * HEADS);
}

static void backward_of(const Backward *w, int64_t b, int64_t block, float *room, Room *r) {
    const Ssd *s = w->s;
    float *at = task_of(s, b, block, room, &r->k);
    r->call = w, r->size = s->width * r->k.numbers, r->has_R = w->to->final != 0;
    float **rooms[] = {&r->states, &r->R, &r->grad_B, &r->grad_C, &r->own, &r->grad_scores, &r->between, &r->weights, &r->products, &r->turned_x, &r->turned, &r->rows, &r->read, &r->reads};
    const int64_t row = CHUNK * r->k.numbers, square = CHUNK * CHUNK, column = CHUNK * r->k.width;
    const int64_t sizes[] = {chunks_of(s) * HEADS * r->size, HEADS * r->size, row, row, row, square, square, square, square, column, column, column, column, 0};
    for (int i = 0; i < 14; i++) *rooms[i] = at, at += sizes[i];
}

/* The sums of CHUNK vectors. */
static void sums_of(const lanes *from, float *to) {
    for (int64_t i = 0; i < CHUNK; i += LANES) store_all(to + i, totals((const float *)(from + i)));
}

/* Forwards: the states, and of the carried ones dL/dC and what the outputs read of them. */
static void backward_states(Room *r) {
    Chunk *k = &r->k;
    const Ssd *s = k->s;
    const Gradients *to = r->call->to;
    const int64_t tasks = s->groups * blocks_of(s);
    Decays d;
    lanes read[CHUNK];
    for (int64_t at = 0; at < k->heads; at++) take(k, r->call->initial, k->first + at, r->states + at * r->size);
    for (int64_t start = 0, n = 0; start < s->length; start += CHUNK, n++) {
        const int carried = start || r->call->initial;
        enter(k, start, 0, 0);
        memset(r->grad_C, 0, CHUNK * k->numbers * sizeof(float));
        for (int64_t at = 0; at < k->heads; at++) {
            const int64_t head = k->first + at;
            const float *S = r->states + (n * HEADS + at) * r->size;
            float *reads = r->reads + (n * HEADS + at) * CHUNK;
            decays_of(k, head, &d);
            memset(read, 0, sizeof(read));
            if (carried) {
                scaled(k, to->y + row_at(k, head), s->heads * s->width, d.prefix, 0, r->rows);
                product(&(Product){r->rows, k->width, 1, S, k->rows, k->numbers, s->width, k->numbers, .to = r->own});
                for (int64_t i = 0; i < k->rows; i++)
                    for (int64_t c = 0; c < k->numbers; c += LANES) {
                        const int64_t place = i * k->numbers + c;
                        const lanes own = load_all(r->own + place);
                        read[i] += own * load_all(k->C + place);
                        store_all(r->grad_C + place, load_all(r->grad_C + place) + own);
                    }
            }
            sums_of(read, reads);
            if (start + CHUNK >= s->length) continue;
            scaled(k, x_at(k, head), s->x_token, d.dt, d.suffix, r->rows);
            advance(k, r->rows, d.total, k->B, S, r->states + ((n + 1) * HEADS + at) * r->size);
        }
        for (int64_t i = 0; i < k->rows; i++) {
            float *row = to->C + ((k->b * s->length + start + i) * tasks + k->block) * s->numbers;
            for (int64_t c = 0; c < s->numbers; c += LANES) store(row + c, load_all(r->grad_C + i * k->numbers + c), s->numbers - c);
        }
    }
}

/* Within the chunk: weights that carry dL/dy to the inflow, dL/dscores, and across[t], what steps i >= t read of steps j < t. */
static void backward_scores(Room *r, int64_t head, const Decays *d, const float *grad_y, lanes *across) {
    Chunk *k = &r->k;
    const Ssd *s = k->s;
    decays_between(d->decay, k->rows, r->between);
    transposed(x_at(k, head), s->x_token, k->rows, s->width, r->turned_x, CHUNK);
    for (int64_t i = 0; i < k->rows; i += LANES)
        product(&(Product){grad_y + i * s->heads * s->width, s->heads * s->width, 1, r->turned_x, least(LANES, k->rows - i), i + LANES, s->width, CHUNK,
                           .to = r->products + i * CHUNK});
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

/* dL/dx, dL/dD, for every step x . dL/d(dt x), and the part of it that the state after the chunk carries. */
static void backward_inflow(Room *r, int64_t head, int64_t at, const Decays *d, const float *grad_y, lanes *written, float *carried) {
    Chunk *k = &r->k;
    const Ssd *s = k->s;
    const int64_t stride = s->heads * s->width;
    const float *x = x_at(k, head);
    float *to = r->call->to->x + row_at(k, head), *to_D = r->call->to->D ? r->call->to->D + (k->b * s->heads + head) * s->width : 0;
    if (r->has_R) product(&(Product){r->R + at * r->size, k->numbers, 1, k->turned, s->width, CHUNK, s->numbers, CHUNK, .to = r->turned});
    for (int64_t c = 0; c < CHUNK; c += LANES) {
        lanes sum = all(0);
        for (int64_t i = 0; i < (r->has_R ? s->width : 0); i++) sum += load_all(r->turned_x + i * CHUNK + c) * load_all(r->turned + i * CHUNK + c);
        store_all(carried + c, sum * load_all(d->suffix + c) * load_all(d->dt + c));
    }
    const int64_t end = (k->rows - 1) / LANES * LANES;
    for (int64_t i = end; i >= 0; i -= LANES)
        product(&(Product){grad_y + i * stride, 1, stride, r->weights + i * CHUNK, s->width, i + LANES, least(LANES, k->rows - i), CHUNK,
                           i < end ? k->ones : r->has_R ? d->suffix : 0, r->turned, r->turned});
    for (int64_t c = 0; c < s->width; c += LANES) {
        const lanes skip = skip_of(s, head, c);
        const int64_t count = s->width - c;
        lanes sum = all(0);
        for (int64_t i = 0; i < k->rows; i += LANES) {
            lanes block[LANES];
#pragma GCC unroll 16
            for (int j = 0; j < LANES; j++) block[j] = load_all(r->turned + (c + j) * CHUNK + i);
            transpose(block);
            for (int j = 0; j < least(LANES, k->rows - i); j++) {
                const lanes value = load(x + (i + j) * s->x_token + c, count), grad = load(grad_y + (i + j) * stride + c, count);
                const lanes inflow = count < LANES ? load((const float *)(block + j), count) : block[j];
                written[i + j] += value * inflow;
                sum += grad * value;
                store(to + (i + j) * stride + c, d->dt[i + j] * inflow + skip * grad, count);
            }
        }
        if (to_D) store(to_D + c, load(to_D + c, count) + sum, count);
    }
}

/* dL/d(dt A)_t is what steps after t read of those before, within the chunk, of the state before it, and by the state after it.
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
        const int64_t at = (k->b * s->length + k->start + i) * s->heads + head;
        const float grad = within[i] + later + after[i];
        r->call->to->dt[at] = s->A[head] * grad + inflow[i];
        to_A += grad * d->dt[i];
    }
    r->call->to->A[k->b * s->heads + head] += to_A;
}

/* Backwards: R, the gradient of the state after a chunk, and all that needs it. */
static void backward_task(const void *call, int64_t b, int64_t block, float *room) {
    Room r;
    Decays d;
    backward_of(call, b, block, room, &r);
    Chunk *k = &r.k;
    const Ssd *s = k->s;
    const Gradients *to = r.call->to;
    const int64_t tasks = s->groups * blocks_of(s), numbers = k->numbers;
    backward_states(&r);
    for (int64_t at = 0; at < k->heads; at++) {
        take(k, to->final, k->first + at, r.R + at * r.size);
        to->A[b * s->heads + k->first + at] = 0;
    }
    for (int64_t n = chunks_of(s) - 1; n >= 0; n--) {
        enter(k, n * CHUNK, 0, 1);
        memset(r.grad_B, 0, CHUNK * numbers * sizeof(float)), memset(r.grad_scores, 0, CHUNK * CHUNK * sizeof(float));
        for (int64_t at = 0; at < k->heads; at++) {
            const int64_t head = k->first + at;
            const float *grad_y = to->y + row_at(k, head), *S = r.states + (n * HEADS + at) * r.size;
            float *R = r.R + at * r.size, carried[CHUNK];
            lanes across[CHUNK], written[CHUNK], passed = all(0);
            memset(across, 0, sizeof(across)), memset(written, 0, sizeof(written));
            decays_of(k, head, &d);
            backward_scores(&r, head, &d, grad_y, across);
            backward_inflow(&r, head, at, &d, grad_y, written, carried);
            if (r.has_R) {
                scaled(k, x_at(k, head), s->x_token, d.dt, d.suffix, r.rows);
                product(&(Product){r.rows, k->width, 1, R, k->rows, numbers, s->width, numbers, k->ones, r.grad_B, r.grad_B});
                for (int64_t c = 0; c < r.size; c += LANES) passed += load_all(S + c) * load_all(R + c);
            }
            backward_decays(&r, head, &d, r.reads + (n * HEADS + at) * CHUNK, across, written, carried, d.total * total(passed));
            if (n || to->initial) {
                scaled(k, grad_y, s->heads * s->width, d.prefix, 0, r.rows);
                advance(k, r.rows, d.total, k->C, R, R);
            }
        }
        r.has_R = 1;
        const int64_t first = ((b * s->length + n * CHUNK) * tasks + k->block) * s->numbers;
        product(&(Product){r.grad_scores, 1, CHUNK, k->C, k->rows, numbers, k->rows, numbers, k->ones, r.grad_B, r.grad_B});
        copied(to->C + first, tasks * s->numbers, k->rows, s->numbers, r.grad_C, numbers);
        product(&(Product){r.grad_scores, CHUNK, 1, k->B, k->rows, numbers, k->rows, numbers, k->ones, r.grad_C, r.grad_C});
        for (int64_t i = 0; i < k->rows; i++)
            for (int64_t c = 0; c < s->numbers; c += LANES) {
                store(to->B + first + i * tasks * s->numbers + c, load_all(r.grad_B + i * numbers + c), s->numbers - c);
                store(to->C + first + i * tasks * s->numbers + c, load_all(r.grad_C + i * numbers + c), s->numbers - c);
            }
    }
    if (to->initial)
        for (int64_t at = 0; at < k->heads; at++) give(k, r.R + at * r.size, k->first + at, to->initial);
}

/* Returns 0, or 1 where there was no memory. */
int ssd_backward(const Ssd *s, const float *initial, const Gradients *to) {
    const Backward w = {s, initial, to};
    return each_head(s->batch, s->groups * blocks_of(s), s->threads, backward_room(s), backward_task, &w);
}
